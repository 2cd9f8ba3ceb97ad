//! The table of situations: each test is one row, what is known and what
//! follows from it.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::refresh::*;
use crate::engine::outcome::{Mode, Outcome};
use crate::resources::reasons::{self, condition};
use crate::resources::{JobRef, MaterializedViewRefresh, MaterializedViewRefreshStatus, Phase};

const NOW: i64 = 1_000_000;
const UID: &str = "job-uid";

fn applied(spec: serde_json::Value) -> MaterializedViewRefresh {
    let mut refresh = MaterializedViewRefresh::new("r", serde_json::from_value(spec).unwrap());
    refresh.metadata.namespace = Some("ns".into());
    refresh.metadata.uid = Some("refresh-uid".into());
    refresh.metadata.generation = Some(1);
    refresh
}

fn seen(phase: Option<Phase>) -> Observed {
    let mut refresh = applied(serde_json::json!({"view": ["v"]}));
    refresh.status = phase.map(|phase| MaterializedViewRefreshStatus {
        phase,
        observed_generation: Some(1),
        view_uri: Some("mem://v".into()),
        completion_time: phase.is_terminal().then(|| at(NOW - 10)),
        ..Default::default()
    });
    Observed {
        now: Timestamp::from_second(NOW).unwrap(),
        refresh,
        job_name: "r-01234567".into(),
        deadline: SignedDuration::from_secs(600),
        world: None,
        turn: None,
        job: None,
        outcome: None,
        refused: None,
        progress: None,
    }
}

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

/// Running since `ago` seconds; `uid` if the Job's UID is in the status.
fn started(uid: Option<&str>, ago: i64) -> Observed {
    let mut seen = seen(Some(Phase::Running));
    let status = seen.refresh.status.as_mut().unwrap();
    status.start_time = Some(at(NOW - ago));
    status.message = Some("Running in Job r-01234567".into());
    status.job = Some(JobRef {
        name: "r-01234567".into(),
        namespace: "ns".into(),
        cluster: "default".into(),
        uid: uid.map(String::from),
    });
    seen
}

fn ready(current: Option<(u64, u64)>) -> Option<World> {
    Some(World::Ready {
        uri: "mem://v".into(),
        current,
    })
}

fn outcome() -> Outcome {
    Outcome {
        mode: Mode::Incremental,
        source_version: 7,
        view_version: 3,
        rows_written: 20,
        bytes_written: 400,
        units_total: 4,
        units_kept: 3,
    }
}

fn job(end: Option<JobEnd>) -> Option<JobSeen> {
    Some(JobSeen::Ours(JobState {
        uid: UID.into(),
        end,
        ..JobState::default()
    }))
}

fn failed_job() -> Option<JobSeen> {
    job(Some(JobEnd::Failed {
        reason: "SourceNotFound".into(),
        message: "no source".into(),
    }))
}

#[track_caller]
fn written(action: Action) -> (MaterializedViewRefreshStatus, Option<Step>) {
    match action {
        Action::Write(write) => (write.status, write.step),
        other => panic!("no write, but {other:?}"),
    }
}

/// The phase and the reason of the last condition that an action writes.
#[track_caller]
fn ends(action: Action) -> (Phase, String) {
    let (status, step) = written(action);
    assert!(status.phase.is_terminal(), "{status:?}");
    assert!(status.completion_time.is_some());
    assert!(status.message.is_some());
    assert!(step.is_some(), "an end is told as an Event");
    let condition = status.conditions.last().expect("a condition").clone();
    assert_eq!(condition.status, "True");
    (status.phase, condition.reason)
}

#[test]
fn a_new_refresh_is_looked_at_before_anything_is_said() {
    assert_eq!(decide(&seen(None)), Action::Look(Look::World));
}

#[test]
fn a_new_refresh_that_the_world_rules_out_fails_with_the_worlds_sentence() {
    let mut seen = seen(None);
    seen.world = Some(World::Refused {
        reason: "ViewNotFound".into(),
        message: "the catalog has no table 'v'".into(),
    });
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(
        status.message.as_deref(),
        Some("the catalog has no table 'v'")
    );
    assert_eq!(status.conditions[0].type_, condition::FAILED);
    assert_eq!(status.conditions[0].reason, "ViewNotFound");
}

#[test]
fn a_catalog_that_does_not_answer_leaves_the_refresh_queued_and_says_so() {
    let mut seen = seen(None);
    seen.world = Some(World::Unavailable("the catalog cannot be reached".into()));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Queued);
    assert_eq!(
        status.message.as_deref(),
        Some("the catalog cannot be reached")
    );
    assert_eq!(step, None);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::Wait(Pause::BackOff));
}

#[test]
fn a_current_view_needs_no_job() {
    let mut seen = seen(None);
    seen.world = ready(Some((7, 3)));
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Succeeded);
    assert_eq!(status.mode, Some(crate::resources::Mode::NoOp));
    assert_eq!(
        (status.source_version, status.view_version),
        (Some(7), Some(3))
    );
    assert_eq!(status.conditions[0].reason, reasons::UP_TO_DATE);
    assert_eq!(status.job, None);
}

#[test]
fn a_full_refresh_of_a_current_view_runs_all_the_same() {
    let mut seen = seen(None);
    seen.refresh.spec.full = true;
    seen.world = ready(Some((7, 3)));
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
}

#[test]
fn a_stale_view_waits_for_its_turn_and_says_behind_what() {
    let mut seen = seen(None);
    seen.world = ready(None);
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
    seen.turn = Some(Turn::Behind("Number 1".into()));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Queued);
    assert_eq!(status.view_uri.as_deref(), Some("mem://v"));
    assert_eq!(step.unwrap().reason, reasons::QUEUED);
    seen.refresh.status = Some(status);
    assert!(matches!(decide(&seen), Action::Wait(_)));
}

#[test]
fn a_new_place_in_the_queue_is_no_event() {
    let mut seen = seen(Some(Phase::Queued));
    seen.turn = Some(Turn::Behind("Number 1".into()));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.message.as_deref(), Some("Number 1"));
    assert_eq!(step, None);
}

#[test]
fn the_one_whose_turn_has_come_looks_at_the_world_again() {
    let mut seen = seen(Some(Phase::Queued));
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
    seen.turn = Some(Turn::Now);
    assert_eq!(decide(&seen), Action::Look(Look::World));
    // What ran before it brought the view to where this one would.
    seen.world = ready(Some((7, 3)));
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Succeeded, reasons::UP_TO_DATE.into())
    );
}

#[test]
fn the_intent_is_written_before_the_job_is_created() {
    let mut seen = seen(None);
    seen.world = ready(None);
    seen.turn = Some(Turn::Now);
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Running);
    let job = status.job.clone().unwrap();
    assert_eq!((job.name.as_str(), job.uid), ("r-01234567", None));
    assert!(status.start_time.is_some());
    assert_eq!(step.unwrap().reason, reasons::LAUNCHING);
    seen.refresh.status = Some(status);
    // And the view's history is asked before the Job is created.
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(decide(&seen), Action::CreateJob);
}

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
    let (status, _) = written(decide(&seen));
    assert_eq!(status.message.as_deref(), Some("exceeded quota"));
    let mut seen = started(None, 601);
    seen.outcome = Some(OutcomeSeen::NotFound);
    seen.refused = refused;
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
    assert_eq!(decide(&seen), Action::Wait(Pause::AtMost(LOOK_AGAIN)));
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
    assert_eq!(status.message.as_deref(), Some("away"));
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
fn a_resumed_refresh_queues_again() {
    let mut seen = seen(Some(Phase::Suspended));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Queued);
    assert_eq!(step.unwrap().reason, reasons::RESUMED);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
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
    let mut seen = started(Some(UID), 5);
    let status = seen.refresh.status.as_mut().unwrap();
    status.phase = Phase::Succeeded;
    status.completion_time = Some(at(NOW));
    seen.job = job(None);
    assert_eq!(decide(&seen), Action::Wait(Pause::ForChange));
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
fn a_refresh_that_is_being_deleted_is_left_alone() {
    let mut seen = started(None, 5);
    seen.refresh.metadata.deletion_timestamp = Some(at(NOW));
    assert_eq!(decide(&seen), Action::Wait(Pause::ForChange));
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
