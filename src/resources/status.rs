//! What the controller reports of a refresh.
//!
//! A refresh that no controller has seen yet reads as `Queued` with
//! `observedGeneration` -1: the schema's default of `.status` says so, and
//! tools that compare generations see that nothing has been observed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a refresh is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum Phase {
    /// Accepted, and waiting for its turn or for its Job.
    #[default]
    Queued,
    /// Its turn has come: its Job is being created, or runs.
    Running,
    /// Held by `spec.suspend`.
    Suspended,
    /// The view equals its definition at `status.sourceVersion`. Final.
    Succeeded,
    /// Ended without success; the view is as it was. Final.
    Failed,
    /// Ended because `spec.cancel` asked for it. Final.
    Cancelled,
}

impl Phase {
    /// The phases that no further transition can follow.
    pub const TERMINAL: [Phase; 3] = [Phase::Succeeded, Phase::Failed, Phase::Cancelled];

    /// The others.
    pub const ACTIVE: [Phase; 3] = [Phase::Queued, Phase::Running, Phase::Suspended];

    /// A field selector of the refreshes that are in none of `phases`.
    pub fn none_of(phases: &[Phase]) -> String {
        let unequal = phases
            .iter()
            .map(|phase| format!("status.phase!={phase:?}"));
        unequal.collect::<Vec<_>>().join(",")
    }

    /// Whether no further transition can follow.
    pub fn is_terminal(self) -> bool {
        Phase::TERMINAL.contains(&self)
    }
}

/// How the view was brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Mode {
    /// Nothing had to be written.
    NoOp,
    /// What was still right was kept, the rest recomputed.
    Incremental,
    /// Every row was computed anew.
    Rebuild,
}

/// A count as Kubernetes' int64 holds it.
pub fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// How far the work is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Units of work that are finished.
    pub units_done: i64,
    /// Units of work in the plan.
    pub units_total: i64,
    /// Rows written so far.
    pub rows_written: i64,
    /// Bytes of data files written so far.
    pub bytes_written: i64,
    /// `unitsDone/unitsTotal`, for printing.
    pub summary: String,
}

/// The observed state of a refresh.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaterializedViewRefreshStatus {
    /// Where the refresh is in its life. Succeeded, Failed and Cancelled are final.
    #[serde(default)]
    pub phase: Phase,
    /// One sentence: what is going on, why it waits, or how it ended and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `Complete`, `Failed` and `Suspended`, as on a batch/v1 Job, with stable reasons; and `CredentialDeleted`, of an ended refresh that had its caller's credential, once the Secret with it is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status speaks of; -1 until a controller has seen the refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The source version that the view now equals; the first source's, where it reads several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_version: Option<i64>,
    /// The view's own version after the refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view_version: Option<i64>,
    /// How the view was brought up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Rows of the view that one of its indices does not cover yet: queries find them by a scan. Absent where the view has no index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unindexed_rows: Option<i64>,
    /// How far the work is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// While the refresh waits: since when its view, its cluster or what it needs of them could not be looked at, at any look. Lasts that as long as the refresh may take, it is Failed. Absent: they were there at the last look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable_since: Option<Time>,
    /// When its turn came and its Job was first asked for. Set anew when a suspended refresh goes on, whose time begins then too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the refresh is stopped if it has not ended by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_time: Option<Time>,
    /// When the refresh reached its final phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// The Job that runs or ran the refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobRef>,
    /// The view's resolved table URI: refreshes with the same one run one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view_uri: Option<String>,
}

/// The Job of a refresh. Written without `uid` before the Job is created (the
/// intent), and with it afterwards.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobRef {
    /// The Job's name.
    pub name: String,
    /// The namespace it runs in.
    pub namespace: String,
    /// The RefreshCluster that it was launched through.
    pub cluster: String,
    /// Where that is another cluster: a digest of its API server's address, by which it is known again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The Job's UID, once it is known to exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl JobRef {
    /// Whether the Job was made in a cluster at another address than that of
    /// which `server` is the digest, where that of the Job is known: one that was
    /// made by an older relance says none.
    pub fn is_elsewhere(&self, server: &str) -> bool {
        self.server.as_ref().is_some_and(|at| at != server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_elsewhere_where_its_address_is_known_to_be_another() {
        let made = |server: Option<&str>| JobRef {
            name: "r-0".into(),
            namespace: "n".into(),
            cluster: "far".into(),
            server: server.map(String::from),
            uid: None,
        };
        assert!(made(Some("a")).is_elsewhere("b"));
        assert!(!made(Some("a")).is_elsewhere("a"));
        assert!(!made(None).is_elsewhere("b"), "it says none");
    }
}
