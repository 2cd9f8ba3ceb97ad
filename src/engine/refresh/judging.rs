//! The judgement of a view, with what it takes to make it: see
//! [`judge`](crate::engine::plan::judge).

use std::collections::HashSet;

use lance::Dataset;

use super::Run;
use crate::engine::carry;
use crate::engine::error::Result;
use crate::engine::fingerprint::Fingerprint;
use crate::engine::ledger::{Claim, Ledgers};
use crate::engine::plan::{Judgement, judge};
use crate::engine::work::Work;

/// A judgement, and what goes with it.
pub(super) struct Judged {
    pub(super) now: Judgement,
    /// Whether claims that count are in no ledger as they are, carried over
    /// compactions, or of others that have lost no row; or not in the newest.
    pub(super) carried: bool,
    /// The files of claims that no ledger speaks of.
    pub(super) unheard: Vec<String>,
    /// Committed claims that stand and do not count, where something is missing.
    pub(super) loose: Vec<Claim>,
    /// The version of the first source that the newest of them are true of.
    pub(super) since: u64,
}

impl Run<'_> {
    /// Judges the view as `table` shows it.
    pub(super) async fn judge(
        &self,
        work: &Work,
        table: &Dataset,
        ledgers: &mut Ledgers,
    ) -> Result<Judged> {
        let mut standing = work.standing(table);
        ledgers.of(&mut standing).await?;
        let apart = ledgers.is_apart();
        let ledgers = ledgers.of(&mut standing).await?;
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
        let mut unheard = Vec::new();

        if let Some(since) = read_version
            && !standing.unaccounted(committed.iter()).is_empty()
        {
            let gone = |claim: &&Claim| standing.fragments_of(claim).is_none();
            let gone: Vec<Claim> = committed.iter().filter(gone).cloned().collect();
            if !gone.is_empty() {
                let versions = since + 1..=table.version().version;
                let moves = carry::rewrites(table, versions).await?;
                carried.extend(carry::over_view(&gone, &moves, &work.columns(table)));
                unheard.extend(carried.iter().flat_map(Claim::paths));
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
        let carried = apart || now.kept.iter().any(|c| !c.of.is_empty() || is_carried(c));
        let landed = now.kept.iter().filter(|c| !c.of.is_empty());
        unheard.extend(landed.flat_map(Claim::paths));
        if now.missing.is_empty() {
            // Nobody asks: to name a hundred thousand claims takes its time.
            committed.clear();
        } else {
            let kept: HashSet<Fingerprint> = now.kept.iter().map(Claim::id).collect();
            committed.retain(|c| standing.fragments_of(c).is_some() && !kept.contains(&c.id()));
        }
        Ok(Judged {
            carried,
            unheard,
            loose: committed,
            since: newest.first().copied().unwrap_or_default(),
            now,
        })
    }
}
