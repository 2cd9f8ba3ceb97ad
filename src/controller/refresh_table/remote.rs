//! A refresh whose Job is in another cluster, which may be out of reach.

use std::time::Duration;

use super::*;

/// Held by the finalizer.
fn held(mut seen: Observed) -> Observed {
    seen.refresh.metadata.finalizers = Some(vec![names::REMOTE_FINALIZER.into()]);
    seen.remote = true;
    seen.job_namespace = "there".into();
    seen
}

fn deleted(mut seen: Observed) -> Observed {
    seen.refresh.metadata.deletion_timestamp = Some(at(NOW));
    seen
}

fn away() -> Option<JobSeen> {
    Some(JobSeen::Away("cluster far cannot be reached".into()))
}

fn lost() -> Option<JobSeen> {
    Some(JobSeen::Lost("RefreshCluster 'far' is gone".into()))
}

fn deleting() -> Option<JobSeen> {
    Some(JobSeen::Ours(JobState {
        uid: UID.into(),
        deleting: true,
        ..JobState::default()
    }))
}

/// What remains when a status that only says why it waits is written.
#[track_caller]
fn says_and_waits(mut seen: Observed) -> String {
    let phase = seen.refresh.status.as_ref().unwrap().phase;
    let (status, step) = written(decide(&seen));
    assert_eq!((status.phase, step), (phase, None));
    let message = status.message.clone().unwrap();
    seen.refresh.status = Some(status);
    assert!(matches!(decide(&seen), Action::Wait(Pause::AtMost(_))));
    message
}

#[track_caller]
fn released_with_a_word(action: Action) {
    let Action::Release(Some(step)) = action else {
        panic!("no release that is told, but {action:?}");
    };
    assert_eq!(step.reason, reasons::REMOTE_JOB_LEFT);
    assert!(step.warning && step.message.contains("in namespace there"));
}

#[test]
fn the_finalizer_is_there_before_the_intent() {
    let mut seen = seen(None);
    seen.world = ready(None);
    seen.turn = Some(Turn::Now);
    seen.remote = true;
    assert_eq!(decide(&seen), Action::Hold);
    let (status, step) = written(decide(&held(seen)));
    assert_eq!(status.job.unwrap().namespace, "there");
    assert_eq!(step.unwrap().reason, reasons::LAUNCHING);
}

#[test]
fn one_that_was_held_for_a_cluster_that_is_this_one_now_is_released_first() {
    let mut seen = held(seen(Some(Phase::Queued)));
    seen.remote = false;
    seen.world = ready(None);
    seen.turn = Some(Turn::Now);
    assert_eq!(decide(&seen), Action::Release(None));
}

#[test]
fn a_cluster_that_does_not_answer_is_waited_for_and_the_history_is_asked_meanwhile() {
    let mut seen = held(started(Some(UID), 5));
    assert_eq!(decide(&seen), Action::Look(Look::Job));
    seen.saw_job(away());
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::NotFound);
    let why = says_and_waits(seen.clone());
    assert!(why.contains("cluster far cannot be reached"), "{why}");
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
}

#[test]
fn a_create_that_was_not_answered_is_no_reason_to_give_up() {
    let mut seen = held(started(None, 5));
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(decide(&seen), Action::CreateJob);
    seen.saw_job(away());
    seen.outcome = Some(OutcomeSeen::NotFound);
    says_and_waits(seen);
}

#[test]
fn a_cluster_that_stays_away_is_given_up_after_the_deadline_and_its_margin() {
    for (ago, over) in [(599, false), (659, false), (661, true)] {
        let mut seen = held(started(Some(UID), ago));
        seen.job = away();
        seen.outcome = Some(OutcomeSeen::NotFound);
        if !over {
            says_and_waits(seen);
            continue;
        }
        assert_eq!(
            ends(decide(&seen)),
            (Phase::Failed, reasons::CLUSTER_LOST.into())
        );
        seen.outcome = Some(OutcomeSeen::Found(outcome()));
        assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
        seen.outcome = Some(OutcomeSeen::Unavailable("the catalog too".into()));
        assert_eq!(
            ends(decide(&seen)),
            (Phase::Failed, reasons::CLUSTER_LOST.into())
        );
    }
}

#[test]
fn the_deadline_is_the_one_of_the_launch_whatever_the_cluster_says_since() {
    let mut seen = held(started(Some(UID), 100));
    seen.refresh.status.as_mut().unwrap().deadline_time = Some(at(NOW - 61));
    seen.job = away();
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::CLUSTER_LOST.into())
    );
    seen.refresh.status.as_mut().unwrap().deadline_time = Some(at(NOW + 10_000));
    seen.refresh.status.as_mut().unwrap().start_time = Some(at(NOW - 5_000));
    says_and_waits(seen);
}

#[test]
fn cancel_waits_for_a_cluster_that_is_away_since_its_job_may_still_commit() {
    let mut seen = held(started(Some(UID), 5));
    seen.refresh.spec.cancel = true;
    seen.job = away();
    seen.outcome = Some(OutcomeSeen::NotFound);
    says_and_waits(seen.clone());
    seen.refresh.status.as_mut().unwrap().start_time = Some(at(NOW - 661));
    assert_eq!(ends(decide(&seen)).0, Phase::Cancelled);
}

#[test]
fn cancel_of_one_whose_cluster_is_gone_for_good_frees_its_view_at_once_and_is_honest() {
    let mut seen = held(started(Some(UID), 5));
    seen.refresh.spec.cancel = true;
    seen.job = lost();
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::NotFound);
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Cancelled);
    let message = status.message.unwrap();
    assert!(message.contains("should that still commit"), "{message}");
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
}

#[test]
fn one_whose_cluster_is_gone_for_good_counts_its_commit_until_the_deadline() {
    let mut seen = held(started(Some(UID), 5));
    seen.job = lost();
    seen.outcome = Some(OutcomeSeen::NotFound);
    let why = says_and_waits(seen.clone());
    assert!(
        why.contains("cancel the refresh"),
        "it says what to do: {why}"
    );
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
    let mut seen = held(started(Some(UID), 661));
    seen.job = lost();
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::CLUSTER_LOST.into())
    );
}

#[test]
fn suspend_of_one_that_is_out_of_sight_is_not_said_before_its_job_is_gone() {
    let mut seen = held(started(Some(UID), 5));
    seen.refresh.spec.suspend = true;
    seen.job = away();
    seen.outcome = Some(OutcomeSeen::NotFound);
    says_and_waits(seen.clone());
    seen.job = Some(JobSeen::Absent);
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(written(decide(&seen)).0.phase, Phase::Suspended);
}

#[test]
fn delete_takes_the_job_along_before_the_finalizer_goes() {
    let mut seen = deleted(held(started(Some(UID), 5)));
    assert_eq!(decide(&seen), Action::Look(Look::Job));
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
    for gone in [deleting(), Some(JobSeen::Absent), Some(JobSeen::Foreign)] {
        seen.job = gone;
        assert_eq!(decide(&seen), Action::Release(None));
    }
}

#[test]
fn delete_of_one_that_somebody_elses_finalizer_keeps_is_not_told_before_its_workers_are_gone() {
    let mut seen = deleted(held(started(Some(UID), 5)));
    let finalizers = seen.refresh.metadata.finalizers.as_mut().unwrap();
    finalizers.push("somebody.example/keeps".into());
    assert_eq!(decide(&seen), Action::Look(Look::Job));
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
    seen.job = deleting();
    says_and_waits(seen.clone());
    seen.job = Some(JobSeen::Absent);
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::NotFound);
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Cancelled);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::Release(None));
    // It was the last but one.
    let mut seen = deleted(held(started(Some(UID), 5)));
    seen.job = deleting();
    assert_eq!(decide(&seen), Action::Release(None));
}

#[test]
fn a_job_that_is_found_at_another_address_of_its_cluster_is_written_before_it_can_go() {
    let moved = |mut seen: Observed| {
        let job = seen.refresh.status.as_mut().unwrap().job.as_mut();
        job.unwrap().server = Some("before".into());
        seen.job_server = Some("now".into());
        seen
    };
    let mut running = moved(held(started(Some(UID), 5)));
    let mut suspended = running.clone();
    suspended.refresh.spec.suspend = true;
    let mut ended = running.clone();
    ended.refresh.status.as_mut().unwrap().phase = Phase::Failed;
    let gone = deleted(running.clone());
    running.progress = Some(ProgressSeen::Nothing);
    for (mut seen, found, then) in [
        (running, job(None), Action::Wait(Pause::ForProgress)),
        (
            suspended.clone(),
            job(None),
            Action::DeleteJob { uid: UID.into() },
        ),
        (
            suspended,
            deleting(),
            Action::Wait(Pause::AtMost(Duration::from_secs(5))),
        ),
        (ended, job(None), Action::DeleteJob { uid: UID.into() }),
        (gone, job(None), Action::DeleteJob { uid: UID.into() }),
    ] {
        seen.job = found;
        let (status, step) = written(decide(&seen));
        assert_eq!(status.job.as_ref().unwrap().server.as_deref(), Some("now"));
        assert_eq!(status.job.as_ref().unwrap().uid.as_deref(), Some(UID));
        assert_eq!(step, None);
        seen.refresh.status = Some(status);
        if let Action::Write(write) = decide(&seen) {
            // Why it waits.
            seen.refresh.status = Some(write.status);
        }
        assert_eq!(decide(&seen), then);
    }
}

#[test]
fn delete_of_one_that_never_had_a_job_waits_for_no_cluster() {
    for phase in [Phase::Queued, Phase::Suspended] {
        let seen = deleted(held(seen(Some(phase))));
        assert_eq!(decide(&seen), Action::Release(None));
    }
    assert_eq!(decide(&deleted(held(seen(None)))), Action::Release(None));
}

#[test]
fn delete_waits_for_a_cluster_that_is_away_no_longer_than_its_job_can_run() {
    let mut seen = deleted(held(started(Some(UID), 5)));
    seen.job = away();
    says_and_waits(seen);
    let mut seen = deleted(held(started(Some(UID), 661)));
    seen.job = away();
    released_with_a_word(decide(&seen));
}

#[test]
fn delete_of_one_whose_cluster_is_gone_for_good_waits_for_nothing() {
    let mut seen = deleted(held(started(Some(UID), 5)));
    seen.job = lost();
    released_with_a_word(decide(&seen));
}

#[test]
fn the_finalizer_goes_once_the_refresh_is_over_and_its_job_works_no_more() {
    for phase in [Phase::Succeeded, Phase::Failed, Phase::Cancelled] {
        let mut seen = held(seen(Some(phase)));
        assert_eq!(decide(&seen), Action::Look(Look::Job));
        for gone in [
            Some(JobSeen::Absent),
            Some(JobSeen::Foreign),
            deleting(),
            failed_job(),
            job(Some(JobEnd::Succeeded(None))),
        ] {
            seen.job = gone;
            assert_eq!(decide(&seen), Action::Release(None));
        }
        seen.job = job(None);
        assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
        seen.job = lost();
        released_with_a_word(decide(&seen));
        seen.job = away();
        seen.refresh.status.as_mut().unwrap().start_time = Some(at(NOW - 20));
        assert!(matches!(decide(&seen), Action::Wait(Pause::AtMost(_))));
    }
}

#[test]
fn a_refresh_whose_clock_does_not_run_waits_for_no_cluster_that_is_away() {
    // It was held, its Job gone, and cancelled; or it never had one.
    let mut seen = held(seen(Some(Phase::Cancelled)));
    seen.job = away();
    assert_eq!(decide(&seen), Action::Release(None));
    let mut seen = deleted(seen);
    assert_eq!(decide(&seen), Action::Release(None));
    seen.refresh.status.as_mut().unwrap().start_time = Some(at(NOW - 20));
    assert!(!matches!(decide(&seen), Action::Release(_)));
}

#[test]
fn the_job_of_a_success_that_was_seen_early_ends_by_itself_there_too() {
    let mut seen = held(started(Some(UID), 5));
    let status = seen.refresh.status.as_mut().unwrap();
    status.phase = Phase::Succeeded;
    status.completion_time = Some(at(NOW));
    seen.job = job(None);
    assert!(matches!(decide(&seen), Action::Wait(Pause::AtMost(_))));
    // Unless it does not.
    seen.refresh.status.as_mut().unwrap().start_time = Some(at(NOW - 661));
    assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
}

#[test]
fn a_time_to_live_that_is_over_counts_once_the_finalizer_is_gone() {
    let mut seen = held(seen(Some(Phase::Failed)));
    seen.refresh.spec.ttl_seconds_after_finished = Some(1);
    seen.job = Some(JobSeen::Absent);
    assert_eq!(decide(&seen), Action::Release(None));
    seen.refresh.metadata.finalizers = Some(vec!["other".into()]);
    assert_eq!(decide(&seen), Action::DeleteRefresh);
    seen.refresh.spec.ttl_seconds_after_finished = Some(15);
    assert_eq!(
        decide(&seen),
        Action::Wait(Pause::AtMost(Duration::from_secs(5)))
    );
}
