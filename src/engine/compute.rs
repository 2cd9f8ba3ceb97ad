//! A worker's part of computing a plan: its share of the tasks, then what
//! others left ([`super::share`] decides which), some at a time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use super::error::{EngineError, Result};
use super::execute::{UnitError, Workbench};
use super::fingerprint::Fingerprint;
use super::ledger::Claim;
use super::partials::Parts;
use super::pulse::Heard;
use super::request::{Progress, Request};
use super::share::{Next, Share};
use super::store::Objects;
use super::trim::Trim;
use super::work::{Task, Work};
use super::{merge, outcome, paths, pulse};

/// How often the others' claims are listed while there is work of one's own.
const LOOK: Duration = Duration::from_millis(500);
/// And while one waits for them: after an eighth of the time that nothing has
/// become done, this at the least and [`LOOK`] at the most.
const LOOK_IDLE: Duration = Duration::from_millis(50);
/// See [`LOOK_IDLE`].
const LATER: u32 = 8;
/// So many claims are just asked for, which takes one call less than to list first.
const FEW: usize = 8;
/// How many claims are read at a time.
const READS: usize = 64;

/// One thing to do.
#[derive(Clone)]
enum Todo {
    /// Compute the rows of a unit, or have them by taking some out of a claim.
    Unit(Task, Vec<Fingerprint>, Option<Box<Trim>>),
    /// Put the rows of claims together.
    Merge(Vec<Claim>),
}

/// What is known of the other workers before this one computes.
pub struct Others {
    /// What they were at.
    pub heard: Heard,
    /// Whether an outcome that one of them has recorded ends this one's work, too.
    pub ends: bool,
}

/// Computes what `work`'s plan says, with the `others` of `request`, until all of
/// it is staged, or they have ended the refresh. `staged` are the claims there are,
/// by what identifies them, and takes the new ones, also where it fails. `last` is
/// told, perhaps again and again, once no more is left than all can have under way.
pub async fn compute(
    work: &Work,
    objects: &Objects,
    request: &Request,
    staged: &mut HashMap<Fingerprint, Claim>,
    others: Others,
    progress: &watch::Sender<Progress>,
    last: &Notify,
) -> std::result::Result<(), UnitError> {
    let Others { mut heard, ends } = others;
    let trims: HashMap<usize, &Trim> = work.plan.trims.iter().map(|t| (t.unit, t)).collect();
    let units = work.plan.units.iter().enumerate().map(|(at, unit)| {
        let trim = trims.get(&at).map(|trim| Box::new((*trim).clone()));
        Todo::Unit(work.task(unit), work.unit_inputs(unit), trim)
    });
    let merges = work.plan.merges.iter().cloned().map(Todo::Merge);
    let tasks: Vec<Todo> = units.chain(merges).collect();
    let ids: Vec<Fingerprint> = task_ids(work).collect();
    let task_of: HashMap<&Fingerprint, usize> =
        ids.iter().enumerate().map(|(at, id)| (id, at)).collect();

    let threads = request.threads();
    // While the claim of one is recorded another is computed.
    let at_a_time = threads + threads.div_ceil(2);
    let permits = Arc::new(Semaphore::new(threads));
    let workers = request.workers.max(1) as usize;
    let own = request.index as usize % workers;
    let mut share = Share::new(tasks.len(), workers, own, at_a_time, Instant::now());
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
        } else if work.standing_units.contains(&task) {
            share.done(task, None, Instant::now());
            now.units_done += 1;
        }
    }
    progress.send_replace(now);
    note(&mut share, &task_of, &heard);

    // Fewer tasks than there are processors for: several do one.
    let most = tasks.len().div_ceil(workers).max(1);
    let threads_each = (threads / most).max(1);

    let mut running = FuturesUnordered::new();
    let mut looking = FuturesUnordered::new();
    let mut hearing = FuturesUnordered::new();
    let mut looked = Instant::now();
    let mut known = HashSet::new();
    // Since when it is at its tasks, and when it told that last.
    let mut since: HashMap<usize, Instant> = HashMap::new();
    let mut telling = FuturesUnordered::new();
    let mut told: Option<Instant> = None;
    loop {
        while running.len() < at_a_time {
            let Next::Do(task) = share.next(Instant::now()) else {
                break;
            };
            since.insert(task, Instant::now());
            running.push(run(
                task,
                tasks[task].clone(),
                threads_each,
                work.bench.clone(),
                objects.clone(),
                permits.clone(),
            ));
        }
        if share.left() <= at_a_time * workers {
            last.notify_one();
        }
        // What is still under way here another worker has done by now.
        if share.is_finished() {
            break;
        }
        // Where all take long, it does no harm to learn of it a little later.
        let pause = match share.has_own() {
            true => LOOK,
            false => (share.quiet(Instant::now()) / LATER).clamp(LOOK_IDLE, LOOK),
        };
        let pause = pause.saturating_sub(looked.elapsed());
        // Others are waiting for what takes long.
        let late = |(task, since): (&usize, &Instant)| match task % workers == own {
            true => pulse::LATE.saturating_sub(since.elapsed()),
            false => Duration::ZERO,
        };
        let tell = since.iter().map(late).min().map_or(Duration::MAX, |late| {
            let again = told.map_or(Duration::ZERO, |told| {
                pulse::EVERY.saturating_sub(told.elapsed())
            });
            late.max(again)
        });
        tokio::select! {
            Some(done) = telling.next() => {
                unheard(done);
            }
            () = tokio::time::sleep(tell), if workers > 1 && telling.is_empty() && !since.is_empty() => {
                told = Some(Instant::now());
                let tasks = since.keys().map(|task| ids[*task].clone());
                telling.push(pulse::tell(objects, request, tasks.collect()));
            }
            Some(found) = looking.next() => {
                looked = Instant::now();
                let (listed, claims): (Vec<Fingerprint>, Vec<Claim>) = found?;
                for task in listed.iter().filter_map(|id| task_of.get(id)) {
                    share.done(*task, None, looked);
                }
                share.looked(looked);
                known.extend(listed);
                for claim in claims {
                    let id = claim.id();
                    if let (Some(task), Entry::Vacant(place)) = (task_of.get(&id), staged.entry(id)) {
                        count(&mut now, &claim, is_unit(*task));
                        place.insert(claim);
                    }
                }
                progress.send_replace(now);
            }
            Some(new) = hearing.next() => {
                let (new, ended): (Heard, bool) = new?;
                note(&mut share, &task_of, &new);
                heard = new;
                if ended && ends {
                    // The claims are gone by now: nobody needs what is left.
                    break;
                }
            }
            () = tokio::time::sleep(pause), if workers > 1 && looking.is_empty() => {
                let known: HashSet<&Fingerprint> = known.iter().chain(staged.keys()).collect();
                let missing = ids.iter().filter(|id| !known.contains(id));
                looking.push(news(objects, request, missing.cloned().collect()));
                if share.quiet(Instant::now()) >= pulse::LATE && hearing.is_empty() {
                    let before = heard.clone();
                    hearing.push(async move {
                        let (heard, outcome) = futures::try_join!(
                            pulse::hear(objects, request, before),
                            outcome::recorded(objects, &request.refresh)
                        )?;
                        Ok::<_, EngineError>((heard, outcome.is_some()))
                    });
                }
            }
            Some((task, result)) = running.next() => {
                since.remove(&task);
                let (claim, took) = result?;
                share.done(task, Some(took), Instant::now());
                if let Some(claim) = claim
                    && let Entry::Vacant(place) = staged.entry(claim.id())
                {
                    count(&mut now, &claim, is_unit(task));
                    progress.send_replace(now);
                    place.insert(claim);
                }
            }
        }
    }
    drop(running);
    if told.is_some() {
        telling.for_each(async |told| unheard(told)).await;
        unheard(pulse::fall_silent(objects, request).await);
    }

    Ok(())
}

/// Has `share` know what was heard of the others.
fn note(share: &mut Share, task_of: &HashMap<&Fingerprint, usize>, heard: &Heard) {
    for task in heard.tasks.iter().filter_map(|id| task_of.get(id)) {
        share.under_way(*task, heard.when);
    }
}

/// What came of telling the others. That they do not hear costs time alone.
fn unheard(told: Result<()>) {
    if let Err(error) = told {
        debug!(%error, "the other workers could not be told what this one is at");
    }
}

/// What identifies the units and the merges of `work`'s plan.
pub fn task_ids(work: &Work) -> impl Iterator<Item = Fingerprint> {
    let units = work.plan.units.iter();
    let units = units.map(|unit| work.unit_id(unit));
    units.chain(work.plan.merges.iter().map(|group| merge::id(group)))
}

/// Which of the `missing` claims the workers of `request` have recorded, and of
/// those that the first worker, who commits, will need, what they say.
async fn news(
    objects: &Objects,
    request: &Request,
    missing: HashSet<Fingerprint>,
) -> Result<(Vec<Fingerprint>, Vec<Claim>)> {
    let commits = request.index == 0;
    if commits && missing.len() <= FEW {
        let said = claims(objects, request, missing.into_iter().collect()).await?;
        return Ok((said.iter().map(Claim::id).collect(), said));
    }
    let listed = objects
        .list(&paths::claims(objects.root(), &request.refresh))
        .await?;
    let ids = listed.iter().filter_map(|l| l.name.strip_suffix(".json"));
    let ids = ids
        .map(Fingerprint::named)
        .filter(|id| missing.contains(id));
    let ids: Vec<Fingerprint> = ids.collect();
    let said = match commits {
        true => claims(objects, request, ids.clone()).await?,
        false => Vec::new(),
    };
    Ok((ids, said))
}

/// Reads the claims of `request` that `ids` identify and that are there.
pub async fn claims(
    objects: &Objects,
    request: &Request,
    ids: Vec<Fingerprint>,
) -> Result<Vec<Claim>> {
    futures::stream::iter(ids)
        .map(|id| async move {
            let path = paths::claim(objects.root(), &request.refresh, &id);
            objects.get::<Claim>(&path).await
        })
        .buffer_unordered(READS)
        .try_filter_map(|claim| async move { Ok(claim) })
        .try_collect()
        .await
}

impl From<EngineError> for UnitError {
    fn from(error: EngineError) -> Self {
        UnitError::Other(error)
    }
}

/// Does one task, in a task of tokio's, so that several use several processors.
/// It is computed once there is a permit for each of the parts that it is computed in:
/// each reads ahead what one may.
async fn run(
    task: usize,
    what: Todo,
    threads: usize,
    bench: Workbench,
    objects: Objects,
    permits: Arc<Semaphore>,
) -> (
    usize,
    std::result::Result<(Option<Claim>, Duration), UnitError>,
) {
    let done = tokio::spawn(async move {
        // The semaphore is never closed.
        let mut permit = permits.clone().acquire_owned().await;
        let started = Instant::now();
        let claim = match what {
            Todo::Unit(task, inputs, trim) => {
                let trimmed = match trim {
                    Some(trim) => bench.trim(&trim, inputs.clone()).await?,
                    None => None,
                };
                match trimmed {
                    Some(claim) => claim,
                    None => {
                        let parts = task.parts(threads);
                        if parts.len() > 1 {
                            // Who held one and waited for more would wait for ever.
                            drop(permit);
                            permit = permits.acquire_many_owned(parts.len() as u32).await;
                        }
                        bench.compute(task, inputs, parts).await?
                    }
                }
            }
            Todo::Merge(claims) => match bench.merge(&claims).await? {
                Some(claim) => claim,
                None => {
                    info!("rows to put together have changed meanwhile; they are left as they are");
                    return Ok((None, started.elapsed()));
                }
            },
        };
        drop(permit);
        let claim = record(&bench, &objects, claim).await?;
        Ok((Some(claim), started.elapsed()))
    });
    let result = match AbortOnDrop(done).await {
        Ok(result) => result,
        Err(error) => Err(UnitError::Other(EngineError::Internal(format!(
            "a unit's task ended early: {error}"
        )))),
    };
    (task, result)
}

/// Records `claim`, or returns what another worker recorded first: that is what
/// all of them commit.
async fn record(bench: &Workbench, objects: &Objects, claim: Claim) -> Result<Claim> {
    let path = paths::claim(objects.root(), &bench.refresh, &claim.id());
    objects.agree(&path, claim).await
}

fn count(progress: &mut Progress, claim: &Claim, unit: bool) {
    // Of rows that are taken out none is written.
    let (rows, bytes) = match claim.of.is_empty() {
        true => (claim.rows, claim.bytes),
        false => (0, 0),
    };
    progress.bytes_written += bytes;
    if unit {
        progress.units_done += 1;
        progress.rows_written += rows;
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
