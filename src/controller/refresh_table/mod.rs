//! The table of situations: each test is one row, what is known and what
//! follows from it. [`start`]: up to the intent; [`job`]: from there to the
//! Job's end; [`stop`]: cancelled, suspended, over; [`remote`]: with the Job in
//! another cluster.

mod job;
mod remote;
mod start;
mod stop;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::refresh::*;
use crate::engine::error::CATALOG_DENIED;
use crate::engine::freshness::Current;
use crate::engine::outcome::{Mode, Outcome};
use crate::resources::reasons::{self, condition};
use crate::resources::{
    JobRef, MaterializedViewRefresh, MaterializedViewRefreshStatus, Phase, names,
};

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
        job_namespace: "ns".into(),
        job_server: None,
        remote: false,
        deadline: SignedDuration::from_secs(600),
        world: None,
        turn: None,
        job: None,
        outcome: None,
        refused: None,
        credential: None,
        progress: None,
        unexplained: false,
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
        server: None,
        uid: uid.map(String::from),
    });
    seen
}

fn current() -> Current {
    Current {
        source_version: 7,
        view_version: 3,
        unindexed_rows: None,
    }
}

fn ready(current: Option<Current>) -> Option<World> {
    Some(World::Ready {
        uri: "mem://v".into(),
        current,
    })
}

fn outcome() -> Outcome {
    Outcome {
        mode: Mode::Incremental,
        source_version: 7,
        source_versions: Default::default(),
        view_version: 3,
        rows_written: 20,
        bytes_written: 400,
        units_total: 4,
        units_kept: 3,
        unindexed_rows: None,
    }
}

fn job(end: Option<JobEnd>) -> Option<JobSeen> {
    Some(JobSeen::Ours(JobState {
        uid: UID.into(),
        end,
        ..JobState::default()
    }))
}

fn denied() -> Option<OutcomeSeen> {
    Some(OutcomeSeen::Denied {
        reason: CATALOG_DENIED,
        why: "the token has expired".into(),
    })
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
