//! Random interleavings of everything that can happen to refreshes: a small
//! model of API server, Job controller, workers, catalog and users, around the
//! real `decide` and the real queue.
//!
//! Between any two steps of the operator anything else may happen, and the
//! operator may die, with a create under way that lands later or never. Half of
//! the refreshes have their Jobs in another cluster, which may be out of reach,
//! or lost for good. What must hold at every step and at the end is asserted
//! where it could break.

mod operator;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::queue::{self, Place};
use super::refresh::*;
use crate::engine::outcome::{Mode, Outcome};
use crate::resources::{MaterializedViewRefresh, Phase, Progress, names, reasons};

const REFRESHES: usize = 4;
const DEADLINE: i64 = 600;
/// A Job that is being deleted for longer than this is on a node that is lost.
const LOST: i64 = 60;
/// Somebody's finalizer.
const OTHERS: &str = "somebody.example/keeps";

/// A refresh as the API server has it, and what truly became of its work.
struct Stored {
    refresh: MaterializedViewRefresh,
    version: u64,
    committed: Option<Outcome>,
    /// The end that was written.
    ended: Option<Phase>,
    /// It was deleted, and is.
    gone: bool,
}

/// Whether the other cluster can be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Far {
    Up,
    Away,
    /// Its RefreshCluster was deleted.
    Lost,
}

/// Whether a refresh's Jobs are made in the other cluster.
fn remote(of: usize) -> bool {
    of % 2 == 1
}

/// Whether somebody else's finalizer keeps a refresh.
fn is_kept(refresh: &MaterializedViewRefresh) -> bool {
    let finalizers = refresh.metadata.finalizers.iter().flatten();
    finalizers.into_iter().any(|held| held == OTHERS)
}

#[derive(Clone, Debug, PartialEq)]
enum Work {
    Pending,
    Running,
    Succeeded,
    Failed,
}

#[derive(Clone, Debug)]
struct Job {
    uid: String,
    work: Work,
    /// Since when it is being deleted.
    deleting: Option<i64>,
}

/// One operator process: what dies with it.
#[derive(Default)]
struct Operator {
    pass: Option<Pass>,
    cache: BTreeMap<usize, (MaterializedViewRefresh, u64)>,
    reserved: BTreeSet<usize>,
}

struct Pass {
    of: usize,
    version: u64,
    seen: Observed,
}

struct Model {
    now: i64,
    catalog_up: bool,
    /// It stays away from those that were cancelled.
    away_from_cancelled: bool,
    quota: bool,
    far: Far,
    stored: Vec<Stored>,
    jobs: BTreeMap<usize, Job>,
    /// Pods whose Job was forced away under them.
    orphans: Vec<usize>,
    /// Creates that were sent by an operator that has died.
    late: Vec<usize>,
    next_uid: u32,
    operators: Vec<Operator>,
    orphaned_once: BTreeSet<usize>,
    late_once: BTreeSet<usize>,
}

impl Model {
    fn new(operators: usize) -> Model {
        let stored: Vec<Stored> = (0..REFRESHES)
            .map(|of| {
                let spec = serde_json::json!({"view": [if of == 3 { "w" } else { "v" }]});
                let mut refresh = MaterializedViewRefresh::new(
                    &format!("r{of}"),
                    serde_json::from_value(spec).unwrap(),
                );
                refresh.metadata.uid = Some(format!("refresh-{of}"));
                refresh.metadata.generation = Some(1);
                refresh.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
                Stored {
                    refresh,
                    version: 1,
                    committed: None,
                    ended: None,
                    gone: false,
                }
            })
            .collect();
        let mut model = Model {
            now: 1_000,
            catalog_up: true,
            away_from_cancelled: false,
            quota: false,
            far: Far::Up,
            stored,
            jobs: BTreeMap::new(),
            orphans: Vec::new(),
            late: Vec::new(),
            next_uid: 0,
            operators: Vec::new(),
            orphaned_once: BTreeSet::new(),
            late_once: BTreeSet::new(),
        };
        for at in 0..operators {
            model.operators.push(Operator::default());
            model.restart(at);
        }
        model
    }
}

fn play(operators: usize, history: &[u32]) {
    let mut model = Model::new(operators);
    for dice in history {
        model.happen(*dice);
    }
    model.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(400), ..ProptestConfig::default() })]

    #[test]
    fn one_operator_that_may_die_at_any_moment(history in prop::collection::vec(any::<u32>(), 0..600)) {
        play(1, &history);
    }

    #[test]
    fn two_operators_by_accident(history in prop::collection::vec(any::<u32>(), 0..600)) {
        play(2, &history);
    }
}
