//! A refresh whose Job may exist.

use super::*;

#[test]
fn the_operator_died_after_the_intent_and_the_commit_is_there() {
    let mut seen = started(None, 5);
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Succeeded, reasons::REFRESHED.into())
    );
}

#[test]
fn the_operator_died_after_the_intent_and_the_catalog_is_away_so_nothing_is_launched() {
    let mut seen = started(None, 5);
    seen.outcome = Some(OutcomeSeen::Unavailable("away".into()));
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Running);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::Wait(Pause::BackOff));
}

#[test]
fn the_operator_died_after_the_create_and_adopts_the_job() {
    let mut seen = started(None, 5);
    seen.outcome = Some(OutcomeSeen::NotFound);
    seen.job = job(None);
    let (status, step) = written(decide(&seen));
    assert_eq!(status.job.unwrap().uid.as_deref(), Some(UID));
    assert_eq!(step.unwrap().reason, reasons::JOB_CREATED);
}

#[test]
fn the_jobs_name_is_taken_by_someone_else() {
    let mut seen = started(None, 5);
    seen.outcome = Some(OutcomeSeen::NotFound);
    seen.job = Some(JobSeen::Foreign);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::JOB_NAME_TAKEN.into())
    );
}

#[test]
fn a_job_that_the_api_server_refuses_for_good_fails_the_refresh_and_frees_its_place() {
    let mut seen = started(None, 5);
    seen.outcome = Some(OutcomeSeen::NotFound);
    seen.refused = Some(LaunchRefused {
        reason: reasons::JOB_REJECTED.into(),
        permanent: true,
        message: "spec.template is wrong".into(),
    });
    // One that is there already would be refused in the same words.
    assert_eq!(decide(&seen), Action::Look(Look::Job));
    let mut made = seen.clone();
    made.saw_job(job(None));
    made.outcome = Some(OutcomeSeen::NotFound);
    let (status, _) = written(decide(&made));
    assert_eq!(status.job.unwrap().uid.as_deref(), Some(UID));
    seen.job = Some(JobSeen::Absent);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::JOB_REJECTED.into())
    );
}

#[test]
fn a_job_that_a_quota_refuses_is_tried_again_until_the_deadline() {
    let refused = Some(LaunchRefused {
        reason: reasons::JOB_REJECTED.into(),
        permanent: false,
        message: "exceeded quota".into(),
    });
    let mut seen = started(None, 5);
    seen.outcome = Some(OutcomeSeen::NotFound);
    seen.refused = refused.clone();
    seen.job = Some(JobSeen::Absent);
    let (status, _) = written(decide(&seen));
    assert_eq!(status.message.as_deref(), Some("exceeded quota"));
    let mut seen = started(None, 601);
    seen.outcome = Some(OutcomeSeen::NotFound);
    seen.refused = refused;
    seen.job = Some(JobSeen::Absent);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::DEADLINE_EXCEEDED.into())
    );
}

#[test]
fn a_running_job_is_looked_at_and_its_progress_written() {
    let mut seen = started(Some(UID), 5);
    assert_eq!(decide(&seen), Action::Look(Look::Job));
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::Look(Look::Progress));
    let progress = crate::resources::Progress {
        units_done: 3,
        units_total: 10,
        summary: "3/10".into(),
        ..Default::default()
    };
    seen.progress = Some(ProgressSeen::At(progress.clone()));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.progress, Some(progress));
    assert_eq!(step, None);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::Wait(Pause::ForProgress));
}

#[test]
fn progress_goes_back_only_where_the_work_is_planned_anew() {
    let progress = |units_done, units_total| crate::resources::Progress {
        units_done,
        units_total,
        ..Default::default()
    };
    for (now, written_then) in [
        (progress(3, 8), None),
        (progress(6, 8), Some(progress(6, 8))),
        (progress(0, 9), Some(progress(0, 9))),
    ] {
        let mut seen = started(Some(UID), 10);
        seen.refresh.status.as_mut().unwrap().progress = Some(progress(5, 8));
        seen.job = job(None);
        seen.progress = Some(ProgressSeen::At(now));
        match (decide(&seen), written_then) {
            (Action::Wait(Pause::ForProgress), None) => {}
            (action, then) => assert_eq!(written(action).0.progress, then),
        }
    }
}

#[test]
fn a_job_of_whose_workers_nothing_is_heard_is_looked_for_in_the_history() {
    let mut seen = started(Some(UID), 5);
    seen.job = job(None);
    seen.progress = Some(ProgressSeen::Silent);
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    for nothing in [
        OutcomeSeen::NotFound,
        OutcomeSeen::Unavailable("away".into()),
    ] {
        seen.outcome = Some(nothing);
        assert_eq!(decide(&seen), Action::Wait(Pause::ForProgress));
    }
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
}

#[test]
fn why_a_job_does_not_move_is_its_message() {
    let mut seen = started(Some(UID), 5);
    seen.job = Some(JobSeen::Ours(JobState {
        uid: UID.into(),
        stuck: Some("no node fits".into()),
        ..JobState::default()
    }));
    seen.progress = Some(ProgressSeen::Nothing);
    let (status, _) = written(decide(&seen));
    assert_eq!(status.message.as_deref(), Some("no node fits"));
}

#[test]
fn why_a_job_has_no_pod_stays_its_message_until_that_is_asked_again() {
    let mut seen = started(Some(UID), 5);
    let why = "The worker pod is not allowed now: exceeded quota";
    seen.refresh.status.as_mut().unwrap().message = Some(why.into());
    seen.job = job(None);
    seen.outcome = Some(OutcomeSeen::NotFound);
    for progress in [ProgressSeen::Nothing, ProgressSeen::Silent] {
        seen.progress = Some(progress);
        seen.unexplained = true;
        assert_eq!(decide(&seen), Action::Wait(Pause::ForProgress));
        // Asked, and nothing said; or its pod is there.
        seen.unexplained = false;
        let message = written(decide(&seen)).0.message.unwrap();
        assert!(message.starts_with("Running in Job"), "{message}");
    }
}

#[test]
fn a_job_that_ended_well_succeeds_by_its_commit_and_not_by_its_word() {
    let mut said = outcome();
    said.rows_written = 999;
    let mut seen = started(Some(UID), 5);
    seen.job = job(Some(JobEnd::Succeeded(Some(said))));
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Succeeded);
    assert_eq!(status.progress.unwrap().rows_written, 20);
    assert_eq!(status.conditions[0].type_, condition::COMPLETE);
}

#[test]
fn a_workers_word_stands_in_where_the_history_is_gone_or_out_of_reach() {
    for history in [
        OutcomeSeen::NotFound,
        OutcomeSeen::Unavailable("away".into()),
    ] {
        let mut seen = started(Some(UID), 5);
        seen.job = job(Some(JobEnd::Succeeded(Some(outcome()))));
        seen.outcome = Some(history);
        assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
    }
}

#[test]
fn a_job_that_ended_well_without_a_commit_or_a_word_failed() {
    let mut seen = started(Some(UID), 5);
    seen.job = job(Some(JobEnd::Succeeded(None)));
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::OUTCOME_MISSING.into())
    );
}

#[test]
fn a_failed_job_fails_with_the_workers_reason() {
    let mut seen = started(Some(UID), 5);
    seen.job = failed_job();
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, "SourceNotFound".into())
    );
}

#[test]
fn a_failed_job_whose_commit_landed_succeeded() {
    let mut seen = started(Some(UID), 5);
    seen.job = failed_job();
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
}

#[test]
fn a_failed_job_is_not_called_failed_while_the_history_is_out_of_reach() {
    let mut seen = started(Some(UID), 5);
    seen.job = failed_job();
    seen.outcome = Some(OutcomeSeen::Unavailable("away".into()));
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Running);
    assert_eq!(
        status.message.as_deref(),
        Some("Waiting for the view's history: away")
    );
}

#[test]
fn a_failed_job_is_called_failed_where_the_history_is_closed_for_good() {
    // Its caller's token has expired, and nothing else opens the history.
    let mut seen = started(Some(UID), 5);
    seen.job = failed_job();
    seen.outcome = denied();
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, "SourceNotFound".into()),
        "in the words of its workers"
    );
}

#[test]
fn a_job_that_is_gone_is_not_made_again_for_a_caller_whom_the_catalog_denies() {
    for uid in [Some(UID), None] {
        let mut seen = started(uid, 5);
        seen.job = Some(JobSeen::Absent);
        seen.outcome = denied();
        let failed = (Phase::Failed, CATALOG_DENIED.into());
        assert_eq!(ends(decide(&seen)), failed);
        seen.refresh.spec.cancel = true;
        assert_eq!(ends(decide(&seen)).0, Phase::Cancelled);
    }
}

#[test]
fn a_caller_whom_the_catalog_denies_may_have_a_job_that_an_operator_made_before_it_died() {
    let mut seen = started(None, 5);
    seen.outcome = denied();
    assert_eq!(decide(&seen), Action::Look(Look::Job));
    seen.saw_job(job(None));
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Running, "it may have been let in");
}

#[test]
fn a_job_that_ended_well_and_whose_work_nobody_can_read_is_no_success() {
    let mut seen = started(Some(UID), 5);
    seen.job = job(Some(JobEnd::Succeeded(None)));
    seen.outcome = denied();
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::OUTCOME_MISSING.into())
    );
    seen.job = job(Some(JobEnd::Succeeded(Some(outcome()))));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
}

#[test]
fn a_finished_job_that_was_garbage_collected_is_resolved_by_its_commit() {
    let mut seen = started(Some(UID), 5);
    seen.job = Some(JobSeen::Absent);
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::Found(outcome()));
    assert_eq!(ends(decide(&seen)).0, Phase::Succeeded);
}

#[test]
fn a_job_that_vanished_without_a_commit_goes_back_to_the_intent_first() {
    let mut seen = started(Some(UID), 5);
    seen.job = Some(JobSeen::Absent);
    seen.outcome = Some(OutcomeSeen::NotFound);
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Running);
    assert_eq!(status.job.as_ref().unwrap().uid, None);
    assert_eq!(status.start_time, Some(at(NOW - 5)), "its deadline stays");
    assert_eq!(step.unwrap().reason, reasons::JOB_VANISHED);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::CreateJob);
}

#[test]
fn a_job_that_vanished_after_the_deadline_is_not_launched_again() {
    let mut seen = started(Some(UID), 601);
    seen.job = Some(JobSeen::Absent);
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Failed, reasons::DEADLINE_EXCEEDED.into())
    );
}

#[test]
fn a_job_that_outlives_its_deadline_is_deleted_by_the_controller() {
    let mut seen = started(Some(UID), 661);
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::DeleteJob { uid: UID.into() });
}

#[test]
fn a_catalog_that_never_comes_back_does_not_keep_a_refresh_for_ever() {
    let mut seen = started(Some(UID), 661);
    seen.job = failed_job();
    seen.outcome = Some(OutcomeSeen::Unavailable("away".into()));
    assert_eq!(ends(decide(&seen)).0, Phase::Failed);
}
