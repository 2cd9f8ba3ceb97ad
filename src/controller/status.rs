//! The status that each step of a refresh's life leaves. Pure: whole statuses
//! from the one before, since the controller always writes them whole.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::SignedDuration;

use super::refresh::{CredentialSeen, JobState, Observed, ProgressSeen};
use crate::engine::freshness::Current;
use crate::engine::outcome::{self, Outcome};
use crate::resources::reasons::{self, condition};
use crate::resources::{
    JobRef, MaterializedViewRefreshStatus as Status, Mode, Phase, Progress, count,
};

/// The status as it is, speaking of the resource's present generation.
pub fn observed(seen: &Observed) -> Status {
    Status {
        observed_generation: seen.refresh.metadata.generation,
        ..seen.refresh.status.clone().unwrap_or_default()
    }
}

/// It has ended, and the Secret with its caller's credential is no more.
pub fn credential_deleted(seen: &Observed) -> Status {
    let mut status = observed(seen);
    let message = match seen.credential {
        Some(CredentialSeen::Absent) => "There is no Secret with the caller's credential",
        _ => "The Secret with the caller's credential was deleted",
    };
    let deleted = condition::CREDENTIAL_DELETED;
    set(seen, &mut status, deleted, "True", reasons::ENDED, message);
    status
}

/// The same with another message.
pub fn said(seen: &Observed, message: &str) -> Status {
    Status {
        message: Some(message.to_string()),
        ..observed(seen)
    }
}

/// Waits for its turn, for what `why` says.
pub fn queued(seen: &Observed, uri: Option<String>, why: &str) -> Status {
    let mut status = said(seen, why);
    status.phase = Phase::Queued;
    if uri.is_some() {
        // It has been looked at.
        status.view_uri = uri;
        status.unavailable_since = None;
    }
    status
}

/// Waits, since its cluster is out of reach, as `why` says.
pub fn closed(seen: &Observed, uri: Option<String>, why: &str) -> Status {
    let since = seen.status().unavailable_since;
    let mut status = queued(seen, uri, why);
    status.unavailable_since = since.or(Some(Time(seen.now)));
    status
}

/// Waits, since what must be looked at before it can begin is out of reach.
pub fn unavailable(seen: &Observed, why: &str) -> Status {
    let mut status = said(seen, why);
    status.unavailable_since.get_or_insert(Time(seen.now));
    status
}

/// Its turn has come: its Job may be created once this is written.
pub fn intent(seen: &Observed, uri: String) -> Status {
    let mut status = said(seen, &format!("Starting Job {}", seen.job_name));
    status.phase = Phase::Running;
    status.view_uri = Some(uri);
    status.unavailable_since = None;
    status.start_time = Some(Time(seen.now));
    status.deadline_time = Some(Time(seen.now + seen.deadline));
    status.job = Some(job_ref(seen, None));
    status
}

/// Its Job exists.
pub fn launched(seen: &Observed, job: &JobState) -> Status {
    let mut status = said(seen, &format!("Running in Job {}", seen.job_name));
    status.job = Some(job_ref(seen, Some(job.uid.clone())));
    status
}

/// Its Job's cluster has another address by now.
pub fn moved(seen: &Observed) -> Status {
    let mut status = observed(seen);
    if let Some(job) = &mut status.job {
        job.server = seen.job_server.clone();
    }
    status
}

/// Its Job is gone and left no commit: back to the intent.
pub fn vanished(seen: &Observed) -> Status {
    let mut status = said(
        seen,
        &format!(
            "Job {} is gone without a result; it is created again and goes on from what was finished",
            seen.job_name
        ),
    );
    status.job = Some(job_ref(seen, None));
    status
}

/// How a message begins that says why a Job has no pod.
pub const NOT_ALLOWED: &str = "The worker pod is not allowed now";

fn says_not_allowed(seen: &Observed) -> bool {
    let said = seen.status().message;
    said.is_some_and(|said| said.starts_with(NOT_ALLOWED))
}

/// Its Job runs; how far it is, or why it does not move.
pub fn running(seen: &Observed, job: &JobState, progress: &ProgressSeen) -> Status {
    let mut status = match &job.stuck {
        Some(why) => said(seen, why),
        // What was said of that before still holds.
        None if seen.unexplained && says_not_allowed(seen) => observed(seen),
        None => said(seen, &format!("Running in Job {}", seen.job_name)),
    };
    if let ProgressSeen::At(progress) = progress {
        // One worker knows less than another of the same plan, a new one
        // least. Where they have planned anew, it counts anew.
        let is_behind = status.progress.as_ref().is_some_and(|known| {
            known.units_total == progress.units_total && known.units_done > progress.units_done
        });
        if !is_behind {
            status.progress = Some(progress.clone());
        }
    }
    status
}

/// Held; no Job of it is there.
pub fn suspended(seen: &Observed) -> Status {
    let mut status = said(seen, "Held by spec.suspend; set it to false to go on");
    status.phase = Phase::Suspended;
    // As a batch/v1 Job's, its clock starts anew when it is resumed. That a Job
    // once was is still to be seen from the Job's name.
    status.start_time = None;
    status.deadline_time = None;
    status.unavailable_since = None;
    if let Some(job) = &mut status.job {
        job.uid = None;
    }
    let message = status.message.clone().unwrap_or_default();
    set(
        seen,
        &mut status,
        condition::SUSPENDED,
        "True",
        reasons::SUSPENDED_BY_SPEC,
        &message,
    );
    status
}

/// No longer held.
pub fn resumed(seen: &Observed) -> Status {
    let mut status = said(seen, "Resumed; waiting for its turn");
    status.phase = Phase::Queued;
    status.unavailable_since = None;
    let message = status.message.clone().unwrap_or_default();
    set(
        seen,
        &mut status,
        condition::SUSPENDED,
        "False",
        reasons::RESUMED,
        &message,
    );
    status
}

/// The view was right already.
pub fn already_current(seen: &Observed, current: &Current) -> Status {
    finished(
        seen,
        &Outcome {
            mode: outcome::Mode::NoOp,
            source_version: current.source_version,
            source_versions: BTreeMap::new(),
            view_version: current.view_version,
            rows_written: 0,
            bytes_written: 0,
            units_total: 0,
            units_kept: 0,
            unindexed_rows: current.unindexed_rows,
        },
        reasons::UP_TO_DATE,
    )
}

/// Its commit is there.
pub fn succeeded(seen: &Observed, outcome: &Outcome) -> Status {
    finished(seen, outcome, reasons::REFRESHED)
}

fn finished(seen: &Observed, outcome: &Outcome, reason: &str) -> Status {
    let mode = Mode::from(outcome.mode);
    let how = match mode {
        Mode::NoOp => "nothing had to be written".to_string(),
        Mode::Incremental => format!("{} rows written incrementally", outcome.rows_written),
        Mode::Rebuild => format!("{} rows written anew", outcome.rows_written),
    };
    let message = format!(
        "The view equals its definition at {}: {how}",
        outcome.sources()
    );
    let mut status = said(seen, &message);
    status.phase = Phase::Succeeded;
    status.mode = Some(mode);
    status.source_version = Some(count(outcome.source_version));
    status.view_version = Some(count(outcome.view_version));
    status.unindexed_rows = outcome.unindexed_rows.map(count);
    status.progress = Some(Progress {
        units_done: count(outcome.units_total),
        units_total: count(outcome.units_total),
        rows_written: count(outcome.rows_written),
        bytes_written: count(outcome.bytes_written),
        summary: format!("{0}/{0}", outcome.units_total),
    });
    ended(seen, &mut status, condition::COMPLETE, reason);
    status
}

/// It cannot be done.
pub fn failed(seen: &Observed, reason: &str, message: &str) -> Status {
    let mut status = said(seen, message);
    status.phase = Phase::Failed;
    ended(seen, &mut status, condition::FAILED, reason);
    status
}

/// It was not done in time.
pub fn overdue(seen: &Observed) -> Status {
    let message = format!(
        "not done within {} s of its start; allow it more by activeDeadlineSeconds of the refresh or of RefreshCluster '{}' and refresh again: what was finished is kept",
        allowed(seen).as_secs(),
        seen.refresh.spec.cluster
    );
    failed(seen, reasons::DEADLINE_EXCEEDED, &message)
}

/// It waited for as long as it might have run, and what must be looked at before
/// it can begin was out of reach all the time.
pub fn never_available(seen: &Observed, why: &str) -> Status {
    let why = ["Waiting: ", "Waiting for "]
        .iter()
        .find_map(|said| why.strip_prefix(said))
        .unwrap_or(why);
    let message = format!(
        "it could not begin within {} s: {why}; see to that and refresh again",
        seen.deadline.as_secs()
    );
    failed(seen, reasons::UNAVAILABLE, &message)
}

/// What it was given when it started.
fn allowed(seen: &Observed) -> SignedDuration {
    let status = seen.refresh.status.as_ref();
    let times = status.and_then(|s| s.start_time.as_ref().zip(s.deadline_time.as_ref()));
    times.map_or(seen.deadline, |(start, end)| end.0.duration_since(start.0))
}

/// It was asked to end.
pub fn cancelled(seen: &Observed) -> Status {
    let message = format!("Cancelled by {}; the view is as it was", by(seen));
    cancelled_so(seen, &message)
}

/// It was asked to end, and nobody can look whether its Job did.
pub fn cancelled_unseen(seen: &Observed, why: &str) -> Status {
    let message = format!(
        "Cancelled by {}, without its Job having been seen to end: {why}; should that still commit, the view is right all the same",
        by(seen)
    );
    cancelled_so(seen, &message)
}

/// It was asked to end, and the view's history cannot be read.
pub fn cancelled_unread(seen: &Observed, why: &str) -> Status {
    let message = format!(
        "Cancelled by {}, without a look at the view's history: {why}; should its Job have committed, the view is right all the same",
        by(seen)
    );
    cancelled_so(seen, &message)
}

/// What has asked it to end.
fn by(seen: &Observed) -> &'static str {
    match seen.refresh.spec.cancel {
        true => "spec.cancel",
        false => "its deletion",
    }
}

fn cancelled_so(seen: &Observed, message: &str) -> Status {
    let mut status = said(seen, message);
    status.phase = Phase::Cancelled;
    ended(seen, &mut status, condition::FAILED, reasons::CANCELLED);
    status
}

fn ended(seen: &Observed, status: &mut Status, type_: &str, reason: &str) {
    let message = status.message.clone().unwrap_or_default();
    status.completion_time = Some(Time(seen.now));
    status.unavailable_since = None;
    // One that was resumed before stays so: its reason tells.
    let is_held = |c: &Condition| c.type_ == condition::SUSPENDED && c.status == "True";
    if status.conditions.iter().any(is_held) {
        set(
            seen,
            status,
            condition::SUSPENDED,
            "False",
            reason,
            &message,
        );
    }
    set(seen, status, type_, "True", reason, &message);
}

fn set(
    seen: &Observed,
    status: &mut Status,
    type_: &str,
    value: &str,
    reason: &str,
    message: &str,
) {
    let before = status.conditions.iter().position(|c| c.type_ == type_);
    let since = match before.map(|at| status.conditions.remove(at)) {
        Some(condition) if condition.status == value => condition.last_transition_time,
        _ => Time(seen.now),
    };
    status.conditions.push(Condition {
        type_: type_.to_string(),
        status: value.to_string(),
        reason: reason.to_string(),
        message: message.to_string(),
        observed_generation: seen.refresh.metadata.generation,
        last_transition_time: since,
    });
}

fn job_ref(seen: &Observed, uid: Option<String>) -> JobRef {
    JobRef {
        name: seen.job_name.clone(),
        namespace: seen.job_namespace.clone(),
        cluster: seen.refresh.spec.cluster.clone(),
        server: seen.job_server.clone(),
        uid,
    }
}
