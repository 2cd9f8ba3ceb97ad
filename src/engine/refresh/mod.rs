//! One refresh, from looking to done. See the head of [`super`] for the protocol.
//!
//! [`planning`] fixes what is to be done, by the judgement that [`judging`]
//! makes; what is missing is computed ([`super::compute`]); [`committing`] makes
//! the judgement again and commits; [`finishing`] leaves the records.

mod committing;
mod finishing;
mod judging;
mod planning;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use object_store::path::Path;
use tokio::sync::{Notify, watch};
use tracing::info;

use self::committing::Seen;
use self::planning::Planned;
use super::catalog::Catalog;
use super::compute::{Others, claims, compute, task_ids};
use super::error::{EngineError, Result};
use super::execute::UnitError;
use super::fingerprint::Fingerprint;
use super::freshness;
use super::ledger::{Claim, Known};
use super::outcome::{self, Outcome};
use super::partials;
use super::plan::Pinned;
use super::pulse::Heard;
pub use super::request::{Progress, Request};
use super::store::Objects;
use super::tidy::Rubbish;
use super::work::Work;

/// How often a refresh plans anew before it gives up as contended.
const MAX_PLANS: u32 = 12;
/// How long the other workers of a refresh leave the commit to the first; each
/// of them [`TURN`] longer than the one before.
const LEFT_FOR: Duration = Duration::from_secs(3);
/// See [`LEFT_FOR`].
const TURN: Duration = Duration::from_millis(150);
/// How often they look whether it is done.
const LOOK: Duration = Duration::from_millis(250);

/// Brings the view up to date. Any number of workers may run the same request,
/// one after the other or together: they share the work and one commits.
/// Errors: see [`EngineError`]; the view is then as it was, unless a clean-up took
/// what was committed to it: then the next refresh makes it whole.
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
    let mut run = Run::at(catalog, request, uri).await?;
    // What a file was missing of when that was tried last.
    let mut missed: Vec<Pinned> = Vec::new();
    for _ in 0..MAX_PLANS {
        run.plans += 1;
        let mut work = match run.plan(run.plans).await? {
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
            Planned::Landed(work, outcome, table) => {
                if let Some(done) = run.left_to_the_first().await? {
                    return Ok(done);
                }
                return run.finish(&work, outcome, *table).await;
            }
            Planned::Done(done) => {
                info!(mode = ?done.mode, "this refresh has committed before");
                return Ok(done);
            }
        };
        let ahead = match run.compute(&mut work, progress).await {
            Ok(ahead) => {
                if let Some(done) = run.left_to_the_first().await? {
                    return Ok(done);
                }
                run.take_in(&work).await?;
                ahead
            }
            Err(UnitError::SourceGone(why)) => {
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
                if missed == work.plan.sources && run.reads_latest(&work).await? {
                    let view = work.view.name();
                    return Err(EngineError::SourceDamaged { view, why });
                }
                info!("the source version was cleaned up meanwhile; planning anew");
                missed = work.plan.sources;
                continue;
            }
            Err(UnitError::Other(error) | UnitError::OutOfMemory(error)) => return Err(error),
        };
        match run.commit(&work, ahead).await? {
            Some((outcome, Some(table))) => return run.finish(&work, outcome, table).await,
            Some((outcome, None)) => {
                return outcome::record(&run.objects, request, &outcome, false).await;
            }
            None => {}
        }
    }
    Err(EngineError::ViewContended {
        view: request.view.join(super::catalog::DELIMITER),
        attempts: MAX_PLANS,
    })
}

struct Run<'a> {
    catalog: &'a Catalog,
    request: &'a Request,
    /// Where the view was when it was planned.
    uri: String,
    objects: Objects,
    /// Staged claims that may be used, by what identifies them.
    staged: HashMap<Fingerprint, Claim>,
    /// What identifies those of other refreshes that turned out to be of no use.
    void: HashSet<Fingerprint>,
    /// What the other workers were at when it read their plan.
    heard: Heard,
    /// How often it has planned there.
    plans: u32,
    /// The view's version at the first plan: nothing of this refresh is older.
    since: Option<u64>,
    /// The version of the view that its last commit made whose files were gone.
    robbed: Option<u64>,
    /// Whether the refresh, by whomever of its workers, had committed what was gone.
    mends: bool,
    /// Whether this worker's commit is the one that landed.
    landed: bool,
    /// What there is to remove, as it was when that commit landed.
    rubbish: Option<Result<Rubbish>>,
    /// Claims of other refreshes that the commit took over.
    spent: Vec<Path>,
    /// The view's newest ledger, if its files are there to stay.
    settled: Option<String>,
    /// Ledgers that were read.
    known: Known,
}

impl<'a> Run<'a> {
    /// A run that has done nothing yet, of the view at `uri`.
    async fn at(catalog: &'a Catalog, request: &'a Request, uri: String) -> Result<Run<'a>> {
        Ok(Run {
            catalog,
            request,
            objects: catalog.store().objects(&uri).await?,
            uri,
            staged: HashMap::new(),
            void: HashSet::new(),
            heard: Heard::default(),
            plans: 0,
            since: None,
            robbed: None,
            mends: false,
            landed: false,
            rubbish: None,
            spent: Vec::new(),
            settled: None,
            known: Known::new(),
        })
    }
}

impl Run<'_> {
    /// Computes what is to be computed. While the last of it is, the worker that
    /// commits looks at the view already: where storage takes long to answer
    /// each call, opening a table takes four.
    async fn compute(
        &mut self,
        work: &mut Work,
        progress: &watch::Sender<Progress>,
    ) -> std::result::Result<Option<Seen>, UnitError> {
        let request = self.request;
        let commits = request.index == 0;
        let last = Notify::new();
        let others = Others {
            heard: std::mem::take(&mut self.heard),
            // What is on record is not so where files of it are gone.
            ends: self.robbed.is_none(),
        };
        let look = self.look();
        let ahead = async {
            last.notified().await;
            look.await
        };
        let computed = async {
            partials::compute(work, &self.objects, request, &self.staged, progress).await?;
            compute(
                work,
                &self.objects,
                request,
                &mut self.staged,
                others,
                progress,
                &last,
            )
            .await
        };
        tokio::pin!(ahead, computed);
        let mut seen = None;
        loop {
            tokio::select! {
                biased;
                done = &mut computed => break done?,
                found = &mut ahead, if commits && seen.is_none() => seen = Some(found),
            }
        }
        if commits && seen.is_none() {
            last.notify_one();
            seen = Some(ahead.await);
        }
        // What went wrong goes wrong again, or does not.
        Ok(seen.and_then(Result::ok))
    }

    /// Whether the versions of the sources that `work` reads are their latest, of
    /// which no clean-up takes a file.
    async fn reads_latest(&self, work: &Work) -> Result<bool> {
        for (id, pinned) in work.view.sources.iter().zip(&work.plan.sources) {
            let source = freshness::open_source(self.catalog, &work.view, id, None).await?;
            if Pinned::of(&source) != *pinned {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One worker commits: together they would only get in each other's way.
    /// The others wait until it has recorded the outcome; but not for ever, for
    /// it may have died.
    async fn left_to_the_first(&self) -> Result<Option<Outcome>> {
        if self.request.workers <= 1 || self.request.index == 0 || self.robbed.is_some() {
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
}
