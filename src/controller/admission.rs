//! Giving turns: who may start now, by the queue's rules.
//!
//! One pass at a time is given one. The cache tells who waits; who runs is
//! asked of the API server before a turn is given, since a cache that is late
//! would let two run. A turn that was given is reserved until the pass that
//! got it ends: by then it is in a status, or was not used.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use kube::api::ListParams;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use tokio::sync::mpsc::UnboundedSender;

use super::context::Context;
use super::queue::{self, Gate, Place};
use super::refresh::{Turn, World};
use super::targets::Targets;
use crate::resources::{MaterializedViewRefresh, Phase, RefreshCluster};

/// A turn that was given, kept until this is dropped.
pub struct Reservation<'a> {
    ctx: &'a Context,
    uid: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.ctx.reserved().remove(&self.uid);
    }
}

/// Whether it is a refresh's turn.
pub async fn turn<'a>(
    ctx: &'a Context,
    refresh: &MaterializedViewRefresh,
    world: Option<&World>,
) -> Result<(Turn, Option<Reservation<'a>>), kube::Error> {
    // A place in the queue, whether or not the status speaks of it yet.
    let mut me = refresh.clone();
    let status = me.status.get_or_insert_default();
    status.phase = Phase::Queued;
    if let Some(World::Ready { uri, .. }) = world {
        status.view_uri = Some(uri.clone());
    }
    let Some(me) = Place::of(&me) else {
        return Ok((Turn::Behind("It neither runs nor waits".into()), None));
    };
    let gates = gates(&ctx.known.clusters, &ctx.targets);
    let beside_me = || {
        let known = ctx.known.refreshes.state().into_iter();
        known.filter_map(|other| Place::beside(&other, &refresh.spec.view, &me.uri))
    };
    let early = queue::turn(&me, &beside_me().collect::<Vec<_>>(), &gates);
    if early != Turn::Now {
        return Ok((early, None));
    }

    let _one_at_a_time = ctx.admission.lock().await;
    let running = ListParams::default().fields("status.phase=Running");
    let running = ctx.refreshes.list(&running).await?;
    let mut others: Vec<Place> = running.iter().filter_map(Place::of).collect();
    others.extend(ctx.reserved().values().cloned());
    others.extend(beside_me().filter(|place| !place.running));
    let turn = queue::turn(&me, &others, &gates);
    if turn != Turn::Now {
        return Ok((turn, None));
    }
    let uid = me.uid.clone();
    ctx.reserved().insert(
        uid.clone(),
        Place {
            running: true,
            ..me
        },
    );
    Ok((turn, Some(Reservation { ctx, uid })))
}

fn places(refreshes: &Store<MaterializedViewRefresh>) -> Vec<Place> {
    let refreshes = refreshes.state();
    refreshes.iter().filter_map(|r| Place::of(r)).collect()
}

fn gates(clusters: &Store<RefreshCluster>, targets: &Targets) -> BTreeMap<String, Gate> {
    let clusters = clusters.state();
    let limits = clusters.iter().map(|cluster| {
        let limit = cluster.spec.max_active_refreshes;
        (cluster.name_any(), Gate::Limit(limit))
    });
    let closed = targets.closed().into_iter();
    limits
        .chain(closed.map(|(name, why)| (name, Gate::Closed(why))))
        .collect()
}

/// Wakes those whose turn may have come, when another's place has changed.
pub struct Waker {
    refreshes: Store<MaterializedViewRefresh>,
    clusters: Store<RefreshCluster>,
    targets: Arc<Targets>,
    places: Mutex<HashMap<String, Place>>,
    wake: UnboundedSender<ObjectRef<MaterializedViewRefresh>>,
}

impl Waker {
    /// Wakes through `wake`, from what the caches show.
    pub fn new(
        refreshes: Store<MaterializedViewRefresh>,
        clusters: Store<RefreshCluster>,
        targets: Arc<Targets>,
        wake: UnboundedSender<ObjectRef<MaterializedViewRefresh>>,
    ) -> Self {
        Self {
            refreshes,
            clusters,
            targets,
            places: Mutex::default(),
            wake,
        }
    }

    /// Notes a refresh that the cache has just taken up, or lost.
    pub fn note(&self, refresh: &MaterializedViewRefresh, gone: bool) {
        let uid = refresh.uid().unwrap_or_default();
        // One that was not looked at yet may stand before others too.
        let place = Place::beside(refresh, &refresh.spec.view, "").filter(|_| !gone);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match &place {
            Some(place) => places.insert(uid, place.clone()),
            None => places.remove(&uid),
        };
        drop(places);
        // One that has just come stands in nobody's way.
        if before.is_some() && before != place {
            self.wake_next();
        }
    }

    /// Wakes all whose turn it would be.
    pub fn wake_next(&self) {
        let all = places(&self.refreshes);
        let gates = gates(&self.clusters, &self.targets);
        let next = queue::next(&all, &gates);
        for refresh in self.refreshes.state() {
            if refresh
                .meta()
                .uid
                .as_ref()
                .is_some_and(|uid| next.contains(uid))
            {
                // The controller has gone if nobody listens.
                let _ = self.wake.send(ObjectRef::from_obj(&refresh));
            }
        }
    }
}
