//! `MaterializedViewRefresh`: one refresh of one view; its name is the job id.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::MaterializedViewRefreshStatus;

/// One refresh of one Lance materialized view. The resource's name is the
/// refresh's `job_id`.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "relance.dev",
    version = "v1alpha1",
    kind = "MaterializedViewRefresh",
    plural = "materializedviewrefreshes",
    shortname = "mvr",
    namespaced,
    status = "MaterializedViewRefreshStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct MaterializedViewRefreshSpec {
    /// The view's identifier path in the catalog: its namespaces, then its name.
    pub view: Vec<String>,
    /// Name of the RefreshCluster whose Jobs run this refresh.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// Source table version to bring the view to. Absent: the latest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_version: Option<i64>,
    /// Recompute every row, also where what is there is already right.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// The view's incarnation that the caller expects; another one fails the refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_incarnation: Option<String>,
    /// Most rows in one fragment that the refresh writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows_per_fragment: Option<i64>,
    /// How many worker pods share the work. Absent: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    /// How many units one worker computes at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intra_applier_concurrency: Option<i32>,
    /// Source rows in one work item while a chunker view expands them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_task_size: Option<i64>,
    /// Cap on the view's rows after expansion; for chunker views alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_limit: Option<i64>,
    /// Secret in this namespace whose key `manifest` holds the Geneva manifest for this refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_secret_ref: Option<SecretRef>,
    /// SHA-256 of the Geneva manifest, in lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_checksum: Option<String>,
    /// Hold the refresh: its Job is stopped or not started until this is false again. Mutable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// End the refresh as Cancelled. Mutable, and once true it stays true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// Among refreshes that wait for the same view or cluster, higher goes first. Mutable.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Seconds after its end at which the resource is deleted. Absent: kept. Mutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// A Secret in the resource's own namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    pub name: String,
}

/// The RefreshCluster that a refresh uses unless it names one.
pub const DEFAULT_CLUSTER: &str = "default";

fn default_cluster() -> String {
    DEFAULT_CLUSTER.to_string()
}

fn is_zero(value: &i32) -> bool {
    *value == 0
}
