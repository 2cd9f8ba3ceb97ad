//! Fixing what a refresh is to do.

use std::collections::{HashMap, HashSet};

use lance::Dataset;
use tracing::{info, warn};

use super::Run;
use crate::engine::error::{EngineError, Result};
use crate::engine::fingerprint::Fingerprint;
use crate::engine::guess::Guess;
use crate::engine::history::History;
use crate::engine::ledger::{Claim, Ledgers};
use crate::engine::outcome::{self, Outcome};
use crate::engine::plan::Plan;
use crate::engine::pulse::{self, Heard};
use crate::engine::staged::Left;
use crate::engine::trim::{self, Trim};
use crate::engine::view::{self, ViewInfo};
use crate::engine::work::Work;
use crate::engine::{partials, paths, staged};

/// What came of planning.
pub(super) enum Planned {
    /// This is to be done.
    Work(Box<Work>),
    /// The view is right as it was opened, and was so when the plan was made.
    Nothing(Box<Work>),
    /// The plan cannot be carried out any more, try the next.
    Outdated,
    /// The refresh has committed this, and the view is as it left it; the records
    /// are missing.
    Landed(Box<Work>, Outcome, Box<Dataset>),
    /// The refresh has ended: nothing is left to do.
    Done(Outcome),
}

impl Run<'_> {
    /// Fixes plan `n`, or reads what another worker fixed.
    pub(super) async fn plan(&mut self, n: u32) -> Result<Planned> {
        let (request, objects) = (self.request, &self.objects.clone());
        let path = paths::plan(objects.root(), &request.refresh, n);
        let folder = paths::plans(objects.root());
        // In this order: who has done it records that, and then removes the plan.
        let fixed = async {
            let fixed = objects.get::<Plan>(&path).await?;
            Ok::<_, EngineError>((fixed, outcome::recorded(objects, &request.refresh).await?))
        };
        // All at once: a store that is far away takes long to answer each.
        let (fixed, plans, ledgers, opened, guess) = futures::join!(
            fixed,
            objects.folders(&folder),
            Ledgers::open(objects, request.own_only(), self.known.clone()),
            self.open(n),
            Guess::make(self.catalog, objects, request.src_version),
        );
        let (fixed, outcome) = fixed?;
        // Another worker may have seen the files of a commit before they were gone.
        let counts = self.robbed.is_none();
        if let Some(done) = outcome.filter(|_| counts) {
            return Ok(Planned::Done(done));
        }
        let opened = opened?;
        if opened.0.uri != self.uri {
            info!("the view was re-created elsewhere meanwhile; planning there");
            // What was staged, and written beside it, is the other table's.
            *self = Run::at(self.catalog, request, opened.0.uri).await?;
            return Ok(Planned::Outdated);
        }
        let (plans, mut ledgers) = (plans?, ledgers?);
        let first = fixed.as_ref().map(|plan: &Plan| plan.view_version);
        let first = first.unwrap_or_else(|| opened.1.version().version);
        self.since = Some(self.since.map_or(first, |since| since.min(first)));
        if let (Some(plan), 1) = (&fixed, n)
            && let Some(done) =
                outcome::committed(objects, &opened.1, &request.refresh, plan, usize::MAX).await?
        {
            return self.after_commit(plan, opened, done, &guess).await;
        }
        let (refresh, full, table) = (&request.refresh, request.full, opened.1.clone());
        let left = || staged::left(objects, plans.clone(), &table, refresh, full);
        let hear = async || match request.workers > 1 {
            true => pulse::hear(objects, request, Heard::default()).await,
            false => Ok(Heard::default()),
        };
        let own = async {
            if fixed.is_none() {
                return Ok((Vec::new(), Heard::default(), None));
            }
            let (left, heard) = futures::try_join!(left(), hear())?;
            // As the plan, what was staged for it goes once it is done.
            Ok::<_, EngineError>((left, heard, outcome::recorded(objects, refresh).await?))
        };
        let (work, own) = futures::join!(
            Work::of(self.catalog, request, opened, fixed.as_ref(), &guess),
            own
        );
        let (own, heard, done) = own?;
        self.heard = heard;
        if let Some(done) = done.filter(|_| counts) {
            return Ok(Planned::Done(done));
        }
        let Some(mut work) = work? else {
            return Ok(Planned::Outdated);
        };
        self.take_over(own, &table).await?;
        if work.is_limited() {
            if fixed.is_none() {
                self.take_over(left().await?, &table).await?;
            }
            let mut standing = work.standing(&work.bench.table);
            let claims = ledgers
                .of(&mut standing)
                .await?
                .iter()
                .flat_map(|l| &l.claims);
            work.narrow(claims.chain(self.staged.values())).await;
        }
        let is_resumed = fixed
            .as_ref()
            .is_some_and(|plan| plan.view_version < work.plan.view_version);
        let mut fixed = fixed;
        let mut nothing = false;
        if fixed.is_none() {
            let mut judged = self.judge(&work, &work.bench.table, &mut ledgers).await?;
            if !judged.now.missing.is_empty() && !work.is_limited() {
                // A view that misses nothing has no use for what is staged, and that
                // may be much: it is not looked at before.
                let left = left().await?;
                if !left.is_empty() {
                    self.take_over(left, &table).await?;
                    judged = self.judge(&work, &work.bench.table, &mut ledgers).await?;
                }
            }
            let (now, carried) = (judged.now, judged.carried);
            let mut trims = match request.full {
                true => Vec::new(),
                false => trim::choose(&work, &now.missing, &judged.loose, judged.since).await?,
            };
            let computed = loop {
                let trimmed: HashSet<usize> =
                    trims.iter().flat_map(|(unit, _)| unit).copied().collect();
                let missing = now.missing.iter().filter(|at| !trimmed.contains(at));
                let computed = work.cut(&missing.copied().collect::<Vec<_>>());
                // Two units of equal inputs would be one claim: see [`Work::cut`].
                let mut named: HashMap<Fingerprint, usize> = HashMap::new();
                for unit in trims.iter().map(|(unit, _)| unit).chain(&computed) {
                    *named.entry(work.unit_id(unit)).or_default() += 1;
                }
                let planned = trims.len();
                trims.retain(|(unit, _)| named.get(&work.unit_id(unit)) == Some(&1));
                if trims.len() == planned {
                    break computed;
                }
            };
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
            // Others may have begun while this worker planned.
            let agreed = self.objects.agree(&path, work.plan.clone());
            let (agreed, heard) = futures::try_join!(agreed, hear())?;
            self.heard = heard;
            // That all agree on it tells that nothing was committed meanwhile.
            nothing =
                n == 1 && now.is_done() && now.added.is_empty() && !carried && agreed == work.plan;
            fixed = Some(agreed);
        }
        if let Some(plan) = fixed {
            if plan.sources != work.plan.sources || plan.inputs != work.plan.inputs {
                return Ok(Planned::Outdated);
            }
            work.plan = plan;
        }
        if is_resumed && !work.inputs.whole {
            // What others have committed since is not to be computed again.
            let judged = self.judge(&work, &table, &mut ledgers).await?;
            let missing: HashSet<usize> = judged.now.missing.into_iter().collect();
            let units = work.plan.units.iter().enumerate();
            let stands = |unit: &[usize]| !unit.iter().any(|at| missing.contains(at));
            let standing = units.filter(|(_, unit)| stands(unit)).map(|(at, _)| at);
            work.standing_units = standing.collect();
        }
        self.since = self.since.map(|since| since.min(work.plan.view_version));
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
        if view.uri == self.uri {
            staged::refuse_wal(&view, logged?, "the view")?;
        }
        Ok((view, table))
    }

    /// What is left to do where this refresh, whose first plan is `plan`, has
    /// committed what `done` says, and whoever did it died before it was recorded.
    async fn after_commit(
        &self,
        plan: &Plan,
        opened: (ViewInfo, Dataset),
        done: Outcome,
        guess: &Guess,
    ) -> Result<Planned> {
        match self.landed(plan, opened, &done, guess).await {
            Ok(Some((work, table))) => return Ok(Planned::Landed(work, done, Box::new(table))),
            Ok(None) => {}
            Err(error) => warn!(%error, "the view is right; its records could not all be written"),
        }
        // The view or its sources are others by now: that alone can be told.
        let done = outcome::record(&self.objects, self.request, &done, false).await?;
        Ok(Planned::Done(done))
    }

    /// The view as the commit left it that `done` tells of, and what it was the work
    /// of, as far as they are there.
    async fn landed(
        &self,
        plan: &Plan,
        opened: (ViewInfo, Dataset),
        done: &Outcome,
        guess: &Guess,
    ) -> Result<Option<(Box<Work>, Dataset)>> {
        let (store, version) = (self.catalog.store(), done.view_version);
        let table = match opened.1.version().version == version {
            true => Some(opened.1.clone()),
            false => store.open(&self.uri, Some(version)).await?,
        };
        let Some(table) = table else {
            return Ok(None);
        };
        // Where versions were cleaned up, which one it was is a guess.
        let before = version.saturating_sub(1);
        let history = History::read(&table, &self.request.refresh, before).await?;
        let work = Work::of(self.catalog, self.request, opened, Some(plan), guess).await?;
        let work = work
            .filter(|work| history.settled && work.plan.inputs == plan.inputs && work.is_of(done));
        Ok(work.map(|mut work| {
            work.plan = plan.clone();
            (Box::new(work), table)
        }))
    }

    /// Takes over what is `left` staged and may be used on `table`.
    async fn take_over(&mut self, left: Vec<Left>, table: &Dataset) -> Result<()> {
        let refresh = &self.request.refresh;
        let (usable, had) = staged::usable(left, table, refresh).await?;
        // Its own that have been in a version would stand in the way of what is
        // computed instead.
        let own = had.iter().filter(|claim| claim.refresh == *refresh);
        let stale: Vec<Fingerprint> = own.map(Claim::id).collect();
        if !stale.is_empty() {
            self.forget(stale).await?;
        }
        // Its own first, and what is here already before all.
        for claim in usable {
            let id = claim.id();
            if claim.refresh == *refresh || !self.void.contains(&id) {
                self.staged.entry(id).or_insert(claim);
            }
        }
        Ok(())
    }
}
