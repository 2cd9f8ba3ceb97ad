//! One refresh, from looking to done. See the head of [`super`] for the protocol.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use object_store::path::Path;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::catalog::Catalog;
use super::commit::{self, Attempt};
use super::compute::{claims, compute, task_ids};
use super::error::{EngineError, Result};
use super::execute::UnitError;
use super::fingerprint::Fingerprint;
use super::freshness;
use super::guess::Guess;
use super::history::History;
use super::indices;
use super::ledger::{Claim, Known, Ledger, Ledgers};
use super::outcome::{self, Mode, Outcome};
use super::plan::{Judgement, Plan, judge};
pub use super::request::{Progress, Request};
use super::store::Objects;
use super::tidy::Rubbish;
use super::trim::{self, Trim};
use super::view::{self, ViewInfo};
use super::work::Work;
use super::{carry, partials, paths, staged, tidy, watermark};

/// How often a refresh plans anew before it gives up as contended.
const MAX_PLANS: u32 = 12;
/// How often it tries to commit one plan.
const MAX_COMMITS: u32 = 12;
/// How long the other workers of a refresh leave the commit to the first; each
/// of them [`TURN`] longer than the one before.
const LEFT_FOR: Duration = Duration::from_secs(3);
/// See [`LEFT_FOR`].
const TURN: Duration = Duration::from_millis(150);
/// How often they look whether it is done.
const LOOK: Duration = Duration::from_millis(250);

/// Brings the view up to date. Any number of workers may run the same request,
/// one after the other or together: they share the work and one commits.
/// Errors: see [`EngineError`]; the view is then as it was.
pub fn refresh<'a>(
    catalog: &'a Catalog,
    request: &'a Request,
    progress: &'a watch::Sender<Progress>,
) -> BoxFuture<'a, Result<Outcome>> {
    // Boxed here, so that it is compiled once, and not into each program anew.
    run(catalog, request, progress).boxed()
}

async fn run(
    catalog: &Catalog,
    request: &Request,
    progress: &watch::Sender<Progress>,
) -> Result<Outcome> {
    let uri = catalog.locate(&request.view).await?;
    let objects = catalog.store().objects(&uri).await?;
    let mut run = Run {
        catalog,
        request,
        uri,
        objects,
        staged: HashMap::new(),
        void: HashSet::new(),
        since: None,
        landed: false,
        rubbish: None,
        settled: None,
        known: Known::new(),
    };
    for n in 1..=MAX_PLANS {
        let mut work = match run.plan(n).await? {
            Planned::Work(work) => work,
            Planned::Nothing(work) => {
                if let Some(done) = run.left_to_the_first().await? {
                    return Ok(done);
                }
                let (units, version) = (work.plan.kept, work.plan.view_version);
                let table = Dataset::clone(&work.bench.table);
                let outcome = work.unchanged(units, version);
                return run.finish(&work, outcome, table).await;
            }
            Planned::Outdated => continue,
            Planned::Done(done) => {
                info!(mode = ?done.mode, "this refresh has committed before");
                return Ok(done);
            }
        };
        let computed = async {
            partials::compute(&mut work, &run.objects, request, &run.staged, progress).await?;
            compute(&work, &run.objects, request, &mut run.staged, progress).await
        };
        match computed.await {
            Ok(()) => {
                if let Some(done) = run.left_to_the_first().await? {
                    return Ok(done);
                }
                run.take_in(&work).await?;
            }
            Err(UnitError::SourceGone) => {
                if request.src_version.is_some() {
                    return Err(EngineError::SourceVersionGone {
                        table: work
                            .source_versions()
                            .map(|(name, _)| name)
                            .collect::<Vec<_>>()
                            .join(", "),
                        version: request.src_version.unwrap_or_default(),
                    });
                }
                info!("the source version was cleaned up meanwhile; planning anew");
                continue;
            }
            Err(UnitError::Other(error) | UnitError::OutOfMemory(error)) => return Err(error),
        }
        match run.commit(&work).await? {
            Some((outcome, Some(table))) => return run.finish(&work, outcome, table).await,
            Some((outcome, None)) => {
                return outcome::record(&run.objects, request, &outcome).await;
            }
            None => {}
        }
    }
    Err(EngineError::ViewContended {
        view: request.view.join(super::catalog::DELIMITER),
        attempts: MAX_PLANS,
    })
}

/// What came of planning.
enum Planned {
    /// This is to be done.
    Work(Box<Work>),
    /// The view is right as it was opened, and was so when the plan was made.
    Nothing(Box<Work>),
    /// The plan cannot be carried out any more, try the next.
    Outdated,
    /// The refresh has ended: nothing is left to do.
    Done(Outcome),
}

/// A judgement, and what goes with it.
struct Judged {
    now: Judgement,
    /// Whether claims that count are in no ledger as they are: carried over
    /// compactions, or of others that have lost no row.
    carried: bool,
    /// Committed claims that stand and do not count, where something is missing.
    loose: Vec<Claim>,
    /// The version of the first source that the newest of them are true of.
    since: u64,
}

struct Run<'a> {
    catalog: &'a Catalog,
    request: &'a Request,
    /// Where the view was when the refresh began.
    uri: String,
    objects: Objects,
    /// Staged claims that may be used, by what identifies them.
    staged: HashMap<Fingerprint, Claim>,
    /// What identifies those of other refreshes that turned out to be of no use.
    void: HashSet<Fingerprint>,
    /// The view's version at the first plan: nothing of this refresh is older.
    since: Option<u64>,
    /// Whether this worker's commit is the one that landed.
    landed: bool,
    /// What there is to remove, as it was when that commit landed.
    rubbish: Option<Result<Rubbish>>,
    /// The view's newest ledger, if its files are there to stay.
    settled: Option<String>,
    /// Ledgers that were read.
    known: Known,
}

impl Run<'_> {
    /// Fixes plan `n`, or reads what another worker fixed.
    async fn plan(&mut self, n: u32) -> Result<Planned> {
        let (request, objects) = (self.request, &self.objects);
        let path = paths::plan(objects.root(), &request.refresh, n);
        let folder = paths::plans(objects.root());
        // All at once: a store that is far away takes long to answer each.
        let (outcome, fixed, plans, ledgers, opened, guess) = futures::join!(
            outcome::recorded(objects, &request.refresh),
            objects.get::<Plan>(&path),
            objects.folders(&folder),
            Ledgers::open(objects, request.full, self.known.clone()),
            self.open(n),
            Guess::make(self.catalog, objects, request.src_version),
        );
        if let Some(done) = outcome? {
            return Ok(Planned::Done(done));
        }
        let (fixed, plans, mut ledgers, opened) = (fixed?, plans?, ledgers?, opened?);
        if let (Some(plan), 1) = (&fixed, n)
            && let Some(done) =
                outcome::committed(objects, &opened.1, &request.refresh, plan).await?
        {
            return Ok(Planned::Done(done));
        }
        let (refresh, full, table) = (&request.refresh, request.full, opened.1.clone());
        let (work, usable) = futures::join!(
            Work::of(self.catalog, request, opened, fixed.as_ref(), &guess),
            staged::usable(objects, plans.clone(), &table, refresh, full)
        );
        let Some(mut work) = work? else {
            return Ok(Planned::Outdated);
        };
        // Its own first, and what is here already before all.
        for claim in usable? {
            let id = claim.id();
            if claim.refresh == *refresh || !self.void.contains(&id) {
                self.staged.entry(id).or_insert(claim);
            }
        }
        if work.is_limited() {
            let standing = work.standing(&work.bench.table);
            let claims = ledgers.of(&standing).await?.iter().flat_map(|l| &l.claims);
            work.narrow(claims.chain(self.staged.values())).await;
        }
        let mut fixed = fixed;
        let mut nothing = false;
        if fixed.is_none() {
            let judged = self.judge(&work, &work.bench.table, &mut ledgers).await?;
            let (now, carried) = (judged.now, judged.carried);
            let trims = match request.full {
                true => Vec::new(),
                false => trim::choose(&work, &now.missing, &judged.loose, judged.since).await?,
            };
            let trimmed: HashSet<usize> =
                trims.iter().flat_map(|(unit, _)| unit).copied().collect();
            let missing = now.missing.iter().filter(|at| !trimmed.contains(at));
            let computed = work.cut(&missing.copied().collect::<Vec<_>>());
            for (unit, trim) in trims {
                work.plan.trims.push(Trim {
                    unit: work.plan.units.len(),
                    ..trim
                });
                work.plan.units.push(unit);
            }
            work.plan.units.extend(computed);
            work.plan.merges = work.merges(&now);
            work.plan.kept = now.kept.len() as u64;
            let units = !work.plan.units.is_empty();
            work.plan.partials =
                partials::choose(&work, objects, &mut ledgers, &plans, request, units).await?;
            let agreed = self.objects.agree(&path, work.plan.clone()).await?;
            // That all agree on it tells that nothing was committed meanwhile.
            nothing =
                n == 1 && now.is_done() && now.added.is_empty() && !carried && agreed == work.plan;
            fixed = Some(agreed);
        }
        if let Some(plan) = fixed {
            if plan.sources != work.plan.sources {
                return Ok(Planned::Outdated);
            }
            work.plan = plan;
        }
        self.since = Some(self.since(&work));
        self.settled = ledgers.settled().map(str::to_string);
        self.known = ledgers.into_known();
        info!(
            sources = ?work.source_versions().collect::<Vec<_>>(),
            view_version = work.plan.view_version,
            units = work.plan.units.len(),
            "planned"
        );
        Ok(match nothing {
            true => Planned::Nothing(Box::new(work)),
            false => Planned::Work(Box::new(work)),
        })
    }

    /// The view as it is now, for plan `n`.
    async fn open(&self, n: u32) -> Result<(ViewInfo, Dataset)> {
        let (catalog, id) = (self.catalog, &self.request.view);
        let opened = async {
            match n {
                1 => view::open_at(catalog, id, &self.uri).await,
                _ => view::reopen(catalog, id, &self.uri).await,
            }
        };
        let (opened, logged) = futures::join!(opened, staged::has_wal(&self.objects));
        let (view, table) = opened?;
        let logged = match view.uri == self.uri {
            true => logged?,
            false => staged::has_wal(&catalog.store().objects(&view.uri).await?).await?,
        };
        staged::refuse_wal(&view, logged, "the view")?;
        Ok((view, table))
    }

    fn since(&self, work: &Work) -> u64 {
        self.since.unwrap_or(u64::MAX).min(work.plan.view_version)
    }

    /// Judges the view as `table` shows it.
    async fn judge(&self, work: &Work, table: &Dataset, ledgers: &mut Ledgers) -> Result<Judged> {
        let standing = work.standing(table);
        let ledgers = ledgers.of(&standing).await?;
        let read_version = ledgers.iter().map(|l| l.read_version).min();
        let since = work.since(ledgers.iter().map(|l| &l.outcome));
        let newest = work.since(ledgers.iter().take(1).map(|l| &l.outcome));
        let mut committed: Vec<Claim> = ledgers
            .iter()
            .flat_map(|ledger| &ledger.claims)
            .filter(|claim| !self.request.full || claim.refresh == self.request.refresh)
            .cloned()
            .collect();
        let ids = work.merged();
        let (merged, staged): (Vec<Claim>, Vec<Claim>) = self
            .staged
            .values()
            .cloned()
            .partition(|claim| ids.contains(&claim.id()));
        let mut carried = Vec::new();

        if let Some(since) = read_version
            && !standing.unaccounted(committed.iter()).is_empty()
        {
            let gone = |claim: &&Claim| standing.fragments_of(claim).is_none();
            let gone: Vec<Claim> = committed.iter().filter(gone).cloned().collect();
            if !gone.is_empty() {
                let versions = since + 1..=table.version().version;
                let moves = carry::rewrites(table, versions).await?;
                carried.extend(carry::over_view(&gone, &moves, &work.columns(table)));
                committed.extend(carried.iter().cloned());
            }
        }
        let mut now = judge(&work.inputs, &standing, &merged, &committed, &staged);
        if !(now.missing.is_empty() && now.added.is_empty()) {
            let kept: HashSet<Fingerprint> = now.kept.iter().map(Claim::id).collect();
            let unmatched: Vec<Claim> = committed
                .iter()
                .filter(|c| standing.fragments_of(c).is_some() && !kept.contains(&c.id()))
                .cloned()
                .collect();
            if !unmatched.is_empty() {
                let moved = carry::over_source(&unmatched, work.moves(&since).await?);
                committed.extend(moved.iter().cloned());
                carried.extend(moved);
                now = judge(&work.inputs, &standing, &merged, &committed, &staged);
            }
        }
        let key = |c: &Claim| (c.id(), c.held().collect::<Vec<_>>());
        let carried: HashSet<_> = carried.iter().map(key).collect();
        let is_carried = |c: &Claim| !carried.is_empty() && carried.contains(&key(c));
        let carried = now.kept.iter().any(|c| !c.of.is_empty() || is_carried(c));
        if now.missing.is_empty() {
            // Nobody asks: to name a hundred thousand claims takes its time.
            committed.clear();
        } else {
            let kept: HashSet<Fingerprint> = now.kept.iter().map(Claim::id).collect();
            committed.retain(|c| standing.fragments_of(c).is_some() && !kept.contains(&c.id()));
        }
        Ok(Judged {
            carried,
            loose: committed,
            since: newest.first().copied().unwrap_or_default(),
            now,
        })
    }

    /// The commit loop. Gives the view as the refresh left it, unless that
    /// version has been cleaned up since. `Ok(None)`: the view or what is
    /// staged changed such that a new plan is needed.
    async fn commit(&mut self, work: &Work) -> Result<Option<(Outcome, Option<Dataset>)>> {
        let request = self.request;
        for attempt in 1..=MAX_COMMITS {
            let ((view, table), mut ledgers) = futures::try_join!(
                view::reopen(self.catalog, &request.view, &self.uri),
                Ledgers::open(&self.objects, request.full, self.known.clone())
            )?;
            view.require_incarnation(request.expected_incarnation.as_deref())?;
            let same = view.raw == work.view.raw
                && view.incarnation == work.view.incarnation
                && view.uri == work.view.uri
                && table.schema().fields == work.bench.table.schema().fields;
            if !same {
                info!("the view was re-created or redefined meanwhile; planning anew");
                return Ok(None);
            }
            let history = History::read(&table, &request.refresh, work.plan.view_version).await?;
            // What was committed once, by whomever, counts only where it stands.
            self.staged
                .retain(|_, claim| claim.fragments.is_empty() || history.never_had(claim));
            self.settled = ledgers.settled().map(str::to_string);
            let judged = self.judge(work, &table, &mut ledgers).await?;
            let (judgement, carried) = (judged.now, judged.carried);
            if judgement.is_done() {
                let units = judgement.claims().count() as u64;
                let outcome = history
                    .outcome
                    .unwrap_or_else(|| work.unchanged(units, table.version().version));
                if carried {
                    // The compactions that it took are cleaned up some day.
                    self.write_ledger(work, &table, &outcome, &judgement)
                        .await?;
                }
                return Ok(Some((outcome, Some(table))));
            }
            if let (Some(outcome), true) = (history.outcome, history.settled) {
                // Another worker has done it. What was written since is not
                // for this refresh to mend.
                let left = Some(outcome.view_version);
                let table = self.catalog.store().open(&work.view.uri, left).await?;
                return Ok(Some((outcome, table)));
            }
            if !judgement.missing.is_empty() {
                info!(
                    missing = judgement.missing.len(),
                    "the view changed meanwhile; planning anew"
                );
                self.avoid(work, &judgement.missing).await?;
                return Ok(None);
            }
            let outcome = work.outcome(&judgement, &table, request.full);
            let (ledger, looked) = futures::try_join!(
                self.write_ledger(work, &table, &outcome, &judgement),
                staged::look(&self.objects, judgement.brought())
            )?;
            // Just written: so that is what the store's clock says.
            let lost = match self.objects.modified(&ledger).await? {
                Some(now) => staged::lost(looked, now),
                None => judgement.brought().map(Claim::id).collect(),
            };
            if !lost.is_empty() {
                warn!(units = lost.len(), "staged files are gone; computing anew");
                self.objects.delete(vec![ledger]).await?;
                for id in lost {
                    self.staged.remove(&id);
                    let path = paths::claim(self.objects.root(), &request.refresh, &id);
                    self.objects.delete(vec![path]).await?;
                }
                return Ok(None);
            }
            let mut properties = BTreeMap::from([
                (commit::REFRESH.to_string(), request.refresh.clone()),
                (
                    commit::READ_VERSION.to_string(),
                    table.version().version.to_string(),
                ),
                (
                    commit::OUTCOME.to_string(),
                    serde_json::to_string(&outcome).unwrap_or_default(),
                ),
            ]);
            let job = request.job.clone();
            properties.extend(job.map(|job| (commit::JOB.to_string(), job)));
            // What there is to remove afterwards is there by now.
            let (attempted, rubbish) = futures::join!(
                commit::attempt(&table, &judgement, properties),
                tidy::look(&self.objects, &request.refresh)
            );
            match attempted? {
                Attempt::Landed(table) => {
                    let version = table.version().version;
                    if is_right(work, &table, &judgement)? {
                        self.landed = true;
                        self.rubbish = Some(rubbish);
                        self.settled = None;
                        let outcome = Outcome {
                            view_version: version,
                            ..outcome
                        };
                        return Ok(Some((outcome, Some(*table))));
                    }
                    info!(version, "another change landed with ours; looking again");
                }
                Attempt::Again(why) => {
                    debug!(attempt, why, "the commit did not land; looking again");
                }
            }
            tokio::time::sleep(pause(attempt)).await;
        }
        Err(EngineError::ViewContended {
            view: work.view.name(),
            attempts: MAX_COMMITS,
        })
    }

    /// Forgets the claims of those units of the plan that are `missing` for all
    /// that they are staged: rows taken out of a fragment, say, that the view has
    /// no longer. Who kept them would find them done in each plan to come.
    async fn avoid(&mut self, work: &Work, missing: &[usize]) -> Result<()> {
        let missing: HashSet<usize> = missing.iter().copied().collect();
        let units = work.plan.units.iter().zip(task_ids(work));
        let void: Vec<Fingerprint> = units
            .filter(|(unit, _)| unit.iter().all(|at| missing.contains(at)))
            .map(|(_, id)| id)
            .collect();
        let refresh = &self.request.refresh;
        let own = |id| paths::claim(self.objects.root(), refresh, id);
        self.objects.delete(void.iter().map(own).collect()).await?;
        self.staged.retain(|id, _| !void.contains(id));
        self.void.extend(void);
        Ok(())
    }

    /// Writes what the view consists of once `judgement` is true of `table`.
    async fn write_ledger(
        &self,
        work: &Work,
        table: &Dataset,
        outcome: &Outcome,
        judgement: &Judgement,
    ) -> Result<Path> {
        let refresh = &self.request.refresh;
        let read_version = table.version().version;
        let path = paths::ledger(
            self.objects.root(),
            read_version,
            refresh,
            &uuid::Uuid::new_v4().simple().to_string()[..8],
        );
        let claims = judgement.claims();
        let ledger = Ledger {
            refresh: refresh.clone(),
            read_version,
            outcome: outcome.clone(),
            claims: claims.cloned().map(Claim::committed).collect(),
            added: judgement.brought().count(),
            partials: work.plan.partials.clone(),
        };
        self.objects.put(&path, &ledger).await?;
        Ok(path)
    }

    /// After the view is right: its indices, the watermark of older clients, the
    /// records, and the removal of what was only needed on the way. None of it can
    /// make the refresh fail any more, except that its outcome must be found.
    async fn finish(&mut self, work: &Work, outcome: Outcome, table: Dataset) -> Result<Outcome> {
        let mut outcome = outcome;
        let mut table = table;
        if self.request.optimize_indices {
            if let Some(done) = self.left_to_others(&outcome).await? {
                return Ok(done);
            }
            match indices::optimize(self.catalog, &work.view.uri, &table).await {
                Ok(Some(optimized)) => {
                    outcome.view_version = optimized.version().version;
                    table = optimized;
                }
                Ok(None) => warn!("the view changed before its indices were brought up to date"),
                Err(error) => warn!(%error, "the view's indices were not brought up to date"),
            }
        }
        if let ([source], true) = (
            work.bench.sources.as_slice(),
            work.bench.planned.provenance(),
        ) {
            match watermark::stamp(self.catalog, &work.view, &table, source).await {
                Ok(Some(stamped)) => {
                    outcome.view_version = stamped.version().version;
                    table = stamped;
                }
                Ok(None) => warn!("the view changed before its watermark could be written"),
                Err(error) => warn!(%error, "the view's watermark could not be written"),
            }
        }
        let (objects, refresh) = (&self.objects, &self.request.refresh);
        let sources = &work.plan.sources;
        let recorded = async {
            match indices::unindexed_rows(&table).await {
                Ok(rows) => outcome.unindexed_rows = rows,
                Err(error) => warn!(%error, "the view's indices could not be read"),
            }
            outcome::record(objects, self.request, &outcome).await
        };
        let rubbish = self.rubbish.take();
        let looked = async {
            match rubbish {
                Some(rubbish) => rubbish,
                None => tidy::look(objects, refresh).await,
            }
        };
        let (outcome, fresh, rubbish) = futures::join!(
            recorded,
            freshness::record(objects, &work.view, &table, sources, self.settled.clone()),
            looked
        );
        let outcome = outcome?;
        let tidied = match rubbish {
            Ok(rubbish) => tidy::remove(objects, refresh, work, rubbish).await,
            Err(error) => Err(error),
        };
        if let Err(error) = fresh.and(tidied) {
            warn!(%error, "the view is right; its records could not all be written");
        }
        Ok(outcome)
    }

    /// One worker commits: together they would only get in each other's way.
    /// The others wait until it has recorded the outcome; but not for ever, for
    /// it may have died.
    async fn left_to_the_first(&self) -> Result<Option<Outcome>> {
        if self.request.workers <= 1 || self.request.index == 0 {
            return Ok(None);
        }
        let turn = LEFT_FOR + TURN * self.request.index.min(10);
        self.wait_for_outcome(turn, LOOK).await
    }

    /// What another worker has recorded, if it does within `patience`.
    async fn wait_for_outcome(
        &self,
        patience: Duration,
        look: Duration,
    ) -> Result<Option<Outcome>> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let recorded = outcome::recorded(&self.objects, &self.request.refresh).await?;
            if recorded.is_some() || tokio::time::Instant::now() >= until {
                return Ok(recorded);
            }
            tokio::time::sleep(look).await;
        }
    }

    /// Reads what other workers computed of the plan.
    async fn take_in(&mut self, work: &Work) -> Result<()> {
        let ids = task_ids(work).filter(|id| !self.staged.contains_key(id));
        let ids: Vec<Fingerprint> = ids.collect();
        for claim in claims(&self.objects, self.request, ids).await? {
            self.staged.insert(claim.id(), claim);
        }
        Ok(())
    }

    /// Bringing indices up to date is one worker's work: that of the one whose
    /// commit landed, or of the first where there was nothing to commit. The
    /// others wait until it has recorded the outcome, since the first worker to
    /// end may end them all; but not for ever, for it may have died.
    async fn left_to_others(&self, outcome: &Outcome) -> Result<Option<Outcome>> {
        let nothing = outcome.mode == Mode::NoOp;
        if self.landed || self.request.workers <= 1 || (nothing && self.request.index == 0) {
            return Ok(None);
        }
        self.wait_for_outcome(indices::LEFT_FOR, Duration::from_secs(1))
            .await
    }
}

/// Whether the view that landed is what was meant. `table` is what Lance wrote,
/// where nothing was, with what it took in of others' commits.
fn is_right(work: &Work, table: &Dataset, judgement: &Judgement) -> Result<bool> {
    let found = view::read(&work.view.id, &work.view.uri, table)?;
    Ok(found.raw == work.view.raw
        && commit::verify(table.fragments(), &work.standing(table), judgement))
}

/// Longer after each attempt, and never the same for two who collide.
fn pause(attempt: u32) -> Duration {
    let base = 10u64 << attempt.min(7);
    Duration::from_millis(rand::random_range(base / 2..=base))
}
