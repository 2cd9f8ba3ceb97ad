//! The commit loop: reopen, judge, write the ledger, commit, compare.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use lance::Dataset;
use object_store::path::Path;
use tracing::{debug, info, warn};

use super::Run;
use crate::engine::commit::{self, Attempt};
use crate::engine::compute::task_ids;
use crate::engine::error::{EngineError, Result};
use crate::engine::fingerprint::Fingerprint;
use crate::engine::history::History;
use crate::engine::ledger::{Claim, Ledger, Ledgers};
use crate::engine::outcome::Outcome;
use crate::engine::plan::Judgement;
use crate::engine::view::{self, ViewInfo};
use crate::engine::work::Work;
use crate::engine::young::{Young, absent};
use crate::engine::{indices, paths, staged, tidy};

/// How often a refresh tries to commit one plan.
const MAX_COMMITS: u32 = 12;

/// How often it is looked whether another worker has recorded its outcome.
const SELDOM: Duration = Duration::from_secs(1);

/// How old what was seen ahead may be when it is judged.
const FRESH: Duration = Duration::from_secs(1);

/// The view and its ledgers, to be judged.
pub(super) struct Seen {
    view: ViewInfo,
    table: Dataset,
    ledgers: Ledgers,
    /// When the look began.
    at: Instant,
}

impl<'a> Run<'a> {
    /// The view and its ledgers as they are now. The future holds nothing of
    /// the run: what is staged may change while it looks.
    pub(super) fn look(&self) -> impl Future<Output = Result<Seen>> + use<'a> {
        let (catalog, request) = (self.catalog, self.request);
        let (uri, objects, known) = (self.uri.clone(), self.objects.clone(), self.known.clone());
        async move {
            let at = Instant::now();
            let ((view, table), ledgers) = futures::try_join!(
                view::reopen(catalog, &request.view, &uri),
                Ledgers::open(&objects, request.own_only(), known)
            )?;
            Ok(Seen {
                view,
                table,
                ledgers,
                at,
            })
        }
    }
}

impl Run<'_> {
    /// The commit loop, which begins with what was seen `ahead`. Gives the view
    /// as the refresh left it, unless that version has been cleaned up since. `Ok(None)`: the view or what is
    /// staged changed such that a new plan is needed.
    pub(super) async fn commit(
        &mut self,
        work: &Work,
        ahead: Option<Seen>,
    ) -> Result<Option<(Outcome, Option<Dataset>)>> {
        let request = self.request;
        let mut ahead = ahead.filter(|seen| seen.at.elapsed() < FRESH);
        for attempt in 1..=MAX_COMMITS {
            let seen = match ahead.take() {
                Some(seen) => seen,
                None => self.look().await?,
            };
            let Seen {
                view,
                table,
                mut ledgers,
                ..
            } = seen;
            view.require_incarnation(request.expected_incarnation.as_deref())?;
            let same = view.raw == work.view.raw
                && view.incarnation == work.view.incarnation
                && view.uri == work.view.uri
                && table.schema().fields == work.bench.table.schema().fields;
            if !same {
                info!("the view was re-created or redefined meanwhile; planning anew");
                return Ok(None);
            }
            // Another worker may have committed what was planned before.
            let since = self.since.unwrap_or(work.plan.view_version);
            let history = History::read(&table, &request.refresh, since).await?;
            let history = history.without(self.robbed);
            // What was committed once, by whomever, counts only where it stands.
            let never_had = |claim: &Claim| history.never_had(claim, work.plan.view_version);
            self.staged
                .retain(|_, claim| claim.fragments.is_empty() || never_had(claim));
            let judged = self.judge(work, &table, &mut ledgers).await?;
            self.settled = ledgers.settled().map(str::to_string);
            let (judgement, carried) = (judged.now, judged.carried);
            let mut young = ledgers.into_young();
            young.found(judged.unheard.into_iter());
            if judgement.is_done() {
                let units = judgement.claims().count() as u64;
                let settled = history.settled;
                let outcome = history
                    .outcome
                    .filter(|outcome| settled || work.is_of(outcome))
                    .unwrap_or_else(|| work.unchanged(units, table.version().version));
                if carried || !judgement.added.is_empty() {
                    // The compactions that it took are cleaned up some day, and
                    // what came to no rows is not to be computed each time.
                    self.write_ledger(work, &table, &outcome, &judgement, &young)
                        .await?;
                }
                return Ok(Some((outcome, Some(table))));
            }
            if !history.settled
                && let Some(outcome) = &history.outcome
                && outcome.view_version > work.plan.view_version
                && !work.is_of(outcome)
            {
                // It has committed by another plan, and somebody else something
                // beside it. Whoever did may find it right, and tell so; what this
                // plan says would only take the view back.
                return match request.workers > 1 && self.robbed.is_none() {
                    true => self.wait_for_outcome(indices::LEFT_FOR, SELDOM).await,
                    false => Ok(None),
                }
                .map(|told| told.map(|told| (told, None)));
            }
            let robbed =
                history.settled && history.is_robbed(&self.objects, &table, usize::MAX).await?;
            self.mends |= robbed;
            if history.settled
                && !robbed
                && let Some(outcome) = history.outcome
            {
                // Another worker has done it. What was written since is not
                // for this refresh to mend.
                if self.plans > 1 || !work.is_of(&outcome) {
                    // By another plan: what it read is not for this one to tell,
                    // and the first to end may end the other's worker.
                    let told = match request.workers > 1 {
                        true => self.wait_for_outcome(indices::LEFT_FOR, SELDOM).await?,
                        false => None,
                    };
                    return Ok(Some((told.unwrap_or(outcome), None)));
                }
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
            let manifest = table.manifest_location();
            let (ledger, looked, stands) = futures::try_join!(
                self.write_ledger(work, &table, &outcome, &judgement, &young),
                staged::look(&self.objects, judgement.brought()),
                self.objects.has(&manifest.path, manifest.size)
            )?;
            if !stands {
                // Re-created: its versions are counted anew.
                debug!(
                    attempt,
                    "the version that was judged is gone; looking again"
                );
                self.objects.delete(vec![ledger]).await?;
                tokio::time::sleep(pause(attempt)).await;
                continue;
            }
            // Just written: so that is what the store's clock says.
            let lost = match self.objects.modified(&ledger).await? {
                Some(now) => staged::lost(looked, now),
                None => judgement.brought().map(Claim::id).collect(),
            };
            if !lost.is_empty() {
                warn!(units = lost.len(), "staged files are gone; computing anew");
                self.objects.delete(vec![ledger]).await?;
                self.forget(lost.into_iter().collect()).await?;
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
                        self.spent.extend(self.taken_over(&judgement));
                        if self.is_robbed(&judgement).await? {
                            self.robbed = Some(version);
                            return Ok(None);
                        }
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

    /// Whether files of what has just been committed are gone: a clean-up that was
    /// told to delete unverified files took them after they were looked at, when no
    /// version had them yet. What they held is to be computed again.
    async fn is_robbed(&mut self, judgement: &Judgement) -> Result<bool> {
        let written = judgement.brought().flat_map(Claim::written);
        // It deletes one after the other: what an earlier commit of this refresh
        // had left may be gone by now.
        let refresh = &self.request.refresh;
        let kept = judgement.kept.iter().filter(|c| c.refresh == *refresh);
        let paths = written.chain(kept.flat_map(Claim::paths));
        let gone = absent(&self.objects, paths.collect()).await?;
        if gone.is_empty() {
            return Ok(false);
        }
        warn!(
            files = gone.len(),
            "a clean-up took files from under the commit; computing anew"
        );
        let gone: HashSet<String> = gone.into_iter().collect();
        let is_lost = |claim: &&Claim| claim.written().iter().any(|path| gone.contains(path));
        let lost = judgement.brought().filter(is_lost).map(Claim::id);
        self.forget(lost.collect()).await?;
        // The others are staged no more, they are committed.
        for claim in judgement.brought() {
            self.staged.remove(&claim.id());
        }
        Ok(true)
    }

    /// Where the claims are that other refreshes had staged and `judgement` has
    /// committed: they are of no use any more.
    fn taken_over(&self, judgement: &Judgement) -> Vec<Path> {
        let root = self.objects.root();
        let others = judgement.brought().filter(|claim| {
            let of = &claim.refresh;
            !of.is_empty() && *of != self.request.refresh
        });
        let paths = others.map(|claim| paths::claim(root, &claim.refresh, &claim.id()));
        paths.collect()
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
        self.forget(void).await
    }

    /// Forgets the claims that `void` identifies: its own are deleted, those that
    /// other refreshes left are not used again.
    pub(super) async fn forget(&mut self, void: Vec<Fingerprint>) -> Result<()> {
        let refresh = &self.request.refresh;
        let own = |id| paths::claim(self.objects.root(), refresh, id);
        self.objects.delete(void.iter().map(own).collect()).await?;
        self.staged.retain(|id, _| !void.contains(id));
        self.void.extend(void);
        Ok(())
    }

    /// Writes what the view consists of once `judgement` is true of `table`, and
    /// what of it is still `young`.
    async fn write_ledger(
        &self,
        work: &Work,
        table: &Dataset,
        outcome: &Outcome,
        judgement: &Judgement,
        young: &Young,
    ) -> Result<Path> {
        let refresh = &self.request.refresh;
        let read_version = table.version().version;
        let path = paths::ledger(
            self.objects.root(),
            read_version,
            refresh,
            &uuid::Uuid::new_v4().simple().to_string()[..8],
        );
        let (kept, young) = young.sort(&judgement.kept);
        let claims = kept.into_iter().chain(judgement.brought());
        let ledger = Ledger {
            refresh: refresh.clone(),
            read_version,
            outcome: outcome.clone(),
            claims: claims.cloned().map(Claim::committed).collect(),
            young,
            added: judgement.brought().count(),
            partials: work.plan.partials.clone(),
        };
        self.objects.put(&path, &ledger).await?;
        Ok(path)
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
