//! `MaterializedViewRefresh`: one refresh of one view; its name is the job id.
//!
//! What a refresh was asked to do never changes, so the spec is immutable but
//! for [`MUTABLE`]. Every field that has a default gets it from the schema, so
//! that applying the same YAML again, with or without the default spelled out,
//! changes nothing.

use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names::{MAX_REFRESH_NAME, RESTORE_STATUS};
use super::status::{MaterializedViewRefreshStatus, Phase};

/// The spec's fields that may change; a test holds that each other field is in [`IMMUTABLE`].
pub const MUTABLE: [&str; 4] = ["suspend", "cancel", "priority", "ttlSecondsAfterFinished"];

/// The spec's fields that may neither change nor be added or removed later.
pub const IMMUTABLE: [&str; 16] = [
    "view",
    "cluster",
    "srcVersion",
    "full",
    "expectedIncarnation",
    "maxRowsPerFragment",
    "concurrency",
    "intraApplierConcurrency",
    "sourceTaskSize",
    "outputLimit",
    "optimizeIndices",
    "activeDeadlineSeconds",
    "backoffLimit",
    "manifestSecretRef",
    "manifestChecksum",
    "forwardedCredential",
];

/// What is asked for: which view, and how to refresh it. Immutable but for suspend, cancel, priority and ttlSecondsAfterFinished.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "relance.dev",
    version = "v1alpha1",
    kind = "MaterializedViewRefresh",
    plural = "materializedviewrefreshes",
    shortname = "mvr",
    category = "relance",
    namespaced,
    status = "MaterializedViewRefreshStatus",
    derive = "PartialEq",
    doc = "One refresh of one Lance materialized view: it brings the view to exactly what its definition says at one version of its source. The resource's name is the refresh's job_id.",
    selectable = ".status.phase",
    validation = name_rule(),
    validation = final_phase_rule(),
    printcolumn(name = "View", type_ = "string", json_path = ".spec.view[-1:]", description = "The view's name, without its namespaces."),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster", description = "The RefreshCluster whose Jobs run the refresh."),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where the refresh is in its life."),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress.summary", description = "Units of work done, of all."),
    printcolumn(name = "Mode", type_ = "string", json_path = ".status.mode", description = "NoOp, Incremental or Rebuild."),
    printcolumn(name = "Rows", type_ = "integer", json_path = ".status.progress.rowsWritten", description = "Rows written."),
    printcolumn(name = "Source Version", type_ = "integer", json_path = ".status.sourceVersion", description = "The source version that the view equals."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since the refresh was asked for."),
    printcolumn(name = "Path", type_ = "string", json_path = ".spec.view", description = "The view's whole identifier path.", priority = 1),
    printcolumn(name = "View Version", type_ = "integer", json_path = ".status.viewVersion", description = "The view's version after the refresh.", priority = 1),
    printcolumn(name = "Job", type_ = "string", json_path = ".status.job.name", description = "The Job that runs the refresh.", priority = 1),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority", description = "Higher goes first.", priority = 1),
    printcolumn(name = "Completed", type_ = "date", json_path = ".status.completionTime", description = "Time since the refresh ended.", priority = 1),
    printcolumn(name = "Unindexed", type_ = "integer", json_path = ".status.unindexedRows", description = "Rows that one of the view's indices does not cover yet.", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", description = "What is going on, why it waits, or how it ended.", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = immutability_rule(), validation = manifest_rule())]
pub struct MaterializedViewRefreshSpec {
    /// The view's identifier path in the catalog: its namespaces from the outermost inwards, then its name. `[orders_by_day]` is a view in the root namespace, `[sales, orders_by_day]` one in the namespace `sales`.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 255)))]
    #[x_kube(validation = Rule::new(r"self.all(part, !part.matches('[/\\\\[:cntrl:]]'))").message("spec.view: a part of the view's path must not hold '/', '\\' or control characters"))]
    pub view: Vec<String>,
    /// Name of the RefreshCluster, in this namespace, whose Jobs run this refresh.
    #[serde(default = "default_cluster")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("spec.cluster must be the name of a RefreshCluster: lower-case letters, digits, '-' and '.'"))]
    pub cluster: String,
    /// Version of the source table to bring the view to. Absent: the latest at the time the work is planned. If it has been cleaned up, the refresh fails with SourceVersionGone; of a view over several sources, which have no version in common, it fails with InvalidInput.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub src_version: Option<i64>,
    /// Recompute every row, also where what the view holds is already right.
    #[serde(default)]
    pub full: bool,
    /// The incarnation (`mv.incarnation`) that the view must have. If the view was dropped and created again since, the refresh fails with IncarnationMismatch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub expected_incarnation: Option<String>,
    /// Most rows in one fragment that the refresh writes. Absent: Lance's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4294967295i64))]
    pub max_rows_per_fragment: Option<i64>,
    /// How many worker pods share the work. Absent: the cluster's `defaultConcurrency`; more than its `maxConcurrency` is cut down to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub concurrency: Option<i32>,
    /// How many units of work one worker pod computes at a time. Absent: as many as its CPUs allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub intra_applier_concurrency: Option<i32>,
    /// Source rows in one work item while a chunker view expands them; bounds a worker's memory. Other kinds of view take no notice of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4294967295i64))]
    pub source_task_size: Option<i64>,
    /// Most rows that the view may have after expansion. For chunker views alone: on another kind the refresh fails with InvalidInput.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub output_limit: Option<i64>,
    /// Bring the view's indices up to date once its rows are right, so that they cover the new ones too. A refresh whose rows are right succeeds whether or not this does; `status.unindexedRows` tells.
    #[serde(default)]
    pub optimize_indices: bool,
    /// Seconds after its start at which the refresh is stopped and Failed. Absent: the cluster's `activeDeadlineSeconds`; more than its `maxActiveDeadlineSeconds` is cut down to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31536000))]
    pub active_deadline_seconds: Option<i64>,
    /// How often a worker pod that failed is replaced before the refresh fails. Absent: the cluster's `backoffLimit`; more than its `maxBackoffLimit` is cut down to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub backoff_limit: Option<i32>,
    /// Secret in this namespace whose key `manifest` holds, as JSON, the Geneva manifest to use for this refresh in place of the one stored with the view. A Secret, because its environment variables may be tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("spec.manifestSecretRef.name must be the name of a Secret: lower-case letters, digits, '-' and '.'"))]
    pub manifest_secret_ref: Option<SecretRef>,
    /// SHA-256 of that Geneva manifest's bytes in lower-case hex. A Secret with other content fails the refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{64}$')").message("spec.manifestChecksum must be a SHA-256 in lower-case hex: 64 of the digits 0-9 and a-f"))]
    pub manifest_checksum: Option<String>,
    /// The REST catalog is shown, in place of the operator's own credential, that of the caller who asked for the refresh: the Secret `<name>-credential`, which the refresh owns, holds it under the key `token` or `api-key`, and is deleted at the end. REST sets this where it forwards credentials.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forwarded_credential: bool,
    /// Hold the refresh: while true its Job is stopped or not started. What has been computed is kept for when it goes on. May be changed.
    #[serde(default)]
    pub suspend: bool,
    /// End the refresh as Cancelled; the view stays as it was. May be changed to true, and then stays true.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("spec.cancel cannot be taken back once it is true: make a new refresh instead"))]
    pub cancel: bool,
    /// Among refreshes that wait for the same view or the same cluster, the one with the higher number goes first. May be changed.
    #[serde(default)]
    #[schemars(range(min = -1000000000, max = 1000000000))]
    pub priority: i32,
    /// Seconds after the refresh's end at which the resource is deleted. Absent: it is kept. May be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// A Secret in the resource's own namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Seconds for which a refresh that REST or the kubectl plug-in made is kept
/// after its end, unless it was asked for otherwise: a week. One that was
/// applied is kept, or a GitOps tool would apply it again.
pub const KEPT_SECONDS: i64 = 7 * 24 * 60 * 60;

impl MaterializedViewRefresh {
    /// A refresh that a program asks for, with what each shall carry.
    pub fn asked(name: &str, spec: MaterializedViewRefreshSpec) -> Self {
        let mut refresh = Self::new(name, spec);
        let (annotation, value) = RESTORE_STATUS;
        let annotations = refresh.metadata.annotations.get_or_insert_default();
        annotations.insert(annotation.to_string(), value.to_string());
        refresh
    }

    /// Where it is in its life; `Queued` until a controller has seen it.
    pub fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Queued, |s| s.phase)
    }
}

/// The RefreshCluster that a refresh uses unless it names one.
pub const DEFAULT_CLUSTER: &str = "default";

fn default_cluster() -> String {
    DEFAULT_CLUSTER.to_string()
}

impl MaterializedViewRefreshSpec {
    /// A refresh of `view` with nothing else asked for, as the API server
    /// would default it.
    pub fn of(view: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            view: view.into_iter().map(Into::into).collect(),
            cluster: default_cluster(),
            src_version: None,
            full: false,
            expected_incarnation: None,
            max_rows_per_fragment: None,
            concurrency: None,
            intra_applier_concurrency: None,
            source_task_size: None,
            output_limit: None,
            optimize_indices: false,
            active_deadline_seconds: None,
            backoff_limit: None,
            manifest_secret_ref: None,
            manifest_checksum: None,
            forwarded_credential: false,
            suspend: false,
            cancel: false,
            priority: 0,
            ttl_seconds_after_finished: None,
        }
    }

    /// Whether two specs ask for the same, whatever became of what may change.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        let fixed = |spec: &Self| Self {
            suspend: false,
            cancel: false,
            priority: 0,
            ttl_seconds_after_finished: None,
            ..spec.clone()
        };
        fixed(self) == fixed(other)
    }
}

/// The name becomes part of the names of the Job (9 characters more) and of
/// its pods (12 more), and of their host names, which hold no dots.
fn name_rule() -> Rule {
    Rule::new(format!(
        "self.metadata.name.size() <= {MAX_REFRESH_NAME} && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')"
    ))
    .message(
        format!(
            "metadata.name must have at most {MAX_REFRESH_NAME} characters, lower-case letters, digits and '-': the names of the Job and its pods are made from it"
        )
        .as_str(),
    )
}

/// On the root, and not on the status, to see a status that is removed too.
fn final_phase_rule() -> Rule {
    Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.phase) \
         || !(oldSelf.status.phase in ['Succeeded', 'Failed', 'Cancelled']) \
         || (has(self.status) && has(self.status.phase) && self.status.phase == oldSelf.status.phase)",
    )
    .message("status.phase is final once it is Succeeded, Failed or Cancelled: make a new refresh instead")
}

/// Rules on fields are skipped where a field is absent before or after, so one
/// rule on the whole spec compares them all.
fn immutability_rule() -> Rule {
    let rule = IMMUTABLE
        .map(|field| {
            format!(
                "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
            )
        })
        .join(" && ");
    let (last, first) = MUTABLE.split_last().unwrap_or((&"", &[]));
    Rule::new(rule).message(
        format!(
            "spec may not change but for {} and {last}: make a new refresh instead",
            first.join(", ")
        )
        .as_str(),
    )
}

fn manifest_rule() -> Rule {
    Rule::new("has(self.manifestSecretRef) == has(self.manifestChecksum)").message(
        "spec.manifestSecretRef and spec.manifestChecksum belong together: give both or neither",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_field_of_the_spec_is_either_mutable_or_compared_by_the_immutability_rule() {
        let schema = crate::resources::schema::of::<MaterializedViewRefresh>();
        let fields: BTreeSet<&str> = schema["properties"]["spec"]["properties"]
            .as_object()
            .expect("spec has properties")
            .keys()
            .map(String::as_str)
            .collect();
        let listed: BTreeSet<&str> = MUTABLE.into_iter().chain(IMMUTABLE).collect();
        assert_eq!(fields, listed);
        assert_eq!(listed.len(), MUTABLE.len() + IMMUTABLE.len());
    }

    #[test]
    fn a_spec_that_names_the_view_alone_reads_as_the_schema_would_default_it() {
        let spec: MaterializedViewRefreshSpec =
            serde_json::from_str(r#"{"view": ["v"]}"#).expect("readable");
        assert_eq!(spec, MaterializedViewRefreshSpec::of(["v"]));
    }
}
