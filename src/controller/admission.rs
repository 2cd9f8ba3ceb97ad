//! Giving turns: who may start now, by the queue's rules.
//!
//! The cache tells who waits; who runs is asked of the API server before turns
//! are given, since a cache that is late would let two run. All that ask at the
//! time are answered by one such list, and the more a list takes the longer the
//! next one is put off, so that thousands that run and hundreds that come do
//! not keep the operator listing. A turn that was given is reserved until the
//! pass that got it ends: by then it is in a status, or was not used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ListParams;
use kube::core::Request;
use kube::{Resource, ResourceExt};
use serde::Deserialize;
use tokio::time::Instant;

use super::context::Context;
use super::places::Asked;
use super::queue::{Gate, Place};
use super::refresh::{Turn, World};
use super::survivors;
use super::targets::Targets;
use crate::resources::{MaterializedViewRefresh, Phase, RefreshCluster};

/// The pause after a list, as a multiple of the time that it took.
const PAUSE: u32 = 19;
/// And at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// When the next list is due. Locked while turns are given.
#[derive(Debug, Default)]
pub struct Pace(Option<Instant>);

/// Whether it is a refresh's turn. If so, the turn is kept for it with what
/// comes beside it.
pub async fn turn<'a>(
    ctx: &'a Context,
    refresh: &MaterializedViewRefresh,
    world: Option<&World>,
) -> Result<(Turn, Option<Asked<'a>>), kube::Error> {
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
    let asked = ctx.places.ask(me, refresh.spec.view.clone());
    let mut pace = ctx.admission.lock().await;
    // Another may have been answered for it meanwhile.
    if asked.answer().is_none() {
        deal(ctx, &mut pace).await?;
    }
    Ok(match asked.answer() {
        Some(Turn::Now) => (Turn::Now, Some(asked)),
        Some(behind) => (behind, None),
        None => (Turn::Behind("Waiting for its turn".into()), None),
    })
}

/// Answers all that ask by one list.
async fn deal(ctx: &Context, pace: &mut Pace) -> Result<(), kube::Error> {
    if let Some(due) = pace.0 {
        tokio::time::sleep_until(due).await;
    }
    // What is written while the list is on its way may be in neither.
    let mut running = ctx.places.reserved();
    let began = Instant::now();
    survivors::listed(ctx).await;
    let listed = list_running(ctx).await?;
    let asking = ctx.places.asking();
    // One that asks again has given its turn back.
    running.retain(|place| !asking.contains_key(&place.uid));
    running.extend(listed);
    running.extend(survivors::places(ctx, &asking, &running).await?);
    pace.0 = Some(Instant::now() + (PAUSE * began.elapsed()).min(LONGEST_PAUSE));
    let gates = gates(ctx.all_clusters(), &ctx.targets);
    ctx.places.deal_to(&asking, &running, &gates);
    Ok(())
}

/// What clusters let through.
pub fn gates(clusters: Vec<Arc<RefreshCluster>>, targets: &Targets) -> BTreeMap<String, Gate> {
    let limits = clusters.iter().map(|cluster| {
        let limit = cluster.spec.max_active_refreshes;
        (cluster.name_any(), Gate::Limit(limit))
    });
    let closed = targets.closed().into_iter();
    limits
        .chain(closed.map(|(name, why)| (name, Gate::Closed(why))))
        .collect()
}

/// The little of a refresh that its place needs: most of a list of thousands
/// is what nobody looks at.
#[derive(Deserialize)]
struct Listed {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Meta,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    uid: String,
    name: String,
    creation_timestamp: Time,
}

#[derive(Deserialize)]
struct Spec {
    cluster: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    view_uri: Option<String>,
}

/// The places of all that run, by the API server.
async fn list_running(ctx: &Context) -> Result<Vec<Place>, kube::Error> {
    let namespace = ctx.refreshes.namespace();
    let url = MaterializedViewRefresh::url_path(&(), namespace);
    let running = ListParams::default().fields("status.phase=Running");
    let request = Request::new(url).list(&running);
    let request = request.map_err(kube::Error::BuildRequest)?;
    let listed: Listed = ctx.client.request(request).await?;
    let places = listed.items.into_iter().filter_map(|item| {
        Some(Place {
            uid: item.metadata.uid,
            name: item.metadata.name,
            uri: item.status.view_uri?,
            cluster: item.spec.cluster,
            priority: item.spec.priority,
            created: item.metadata.creation_timestamp.0,
            running: true,
        })
    });
    Ok(places.collect())
}
