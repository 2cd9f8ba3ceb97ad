//! `RefreshCluster`: where and how refresh Jobs run.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::refresh::SecretRef;

/// Where and how the Jobs of refreshes run.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "relance.dev",
    version = "v1alpha1",
    kind = "RefreshCluster",
    plural = "refreshclusters",
    namespaced,
    status = "RefreshClusterStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct RefreshClusterSpec {
    /// Image of the worker container. Absent: the operator's own image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Merged strategically over relance's own pod template; the worker's container is named `worker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplateSpec>,
    /// Secret in the Jobs' namespace whose keys become environment variables of the workers: credentials of the object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_secret_ref: Option<SecretRef>,
    /// Worker pods of a refresh that names no concurrency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_concurrency: Option<i32>,
    /// Most worker pods of one refresh; more than that is cut down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<i32>,
    /// Most refreshes that run at a time through this cluster; the others queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active_refreshes: Option<i32>,
    /// Seconds after which a Job is stopped and its refresh Failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<i64>,
    /// How often failed worker pods are replaced before the refresh fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_limit: Option<i32>,
}

/// The observed state of a RefreshCluster.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefreshClusterStatus {
    /// `Ready`, with a reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Version of the cluster's API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Refreshes that run.
    #[serde(default)]
    pub active: i32,
    /// Refreshes that wait.
    #[serde(default)]
    pub queued: i32,
}
