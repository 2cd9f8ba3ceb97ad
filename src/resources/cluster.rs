//! `RefreshCluster`: where and how refresh Jobs run.
//!
//! In this cluster, beside the refreshes, or in another one through a
//! kubeconfig in a Secret ([`crate::launch::kubeconfig`] says which are taken).

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
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
    printcolumn(name = "Contact", type_ = "date", json_path = ".status.lastContactTime", description = "Time since its API server last answered.", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", description = "What to do about it.", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.defaultConcurrency <= self.maxConcurrency").message("spec.defaultConcurrency must not be greater than spec.maxConcurrency"))]
#[x_kube(validation = Rule::new("!has(self.maxActiveDeadlineSeconds) || self.activeDeadlineSeconds <= self.maxActiveDeadlineSeconds").message("spec.activeDeadlineSeconds must not be greater than spec.maxActiveDeadlineSeconds"))]
#[x_kube(validation = Rule::new("!has(self.maxBackoffLimit) || self.backoffLimit <= self.maxBackoffLimit").message("spec.backoffLimit must not be greater than spec.maxBackoffLimit"))]
#[x_kube(validation = Rule::new("!has(self.__namespace__) || has(self.kubeconfigSecretRef)").message("spec.namespace is for another cluster: give spec.kubeconfigSecretRef too, or leave it out, since Jobs in this cluster run in the namespace of their refreshes"))]
pub struct RefreshClusterSpec {
    /// Secret in this namespace with the kubeconfig of another cluster, in which the Jobs run. Absent: they run in this cluster and namespace. The kubeconfig must hold its certificates or its token inline; files, programs, plug-ins, proxies, impersonation and unverified TLS are refused. It is read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("spec.kubeconfigSecretRef.name must be the name of a Secret: lower-case letters, digits, '-' and '.'"))]
    pub kubeconfig_secret_ref: Option<KubeconfigRef>,
    /// Namespace of the Jobs in the other cluster. Absent: the one that the kubeconfig's context names, else `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("spec.namespace must be the name of a namespace: lower-case letters, digits and '-'"))]
    pub namespace: Option<String>,
    /// Image of the worker container. Absent: the image that the operator itself runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// A pod template that is merged strategically over relance's own: node selector, tolerations, service account, resources, volumes and so on. The worker's container is named `worker`. What the API server would refuse in a pod makes the cluster not Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplatePatch>,
    /// Secret in the Jobs' namespace whose keys become environment variables of the workers: credentials of the object store, such as AWS_ACCESS_KEY_ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("spec.storageSecretRef.name must be the name of a Secret: lower-case letters, digits, '-' and '.'"))]
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
    /// Seconds after its start at which a Job is stopped and its refresh Failed, where the refresh names none.
    #[serde(default = "active_deadline_seconds")]
    #[schemars(range(min = 1, max = 31536000))]
    pub active_deadline_seconds: i64,
    /// Most seconds that a refresh may ask for; more is cut down to this. Absent: `activeDeadlineSeconds`, so that a refresh may only ask for less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31536000))]
    pub max_active_deadline_seconds: Option<i64>,
    /// How often a worker pod that failed is replaced before the refresh fails, where the refresh does not say. Evicted and preempted pods do not count.
    #[serde(default = "backoff_limit")]
    #[schemars(range(min = 0, max = 100))]
    pub backoff_limit: i32,
    /// Most that a refresh may ask for; more is cut down to this. Absent: `backoffLimit`, so that a refresh may only ask for less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_backoff_limit: Option<i32>,
    /// What refreshes through this cluster may bring along. Absent: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ClusterPolicy>,
}

/// A kubeconfig in a Secret of the RefreshCluster's own namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeconfigRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the kubeconfig in it.
    #[serde(default = "kubeconfig_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What refreshes through a cluster may bring along.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPolicy {
    /// Whether a refresh may bring a Geneva manifest of its own, and not only use the one stored with its view. False: such a refresh fails with ManifestNotAllowed.
    #[serde(default = "yes")]
    pub inline_manifests: bool,
    /// Images that worker pods may run and Geneva manifests may name: whole references, or their beginnings with a `*` at the end, such as `registry.example.com/team/*`. Compared as written. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub images: Option<Vec<String>>,
}

impl Default for ClusterPolicy {
    fn default() -> Self {
        Self {
            inline_manifests: yes(),
            images: None,
        }
    }
}

impl ClusterPolicy {
    /// Whether `image` is on the list, if there is one.
    pub fn allows_image(&self, image: &str) -> bool {
        let Some(images) = &self.images else {
            return true;
        };
        images
            .iter()
            .any(|allowed| match allowed.strip_suffix('*') {
                Some(beginning) => image.starts_with(beginning),
                None => image == allowed,
            })
    }
}

fn yes() -> bool {
    true
}

fn kubeconfig_key() -> String {
    "kubeconfig".to_string()
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
            kubeconfig_secret_ref: None,
            namespace: None,
            image: None,
            template: None,
            storage_secret_ref: None,
            default_concurrency: default_concurrency(),
            max_concurrency: max_concurrency(),
            max_active_refreshes: max_active_refreshes(),
            active_deadline_seconds: active_deadline_seconds(),
            max_active_deadline_seconds: None,
            backoff_limit: backoff_limit(),
            max_backoff_limit: None,
            policy: None,
        }
    }
}

impl RefreshClusterSpec {
    /// Whether its Jobs run in another cluster.
    pub fn is_remote(&self) -> bool {
        self.kubeconfig_secret_ref.is_some()
    }

    /// How many worker pods share the work of a refresh that asks for `asked`.
    pub fn concurrency(&self, asked: Option<i32>) -> i32 {
        let pods = asked.unwrap_or(self.default_concurrency);
        pods.clamp(1, self.max_concurrency.max(1))
    }

    /// Seconds that a refresh may take which asks for `asked`.
    pub fn deadline_seconds(&self, asked: Option<i64>) -> i64 {
        let most = self.max_active_deadline_seconds;
        let most = most.unwrap_or(self.active_deadline_seconds);
        asked.unwrap_or(self.active_deadline_seconds).min(most)
    }

    /// How often a failed worker pod is replaced, for a refresh that asks for `asked`.
    pub fn retries(&self, asked: Option<i32>) -> i32 {
        let most = self.max_backoff_limit.unwrap_or(self.backoff_limit);
        asked.unwrap_or(self.backoff_limit).min(most)
    }

    /// What refreshes through it may bring along.
    pub fn policy(&self) -> ClusterPolicy {
        self.policy.clone().unwrap_or_default()
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
    /// When the cluster's API server last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_contact_time: Option<Time>,
    /// Refreshes that run through this cluster.
    #[serde(default)]
    pub active: i32,
    /// Refreshes that wait for this cluster.
    #[serde(default)]
    pub queued: i32,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(spec: Value) -> RefreshClusterSpec {
        serde_json::from_value(spec).expect("a spec")
    }

    #[test]
    fn a_refresh_gets_what_it_asks_for_up_to_the_ceiling_and_the_default_where_it_asks_for_nothing()
    {
        let low = spec(json!({"activeDeadlineSeconds": 60, "backoffLimit": 2}));
        assert_eq!(low.deadline_seconds(None), 60);
        assert_eq!(low.deadline_seconds(Some(10)), 10);
        assert_eq!(low.deadline_seconds(Some(600)), 60);
        assert_eq!(
            (
                low.retries(None),
                low.retries(Some(0)),
                low.retries(Some(9))
            ),
            (2, 0, 2)
        );
        let high = spec(json!({
            "activeDeadlineSeconds": 60, "maxActiveDeadlineSeconds": 300,
            "backoffLimit": 2, "maxBackoffLimit": 5,
        }));
        assert_eq!(high.deadline_seconds(None), 60);
        assert_eq!(high.deadline_seconds(Some(600)), 300);
        assert_eq!((high.retries(None), high.retries(Some(9))), (2, 5));
    }

    #[test]
    fn an_image_is_allowed_whole_or_by_its_beginning() {
        let policy = |images| ClusterPolicy {
            images,
            ..ClusterPolicy::default()
        };
        assert!(policy(None).allows_image("anything:1"));
        assert!(!policy(Some(vec![])).allows_image("anything:1"));
        let some = policy(Some(vec![
            "r.example.com/team/*".into(),
            "relance:1".into(),
        ]));
        assert!(some.allows_image("r.example.com/team/a:2"));
        assert!(some.allows_image("relance:1"));
        assert!(!some.allows_image("relance:11"));
        assert!(!some.allows_image("r.example.com/other:1"));
    }
}
