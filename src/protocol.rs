//! What the controller and a worker say to each other: the task that the Job
//! hands to its pods, the progress lines that a worker prints, the message
//! with which it ends, and its exit codes.
//!
//! The result's authority is the Lance commit; all that is here is a cache of
//! it, or a hint.

use serde::{Deserialize, Serialize};

use crate::engine::outcome;
use crate::resources::Mode;

/// Environment variable of a worker pod that holds its [`Task`] as JSON.
pub const TASK_ENV: &str = "RELANCE_TASK";

/// Environment variables that set how many threads a worker computes with:
/// tokio's own, and lance's for decoding and expressions. Absent: one for each
/// processor.
pub const THREADS_ENV: [&str; 2] = ["TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS"];

/// Environment variable that holds this pod's index among `concurrency` pods
/// (the completion index of an Indexed Job). Absent: 0.
pub const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";

/// Where a worker writes its [`Ending`].
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// What a worker shall do. Holds no secret: credentials reach a worker as
/// environment variables that the object-store libraries read themselves, and
/// those for a REST catalog as [`crate::catalog::credential::Place`] says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// UID of the refresh: what its commit is found by.
    pub refresh_uid: String,
    /// The refresh's name, for log lines and for the record of what it did.
    pub job_id: String,
    /// The catalog's URI, such as `dir:///tables` or `dir://s3://bucket/path`.
    pub catalog: String,
    /// HTTP headers for a REST catalog that are no secrets.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub catalog_headers: std::collections::BTreeMap<String, String>,
    /// The REST catalog is shown the credential of the caller who asked for the
    /// refresh, in place of the operator's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub as_caller: bool,
    /// Options of the object store that are no secrets (`region`, `endpoint`, …).
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub storage_options: std::collections::BTreeMap<String, String>,
    /// The view's identifier path.
    pub view: Vec<String>,
    /// Source version to bring the view to. Absent: the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_version: Option<u64>,
    /// Recompute every row.
    #[serde(default)]
    pub full: bool,
    /// The incarnation that the view must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_incarnation: Option<String>,
    /// Most rows in a fragment that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows_per_fragment: Option<u64>,
    /// How many pods share the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Units that one pod computes at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intra_applier_concurrency: Option<u32>,
    /// Bring the view's indices up to date, once its rows are right.
    #[serde(default)]
    pub optimize_indices: bool,
}

/// One line of a worker's standard output: cumulative, so that any one of them
/// tells all. Other lines are for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgressLine {
    /// Always `progress`, to tell the line from others.
    pub relance: String,
    /// The refresh's name, for those who collect logs.
    #[serde(default, rename = "job_id")]
    pub job_id: String,
    /// Units whose rows are right, kept ones included, as far as this worker knows.
    pub units_done: u64,
    /// Units that the view will consist of.
    pub units_total: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Bytes of data files written.
    pub bytes_written: u64,
}

/// The value of [`ProgressLine::relance`].
pub const PROGRESS: &str = "progress";

/// A worker's termination message, as JSON of at most 4,096 bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ending")]
pub enum Ending {
    /// The view is right.
    Done(outcome::Outcome),
    /// It is not, and this is why.
    Failed {
        /// A stable reason in CamelCase.
        reason: String,
        /// One sentence: what was wrong and what to do.
        message: String,
        /// Whether another attempt can succeed without anyone changing anything.
        retryable: bool,
    },
}

impl From<outcome::Mode> for Mode {
    fn from(mode: outcome::Mode) -> Self {
        match mode {
            outcome::Mode::NoOp => Mode::NoOp,
            outcome::Mode::Incremental => Mode::Incremental,
            outcome::Mode::Rebuild => Mode::Rebuild,
        }
    }
}

/// Exit codes of `relance worker` and `relance refresh`, after sysexits.h where it has one.
pub mod exit {
    /// The view is right.
    pub const OK: i32 = 0;
    /// The command line was wrong.
    pub const USAGE: i32 = 2;
    /// The refresh can never succeed as asked (no such view, a definition that no longer fits, …).
    pub const PERMANENT: i32 = 65;
    /// A catalog or store could not be reached; try again.
    pub const UNAVAILABLE: i32 = 69;
    /// Something inside went wrong; another attempt may succeed.
    pub const INTERNAL: i32 = 70;
    /// Others kept changing the view; try again when they are done.
    pub const CONTENDED: i32 = 75;
    /// Stopped by SIGTERM, as shells tell it.
    pub const STOPPED: i32 = 128 + 15;
    /// Those after which no other worker is tried.
    pub const FINAL: [i32; 3] = [USAGE, PERMANENT, CONTENDED];
}
