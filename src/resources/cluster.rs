//! `RefreshCluster`: where and how refresh Jobs run.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::refresh::SecretRef;

/// How worker pods are made, and how many may run.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "relance.dev",
    version = "v1alpha1",
    kind = "RefreshCluster",
    plural = "refreshclusters",
    shortname = "rcl",
    category = "relance",
    namespaced,
    status = "RefreshClusterStatus",
    derive = "PartialEq",
    doc = "Where and how the Jobs of refreshes run. Whoever may create a RefreshCluster may run pods as any service account of this namespace.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must have at most 63 characters: it becomes a label of the Jobs"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether refreshes can run through this cluster."),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.active", description = "Refreshes that run."),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.queued", description = "Refreshes that wait."),
    printcolumn(name = "Max", type_ = "integer", json_path = ".spec.maxActiveRefreshes", description = "Most refreshes that run at a time."),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.serverVersion", description = "Version of the cluster's API server."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since it was created."),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not.", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", description = "What to do about it.", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.defaultConcurrency <= self.maxConcurrency").message("spec.defaultConcurrency must not be greater than spec.maxConcurrency"))]
pub struct RefreshClusterSpec {
    /// Image of the worker container. Absent: the image that the operator itself runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// A pod template that is merged strategically over relance's own: node selector, tolerations, service account, resources, volumes and so on. The worker's container is named `worker`. What the API server would refuse in a pod makes the cluster not Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplatePatch>,
    /// Secret in the Jobs' namespace whose keys become environment variables of the workers: credentials of the object store, such as AWS_ACCESS_KEY_ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_secret_ref: Option<SecretRef>,
    /// Worker pods of a refresh that names no concurrency.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 1000))]
    pub default_concurrency: i32,
    /// Most worker pods of one refresh; a refresh that asks for more gets this many.
    #[serde(default = "max_concurrency")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_concurrency: i32,
    /// Most refreshes that run at a time through this cluster; the others wait their turn by priority, then age.
    #[serde(default = "max_active_refreshes")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_active_refreshes: i32,
    /// Seconds after its start at which a Job is stopped and its refresh Failed.
    #[serde(default = "active_deadline_seconds")]
    #[schemars(range(min = 1, max = 31536000))]
    pub active_deadline_seconds: i64,
    /// How often a worker pod that failed is replaced before the refresh fails. Evicted and preempted pods do not count.
    #[serde(default = "backoff_limit")]
    #[schemars(range(min = 0, max = 100))]
    pub backoff_limit: i32,
}

fn default_concurrency() -> i32 {
    1
}

fn max_concurrency() -> i32 {
    64
}

fn max_active_refreshes() -> i32 {
    32
}

fn active_deadline_seconds() -> i64 {
    24 * 60 * 60
}

fn backoff_limit() -> i32 {
    3
}

impl Default for RefreshClusterSpec {
    fn default() -> Self {
        Self {
            image: None,
            template: None,
            storage_secret_ref: None,
            default_concurrency: default_concurrency(),
            max_concurrency: max_concurrency(),
            max_active_refreshes: max_active_refreshes(),
            active_deadline_seconds: active_deadline_seconds(),
            backoff_limit: backoff_limit(),
        }
    }
}

/// A part of a pod template, as JSON.
///
/// Not [`PodTemplateSpec`]: a patch may leave out what a whole template must
/// have (`containers`), the type's schema is larger than all the rest of the
/// CRD and is bound to one Kubernetes version, and one template that does not
/// fit the type would stop a watch of all RefreshClusters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct PodTemplatePatch(pub Value);

impl PodTemplatePatch {
    /// The patch as a typed template, or the sentence that says what does not fit.
    pub fn typed(&self) -> Result<PodTemplateSpec, String> {
        serde_json::from_value(self.0.clone())
            .map_err(|error| format!("spec.template is no part of a pod template: {error}"))
    }
}

impl JsonSchema for PodTemplatePatch {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PodTemplatePatch".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let map = |what: &str| {
            json_schema!({
                "type": "object",
                "description": what,
                "additionalProperties": { "type": "string" },
            })
        };
        json_schema!({
            "type": "object",
            "properties": {
                "metadata": {
                    "type": "object",
                    "description": "Labels and annotations to add to the worker pods.",
                    "properties": {
                        "labels": map("Labels to add; those of relance cannot be changed."),
                        "annotations": map("Annotations to add."),
                    },
                },
                "spec": {
                    "type": "object",
                    "description": "Any part of a pod's spec, as `kubectl explain pod.spec` tells.",
                    "x-kubernetes-preserve-unknown-fields": true,
                },
            },
        })
    }
}

/// The observed state of a RefreshCluster.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefreshClusterStatus {
    /// `Ready`, with a reason and a message that says what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status speaks of; -1 until there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Version of the cluster's API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Refreshes that run through this cluster.
    #[serde(default)]
    pub active: i32,
    /// Refreshes that wait for this cluster.
    #[serde(default)]
    pub queued: i32,
}
