//! Whose turn it is. Pure.
//!
//! One refresh of a view runs at a time, and no more through a cluster than it
//! allows. The others wait by priority, then creation, then name. A refresh
//! whose view is busy does not keep others from a free place of its cluster.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::refresh::Turn;
use crate::resources::{MaterializedViewRefresh, Phase};

/// One refresh, as far as the queue cares.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its UID.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its view's resolved URI.
    pub uri: String,
    /// The RefreshCluster it goes through.
    pub cluster: String,
    /// Higher goes first.
    pub priority: i32,
    /// When it was created.
    pub created: Timestamp,
    /// It has its turn, until it ends.
    pub running: bool,
}

impl Place {
    /// The place of a refresh; None if it neither runs nor waits.
    pub fn of(refresh: &MaterializedViewRefresh) -> Option<Place> {
        let status = refresh.status.as_ref()?;
        let running = match status.phase {
            Phase::Running => true,
            Phase::Queued => false,
            _ => return None,
        };
        // What is to be held or ended does not stand before others.
        if !running && (refresh.spec.suspend || refresh.spec.cancel) {
            return None;
        }
        let meta = &refresh.metadata;
        if !running && meta.deletion_timestamp.is_some() {
            return None;
        }
        Some(Place {
            uid: meta.uid.clone()?,
            name: meta.name.clone()?,
            uri: status.view_uri.clone()?,
            cluster: refresh.spec.cluster.clone(),
            priority: refresh.spec.priority,
            created: meta.creation_timestamp.as_ref()?.0,
            running,
        })
    }

    fn order(&self) -> (Reverse<i32>, Timestamp, &str) {
        (Reverse(self.priority), self.created, &self.name)
    }
}

/// Whether it is the turn of `me` among `others` (which may hold `me` too);
/// `limits` says how many refreshes may run through a cluster.
pub fn turn(me: &Place, others: &[Place], limits: &BTreeMap<String, i32>) -> Turn {
    let others = || others.iter().filter(|other| other.uid != me.uid);
    let mut busy: BTreeMap<&str, &str> = BTreeMap::new();
    let mut active: BTreeMap<&str, i32> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for other in others().filter(|other| other.running) {
        if seen.insert(&other.uid) {
            busy.insert(&other.uri, &other.name);
            *active.entry(&other.cluster).or_default() += 1;
        }
    }
    let mut waiting: Vec<&Place> = others()
        .filter(|other| !other.running && !seen.contains(&other.uid))
        .chain([me])
        .collect();
    waiting.sort_by(|a, b| a.order().cmp(&b.order()));

    // Hand out turns in order, until it is mine.
    for place in &waiting {
        let first = place.uid == me.uid;
        if let Some(before) = busy.get(place.uri.as_str()) {
            if first {
                return Turn::Behind(behind_view(me, &waiting, before));
            }
            continue;
        }
        let used = active.entry(&place.cluster).or_default();
        if limits
            .get(&place.cluster)
            .is_some_and(|most| *used >= *most)
        {
            if first {
                return Turn::Behind(behind_cluster(me, &waiting, *used));
            }
            // It keeps its place: the view's next waits behind it.
            busy.insert(&place.uri, &place.name);
            continue;
        }
        if first {
            return Turn::Now;
        }
        *used += 1;
        busy.insert(&place.uri, &place.name);
    }
    Turn::Now
}

fn behind_view(me: &Place, waiting: &[&Place], before: &str) -> String {
    let mine = waiting.iter().filter(|place| place.uri == me.uri);
    let place = 1 + mine.take_while(|place| place.uid != me.uid).count();
    format!("Number {place} in the queue of its view, behind refresh {before}")
}

fn behind_cluster(me: &Place, waiting: &[&Place], used: i32) -> String {
    let mine = waiting.iter().filter(|place| place.cluster == me.cluster);
    let place = 1 + mine.take_while(|place| place.uid != me.uid).count();
    format!(
        "Number {place} in the queue of RefreshCluster {}, whose maxActiveRefreshes of {used} are running",
        me.cluster
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, uri: &str) -> Place {
        Place {
            uid: format!("uid-{name}"),
            name: name.into(),
            uri: uri.into(),
            cluster: "default".into(),
            priority: 0,
            created: Timestamp::from_second(1_000).unwrap(),
            running: false,
        }
    }

    fn no_limits() -> BTreeMap<String, i32> {
        BTreeMap::new()
    }

    #[test]
    fn alone_it_goes() {
        assert_eq!(turn(&place("a", "v"), &[], &no_limits()), Turn::Now);
    }

    #[test]
    fn another_view_does_not_matter() {
        let mut other = place("b", "w");
        other.running = true;
        assert_eq!(turn(&place("a", "v"), &[other], &no_limits()), Turn::Now);
    }

    #[test]
    fn a_running_refresh_of_the_view_goes_before_any_priority() {
        let mut other = place("b", "v");
        other.running = true;
        let mut me = place("a", "v");
        me.priority = 100;
        let Turn::Behind(why) = turn(&me, &[other], &no_limits()) else {
            panic!("two refreshes of one view");
        };
        assert_eq!(why, "Number 1 in the queue of its view, behind refresh b");
    }

    #[test]
    fn priority_then_creation_then_name() {
        let mut older = place("z", "v");
        older.created = Timestamp::from_second(999).unwrap();
        let mut higher = place("y", "v");
        higher.priority = 1;
        higher.created = Timestamp::from_second(2_000).unwrap();
        let all = [place("a", "v"), place("b", "v"), older, higher];
        let first = |all: &[Place]| {
            let turns: Vec<&Place> = all
                .iter()
                .filter(|me| turn(me, all, &no_limits()) == Turn::Now)
                .collect();
            assert_eq!(turns.len(), 1, "exactly one has its turn");
            turns[0].name.clone()
        };
        let mut left = all.to_vec();
        let mut order = Vec::new();
        while !left.is_empty() {
            let name = first(&left);
            left.retain(|place| place.name != name);
            order.push(name);
        }
        assert_eq!(order, ["y", "z", "a", "b"]);
    }

    #[test]
    fn a_full_cluster_makes_others_wait() {
        let limits = BTreeMap::from([("default".to_string(), 2)]);
        let mut one = place("b", "w");
        one.running = true;
        let two = place("0", "x");
        let me = place("a", "v");
        let others = [one, two, me.clone()];
        let Turn::Behind(why) = turn(&me, &others, &limits) else {
            panic!("three through a cluster of two");
        };
        assert!(
            why.starts_with("Number 2 in the queue of RefreshCluster default"),
            "{why}"
        );
    }

    #[test]
    fn one_that_waits_for_its_view_leaves_the_clusters_place_to_others() {
        let limits = BTreeMap::from([("default".to_string(), 2)]);
        let mut running = place("b", "w");
        running.running = true;
        let mut blocked = place("c", "w");
        blocked.priority = 9;
        let me = place("a", "v");
        assert_eq!(turn(&me, &[running, blocked], &limits), Turn::Now);
    }
}
