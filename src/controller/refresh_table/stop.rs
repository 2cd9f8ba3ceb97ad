//! A refresh that is stopped, or over.

use std::time::Duration;

use super::*;

#[test]
fn cancel_before_anything_else_ends_at_once() {
    let mut seen = seen(None);
    seen.refresh.spec.cancel = true;
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Cancelled, reasons::CANCELLED.into())
    );
}

#[test]
fn cancel_of_a_running_refresh_deletes_its_job_waits_until_it_is_gone_and_asks_the_history() {
    let mut seen = started(Some(UID), 5);
    seen.refresh.spec.cancel = true;
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
    seen.job = Some(JobSeen::Ours(JobState {
        uid: UID.into(),
        deleting: true,
        ..JobState::default()
    }));
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Running, "its pods may still run");
    seen.refresh.status = Some(status);
    assert!(matches!(decide(&seen), Action::Wait(_)));
    seen.job = Some(JobSeen::Absent);
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Cancelled, reasons::CANCELLED.into())
    );
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(
        ends(decide(&seen)).0,
        Phase::Succeeded,
        "the commit had landed"
    );
}

#[test]
fn a_job_that_a_lost_node_keeps_from_going_is_given_up_after_the_deadline() {
    let deleting = deleting_since(Some(61));
    let mut seen = started(Some(UID), 661);
    seen.refresh.spec.cancel = true;
    seen.job = deleting.clone();
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(ends(decide(&seen)).0, Phase::Cancelled);
    let mut seen = started(Some(UID), 661);
    seen.job = deleting;
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::DEADLINE_EXCEEDED.into())
    );
}

#[test]
fn nothing_is_said_of_the_end_while_workers_may_still_be_ending_though_the_deadline_is_over() {
    // It was made, or admitted, long after its start: its own deadline is to come.
    for cancel in [true, false] {
        let mut seen = started(Some(UID), 661);
        seen.refresh.spec.cancel = cancel;
        seen.job = job(None);
        assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
        // None: a pod of it was not told to end yet.
        for since in [Some(0), Some(60), None] {
            seen.saw_job(deleting_since(since));
            let (status, _) = written(decide(&seen));
            assert_eq!(status.phase, Phase::Running, "{since:?}");
            let mut waits = seen.clone();
            waits.refresh.status = Some(status);
            assert!(matches!(decide(&waits), Action::Wait(Pause::AtMost(_))));
        }
        seen.saw_job(Some(JobSeen::Absent));
        assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    }
}

#[test]
fn what_outlives_a_job_is_looked_for_where_no_other_job_follows_it() {
    let mut seen = started(Some(UID), 599);
    assert!(!is_last(&seen), "its next Job keeps what was finished");
    seen.refresh.spec.suspend = true;
    assert!(is_last(&seen));
    assert!(is_last(&started(Some(UID), 601)));
}

/// Its Job, whose last worker was to be gone `ago` seconds ago.
fn deleting_since(ago: Option<i64>) -> Option<JobSeen> {
    Some(JobSeen::Ours(JobState {
        uid: UID.into(),
        deleting: true,
        due: ago.map(|ago| at(NOW - ago).0),
        ..JobState::default()
    }))
}

#[test]
fn cancel_after_the_intent_looks_whether_the_job_exists() {
    let mut seen = started(None, 5);
    seen.refresh.spec.cancel = true;
    assert_eq!(decide(&seen), Action::Look(Look::Job));
}

#[test]
fn suspend_before_the_start_holds_it_and_is_no_loop() {
    let mut seen = seen(None);
    seen.refresh.spec.suspend = true;
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Suspended);
    assert_eq!(status.conditions[0].type_, condition::SUSPENDED);
    assert_eq!(step.unwrap().reason, reasons::SUSPENDED_BY_SPEC);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::Wait(Pause::ForChange));
}

#[test]
fn one_that_is_cancelled_while_it_is_held_is_not_said_to_have_been_resumed() {
    let suspended = |status: &MaterializedViewRefreshStatus| {
        let held = status.conditions.iter();
        let held = held.into_iter().find(|c| c.type_ == condition::SUSPENDED);
        let held = held.expect("it was held").clone();
        (held.status, held.reason)
    };
    let mut held = seen(None);
    held.refresh.spec.suspend = true;
    held.refresh.status = Some(written(decide(&held)).0);
    let mut resumed = held.clone();
    held.refresh.spec.cancel = true;
    let (status, _) = written(decide(&held));
    assert_eq!(
        suspended(&status),
        ("False".into(), reasons::CANCELLED.into())
    );
    resumed.refresh.spec.suspend = false;
    resumed.refresh.status = Some(written(decide(&resumed)).0);
    resumed.refresh.spec.cancel = true;
    let (status, _) = written(decide(&resumed));
    assert_eq!(
        suspended(&status),
        ("False".into(), reasons::RESUMED.into())
    );
}

#[test]
fn suspend_of_a_running_refresh_deletes_its_job_and_starts_its_clock_anew() {
    let mut seen = started(Some(UID), 5);
    seen.refresh.spec.suspend = true;
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
    seen.job = Some(JobSeen::Absent);
    seen.outcome = Some(OutcomeSeen::NotFound);
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Suspended);
    assert_eq!(status.start_time, None);
}

#[test]
fn a_suspended_refresh_whose_commit_landed_after_all_succeeded() {
    let mut seen = started(None, 5);
    seen.refresh.spec.suspend = true;
    let status = seen.refresh.status.as_mut().unwrap();
    status.phase = Phase::Suspended;
    status.start_time = None;
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
}

#[test]
fn a_refresh_that_is_held_or_was_is_cancelled_though_its_history_cannot_be_read() {
    for phase in [Phase::Suspended, Phase::Queued] {
        for unread in [Some(OutcomeSeen::Unavailable("away".into())), denied()] {
            let mut seen = started(None, 5);
            seen.refresh.spec.suspend = phase == Phase::Suspended;
            let status = seen.refresh.status.as_mut().unwrap();
            status.phase = phase;
            status.start_time = None;
            seen.outcome = unread;
            if let Action::Write(write) = decide(&seen) {
                assert_eq!(write.status.phase, phase, "it waits, or queues");
            }
            seen.refresh.spec.cancel = true;
            let (status, _) = written(decide(&seen));
            assert_eq!(status.phase, Phase::Cancelled);
            let message = status.message.unwrap();
            assert!(
                message.contains("without a look at the view's history"),
                "{message}"
            );
        }
    }
}

#[test]
fn a_resumed_refresh_queues_again() {
    let mut seen = seen(Some(Phase::Suspended));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Queued);
    assert_eq!(step.unwrap().reason, reasons::RESUMED);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
}

#[test]
fn a_resumed_refresh_whose_callers_credential_is_gone_fails_for_that_and_waits_for_no_history() {
    let mut seen = started(None, 5);
    let status = seen.refresh.status.as_mut().unwrap();
    status.phase = Phase::Queued;
    status.start_time = None;
    seen.outcome = denied();
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
    seen.turn = Some(Turn::Now);
    assert_eq!(decide(&seen), Action::Look(Look::World));
    seen.world = Some(World::Refused {
        reason: reasons::CREDENTIAL_NOT_FOUND.into(),
        message: "there is no Secret".into(),
    });
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::CREDENTIAL_NOT_FOUND.into())
    );
}

#[test]
fn cancel_goes_before_suspend() {
    let mut seen = seen(Some(Phase::Suspended));
    seen.refresh.spec.suspend = true;
    seen.refresh.spec.cancel = true;
    assert_eq!(ends(decide(&seen)).0, Phase::Cancelled);
}

#[test]
fn a_terminal_phase_is_final_whatever_is_seen() {
    for phase in [Phase::Succeeded, Phase::Failed, Phase::Cancelled] {
        let mut seen = seen(Some(phase));
        seen.refresh.spec.suspend = true;
        seen.refresh.spec.cancel = true;
        seen.outcome = Some(OutcomeSeen::Found(outcome()));
        seen.world = ready(None);
        seen.turn = Some(Turn::Now);
        assert_eq!(decide(&seen), Action::Wait(Pause::ForChange));
    }
}

#[test]
fn a_job_that_appears_after_the_end_is_deleted() {
    for phase in [Phase::Succeeded, Phase::Failed, Phase::Cancelled] {
        let mut seen = seen(Some(phase));
        seen.job = job(None);
        assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
    }
}

#[test]
fn the_job_of_a_success_that_was_seen_early_ends_by_itself() {
    // Also where the operator that made the Job died before it wrote its UID.
    for uid in [Some(UID), None] {
        let mut seen = started(uid, 5);
        let status = seen.refresh.status.as_mut().unwrap();
        status.phase = Phase::Succeeded;
        status.completion_time = Some(at(NOW));
        seen.job = job(None);
        assert_eq!(decide(&seen), Action::Wait(Pause::ForChange));
    }
}

#[test]
fn a_job_that_appears_after_another_ones_success_is_deleted() {
    let mut seen = started(Some("another"), 5);
    let status = seen.refresh.status.as_mut().unwrap();
    status.phase = Phase::Succeeded;
    status.completion_time = Some(at(NOW));
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
}

#[test]
fn a_finished_refresh_is_deleted_when_its_time_to_live_is_over() {
    let mut seen = seen(Some(Phase::Failed));
    seen.refresh.spec.ttl_seconds_after_finished = Some(15);
    assert_eq!(
        decide(&seen),
        Action::Wait(Pause::AtMost(Duration::from_secs(5)))
    );
    seen.refresh.spec.ttl_seconds_after_finished = Some(10);
    assert_eq!(decide(&seen), Action::DeleteRefresh);
}

#[test]
fn a_refresh_whose_deletion_somebodys_finalizer_holds_up_is_stopped_as_by_cancel() {
    let mut seen = started(Some(UID), 5);
    seen.refresh.metadata.deletion_timestamp = Some(at(NOW));
    seen.refresh.metadata.finalizers = Some(vec!["somebody.example/keeps".into()]);
    assert_eq!(decide(&seen), Action::Look(Look::Job));
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
    seen.job = Some(JobSeen::Absent);
    seen.outcome = Some(OutcomeSeen::NotFound);
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Cancelled);
    assert_eq!(
        status.message.as_deref(),
        Some("Cancelled by its deletion; the view is as it was")
    );
    // It stays for as long as that finalizer does, its time to live over or not.
    seen.refresh.status = Some(status);
    seen.refresh.spec.ttl_seconds_after_finished = Some(0);
    assert_eq!(decide(&seen), Action::Wait(Pause::ForChange));
    seen.refresh.status = started(Some(UID), 5).refresh.status;
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
}

#[test]
fn a_refresh_that_is_deleted_before_its_turn_never_gets_it() {
    let mut seen = seen(Some(Phase::Queued));
    seen.refresh.metadata.deletion_timestamp = Some(at(NOW));
    assert_eq!(ends(decide(&seen)).0, Phase::Cancelled);
}

#[test]
fn a_new_generation_is_observed_also_after_the_end() {
    let mut seen = seen(Some(Phase::Succeeded));
    seen.refresh.metadata.generation = Some(2);
    let (status, step) = written(decide(&seen));
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(status.phase, Phase::Succeeded);
    assert_eq!(step, None);
}

#[test]
fn a_callers_credential_is_deleted_once_its_refresh_is_over_and_not_before() {
    let mut running = started(Some(UID), 5);
    running.refresh.spec.forwarded_credential = true;
    running.job = job(None);
    running.progress = Some(ProgressSeen::Nothing);
    assert_ne!(decide(&running), Action::DeleteCredential);
    for phase in Phase::TERMINAL {
        let mut over = ended_since(phase, 10);
        assert_eq!(decide(&over), Action::DeleteCredential);
        over.credential = Some(CredentialSeen::Deleted);
        let (status, step) = written(decide(&over));
        assert_eq!((status.phase, step), (phase, None));
        // A later pass knows it from the status, and comes back to it: a
        // request that was repeated may bring another.
        over.refresh.status = Some(status);
        over.credential = None;
        assert_eq!(decide(&over), Action::Wait(at_most(290)));
    }
}

#[test]
fn a_callers_credential_that_is_not_there_may_be_on_its_way_and_is_not_said_to_be_gone() {
    // Five seconds after the end, and then each time twice as late.
    for (ago, pause) in [(0, 15), (5, 15), (15, 15), (40, 40), (200, 100), (299, 1)] {
        let mut over = ended_since(Phase::Failed, ago);
        over.credential = Some(CredentialSeen::Absent);
        assert_eq!(decide(&over), Action::Wait(at_most(pause)), "{ago} s");
        // The next pass looks again.
        over.credential = None;
        assert_eq!(decide(&over), Action::DeleteCredential, "{ago} s");
    }
    let mut over = ended_since(Phase::Failed, 300);
    over.credential = Some(CredentialSeen::Absent);
    let (status, _) = written(decide(&over));
    let gone = status.conditions.last().unwrap();
    assert_eq!(gone.type_, condition::CREDENTIAL_DELETED);
    assert_eq!(gone.status, "True");
    assert!(gone.message.starts_with("There is no Secret"), "{gone:?}");
    over.refresh.status = Some(status);
    assert_eq!(decide(&over), Action::Wait(Pause::ForChange));
}

#[test]
fn a_credential_that_comes_after_one_was_deleted_is_deleted_too() {
    let mut over = ended_since(Phase::Succeeded, 0);
    over.credential = Some(CredentialSeen::Deleted);
    let (status, _) = written(decide(&over));
    over.refresh.status = Some(status);
    assert_eq!(decide(&over), Action::Wait(at_most(300)));
    let end = over.now;
    let after = |seconds| end + SignedDuration::from_secs(seconds);
    for (now, is_sought) in [
        (after(299), false),
        (after(300), true),
        (after(3600), false),
    ] {
        over.now = now;
        over.credential = None;
        assert_eq!(
            decide(&over) == Action::DeleteCredential,
            is_sought,
            "{now}"
        );
    }
    over.now = after(300);
    over.credential = Some(CredentialSeen::Absent);
    assert_eq!(decide(&over), Action::Wait(Pause::ForChange));
}

#[test]
fn what_is_left_to_do_after_the_end_does_not_wait_for_a_credential() {
    let mut over = ended_since(Phase::Cancelled, 5);
    over.credential = Some(CredentialSeen::Absent);
    over.job = job(None);
    assert_eq!(decide(&over), Action::DeleteJob { uid: UID.into() });
    over.job = None;
    over.refresh.spec.ttl_seconds_after_finished = Some(12);
    assert_eq!(decide(&over), Action::Wait(at_most(7)));
}

/// One whose caller's credential was forwarded, and that ended `ago` seconds ago.
fn ended_since(phase: Phase, ago: i64) -> Observed {
    let mut over = seen(Some(phase));
    over.refresh.spec.forwarded_credential = true;
    over.refresh.status.as_mut().unwrap().completion_time = Some(at(NOW - ago));
    over
}

fn at_most(seconds: u64) -> Pause {
    Pause::AtMost(Duration::from_secs(seconds))
}

#[test]
fn a_time_to_live_that_is_over_does_not_wait_for_the_callers_credential() {
    let mut over = seen(Some(Phase::Failed));
    over.refresh.spec.forwarded_credential = true;
    over.refresh.spec.ttl_seconds_after_finished = Some(5);
    assert_eq!(decide(&over), Action::DeleteRefresh);
}
