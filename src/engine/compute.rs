//! A worker's part of computing a plan: its share of the tasks, then what
//! others left ([`super::share`] decides which), some at a time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

use super::error::{EngineError, Result};
use super::execute::{UnitError, Workbench};
use super::fingerprint::Fingerprint;
use super::ledger::Claim;
use super::partials::Parts;
use super::refresh::{Progress, Request};
use super::share::{Next, Share};
use super::store::Objects;
use super::work::{Task, Work};
use super::{merge, paths};

/// How often the others' claims are listed.
const LOOK: Duration = Duration::from_millis(500);
/// How many claims are read at a time.
const READS: usize = 16;

/// One thing to do.
#[derive(Clone)]
enum Todo {
    /// Compute the rows of a unit.
    Unit(Task, Vec<Fingerprint>),
    /// Put the rows of claims together.
    Merge(Vec<Claim>),
}

/// Computes what `work`'s plan says, with the other workers of `request`, until
/// all of it is staged. `staged` are the claims there are, by what identifies
/// them, and takes the new ones, also where it fails.
pub async fn compute(
    work: &Work,
    objects: &Objects,
    request: &Request,
    staged: &mut HashMap<Fingerprint, Claim>,
    progress: &watch::Sender<Progress>,
) -> std::result::Result<(), UnitError> {
    let units = work.plan.units.iter().map(|unit| {
        let inputs = work.unit_inputs(unit);
        let id = Fingerprint::of_all(&inputs);
        (id, Todo::Unit(work.task(unit), inputs))
    });
    let merges = work.plan.merges.iter();
    let merges = merges.map(|group| (merge::id(group), Todo::Merge(group.clone())));
    let (ids, tasks): (Vec<Fingerprint>, Vec<Todo>) = units.chain(merges).unzip();
    let task_of: HashMap<&Fingerprint, usize> =
        ids.iter().enumerate().map(|(at, id)| (id, at)).collect();

    let threads = request
        .threads
        .filter(|t| *t > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let workers = request.workers.max(1) as usize;
    let mut share = Share::new(
        tasks.len(),
        workers,
        request.index as usize,
        threads,
        Instant::now(),
    );
    let parts = work.parts.as_ref().map_or(0, Parts::count) as u64;
    let mut now = Progress {
        units_done: work.plan.kept + parts,
        units_total: work.plan.kept + parts + work.plan.units.len() as u64,
        ..Default::default()
    };
    let is_unit = |task: usize| task < work.plan.units.len();
    for (task, id) in ids.iter().enumerate() {
        if let Some(claim) = staged.get(id) {
            share.done(task, None, Instant::now());
            count(&mut now, claim, is_unit(task));
        }
    }
    progress.send_replace(now);

    let mut running = FuturesUnordered::new();
    let mut looked = Instant::now();
    loop {
        if workers > 1 && looked.elapsed() >= LOOK {
            looked = Instant::now();
            for listed in objects
                .list(&paths::claims(objects.root(), &request.refresh))
                .await?
            {
                let id = listed.name.strip_suffix(".json").map(Fingerprint::named);
                if let Some(task) = id.and_then(|id| task_of.get(&id)) {
                    share.done(*task, None, looked);
                }
            }
        }
        let mut next = Next::Wait;
        while running.len() < threads {
            next = share.next(Instant::now());
            let Next::Do(task) = next else {
                break;
            };
            running.push(run(
                task,
                tasks[task].clone(),
                work.bench.clone(),
                objects.clone(),
            ));
        }
        if next == Next::Finished && running.is_empty() {
            break;
        }
        let pause = async {
            if workers > 1 {
                tokio::time::sleep(LOOK.saturating_sub(looked.elapsed())).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            Some((task, took, result)) = running.next() => {
                let claim = result?;
                share.done(task, Some(took), Instant::now());
                if let Some(claim) = claim {
                    count(&mut now, &claim, is_unit(task));
                    progress.send_replace(now);
                    staged.insert(claim.id(), claim);
                }
            }
            () = pause => {}
        }
    }
    drop(running);

    // What others computed.
    let theirs = ids.iter().filter(|id| !staged.contains_key(*id));
    let theirs: Vec<_> = theirs
        .map(|id| paths::claim(objects.root(), &request.refresh, id))
        .collect();
    let theirs: Vec<Option<Claim>> = futures::stream::iter(theirs)
        .map(|path| async move { objects.get::<Claim>(&path).await })
        .buffered(READS)
        .try_collect()
        .await?;
    for claim in theirs.into_iter().flatten() {
        let unit = task_of.get(&claim.id()).is_some_and(|task| is_unit(*task));
        count(&mut now, &claim, unit);
        staged.insert(claim.id(), claim);
    }
    progress.send_replace(now);
    Ok(())
}

impl From<EngineError> for UnitError {
    fn from(error: EngineError) -> Self {
        UnitError::Other(error)
    }
}

/// Does one task, in a task of tokio's, so that several use several processors.
async fn run(
    task: usize,
    what: Todo,
    bench: Workbench,
    objects: Objects,
) -> (
    usize,
    Duration,
    std::result::Result<Option<Claim>, UnitError>,
) {
    let started = Instant::now();
    let done = tokio::spawn(async move {
        let claim = match what {
            Todo::Unit(task, inputs) => bench.compute(task, inputs).await?,
            Todo::Merge(claims) => match bench.merge(&claims).await? {
                Some(claim) => claim,
                None => {
                    info!("rows to put together have changed meanwhile; they are left as they are");
                    return Ok(None);
                }
            },
        };
        Ok(Some(record(&bench, &objects, claim).await?))
    });
    let result = match AbortOnDrop(done).await {
        Ok(result) => result,
        Err(error) => Err(UnitError::Other(EngineError::Internal(format!(
            "a unit's task ended early: {error}"
        )))),
    };
    (task, started.elapsed(), result)
}

/// Records `claim`, or returns what another worker recorded first: that is what
/// all of them commit.
async fn record(bench: &Workbench, objects: &Objects, claim: Claim) -> Result<Claim> {
    let path = paths::claim(objects.root(), &bench.refresh, &claim.id());
    if objects.create(&path, &claim).await? {
        return Ok(claim);
    }
    Ok(objects.get(&path).await?.unwrap_or(claim))
}

fn count(progress: &mut Progress, claim: &Claim, unit: bool) {
    progress.bytes_written += claim.bytes;
    if unit {
        progress.units_done += 1;
        progress.rows_written += claim.rows;
    }
}

/// Ends a task with the one that waits for it.
pub(super) struct AbortOnDrop<T>(pub JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for AbortOnDrop<T> {
    type Output = std::result::Result<T, tokio::task::JoinError>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context)
    }
}
