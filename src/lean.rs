//! Objects of the Kubernetes API, parsed without what nobody here looks at.
//!
//! A watch shows the whole of an object with each change to it, and so does the
//! answer to each write. Most of that are `metadata.managedFields` and, of Jobs
//! and pods, their specs: trees of small allocations that would be thrown away
//! at once. [`Lean`] skips them while it parses; what comes out is an object of
//! the ordinary type that lacks them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshSpec, MaterializedViewRefreshStatus,
    RefreshCluster, RefreshClusterSpec, RefreshClusterStatus,
};

/// An object, of which only its [`Parse::Parts`] were parsed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Lean<K>(pub K);

/// What is parsed of an object.
pub trait Parse: Sized {
    /// The parts that are looked at.
    type Parts: DeserializeOwned;

    /// The object that has just these.
    fn of(parts: Self::Parts) -> Self;
}

impl<'de, K: Parse> Deserialize<'de> for Lean<K> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        K::Parts::deserialize(from).map(|parts| Lean(K::of(parts)))
    }
}

impl<K: Resource> Resource for Lean<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

impl kube::api::Log for Lean<Pod> {}

/// How long a watch that broke off waits at most before it begins again.
const AGAIN: Duration = Duration::from_secs(5);

/// The usual pauses, but none longer than [`AGAIN`]: few watch, and what they
/// missed while the API server was away is waited for.
#[derive(Default)]
struct Soon(DefaultBackoff);

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(AGAIN))
    }
}

impl Backoff for Soon {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// A watch, of the objects themselves.
pub fn watch<K>(
    api: Api<Lean<K>>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
where
    K: Resource + Parse + Clone + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let events = watcher(api, config).backoff(Soon::default());
    events.map_ok(|event| match event {
        Event::Apply(Lean(object)) => Event::Apply(object),
        Event::Delete(Lean(object)) => Event::Delete(object),
        Event::InitApply(Lean(object)) => Event::InitApply(object),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    })
}

/// What a watch shows of an object, once the cache that it fills knows it too.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown<K> {
    /// It is there like this.
    Is(K),
    /// It is gone; like this it was.
    Gone(K),
}

/// What `events`, which fill a cache, show. What a list shows comes when the list
/// is over: until then the cache is as it was before, and who looks for it there
/// does not find it.
pub fn shown<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
) -> impl Stream<Item = watcher::Result<Shown<K>>> {
    let mut listed = Vec::new();
    let shown = events.map(move |event| match event {
        Ok(Event::Apply(object)) => vec![Ok(Shown::Is(object))],
        Ok(Event::Delete(object)) => vec![Ok(Shown::Gone(object))],
        Ok(Event::Init) => {
            listed.clear();
            Vec::new()
        }
        Ok(Event::InitApply(object)) => {
            listed.push(object);
            Vec::new()
        }
        Ok(Event::InitDone) => listed
            .drain(..)
            .map(|object| Ok(Shown::Is(object)))
            .collect(),
        Err(error) => vec![Err(error)],
    });
    shown.flat_map(stream::iter)
}

/// All of an object's metadata but who manages which of its fields.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    generate_name: Option<String>,
    generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    name: Option<String>,
    namespace: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    resource_version: Option<String>,
    uid: Option<String>,
}

impl From<Metadata> for ObjectMeta {
    fn from(of: Metadata) -> Self {
        ObjectMeta {
            annotations: of.annotations,
            creation_timestamp: of.creation_timestamp,
            deletion_grace_period_seconds: of.deletion_grace_period_seconds,
            deletion_timestamp: of.deletion_timestamp,
            finalizers: of.finalizers,
            generate_name: of.generate_name,
            generation: of.generation,
            labels: of.labels,
            managed_fields: None,
            name: of.name,
            namespace: of.namespace,
            owner_references: of.owner_references,
            resource_version: of.resource_version,
            self_link: None,
            uid: of.uid,
        }
    }
}

/// The parts of one of relance's own resources.
#[derive(Deserialize)]
pub struct Own<Spec, Status> {
    metadata: Metadata,
    spec: Spec,
    status: Option<Status>,
}

impl Parse for MaterializedViewRefresh {
    type Parts = Own<MaterializedViewRefreshSpec, MaterializedViewRefreshStatus>;

    fn of(parts: Self::Parts) -> Self {
        MaterializedViewRefresh {
            metadata: parts.metadata.into(),
            spec: parts.spec,
            status: parts.status,
        }
    }
}

impl Parse for RefreshCluster {
    type Parts = Own<RefreshClusterSpec, RefreshClusterStatus>;

    fn of(parts: Self::Parts) -> Self {
        RefreshCluster {
            metadata: parts.metadata.into(),
            spec: parts.spec,
            status: parts.status,
        }
    }
}

/// What is looked at of a Job: how it stands, not what it was to be.
#[derive(Deserialize)]
pub struct JobParts {
    metadata: Metadata,
    status: Option<JobStatus>,
}

impl Parse for Job {
    type Parts = JobParts;

    fn of(parts: JobParts) -> Self {
        Job {
            metadata: ObjectMeta {
                annotations: None,
                ..parts.metadata.into()
            },
            spec: None,
            status: parts.status,
        }
    }
}

/// What is looked at of a pod: whose it is, and how its containers are.
#[derive(Deserialize)]
pub struct PodParts {
    metadata: Metadata,
    status: Option<PodStatusParts>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatusParts {
    phase: Option<String>,
    conditions: Option<Vec<PodCondition>>,
    container_statuses: Option<Vec<ContainerParts>>,
    init_container_statuses: Option<Vec<ContainerParts>>,
}

#[derive(Deserialize)]
struct ContainerParts {
    name: String,
    state: Option<ContainerState>,
}

impl From<ContainerParts> for ContainerStatus {
    fn from(of: ContainerParts) -> Self {
        ContainerStatus {
            name: of.name,
            state: of.state,
            ..Default::default()
        }
    }
}

impl Parse for Pod {
    type Parts = PodParts;

    fn of(parts: PodParts) -> Self {
        let containers = |of: Option<Vec<ContainerParts>>| {
            of.map(|all| all.into_iter().map(ContainerStatus::from).collect())
        };
        Pod {
            metadata: ObjectMeta {
                annotations: None,
                ..parts.metadata.into()
            },
            spec: None,
            status: parts.status.map(|status| PodStatus {
                phase: status.phase,
                conditions: status.conditions.map(|mut all| {
                    all.retain(|condition| condition.type_ == "PodScheduled");
                    all
                }),
                container_statuses: containers(status.container_statuses),
                init_container_statuses: containers(status.init_container_statuses),
                ..Default::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::{self, ObjectRef};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_watch_that_breaks_off_again_and_again_still_begins_again_soon() {
        let mut pauses = Soon::default();
        let first: Vec<Duration> = pauses.by_ref().take(20).collect();
        assert!(first[0] < Duration::from_secs(2), "{first:?}");
        assert_eq!(first[19], AGAIN);
        assert!(first.iter().all(|pause| *pause <= AGAIN), "{first:?}");
        pauses.reset();
        assert!(pauses.next().is_some_and(|p| p < Duration::from_secs(2)));
    }

    #[tokio::test]
    async fn what_a_list_shows_comes_once_the_cache_has_it() {
        let (told, events) = futures::channel::mpsc::unbounded();
        let (store, writer) = reflector::store();
        let mut seen = Box::pin(shown(events.reflect(writer)));
        let named = |name: &str| {
            let mut job = Job::default();
            job.metadata.name = Some(name.to_string());
            job
        };
        let tell = |event| told.unbounded_send(Ok(event)).unwrap();
        let mut next = async || {
            let shown = tokio::time::timeout(Duration::from_millis(50), seen.next()).await;
            shown.ok().map(|shown| shown.unwrap().unwrap())
        };
        let there = |name: &str| store.get(&ObjectRef::new(name)).is_some();
        tell(Event::Init);
        tell(Event::InitApply(named("a")));
        tell(Event::InitDone);
        assert_eq!(next().await, Some(Shown::Is(named("a"))));
        assert!(there("a"));
        // The watch breaks off, and another one comes meanwhile.
        tell(Event::Init);
        tell(Event::InitApply(named("a")));
        tell(Event::InitApply(named("b")));
        assert_eq!(next().await, None);
        assert!(!there("b"), "the cache is as it was before the list");
        tell(Event::InitDone);
        assert_eq!(next().await, Some(Shown::Is(named("a"))));
        assert_eq!(next().await, Some(Shown::Is(named("b"))));
        assert!(there("b"));
        tell(Event::Delete(named("b")));
        assert_eq!(next().await, Some(Shown::Gone(named("b"))));
        assert!(!there("b"));
    }

    fn metadata() -> Value {
        json!({
            "name": "r", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2,
            "generateName": "r-", "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": "2026-01-02T00:00:00Z", "deletionGracePeriodSeconds": 30,
            "labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["f"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "o", "uid": "x"}],
            "managedFields": [{"manager": "m", "operation": "Apply", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:view": {}}}}],
        })
    }

    /// What is parsed leanly, and what is parsed whole, without its managed fields.
    fn both<K: Parse + Resource + Serialize + DeserializeOwned>(object: Value) -> [Value; 2] {
        let Lean(lean) = serde_json::from_value::<Lean<K>>(object.clone()).unwrap();
        let mut whole: K = serde_json::from_value(object).unwrap();
        assert!(whole.meta_mut().managed_fields.take().is_some());
        [lean, whole].map(|object| serde_json::to_value(object).unwrap())
    }

    #[test]
    fn of_relances_own_resources_all_but_the_managed_fields_is_parsed() {
        let [lean, whole] = both::<MaterializedViewRefresh>(json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "MaterializedViewRefresh",
            "metadata": metadata(),
            "spec": {"view": ["v"], "priority": 3, "cluster": "c"},
            "status": {"phase": "Running", "message": "m", "job": {"name": "j", "namespace": "n", "cluster": "c"}},
        }));
        assert_eq!(lean, whole);
        let [lean, whole] = both::<RefreshCluster>(json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "RefreshCluster",
            "metadata": metadata(),
            "spec": {"maxActiveRefreshes": 3},
        }));
        assert_eq!(lean, whole);
    }

    #[test]
    fn of_a_job_its_spec_and_annotations_are_left_out() {
        let [lean, mut whole] = both::<Job>(json!({
            "metadata": metadata(),
            "spec": {"template": {}},
            "status": {"active": 1, "conditions": [{"type": "Failed", "status": "True"}]},
        }));
        let whole_job = whole.as_object_mut().unwrap();
        whole_job.remove("spec").unwrap();
        whole["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("annotations");
        assert_eq!(lean, whole);
    }
}
