//! How a refresh reads as a job. Pure.

use kube::ResourceExt;
use serde_json::{Value, json};

use crate::engine::error::EngineError;
use crate::resources::reasons::{self, condition};
use crate::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshStatus as Status, Mode, Phase,
};

/// The `job_type` of a refresh.
pub const JOB_TYPE: &str = "refresh_materialized_view";

/// Where a job is in its life, in the words of LanceDB's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Waiting, running or held.
    InProgress,
    /// The view is right.
    Done,
    /// It is not.
    Failed,
    /// Ended because someone asked for it.
    Cancelled,
    /// Ended by its deadline.
    TimedOut,
}

impl JobState {
    const ALL: [JobState; 5] = [
        JobState::InProgress,
        JobState::Done,
        JobState::Failed,
        JobState::Cancelled,
        JobState::TimedOut,
    ];

    /// On the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::InProgress => "IN_PROGRESS",
            JobState::Done => "DONE",
            JobState::Failed => "FAILED",
            JobState::Cancelled => "CANCELLED",
            JobState::TimedOut => "TIMED_OUT",
        }
    }

    /// From the wire, in either case.
    pub fn parse(text: &str) -> Option<JobState> {
        JobState::ALL
            .into_iter()
            .find(|state| state.as_str().eq_ignore_ascii_case(text))
    }

    /// A field selector of the refreshes that can be in this state.
    pub fn phases(self) -> String {
        let one = match self {
            JobState::InProgress => return Phase::none_of(&Phase::TERMINAL),
            JobState::Done => Phase::Succeeded,
            JobState::Failed | JobState::TimedOut => Phase::Failed,
            JobState::Cancelled => Phase::Cancelled,
        };
        format!("status.phase={one:?}")
    }
}

/// The state of a refresh as its status says it.
pub fn state(status: &Status) -> JobState {
    match status.phase {
        Phase::Queued | Phase::Running | Phase::Suspended => JobState::InProgress,
        Phase::Succeeded => JobState::Done,
        Phase::Failed if reason(status) == Some(reasons::DEADLINE_EXCEEDED) => JobState::TimedOut,
        Phase::Failed => JobState::Failed,
        Phase::Cancelled => JobState::Cancelled,
    }
}

/// The answer to describe.
pub fn description(refresh: &MaterializedViewRefresh) -> Value {
    let status = refresh.status.clone().unwrap_or_default();
    let spec = &refresh.spec;
    let mut job = json!({
        "job_id": refresh.name_any(),
        "job_type": JOB_TYPE,
        "job_state": state(&status).as_str(),
        "creation_ms": created(refresh),
        "spec": {
            "id": spec.view,
            "cluster": spec.cluster,
            "src_version": spec.src_version,
            "full": spec.full,
        },
    });
    match status.phase {
        Phase::Succeeded => {
            job["result"] = result(
                status.mode.unwrap_or(Mode::NoOp),
                status.progress.map_or(0, |progress| progress.rows_written),
                status.source_version.unwrap_or(0),
                status.view_version.unwrap_or(0),
            );
        }
        Phase::Failed | Phase::Cancelled => {
            job["failure"] = json!({
                "phase": stage(&status),
                "message": status.message.clone().unwrap_or_default(),
                "retryable": reason(&status).is_some_and(retryable),
            });
        }
        Phase::Queued | Phase::Running | Phase::Suspended => {}
    }
    job
}

/// When a refresh was asked for, in milliseconds since 1970.
pub fn created(refresh: &MaterializedViewRefresh) -> i64 {
    refresh
        .creation_timestamp()
        .map_or(0, |created| created.0.as_millisecond())
}

/// What a refresh did, as LanceDB's clients read it.
pub fn result(mode: Mode, rows_written: i64, source_version: i64, version: i64) -> Value {
    json!({
        "mode": match mode {
            Mode::NoOp => "no_op",
            Mode::Incremental => "incremental",
            Mode::Rebuild => "rebuild",
        },
        "rows_written": rows_written,
        "source_version": source_version,
        "version": version,
    })
}

/// Why a refresh ended without success.
fn reason(status: &Status) -> Option<&str> {
    let failed = |c: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        c.type_ == condition::FAILED && c.status == "True"
    };
    let failed = status.conditions.iter().find(failed);
    failed.map(|condition| condition.reason.as_str())
}

/// How far a refresh had got that ended: `queue`, `plan`, `execute` or `commit`.
fn stage(status: &Status) -> &'static str {
    if status.job.is_none() {
        return "queue";
    }
    match &status.progress {
        None => "plan",
        Some(progress) if progress.units_done < progress.units_total => "execute",
        Some(_) => "commit",
    }
}

/// Whether the same refresh may well succeed if it is asked for again.
fn retryable(reason: &str) -> bool {
    let by_engine = [
        EngineError::Internal(String::new()),
        EngineError::Unavailable {
            what: String::new(),
            why: String::new(),
        },
        EngineError::ViewContended {
            view: String::new(),
            attempts: 0,
        },
    ];
    let by_controller = [
        reasons::BACKOFF_LIMIT_EXCEEDED,
        reasons::CLUSTER_LOST,
        // What was finished is kept, so that the next one has less to do.
        reasons::DEADLINE_EXCEEDED,
        reasons::OUTCOME_MISSING,
    ];
    by_controller.contains(&reason) || by_engine.iter().any(|error| error.reason() == reason)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::resources::{JobRef, MaterializedViewRefreshSpec, Progress};

    fn told(status: Option<Status>) -> Value {
        let mut refresh = MaterializedViewRefresh::new("r", MaterializedViewRefreshSpec::of(["v"]));
        refresh.status = status;
        description(&refresh)
    }

    fn failed(reason: &str) -> Status {
        Status {
            phase: Phase::Failed,
            message: Some("because".into()),
            conditions: vec![Condition {
                type_: condition::FAILED.into(),
                status: "True".into(),
                reason: reason.into(),
                message: "because".into(),
                observed_generation: None,
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_refresh_that_no_controller_has_seen_is_in_progress() {
        assert_eq!(told(None)["job_state"], "IN_PROGRESS");
    }

    #[test]
    fn a_finished_refresh_tells_the_result_that_lancedb_reads() {
        let job = told(Some(Status {
            phase: Phase::Succeeded,
            mode: Some(Mode::Incremental),
            source_version: Some(7),
            view_version: Some(9),
            progress: Some(Progress {
                rows_written: 2,
                ..Default::default()
            }),
            ..Default::default()
        }));
        assert_eq!(job["job_state"], "DONE");
        assert_eq!(
            job["result"],
            json!({"mode": "incremental", "rows_written": 2, "source_version": 7, "version": 9})
        );
    }

    #[test]
    fn a_failed_or_cancelled_refresh_tells_why() {
        for (phase, state) in [(Phase::Failed, "FAILED"), (Phase::Cancelled, "CANCELLED")] {
            let job = told(Some(Status {
                phase,
                message: Some("because".into()),
                ..Default::default()
            }));
            assert_eq!(job["job_state"], state);
            assert_eq!(
                job["failure"],
                json!({"phase": "queue", "message": "because", "retryable": false})
            );
        }
    }

    #[test]
    fn a_deadline_is_a_state_of_its_own() {
        let job = told(Some(failed(reasons::DEADLINE_EXCEEDED)));
        assert_eq!(job["job_state"], "TIMED_OUT");
        assert_eq!(job["failure"]["retryable"], true);
    }

    #[test]
    fn a_failure_tells_how_far_the_refresh_had_got_and_whether_to_try_again() {
        let with = |job: bool, done: Option<(i64, i64)>, reason: &str| {
            let mut status = failed(reason);
            status.job = job.then(|| JobRef {
                name: "r-1".into(),
                namespace: "n".into(),
                cluster: "c".into(),
                server: None,
                uid: None,
            });
            status.progress = done.map(|(units_done, units_total)| Progress {
                units_done,
                units_total,
                ..Default::default()
            });
            let failure = told(Some(status))["failure"].clone();
            (failure["phase"].clone(), failure["retryable"].clone())
        };
        let said = |phase: &str, retryable: bool| (json!(phase), json!(retryable));
        assert_eq!(with(false, None, "ViewNotFound"), said("queue", false));
        assert_eq!(with(true, None, "Unavailable"), said("plan", true));
        let doing = with(true, Some((1, 2)), "EvaluationFailed");
        assert_eq!(doing, said("execute", false));
        assert_eq!(
            with(true, Some((2, 2)), "ViewContended"),
            said("commit", true)
        );
    }

    #[test]
    fn a_state_is_read_in_either_case() {
        for state in JobState::ALL {
            assert_eq!(JobState::parse(state.as_str()), Some(state));
            assert_eq!(JobState::parse(&state.as_str().to_lowercase()), Some(state));
        }
        assert_eq!(JobState::parse("sleeping"), None);
    }
}
