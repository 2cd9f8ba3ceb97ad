//! Whose turn it is. Pure.
//!
//! One refresh of a view runs at a time, and no more through a cluster than it
//! allows. The others wait by priority, then creation, then name. A refresh
//! whose view is busy does not keep others from a free place of its cluster;
//! one whose cluster is out of reach keeps nobody from anything. One that cannot
//! look at its view keeps its place while nobody of that view can, so that after
//! an outage each comes in its order; if another one can, it steps aside after a
//! while, and comes in its order again once it can too ([`super::places`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::jiff::Timestamp;

use super::refresh::Turn;
use crate::resources::{MaterializedViewRefresh, Phase};

/// One refresh, as far as the queue cares.
#[derive(Clone, Debug, PartialEq, Eq)]
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

    /// The same of one whose view's URI may not be known yet; it is empty then.
    pub fn noted(refresh: &MaterializedViewRefresh) -> Option<Place> {
        let known = refresh.status.as_ref().and_then(|s| s.view_uri.clone());
        Place::at(refresh, known.unwrap_or_default())
    }

    fn at(refresh: &MaterializedViewRefresh, uri: String) -> Option<Place> {
        let running = match refresh.phase() {
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

/// What each of those that wait gets, in the order in which they come. Who is
/// named twice counts once, and as running if it is once named so. A cluster
/// without a gate lets everything through. Those whose UIDs are `stalled` cannot
/// use their turn for now: they take no place of their cluster.
pub fn hands<'a>(
    all: impl IntoIterator<Item = &'a Place>,
    gates: &'a BTreeMap<String, Gate>,
    stalled: &HashSet<String>,
) -> Vec<(&'a Place, Hand<'a>)> {
    let (running, mut waiting): (Vec<&Place>, Vec<&Place>) =
        all.into_iter().partition(|place| place.running);
    // View URI → the refresh that it is busy with, or whose turn is next.
    let mut busy: HashMap<&str, &Place> = HashMap::new();
    let mut views: HashMap<&str, usize> = HashMap::new();
    let mut clusters: HashMap<&str, Through> = HashMap::new();
    let mut seen = HashSet::new();
    for place in running {
        if seen.insert(&place.uid) {
            busy.insert(&place.uri, place);
            clusters.entry(&place.cluster).or_default().used += 1;
        }
    }
    waiting.retain(|place| seen.insert(&place.uid));
    waiting.sort_by(|a, b| a.order().cmp(&b.order()));
    let mut hands = Vec::with_capacity(waiting.len());
    for place in waiting {
        let through = clusters.entry(&place.cluster).or_default();
        through.waiting += 1;
        let in_view = views.entry(&place.uri).or_default();
        *in_view += 1;
        let gate = gates.get(&place.cluster);
        if let Some(Gate::Closed(why)) = gate {
            hands.push((place, Hand::Closed(why)));
            continue;
        }
        let hand = match (busy.get(place.uri.as_str()), gate) {
            (Some(before), _) => Hand::View {
                before,
                number: *in_view,
            },
            (None, Some(Gate::Limit(most))) if through.used >= *most => Hand::Cluster {
                used: through.used,
                number: through.waiting,
            },
            (None, _) => {
                through.used += i32::from(!stalled.contains(&place.uid));
                Hand::Turn
            }
        };
        // Also one that waits for its cluster goes before its view's next.
        busy.entry(&place.uri).or_insert(place);
        hands.push((place, hand));
    }
    hands
}

/// What goes through a cluster.
#[derive(Default)]
struct Through {
    /// How many run, and how many more have their turn.
    used: i32,
    /// How many of those that wait have been looked at.
    waiting: usize,
}

/// What one that waits gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hand<'a> {
    /// Its turn.
    Turn,
    /// Its view is busy.
    View {
        /// With this refresh.
        before: &'a Place,
        /// Its place among those that wait for the view, from 1.
        number: usize,
    },
    /// Its cluster takes no more.
    Cluster {
        /// So many run there, or are about to.
        used: i32,
        /// Its place among those that wait for the cluster, from 1.
        number: usize,
    },
    /// Its cluster takes none now, for this reason.
    Closed(&'a str),
}

impl Hand<'_> {
    /// What that is to the refresh at `place`, with a sentence that says why it waits.
    pub fn turn(&self, place: &Place) -> Turn {
        Turn::Behind(match self {
            Hand::Turn => return Turn::Now,
            Hand::Closed(why) => return Turn::Closed(format!("Waiting: {why}")),
            Hand::View { before, number } => {
                let before = &before.name;
                format!("Number {number} in the queue of its view, behind mvr/{before}")
            }
            Hand::Cluster { used, number } => format!(
                "Number {number} in the queue of its cluster: cluster {} is at its limit of {used}",
                place.cluster
            ),
        })
    }
}

/// Whether it is the turn of `me`, which waits, among `others` (which may hold
/// `me` too).
#[cfg(test)]
pub fn turn(me: &Place, others: &[Place], gates: &BTreeMap<String, Gate>) -> Turn {
    let others = others.iter().filter(|other| other.uid != me.uid);
    let hands = hands(others.chain([me]), gates, &HashSet::new());
    let mine = hands.iter().find(|(place, _)| place.uid == me.uid);
    mine.map_or(Turn::Now, |(place, hand)| hand.turn(place))
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
            Turn::Closed(format!("Waiting: {why}"))
        );
        assert_eq!(turn(&near, &all, &gates), Turn::Now);
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
