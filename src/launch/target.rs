//! A cluster that Jobs run in: this one, or another.
//!
//! Each target has one watch of relance's Jobs and one of their pods, whatever
//! number of refreshes run there, and remembers whether it answers. What
//! concerns another cluster may fail or hang without holding up what does not:
//! every call to it has its time, and while it is silent only now and then one
//! is tried.
//!
//! What a namespace of Jobs must allow: create, get, list, watch and delete
//! `jobs`; list and watch `pods`; get `pods/log`; list `events`.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::state;
use crate::lean::{self, Lean, Parse, Shown};
use crate::resources::names;

/// How long a call to another cluster may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long after an answer of another cluster its watches are taken to be live.
const ANSWERED: Duration = Duration::from_secs(2);

/// How long a cluster that did not answer is left alone.
const REST: Duration = Duration::from_secs(3);

/// Why a call to a target has no result.
#[derive(Debug, Error)]
pub enum TargetError {
    /// The other cluster does not answer, or not now, or does not take the credentials.
    #[error("{0}")]
    Away(String),
    /// It answered that it cannot be.
    #[error(transparent)]
    Kube(#[from] kube::Error),
}

impl TargetError {
    /// The API server's code, where it answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            TargetError::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// A Job or pod of a refresh has changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Touched {
    /// The refresh's name.
    pub refresh: String,
    /// The refresh's UID, where it is a Job that is not over.
    pub at_work: Option<String>,
}

/// See [`Touched::at_work`].
fn at_work(job: &Job) -> Option<String> {
    let state = state::of(job, []);
    let over = state.end.is_some() || state.deleting;
    let uid = job.labels().get(names::REFRESH_UID_LABEL)?;
    (!over).then(|| uid.clone())
}

/// Another cluster than the operator's own.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The RefreshCluster.
    pub name: String,
    /// By what it is known again; see [`server_digest`].
    ///
    /// [`server_digest`]: super::kubeconfig::server_digest
    pub server: String,
}

/// A cluster and a namespace of it that Jobs run in.
pub struct Target {
    /// The namespace of the Jobs.
    pub namespace: String,
    /// relance's Jobs in it.
    pub jobs: Api<Lean<Job>>,
    /// Their pods.
    pub pods: Api<Lean<Pod>>,
    /// What its controllers say of them.
    pub events: Api<Event>,
    /// The same Jobs as the watch showed them last.
    pub known_jobs: Store<Job>,
    /// The same of their pods.
    pub known_pods: Store<Pod>,
    /// The names of a Job's pods, by its UID.
    pods_of: PodNames,
    client: Client,
    remote: Option<Remote>,
    contact: Mutex<Contact>,
    _watches: DropGuard,
}

impl Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({:?}, {})", self.remote, self.namespace)
    }
}

#[derive(Clone, Debug, Default)]
struct Contact {
    /// Why it does not answer, and when that was seen last.
    silent: Option<(String, Instant)>,
    /// When it answered last.
    answered: Option<Instant>,
}

impl Target {
    /// A target whose watches tell `touched` of each change to a Job or pod
    /// that carries `labels`, until it is dropped. `remote` says which other
    /// cluster it is, if it is one.
    pub fn new(
        client: Client,
        namespace: &str,
        labels: &str,
        remote: Option<Remote>,
        touched: &UnboundedSender<Touched>,
    ) -> Target {
        let (known_jobs, job_writer) = reflector::store();
        let (known_pods, pod_writer) = reflector::store();
        let ending = CancellationToken::new();
        let jobs: Api<Lean<Job>> = Api::namespaced(client.clone(), namespace);
        let pods: Api<Lean<Pod>> = Api::namespaced(client.clone(), namespace);
        let (touch_job, touch_pod) = (touched.clone(), touched.clone());
        watch(
            &jobs,
            labels,
            job_writer,
            &ending,
            move |shown| match shown {
                Shown::Is(job) => tell(&touch_job, job, at_work(job)),
                Shown::Gone(job) => tell(&touch_job, job, None),
            },
        );
        let pods_of = PodNames::default();
        let names = pods_of.clone();
        watch(&pods, labels, pod_writer, &ending, move |shown| {
            names.note(shown);
            let (Shown::Is(pod) | Shown::Gone(pod)) = shown;
            tell(&touch_pod, pod, None);
        });
        Target {
            namespace: namespace.to_string(),
            jobs,
            pods,
            events: Api::namespaced(client.clone(), namespace),
            known_jobs,
            known_pods,
            pods_of,
            client,
            remote,
            contact: Mutex::default(),
            _watches: ending.drop_guard(),
        }
    }

    /// Whether it is another cluster.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// By what it is known again, where it is another cluster.
    pub fn server(&self) -> Option<&str> {
        self.remote.as_ref().map(|remote| remote.server.as_str())
    }

    /// The version that its API server says it has.
    pub async fn version(&self) -> Result<String, TargetError> {
        let version = self.ask(self.client.apiserver_version()).await?;
        Ok(version.git_version)
    }

    /// Whether there is a Job of that name in a namespace, this or another.
    pub async fn has_job(&self, namespace: &str, name: &str) -> Result<bool, TargetError> {
        let jobs: Api<Lean<Job>> = Api::namespaced(self.client.clone(), namespace);
        Ok(self.ask(jobs.get_opt(name)).await?.is_some())
    }

    /// Why another cluster does not answer, if it does not.
    pub fn silent(&self) -> Option<String> {
        let contact = self.contact();
        contact.silent.as_ref().map(|(why, _)| why.clone())
    }

    /// Makes a call, and notes whether it was answered. Calls to this cluster
    /// itself are made as they are: where it is away, all is.
    pub async fn ask<T>(
        &self,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, TargetError> {
        let Some(Remote { name: cluster, .. }) = &self.remote else {
            return Ok(call.await?);
        };
        if let Some(why) = self.rests() {
            return Err(TargetError::Away(why));
        }
        let answer = tokio::time::timeout(PATIENCE, call).await;
        let why = match answer {
            Ok(Ok(answer)) => {
                self.note(cluster, None);
                return Ok(answer);
            }
            Ok(Err(error)) => match why_away(&error) {
                None => {
                    self.note(cluster, None);
                    return Err(error.into());
                }
                Some(why) => why,
            },
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        let why = format!("cluster {cluster} cannot be reached: {why}");
        self.note(cluster, Some(why.clone()));
        Err(TargetError::Away(why))
    }

    fn rests(&self) -> Option<String> {
        let contact = self.contact();
        let (why, seen) = contact.silent.as_ref()?;
        (seen.elapsed() < REST).then(|| why.clone())
    }

    fn note(&self, cluster: &str, silent: Option<String>) {
        let mut contact = self.contact();
        match (&contact.silent, &silent) {
            (None, Some(why)) => tracing::warn!(cluster, "{why}"),
            (Some(_), None) => tracing::info!(cluster, "the cluster answers again"),
            _ => {}
        }
        if silent.is_none() {
            contact.answered = Some(Instant::now());
        }
        contact.silent = silent.map(|why| (why, Instant::now()));
    }
}

/// Why an error means that the cluster is away, if it does.
fn why_away(error: &kube::Error) -> Option<String> {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => Some("it does not take the kubeconfig's credentials".to_string()),
            429 | 500.. => Some(format!("it answers {}: {}", status.code, status.message)),
            _ => None,
        },
        error => Some(innermost(error)),
    }
}

/// What an error comes from: the words around it only say that a request failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn tell<K: Resource>(touched: &UnboundedSender<Touched>, object: &K, at_work: Option<String>) {
    if let Some(refresh) = object.labels().get(names::REFRESH_LABEL) {
        // The controller has gone if nobody listens.
        let _ = touched.send(Touched {
            refresh: refresh.clone(),
            at_work,
        });
    }
}

fn watch<K>(
    api: &Api<Lean<K>>,
    labels: &str,
    writer: reflector::store::Writer<K>,
    ending: &CancellationToken,
    touch: impl Fn(&Shown<K>) + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Parse + Clone + Debug + Send + Sync + 'static,
{
    let config = watcher::Config::default().labels(labels);
    let events = lean::watch(api.clone(), config).reflect(writer);
    let changes = lean::shown(events).for_each(move |shown| {
        match shown {
            Ok(shown) => touch(&shown),
            Err(error) => tracing::debug!(%error, "a watch broke off and begins again"),
        }
        ready(())
    });
    let ending = ending.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = ending.cancelled() => {}
            () = changes => {}
        }
    });
}

/// The names of Jobs' pods: to look at all pods for those of one Job would
/// cost, with every Job looked at, the square of their number.
#[derive(Clone, Default)]
struct PodNames(Arc<Mutex<HashMap<String, BTreeSet<String>>>>);

impl PodNames {
    /// Notes a pod that has come, changed or gone.
    fn note(&self, shown: &Shown<Pod>) {
        let (pod, is_gone) = match shown {
            Shown::Is(pod) => (pod, false),
            Shown::Gone(pod) => (pod, true),
        };
        let name = pod.name_any();
        let mut names = self.names();
        for owner in pod.owner_references() {
            let of_job = names.entry(owner.uid.clone()).or_default();
            match is_gone {
                true => of_job.remove(&name),
                false => of_job.insert(name.clone()),
            };
            if of_job.is_empty() {
                names.remove(&owner.uid);
            }
        }
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Target {
    /// The pods of a Job, as the watch showed them last.
    pub fn pods_of(&self, job_uid: &str) -> Vec<Arc<Pod>> {
        let mut names = self.pods_of.names();
        let Some(of_job) = names.get_mut(job_uid) else {
            return Vec::new();
        };
        let mut pods = Vec::new();
        of_job.retain(|name| {
            let found = self
                .known_pods
                .get(&ObjectRef::new(name).within(&self.namespace))
                .filter(|pod| state::is_pod_of(pod, job_uid));
            pods.extend(found.clone());
            // One that went while the watch was broken off.
            found.is_some()
        });
        if of_job.is_empty() {
            names.remove(job_uid);
        }
        pods
    }

    /// Waits until the watches have listed what is there.
    pub async fn listed(&self) {
        // Its writers live as long as this does.
        let _ = self.known_jobs.wait_until_ready().await;
        let _ = self.known_pods.wait_until_ready().await;
    }

    /// A Job as the watch showed it last, where that can be relied on: another
    /// cluster must have answered a moment ago.
    pub fn known_job(&self, name: &str) -> Option<Arc<Job>> {
        if self.is_remote() {
            let contact = self.contact();
            if contact.answered?.elapsed() > ANSWERED || contact.silent.is_some() {
                return None;
            }
        }
        let key = ObjectRef::new(name).within(&self.namespace);
        self.known_jobs.get(&key)
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
