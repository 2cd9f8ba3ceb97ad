//! One refresh, from looking to done. See the head of [`super`] for the protocol.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use lance::Dataset;
use lance_table::format::Fragment;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::catalog::Catalog;
use super::commit::{self, Attempt};
use super::error::{EngineError, Result};
use super::execute::{UnitError, Workbench};
use super::fingerprint::Fingerprint;
use super::freshness::{self, open_source, timestamp};
use super::history::History;
use super::ledger::{self, Claim, Ledger, Standing};
use super::outcome::{self, Mode, Outcome};
use super::plan::{Judgement, Plan, judge};
use super::store::Objects;
use super::view::sql::{Planned, Shape};
use super::view::{self, ViewInfo};
use super::{paths, staged, unit, watermark};

/// How often a refresh plans anew before it gives up as contended.
const MAX_PLANS: u32 = 12;
/// How often it tries to commit one plan.
const MAX_COMMITS: u32 = 12;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The view's identifier path.
    pub view: Vec<String>,
    /// UID of the refresh: two runs with the same one are one refresh.
    pub refresh: String,
    /// Source version to bring the view to; the latest if `None`.
    pub src_version: Option<u64>,
    /// Compute every row anew.
    pub full: bool,
    /// The incarnation that the view must have.
    pub expected_incarnation: Option<String>,
    /// Most rows in a fragment that is written.
    pub max_rows_per_fragment: Option<u64>,
    /// Units computed at a time; one a processor if `None`.
    pub threads: Option<usize>,
    /// How many workers share the refresh; 0 means 1.
    pub workers: u32,
    /// Which of them this is, from 0.
    pub index: u32,
}

/// How far a refresh is. Cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Units that are computed.
    pub units_done: u64,
    /// Units to compute.
    pub units_total: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Bytes of data files written.
    pub bytes_written: u64,
}

/// Brings the view up to date. Any number of workers may run the same request,
/// one after the other or together: they share the work and one commits.
/// Errors: see [`EngineError`]; the view is then as it was.
pub async fn refresh(
    catalog: &Catalog,
    request: &Request,
    progress: &watch::Sender<Progress>,
) -> Result<Outcome> {
    let uri = catalog.locate(&request.view).await?;
    let objects = catalog.store().objects(&uri).await?;
    if let Some(done) = outcome::find(catalog, &request.view, &request.refresh).await? {
        info!(mode = ?done.mode, "this refresh has committed before");
        return Ok(done);
    }
    let mut run = Run {
        catalog,
        request,
        objects,
        progress,
        staged: HashMap::new(),
        since: None,
    };
    for n in 1..=MAX_PLANS {
        let Some(job) = run.plan(n).await? else {
            continue;
        };
        match run.compute(&job).await {
            Ok(()) => {}
            Err(UnitError::SourceGone) => {
                if request.src_version.is_some() {
                    return Err(EngineError::SourceVersionGone {
                        table: job.source_name(),
                        version: job.plan.source_version,
                    });
                }
                info!("the source version was cleaned up meanwhile; planning anew");
                continue;
            }
            Err(UnitError::Other(error)) => return Err(error),
        }
        if let Some((outcome, table)) = run.commit(&job).await? {
            return run.finish(&job, outcome, table).await;
        }
    }
    Err(EngineError::ViewContended {
        view: request.view.join(super::catalog::DELIMITER),
        attempts: MAX_PLANS,
    })
}

/// What one plan works on.
struct Job {
    plan: Plan,
    view: ViewInfo,
    bench: Workbench,
    /// The fingerprint of each piece that the view is computed from.
    inputs: Vec<Fingerprint>,
}

impl Job {
    fn source_name(&self) -> String {
        self.view
            .sources
            .first()
            .map(|s| s.join(super::catalog::DELIMITER))
            .unwrap_or_default()
    }

    fn standing(&self, table: &Dataset) -> Standing {
        Standing::new(
            table.fragments(),
            table.schema(),
            self.bench.planned.computed_names(),
        )
    }

    /// The source fragments of a unit; `None` for all of them.
    fn fragments(&self, unit: &[usize]) -> Option<Vec<Fragment>> {
        (self.bench.planned.shape() == Shape::RowWise).then(|| {
            let all = self.bench.source.fragments();
            unit.iter().filter_map(|at| all.get(*at)).cloned().collect()
        })
    }

    fn unit_inputs(&self, unit: &[usize]) -> Vec<Fingerprint> {
        unit.iter()
            .filter_map(|at| self.inputs.get(*at))
            .cloned()
            .collect()
    }
}

struct Run<'a> {
    catalog: &'a Catalog,
    request: &'a Request,
    objects: Objects,
    progress: &'a watch::Sender<Progress>,
    /// Staged claims that may be used, by what identifies them.
    staged: HashMap<Fingerprint, Claim>,
    /// The view's version at the first plan: nothing of this refresh is older.
    since: Option<u64>,
}

impl Run<'_> {
    /// Fixes plan `n`, or reads what another worker fixed. `Ok(None)`: that
    /// plan cannot be carried out any more, try the next.
    async fn plan(&mut self, n: u32) -> Result<Option<Job>> {
        let request = self.request;
        let (view, table) = view::open(self.catalog, &request.view).await?;
        view.require_refreshable()?;
        view.require_incarnation(request.expected_incarnation.as_deref())?;
        let [source_id] = view.sources.as_slice() else {
            return Err(EngineError::Internal(
                "a SQL view of one source was expected".to_string(),
            ));
        };
        let path = paths::plan(self.objects.root(), &request.refresh, n);
        let mut fixed: Option<Plan> = self.objects.get(&path).await?;
        let wanted = fixed
            .as_ref()
            .map(|plan| plan.source_version)
            .or(request.src_version);
        let source = match open_source(self.catalog, &view, source_id, wanted).await {
            Err(EngineError::SourceVersionGone { .. })
                if fixed.is_some() && request.src_version.is_none() =>
            {
                return Ok(None);
            }
            other => other?,
        };
        if fixed
            .as_ref()
            .is_some_and(|plan| plan.source_timestamp != timestamp(&source))
        {
            // The source was re-created since.
            return Ok(None);
        }
        staged::refuse_wal(&view, &table, "the view").await?;
        staged::refuse_wal(&view, &source, "its source table").await?;
        let planned = Arc::new(Planned::new(&view, &table, &source)?);
        let reads = planned.reads(&source);
        let pieces: Vec<Fingerprint> = source
            .fragments()
            .iter()
            .map(|fragment| reads.fragment(fragment))
            .collect();
        let inputs = match planned.shape() {
            Shape::RowWise => pieces,
            Shape::Limited(_) | Shape::Grouped => {
                vec![Fingerprint::of_all(
                    std::iter::once(reads.definition()).chain(&pieces),
                )]
            }
        };
        let bench = Workbench {
            view_name: view.name(),
            source: Arc::new(source),
            table: Arc::new(table),
            planned,
            refresh: request.refresh.clone(),
            max_rows_per_fragment: request.max_rows_per_fragment,
        };
        let mut job = Job {
            plan: Plan {
                source_version: bench.source.version().version,
                source_timestamp: timestamp(&bench.source),
                view_version: bench.table.version().version,
                units: Vec::new(),
            },
            view,
            bench,
            inputs,
        };
        for claim in staged::usable(
            &self.objects,
            &job.bench.table,
            &request.refresh,
            request.full,
        )
        .await?
        {
            self.staged.insert(claim.id(), claim);
        }
        if fixed.is_none() {
            let now = self.judge(&job, &job.bench.table).await?;
            job.plan.units = match job.bench.planned.shape() {
                Shape::RowWise => unit::cut(job.bench.source.fragments(), &now.missing),
                _ => now.missing.iter().map(|at| vec![*at]).collect(),
            };
            if !self.objects.create(&path, &job.plan).await? {
                fixed = self.objects.get(&path).await?;
            }
        }
        if let Some(plan) = fixed {
            if (plan.source_version, plan.source_timestamp)
                != (job.plan.source_version, job.plan.source_timestamp)
            {
                return Ok(None);
            }
            job.plan = plan;
        }
        self.since = Some(self.since(&job));
        info!(
            source_version = job.plan.source_version,
            view_version = job.plan.view_version,
            units = job.plan.units.len(),
            "planned"
        );
        Ok(Some(job))
    }

    fn since(&self, job: &Job) -> u64 {
        self.since.unwrap_or(u64::MAX).min(job.plan.view_version)
    }

    /// Judges the view as `table` shows it.
    async fn judge(&self, job: &Job, table: &Dataset) -> Result<Judgement> {
        let standing = job.standing(table);
        let committed: Vec<Claim> = ledger::read(&self.objects, &standing)
            .await?
            .into_iter()
            .flat_map(|ledger| ledger.claims)
            .filter(|claim| !self.request.full || claim.refresh == self.request.refresh)
            .collect();
        let staged: Vec<Claim> = self.staged.values().cloned().collect();
        Ok(judge(&job.inputs, &standing, &committed, &staged))
    }

    /// Computes what the plan says: this worker's share, then what others left.
    async fn compute(&mut self, job: &Job) -> std::result::Result<(), UnitError> {
        let workers = u64::from(self.request.workers.max(1));
        let share = u64::from(self.request.index) % workers;
        let (mine, others): (Vec<_>, Vec<_>) = job
            .plan
            .units
            .iter()
            .enumerate()
            .partition(|(i, _)| *i as u64 % workers == share);
        let mut now = Progress {
            units_total: job.plan.units.len() as u64,
            ..Default::default()
        };
        let mut todo = Vec::new();
        for (_, unit) in mine.into_iter().chain(others) {
            let inputs = job.unit_inputs(unit);
            match self.staged.get(&Fingerprint::of_all(&inputs)) {
                Some(claim) => count(&mut now, claim),
                None => todo.push((job.fragments(unit), inputs)),
            }
        }
        self.progress.send_replace(now);

        let threads = self.request.threads.filter(|t| *t > 0).unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        let shared = workers > 1;
        let mut results = futures::stream::iter(todo)
            .map(|(fragments, inputs)| {
                let bench = job.bench.clone();
                let objects = self.objects.clone();
                async move {
                    // A task of its own, so that units use several processors.
                    let unit = tokio::spawn(async move {
                        compute_unit(&bench, &objects, fragments, inputs, shared).await
                    });
                    match AbortOnDrop(unit).await {
                        Ok(result) => result,
                        Err(error) => Err(UnitError::Other(EngineError::Internal(format!(
                            "a unit's task ended early: {error}"
                        )))),
                    }
                }
            })
            .buffer_unordered(threads);
        let mut staged = Vec::new();
        let mut failed = None;
        while let Some(result) = results.next().await {
            match result {
                Ok(claim) => {
                    count(&mut now, &claim);
                    self.progress.send_replace(now);
                    staged.push(claim);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        drop(results);
        for claim in staged {
            self.staged.insert(claim.id(), claim);
        }
        failed.map_or(Ok(()), Err)
    }

    /// The commit loop. `Ok(None)`: the view or what is staged changed such
    /// that a new plan is needed.
    async fn commit(&mut self, job: &Job) -> Result<Option<(Outcome, Dataset)>> {
        let request = self.request;
        for attempt in 1..=MAX_COMMITS {
            let (view, table) = view::open(self.catalog, &request.view).await?;
            view.require_incarnation(request.expected_incarnation.as_deref())?;
            let same = view.raw == job.view.raw
                && view.incarnation == job.view.incarnation
                && view.uri == job.view.uri
                && table.schema().fields == job.bench.table.schema().fields;
            if !same {
                info!("the view was re-created or redefined meanwhile; planning anew");
                return Ok(None);
            }
            let history = History::read(&table, &request.refresh, job.plan.view_version).await?;
            // What was committed once, by whomever, counts only where it stands.
            self.staged
                .retain(|_, claim| claim.fragments.is_empty() || history.never_had(claim.files()));
            let judgement = self.judge(job, &table).await?;
            if judgement.is_done() {
                let units = (judgement.kept.len() + judgement.added.len()) as u64;
                let outcome = history.outcome.unwrap_or(Outcome {
                    mode: Mode::NoOp,
                    source_version: job.plan.source_version,
                    view_version: table.version().version,
                    rows_written: 0,
                    bytes_written: 0,
                    units_total: units,
                    units_kept: units,
                });
                return Ok(Some((outcome, table)));
            }
            if !judgement.missing.is_empty() {
                info!(
                    missing = judgement.missing.len(),
                    "the view changed meanwhile; planning anew"
                );
                return Ok(None);
            }
            let outcome = outcome_of(job, &judgement, &table, request.full);
            let claims: Vec<Claim> = judgement
                .kept
                .iter()
                .chain(&judgement.added)
                .cloned()
                .collect();
            let ledger = paths::ledger(
                self.objects.root(),
                table.version().version,
                &request.refresh,
                &uuid::Uuid::new_v4().simple().to_string()[..8],
            );
            self.objects
                .put(
                    &ledger,
                    &Ledger {
                        refresh: request.refresh.clone(),
                        read_version: table.version().version,
                        outcome: outcome.clone(),
                        claims,
                    },
                )
                .await?;
            let lost = staged::lost(&self.objects, &ledger, &judgement.added).await?;
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
            let properties = BTreeMap::from([
                (commit::REFRESH.to_string(), request.refresh.clone()),
                (
                    commit::OUTCOME.to_string(),
                    serde_json::to_string(&outcome).unwrap_or_default(),
                ),
            ]);
            match commit::attempt(&table, &judgement, properties).await? {
                Attempt::Landed(version) => {
                    if let Some(table) = self.verified(job, version, &judgement).await? {
                        let outcome = Outcome {
                            view_version: version,
                            ..outcome
                        };
                        return Ok(Some((outcome, table)));
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
            view: job.view.name(),
            attempts: MAX_COMMITS,
        })
    }

    /// The view at `version`, freshly read, if it is what was meant.
    async fn verified(
        &self,
        job: &Job,
        version: u64,
        judgement: &Judgement,
    ) -> Result<Option<Dataset>> {
        let Some(table) = self
            .catalog
            .store()
            .open(&job.view.uri, Some(version))
            .await?
        else {
            return Ok(None);
        };
        let found = view::read(&job.view.id, &job.view.uri, &table)?;
        let right = found.raw == job.view.raw
            && commit::verify(table.fragments(), &job.standing(&table), judgement);
        Ok(right.then_some(table))
    }

    /// After the view is right: the watermark of older clients, the records,
    /// and the removal of what was only needed on the way. None of it can
    /// make the refresh fail any more, except that its outcome must be found.
    async fn finish(&self, job: &Job, outcome: Outcome, table: Dataset) -> Result<Outcome> {
        let mut outcome = outcome;
        let mut table = table;
        if job.bench.planned.provenance() {
            match watermark::stamp(self.catalog, &job.view, &table, &job.bench.source).await {
                Ok(Some(stamped)) => {
                    outcome.view_version = stamped.version().version;
                    table = stamped;
                }
                Ok(None) => warn!("the view changed before its watermark could be written"),
                Err(error) => warn!(%error, "the view's watermark could not be written"),
            }
        }
        let outcome = outcome::record(&self.objects, &self.request.refresh, &outcome).await?;
        let tidied = async {
            freshness::record(&self.objects, &job.view, &table, &job.bench.source).await?;
            staged::remove(&self.objects, &self.request.refresh).await?;
            ledger::prune(&self.objects).await?;
            let clock = self
                .objects
                .modified(&paths::outcome(self.objects.root(), &self.request.refresh))
                .await?;
            match clock {
                Some(now) => outcome::prune(&self.objects, now).await,
                None => Ok(()),
            }
        };
        if let Err(error) = tidied.await {
            warn!(%error, "the view is right; its records could not all be written");
        }
        Ok(outcome)
    }
}

/// Ends a unit's task with the one that waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

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

async fn compute_unit(
    bench: &Workbench,
    objects: &Objects,
    fragments: Option<Vec<Fragment>>,
    inputs: Vec<Fingerprint>,
    shared: bool,
) -> std::result::Result<Claim, UnitError> {
    let path = paths::claim(
        objects.root(),
        &bench.refresh,
        &Fingerprint::of_all(&inputs),
    );
    if shared && let Some(claim) = objects.get(&path).await.map_err(UnitError::Other)? {
        return Ok(claim);
    }
    let claim = bench.compute(fragments, inputs).await?;
    if objects
        .create(&path, &claim)
        .await
        .map_err(UnitError::Other)?
    {
        return Ok(claim);
    }
    // Another worker was first; what it staged is what all of them commit.
    Ok(objects
        .get(&path)
        .await
        .map_err(UnitError::Other)?
        .unwrap_or(claim))
}

fn count(progress: &mut Progress, claim: &Claim) {
    progress.units_done += 1;
    progress.rows_written += claim.rows;
    progress.bytes_written += claim.bytes;
}

fn outcome_of(job: &Job, judgement: &Judgement, table: &Dataset, full: bool) -> Outcome {
    Outcome {
        mode: if full || judgement.kept.is_empty() {
            Mode::Rebuild
        } else {
            Mode::Incremental
        },
        source_version: job.plan.source_version,
        view_version: table.version().version + 1,
        rows_written: judgement.added.iter().map(|c| c.rows).sum(),
        bytes_written: judgement.added.iter().map(|c| c.bytes).sum(),
        units_total: (judgement.kept.len() + judgement.added.len()) as u64,
        units_kept: judgement.kept.len() as u64,
    }
}

/// Longer after each attempt, and never the same for two who collide.
fn pause(attempt: u32) -> Duration {
    let base = 10u64 << attempt.min(7);
    Duration::from_millis(rand::random_range(base / 2..=base))
}
