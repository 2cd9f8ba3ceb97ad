//! Whose turn it is. Pure.
//!
//! One refresh of a view runs at a time, and no more through a cluster than it
//! allows. The others wait by priority, then creation, then name. A refresh
//! whose view is busy does not keep others from a free place of its cluster;
//! one whose cluster is out of reach keeps nobody from anything.

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
    /// The place of a refresh; None if it neither runs nor waits, or if its
    /// view's URI is not known yet.
    pub fn of(refresh: &MaterializedViewRefresh) -> Option<Place> {
        let uri = refresh.status.as_ref()?.view_uri.clone()?;
        Place::at(refresh, uri)
    }

    /// The place of a refresh beside another one, whose view's path and URI are
    /// known: of the same path it is taken to be of the same URI, so that a
    /// refresh which has just come does not lose its turn to one of a lower
    /// priority that was looked at before it.
    pub fn beside(refresh: &MaterializedViewRefresh, view: &[String], uri: &str) -> Option<Place> {
        let known = refresh.status.as_ref().and_then(|s| s.view_uri.as_ref());
        match known {
            None if refresh.spec.view == view => Place::at(refresh, uri.to_string()),
            _ => Place::of(refresh),
        }
    }

    fn at(refresh: &MaterializedViewRefresh, uri: String) -> Option<Place> {
        let phase = refresh.status.as_ref().map_or(Phase::Queued, |s| s.phase);
        let running = match phase {
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
            uri,
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

/// What a cluster lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// So many at a time.
    Limit(i32),
    /// Nothing now, for what the sentence says.
    Closed(String),
}

/// Whether it is the turn of `me` among `others` (which may hold `me` too).
/// A cluster without a gate lets everything through.
pub fn turn(me: &Place, others: &[Place], gates: &BTreeMap<String, Gate>) -> Turn {
    let others = others.iter().filter(|other| other.uid != me.uid);
    let queue = Queue::new(others.chain([me]), gates);
    match queue
        .hand_out()
        .into_iter()
        .find(|(place, _)| place.uid == me.uid)
    {
        Some((_, Hand::View(before))) => Turn::Behind(behind_view(me, &queue.waiting, before)),
        Some((_, Hand::Cluster(used))) => Turn::Behind(behind_cluster(me, &queue.waiting, used)),
        Some((_, Hand::Closed(why))) => Turn::Behind(format!("Waiting: {why}")),
        Some((_, Hand::Turn)) | None => Turn::Now,
    }
}

/// The UIDs of those whose turn it is.
pub fn next(all: &[Place], gates: &BTreeMap<String, Gate>) -> BTreeSet<String> {
    let turns = Queue::new(all, gates).hand_out().into_iter();
    turns
        .filter(|(_, hand)| matches!(hand, Hand::Turn))
        .map(|(place, _)| place.uid.clone())
        .collect()
}

struct Queue<'a> {
    /// View URI → the refresh that it is busy with.
    busy: BTreeMap<&'a str, &'a str>,
    /// Cluster → how many run through it.
    active: BTreeMap<&'a str, i32>,
    /// Those that wait, in order.
    waiting: Vec<&'a Place>,
    gates: &'a BTreeMap<String, Gate>,
}

/// What one that waits gets.
enum Hand<'a> {
    Turn,
    /// Its view is busy with this refresh.
    View(&'a str),
    /// Its cluster has so many running, and takes no more.
    Cluster(i32),
    /// Its cluster takes none now.
    Closed(&'a str),
}

impl<'a> Queue<'a> {
    /// Who is named twice counts once, and as running if it is once named so.
    fn new(
        all: impl IntoIterator<Item = &'a Place>,
        gates: &'a BTreeMap<String, Gate>,
    ) -> Queue<'a> {
        let (running, mut waiting): (Vec<&Place>, Vec<&Place>) =
            all.into_iter().partition(|place| place.running);
        let mut queue = Queue {
            busy: BTreeMap::new(),
            active: BTreeMap::new(),
            waiting: Vec::new(),
            gates,
        };
        let mut seen = BTreeSet::new();
        for place in running {
            if seen.insert(&place.uid) {
                queue.busy.insert(&place.uri, &place.name);
                *queue.active.entry(&place.cluster).or_default() += 1;
            }
        }
        waiting.retain(|place| seen.insert(&place.uid));
        waiting.sort_by(|a, b| a.order().cmp(&b.order()));
        queue.waiting = waiting;
        queue
    }

    fn hand_out(&self) -> Vec<(&'a Place, Hand<'a>)> {
        let mut busy = self.busy.clone();
        let mut active = self.active.clone();
        let mut hands = Vec::new();
        for place in &self.waiting {
            let used = active.entry(&place.cluster).or_default();
            let gate = self.gates.get(&place.cluster);
            if let Some(Gate::Closed(why)) = gate {
                hands.push((*place, Hand::Closed(why)));
                continue;
            }
            let hand = match (busy.get(place.uri.as_str()), gate) {
                (Some(before), _) => Hand::View(before),
                (None, Some(Gate::Limit(most))) if *used >= *most => Hand::Cluster(*used),
                (None, _) => {
                    *used += 1;
                    Hand::Turn
                }
            };
            // Also one that waits for its cluster goes before its view's next.
            busy.entry(&place.uri).or_insert(&place.name);
            hands.push((*place, hand));
        }
        hands
    }
}

fn behind_view(me: &Place, waiting: &[&Place], before: &str) -> String {
    let mine = waiting.iter().filter(|place| place.uri == me.uri);
    let place = 1 + mine.take_while(|place| place.uid != me.uid).count();
    format!("Number {place} in the queue of its view, behind mvr/{before}")
}

fn behind_cluster(me: &Place, waiting: &[&Place], used: i32) -> String {
    let mine = waiting.iter().filter(|place| place.cluster == me.cluster);
    let place = 1 + mine.take_while(|place| place.uid != me.uid).count();
    format!(
        "Number {place} in the queue of its cluster: cluster {} is at its limit of {used}",
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

    fn no_limits() -> BTreeMap<String, Gate> {
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
        assert_eq!(why, "Number 1 in the queue of its view, behind mvr/b");
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
        let limits = BTreeMap::from([("default".to_string(), Gate::Limit(2))]);
        let mut one = place("b", "w");
        one.running = true;
        let two = place("0", "x");
        let me = place("a", "v");
        let others = [one, two, me.clone()];
        let Turn::Behind(why) = turn(&me, &others, &limits) else {
            panic!("three through a cluster of two");
        };
        assert_eq!(
            why,
            "Number 2 in the queue of its cluster: cluster default is at its limit of 2"
        );
    }

    #[test]
    fn one_that_waits_for_its_view_leaves_the_clusters_place_to_others() {
        let limits = BTreeMap::from([("default".to_string(), Gate::Limit(2))]);
        let mut running = place("b", "w");
        running.running = true;
        let mut blocked = place("c", "w");
        blocked.priority = 9;
        let me = place("a", "v");
        assert_eq!(turn(&me, &[running, blocked], &limits), Turn::Now);
    }

    #[test]
    fn a_cluster_that_is_out_of_reach_holds_its_own_and_nobody_else() {
        let why = "cluster far cannot be reached".to_string();
        let gates = BTreeMap::from([("far".to_string(), Gate::Closed(why.clone()))]);
        let mut far = place("a", "v");
        far.cluster = "far".into();
        far.priority = 9;
        let near = place("b", "v");
        let all = [far.clone(), near.clone()];
        assert_eq!(
            turn(&far, &all, &gates),
            Turn::Behind(format!("Waiting: {why}"))
        );
        assert_eq!(turn(&near, &all, &gates), Turn::Now);
        assert_eq!(next(&all, &gates), BTreeSet::from(["uid-b".to_string()]));
        // What runs there still has its view.
        far.running = true;
        let all = [far, near.clone()];
        assert!(matches!(turn(&near, &all, &gates), Turn::Behind(_)));
    }

    #[test]
    fn one_clusters_limit_is_nothing_to_another() {
        let gates = BTreeMap::from([("gpu-east".to_string(), Gate::Limit(1))]);
        let mut running = place("a", "w");
        running.cluster = "gpu-east".into();
        running.running = true;
        let mut waits = place("b", "x");
        waits.cluster = "gpu-east".into();
        let all = [running, waits.clone()];
        assert_eq!(
            turn(&waits, &all, &gates),
            Turn::Behind(
                "Number 1 in the queue of its cluster: cluster gpu-east is at its limit of 1"
                    .into()
            )
        );
        assert_eq!(turn(&place("c", "y"), &all, &gates), Turn::Now);
    }
}
