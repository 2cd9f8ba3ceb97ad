//! Workers that outlive their refresh.
//!
//! A refresh that is deleted while it runs is gone at once, and the next one of
//! its view could have its turn a moment later. Its Job and pods are left to the
//! garbage collector, and a worker that is told to end has a while for it: until
//! then it may commit, of an older source than the next one by that time. So the
//! view is busy until none of them works any more.
//!
//! What is known of a refresh that is gone is what its Job and pods carry: its
//! UID, and a digest of its view's URI. Only those are looked at whose view
//! somebody asks for, and the API server is asked whether their refresh is gone
//! indeed: one that has ended is in no cache either, and holds up nobody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::context::Context;
use super::queue::Place;
use crate::launch::state;
use crate::launch::target::Target;
use crate::lean::Lean;
use crate::resources::names;

/// How long it is waited for the first lists of Jobs and pods: where they cannot
/// be had, refreshes go on without them.
const LISTED: Duration = Duration::from_secs(5);

/// A refresh, as far as a Job or pod of it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Survivor {
    uid: String,
    refresh: String,
    cluster: String,
    /// The digest of its view's URI.
    view: String,
}

impl Survivor {
    /// None: the object is older than these labels, or something else's.
    fn of(labels: &BTreeMap<String, String>) -> Option<Survivor> {
        let label = |name: &str| labels.get(name).cloned();
        Some(Survivor {
            uid: label(names::REFRESH_UID_LABEL)?,
            refresh: label(names::REFRESH_LABEL)?,
            cluster: label(names::CLUSTER_LABEL)?,
            view: label(names::VIEW_LABEL)?,
        })
    }

    /// The place that it keeps in the queue of the view at `uri`.
    fn place(self, uri: String) -> Place {
        Place {
            uid: self.uid,
            name: format!("{} (deleted; its workers are still ending)", self.refresh),
            uri,
            cluster: self.cluster,
            priority: 0,
            created: Timestamp::UNIX_EPOCH,
            running: true,
        }
    }
}

/// The places that are kept by refreshes which are gone, in the queues of those
/// that ask (`asking`: URIs by UID), where `running` are those that run.
pub async fn places(
    ctx: &Context,
    asking: &HashMap<String, String>,
    running: &[Place],
) -> Result<Vec<Place>, kube::Error> {
    let views: HashMap<String, &String> = asking
        .values()
        .map(|uri| (names::view_digest(uri), uri))
        .collect();
    let running: HashSet<&str> = running.iter().map(|place| place.uid.as_str()).collect();
    // Most Jobs are of views that nobody asks for.
    let looked_for = |labels: &BTreeMap<String, String>| {
        let view = labels.get(names::VIEW_LABEL)?;
        let survivor = views.contains_key(view).then(|| Survivor::of(labels))??;
        (!running.contains(survivor.uid.as_str())).then_some(survivor)
    };
    let mut found = BTreeMap::new();
    for target in targets(ctx) {
        for survivor in at_work(&target, looked_for) {
            found.insert(survivor.uid.clone(), survivor);
        }
    }
    let mut places = Vec::new();
    for survivor in found.into_values() {
        if let Some(uri) = views.get(&survivor.view)
            && is_gone(ctx, &survivor).await?
        {
            places.push(survivor.place(uri.to_string()));
        }
    }
    Ok(places)
}

/// Waits until it is known which Jobs and pods are there.
pub async fn listed(ctx: &Context) {
    let listed = tokio::time::timeout(LISTED, ctx.targets.home().listed());
    if listed.await.is_err() {
        tracing::debug!("the Jobs and pods that are there are not known");
    }
}

/// The clusters that can tell what works there: what one that is silent showed
/// last may be long over.
fn targets(ctx: &Context) -> Vec<Arc<Target>> {
    let others = ctx.targets.connected().into_iter();
    let others = others.filter(|target| target.silent().is_none());
    others.chain([ctx.targets.home().clone()]).collect()
}

/// The refreshes whose Jobs or pods may be at work, of those that are looked for.
fn at_work(
    target: &Target,
    looked_for: impl Fn(&BTreeMap<String, String>) -> Option<Survivor>,
) -> Vec<Survivor> {
    let now = Timestamp::now();
    let jobs = target.known_jobs.state().into_iter();
    let jobs = jobs.filter_map(|job| {
        let survivor = looked_for(job.labels())?;
        let pods = target.pods_of(&job.uid()?);
        let state = state::of(&job, pods.iter().map(AsRef::as_ref));
        // One that is being deleted makes no pods any more.
        (state.end.is_none() && !state.deleting).then_some(survivor)
    });
    let pods = target.known_pods.state().into_iter();
    let pods = pods.filter_map(|pod| {
        let survivor = looked_for(pod.labels())?;
        state::may_work(&pod, now).then_some(survivor)
    });
    jobs.chain(pods).collect()
}

/// Whether a refresh is not there any more, or goes.
async fn is_gone(ctx: &Context, survivor: &Survivor) -> Result<bool, kube::Error> {
    let found = ctx.refreshes.get_opt(&survivor.refresh).await?;
    Ok(found.is_none_or(|Lean(found)| {
        found.metadata.uid.as_ref() != Some(&survivor.uid)
            || found.metadata.deletion_timestamp.is_some()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survivor_is_known_by_its_labels_and_one_without_them_is_none() {
        let mut labels: BTreeMap<String, String> = [
            (names::REFRESH_UID_LABEL, "uid"),
            (names::REFRESH_LABEL, "r"),
            (names::CLUSTER_LABEL, "default"),
            (names::VIEW_LABEL, "0123456789abcdef"),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .into();
        let survivor = Survivor::of(&labels).unwrap();
        let place = survivor.place("mem://v".into());
        assert_eq!((place.uid.as_str(), place.uri.as_str()), ("uid", "mem://v"));
        assert!(place.running);
        labels.remove(names::VIEW_LABEL);
        assert_eq!(Survivor::of(&labels), None);
    }
}
