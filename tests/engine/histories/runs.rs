//! Many histories, a few beside each other, and those that fail cut down.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::number;

const STEPS: usize = 24;
/// How many runs are spent on cutting a failure down.
const CUTS: usize = 60;

/// A history: where it starts, and the seed of each of its steps.
#[derive(Clone, Debug)]
pub struct History {
    pub seed: u64,
    pub steps: Vec<u64>,
}

/// What histories did, to see that they did it.
pub struct Tally(Mutex<BTreeMap<String, u64>>);

impl Tally {
    pub const fn new() -> Tally {
        Tally(Mutex::new(BTreeMap::new()))
    }

    pub fn note(&self, what: impl Into<String>) {
        *self.0.lock().unwrap().entry(what.into()).or_default() += 1;
    }

    /// How often that was noted.
    pub fn count(&self, what: &str) -> u64 {
        self.0.lock().unwrap().get(what).copied().unwrap_or(0)
    }
}

/// Has `live` run as many histories as `RELANCE_HISTORIES` says, or `default`;
/// gives how many that were.
pub async fn all<F>(
    default: u64,
    tally: &Tally,
    live: impl Fn(History) -> F + Copy + Send + 'static,
) -> u64
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let first = number("RELANCE_SEED", 1);
    let steps: Option<Vec<u64>> = std::env::var("RELANCE_STEPS")
        .ok()
        .map(|s| s.split(',').filter_map(|n| n.parse().ok()).collect());
    let histories = match steps {
        Some(_) => 1,
        None => number("RELANCE_HISTORIES", default),
    };
    // Whoever waits for thousands, or ends them early, has what they said so far.
    let mut ended = 0;
    let told = |failure: &Option<String>| {
        ended += 1;
        if let Some(failure) = failure {
            println!("{failure}");
        }
        if ended % 100 == 0 {
            println!("{ended} of {histories} histories");
        }
    };
    let failures: Vec<String> = futures::stream::iter(first..first + histories)
        .map(|seed| {
            let steps = steps.clone();
            async move {
                let whole = History {
                    seed,
                    steps: steps.unwrap_or_else(|| {
                        let mut random = StdRng::seed_from_u64(seed);
                        (0..STEPS).map(|_| random.random()).collect()
                    }),
                };
                match run(&whole, live).await {
                    Ok(()) => None,
                    Err(why) => Some(shrunk(whole, why, live).await),
                }
            }
        })
        .buffer_unordered(4)
        .inspect(told)
        .filter_map(|failure| async { failure })
        .collect()
        .await;
    println!("{histories} histories from RELANCE_SEED={first}:");
    for (what, count) in tally.0.lock().unwrap().iter() {
        println!("{count:8} {what}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    histories
}

/// Runs a history in a task of its own, so that a panic is a failure too.
async fn run<F>(history: &History, live: impl Fn(History) -> F) -> Result<(), String>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    match tokio::spawn(live(history.clone())).await {
        Ok(result) => result,
        Err(panic) => Err(format!("it panicked: {panic}")),
    }
}

/// The fewest steps that still fail, as far as [`CUTS`] runs can tell.
async fn shrunk<F>(mut history: History, mut why: String, live: impl Fn(History) -> F) -> String
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let mut cuts = 0;
    let mut size = history.steps.len() / 2;
    while size > 0 && cuts < CUTS {
        let mut at = 0;
        while at < history.steps.len() && cuts < CUTS {
            let mut fewer = history.clone();
            fewer.steps.drain(at..(at + size).min(history.steps.len()));
            cuts += 1;
            match run(&fewer, &live).await {
                Err(still) => (history, why) = (fewer, still),
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    let steps: Vec<String> = history.steps.iter().map(u64::to_string).collect();
    format!(
        "RELANCE_SEED={} RELANCE_STEPS={}: {why}",
        history.seed,
        steps.join(",")
    )
}
