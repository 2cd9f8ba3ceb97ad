//! The controller: takes every `MaterializedViewRefresh` to its end.
//!
//! # The life of a refresh
//!
//! | phase | what is true | goes on to |
//! |---|---|---|
//! | none, `Queued` | no Job of it exists | `Failed`: its view or cluster rules it out, or cannot be looked at for as long as it might run · `Succeeded`: the view is current already · `Running`: its turn has come, and the intent is written · `Suspended`, `Cancelled`: as `spec` asks |
//! | `Running`, no Job UID | the intent: its Job may or may not exist | the same with the UID: the Job was created, or found by its UID label · `Succeeded`: the view's history knows its commit · `Failed`: the API server refuses the Job |
//! | `Running`, Job UID | its Job was seen | `Succeeded`: the Job or the history says so · `Failed`: the Job failed, and the history knows no commit · back to the intent: the Job is gone, and the history knows no commit · `Suspended`, `Cancelled`: the Job was deleted and is gone, and the history knows no commit |
//! | `Suspended` | no Job of it exists, its claims are kept | `Queued`: no longer suspended · `Cancelled` |
//! | `Succeeded`, `Failed`, `Cancelled` | final; no cache holds it any more ([`ended`]) | the same, its caller's credential deleted, where one was forwarded · deletion, once `ttlSecondsAfterFinished` is over |
//!
//! A refresh that is being deleted and still there, for somebody's finalizer, goes
//! on as by `spec.cancel`.
//!
//! Where the Job is in another cluster, the refresh has a finalizer from before
//! the intent until that Job works no more. `Running` may then go to `Failed`
//! (`ClusterLost`) too: its cluster was out of reach until the deadline, and
//! the history knows no commit.
//!
//! # The protocol
//!
//! One pass over a refresh (`reconcile`, at a time that [`runner`] chooses)
//! asks the pure [`refresh::decide`] what to do, does it, and asks again. Every
//! status write is whole, by server-side apply of one field manager, and
//! carries the resourceVersion that it was decided on: whoever decided on an
//! older state is refused.
//!
//! A launch is three writes: the intent to the status, the Job (whose name the
//! refresh's UID fixes, so that a second create meets the first), the Job's
//! UID to the status. Between any two of them the operator may die. The next
//! pass finds the intent, asks the view's history for this refresh's UID, and
//! creates the Job, or adopts the one that is there.
//!
//! The result's authority is the Lance commit that carries the refresh's UID.
//! What the Job and its pods say is when to look for it; a worker's
//! termination message stands in only where the history cannot be read.
//!
//! Of several replicas one acts ([`election`]); the others stand by, without a
//! watch, until its lease ends. Whatever the one before left unfinished is what
//! a dead operator leaves.
//!
//! Whose turn it is ([`queue`]) is decided by one pass at a time, from a
//! fresh list of what runs; a turn that was given and is not yet written is
//! kept in memory until it is. A refresh that was deleted while it ran keeps its
//! view for as long as a worker of it may still commit ([`survivors`]).

mod admission;
mod apply;
mod caller;
mod cluster;
mod context;
pub mod election;
mod ended;
pub mod lease;
mod look;
pub mod metrics;
mod observed;
mod orphans;
mod places;
mod progress;
pub mod queue;
mod reconcile;
pub mod refresh;
mod runner;
mod status;
mod survivors;
mod targets;

#[cfg(test)]
mod played;
#[cfg(test)]
mod refresh_model;
#[cfg(test)]
mod refresh_table;

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::Reporter;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, predicates};
use kube::{Api, Client, Resource, ResourceExt};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::catalog::SharedCatalog;
use crate::launch::job::Home;
use crate::launch::target::Touched;
use crate::lean::{self, Parse, Shown};
use crate::resources::{MaterializedViewRefresh, Phase, RefreshCluster, names};
use context::{Context, Known};
use election::{Election, Leadership};
use metrics::ControllerMetrics;
use places::Places;
use targets::Targets;

/// A Job that starts tells of itself and of its pods ten times within a moment:
/// a pass over its refresh looks at all of that at once.
const TOGETHER: Duration = Duration::from_millis(50);

/// What the controller needs to know.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// The namespace of the refreshes and of their Jobs.
    pub namespace: String,
    /// Image of the worker containers whose RefreshCluster names none.
    pub image: String,
    /// The catalog, which workers reach by the same URI.
    pub catalog: SharedCatalog,
    /// Ends the controller when the pass at work is done.
    pub shutdown: CancellationToken,
    /// What it counts and times.
    pub metrics: ControllerMetrics,
    /// Variables that every worker's environment has. No secrets.
    pub worker_environment: Vec<(String, String)>,
}

/// Why the controller cannot start.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// The namespace cannot be read.
    #[error(
        "namespace '{namespace}' cannot be read: {source}; create it, or let the operator get it"
    )]
    Namespace {
        /// The namespace.
        namespace: String,
        /// The API server's words.
        source: kube::Error,
    },
}

/// Runs the controller until `config.shutdown`, whenever this replica is the
/// one to act. It ceases at once when it is not: passes are broken off wherever
/// they are, as by a death, and `client` sends no more writes.
pub async fn lead(
    client: Client,
    config: ControllerConfig,
    mut election: Election,
) -> Result<(), ControllerError> {
    loop {
        tokio::select! {
            () = config.shutdown.cancelled() => return Ok(()),
            () = election.won() => {}
        }
        tracing::info!(
            namespace = config.namespace,
            "elected; the controller starts"
        );
        let leadership = election.leadership().clone();
        tokio::select! {
            ended = run(client.clone(), leadership, config.clone()) => {
                election.release().await;
                return ended;
            }
            () = election.lost() => {
                tracing::warn!("the lease is lost; the controller has stopped, and stands by");
            }
        }
    }
}

/// Runs the controller until `config.shutdown`.
async fn run(
    client: Client,
    leadership: Leadership,
    config: ControllerConfig,
) -> Result<(), ControllerError> {
    let client = leadership.fence(client);
    let ControllerConfig {
        namespace,
        image,
        catalog,
        shutdown,
        metrics,
        worker_environment,
    } = config;
    let Some(id) = home_id(&client, &namespace, &shutdown).await? else {
        return Ok(());
    };
    let (touch, touched) = mpsc::unbounded_channel::<Touched>();
    let targets = Targets::new(client.clone(), leadership, &namespace, &id, touch);
    let targets = Arc::new(targets);
    let home = Home {
        id,
        image,
        catalog: catalog.source().clone(),
        environment: worker_environment,
    };
    let (refreshes, refresh_writer) = reflector::store();
    let (clusters, cluster_writer) = reflector::store();
    let (wake, woken) = mpsc::unbounded_channel();
    let places = Arc::new(Places::default());
    let reporter = Reporter {
        controller: names::EVENT_REPORTER.to_string(),
        instance: std::env::var("HOSTNAME").ok(),
    };
    let _counted = metrics.census.of(refreshes.clone());
    let known = Known {
        refreshes: refreshes.clone(),
        clusters: clusters.clone(),
    };
    let ctx = Arc::new(Context::new(
        client.clone(),
        &namespace,
        home,
        catalog,
        known,
        places.clone(),
        targets.clone(),
        reporter,
        metrics,
    ));

    // Each watch fills its cache before it tells the controllers.
    let active = watcher::Config::default().fields(&Phase::none_of(&Phase::TERMINAL));
    let refresh_events = watch::<MaterializedViewRefresh>(&client, &namespace, active)
        .reflect(refresh_writer)
        .inspect_ok({
            let (places, ctx) = (places.clone(), ctx.clone());
            move |event| match event {
                Event::Apply(refresh) | Event::InitApply(refresh) => places.note(refresh, false),
                Event::Delete(refresh) => {
                    ctx.at_rest(&refresh.uid().unwrap_or_default());
                    places.note(refresh, true);
                }
                Event::Init => places.list_begins(),
                Event::InitDone => places.list_ends(),
            }
        });
    let ended = watcher::Config::default().fields(&Phase::none_of(&Phase::ACTIVE));
    let ended_events = watch::<MaterializedViewRefresh>(&client, &namespace, ended);
    let cluster_events = watch::<RefreshCluster>(&client, &namespace, Default::default())
        .reflect(cluster_writer)
        .inspect_ok({
            let (places, ctx) = (places.clone(), ctx.clone());
            move |event| {
                if let Event::Delete(cluster) = event {
                    ctx.targets.forget(&cluster.name_any());
                    ctx.forget_cluster(&cluster.name_any());
                }
                // A higher ceiling lets others in.
                places.changed();
            }
        });
    let cluster_events =
        there(cluster_events).predicate_filter(predicates::generation, Default::default());
    let woken = stream::unfold(woken, async |mut woken| {
        let refresh = woken.recv().await?;
        Some((refresh, woken))
    });
    let (late, came_late) = mpsc::unbounded_channel();
    let touched = {
        let (active, at, places) = (refreshes.clone(), namespace.clone(), places.clone());
        together(touched).map(move |touched| {
            let refresh = ObjectRef::new(&touched.refresh).within(&at);
            let known = active.get(&refresh).and_then(|known| known.uid());
            if known.is_none() {
                // The last worker of a refresh that is gone may have ended.
                places.changed();
            }
            if touched.at_work.is_some_and(|uid| known != Some(uid)) {
                // A create that was sent before an operator died has landed
                // late. Nobody listens any more if the controller has gone.
                let _ = late.send(touched.refresh);
            }
            refresh
        })
    };
    let counted = count_again(refreshes.clone(), clusters.clone());
    let touched = stream::select(touched, woken);
    let touched = stream::select(named(there(refresh_events)), touched);
    let refresh_passes = runner::run(touched, refreshes, shutdown.clone(), {
        let ctx = ctx.clone();
        move |refresh| reconcile::reconcile(refresh, ctx.clone())
    });
    let waking = {
        let ctx = ctx.clone();
        // Nobody listens any more if the controller has gone.
        let tell = move |refresh| drop(wake.send(refresh));
        async move {
            let gates = || admission::gates(ctx.all_clusters(), &ctx.targets);
            places.wake(gates, tell).await;
        }
    };
    let touched = stream::select(named(cluster_events), counted);
    let cluster_passes = runner::run(touched, clusters, shutdown.clone(), {
        let ctx = ctx.clone();
        move |cluster| cluster::pass(cluster, ctx.clone())
    });
    tracing::info!(namespace, "the controller runs");
    let beside = async {
        tokio::select! {
            () = ended::look_after(ctx.clone(), ended_events, came_late) => {}
            () = orphans::run(&ctx) => {}
            () = waking => {}
            () = shutdown.cancelled() => {}
        }
    };
    tokio::join!(refresh_passes, cluster_passes, beside);
    Ok(())
}

/// The id of the cluster that refreshes live in: their namespace's UID, which
/// no other cluster has, and which a namespaced Role can be allowed to read.
/// None if the shutdown came first.
async fn home_id(
    client: &Client,
    namespace: &str,
    shutdown: &CancellationToken,
) -> Result<Option<String>, ControllerError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    loop {
        match namespaces.get(namespace).await {
            Ok(found) => return Ok(Some(found.uid().unwrap_or_default())),
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403 | 404) => {
                return Err(ControllerError::Namespace {
                    namespace: namespace.to_string(),
                    source: kube::Error::Api(status),
                });
            }
            Err(error) => tracing::warn!(%error, "the API server does not answer yet"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn watch<K>(
    client: &Client,
    namespace: &str,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope> + Parse + Clone + Debug,
    K: Send + 'static,
    K::DynamicType: Default,
{
    lean::watch(Api::namespaced(client.clone(), namespace), config)
}

/// What comes within [`TOGETHER`] of one another, each thing once.
fn together<T: Eq + Hash>(coming: mpsc::UnboundedReceiver<T>) -> impl Stream<Item = T> {
    stream::unfold(coming, async |mut coming| {
        let mut come = HashSet::from([coming.recv().await?]);
        tokio::time::sleep(TOGETHER).await;
        while let Ok(next) = coming.try_recv() {
            come.insert(next);
        }
        Some((stream::iter(come), coming))
    })
    .flatten()
}

/// Names a cluster again when its counts may have changed.
fn count_again(
    refreshes: reflector::Store<MaterializedViewRefresh>,
    clusters: reflector::Store<RefreshCluster>,
) -> impl Stream<Item = ObjectRef<RefreshCluster>> {
    stream::unfold(
        (refreshes, clusters, Vec::new()),
        |(refreshes, clusters, before)| async move {
            loop {
                tokio::time::sleep(Duration::from_secs(2)).await;
                let now: Vec<_> = clusters
                    .state()
                    .iter()
                    .map(|c| (c.name_any(), cluster::count(&refreshes, &c.name_any())))
                    .collect();
                if now != before {
                    let changed = clusters.state();
                    let changed = changed.iter().map(|c| ObjectRef::from_obj(c.as_ref()));
                    let changed: Vec<_> = changed.collect();
                    return Some((stream::iter(changed), (refreshes, clusters, now)));
                }
            }
        },
    )
    .flatten()
}

/// What a watch shows that is there.
fn there<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
) -> impl Stream<Item = watcher::Result<K>> {
    lean::shown(events).try_filter_map(async |shown| {
        Ok(match shown {
            Shown::Is(object) => Some(object),
            Shown::Gone(_) => None,
        })
    })
}

/// What a watch shows, by name.
fn named<K>(shown: impl Stream<Item = watcher::Result<K>>) -> impl Stream<Item = ObjectRef<K>>
where
    K: Resource<DynamicType = ()>,
{
    shown.filter_map(async |shown| match shown {
        Ok(object) => Some(ObjectRef::from_obj(&object)),
        Err(error) => {
            tracing::warn!(%error, "a watch broke off and begins again");
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_together_is_told_once_and_what_comes_later_again() {
        let (send, coming) = mpsc::unbounded_channel();
        let mut told = std::pin::pin!(together(coming));
        for name in ["a", "b", "a"] {
            send.send(name).unwrap();
        }
        let mut first = [told.next().await.unwrap(), told.next().await.unwrap()];
        first.sort_unstable();
        assert_eq!(first, ["a", "b"]);
        send.send("a").unwrap();
        assert_eq!(told.next().await, Some("a"));
        drop(send);
        assert_eq!(told.next().await, None);
    }
}
