//! What follows the commit.

use std::time::Duration;

use lance::Dataset;
use tracing::warn;

use super::Run;
use crate::engine::error::Result;
use crate::engine::outcome::{self, Mode, Outcome};
use crate::engine::work::Work;
use crate::engine::{freshness, indices, tidy, watermark};

impl Run<'_> {
    /// After the view is right: its indices, the watermark of older clients, the
    /// records, and the removal of what was only needed on the way. None of it can
    /// make the refresh fail any more, except that its outcome must be found.
    pub(super) async fn finish(
        &mut self,
        work: &Work,
        outcome: Outcome,
        table: Dataset,
    ) -> Result<Outcome> {
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
        let anew = self.robbed.is_some() || self.mends;
        let sources = &work.plan.sources;
        let recorded = async {
            match indices::unindexed_rows(&table).await {
                Ok(rows) => outcome.unindexed_rows = rows,
                Err(error) => warn!(%error, "the view's indices could not be read"),
            }
            outcome::record(objects, self.request, &outcome, anew).await
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
            Ok(rubbish) => {
                let spent = std::mem::take(&mut self.spent);
                tidy::remove(objects, refresh, work, rubbish.with(spent), &self.known).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = fresh.and(tidied) {
            warn!(%error, "the view is right; its records could not all be written");
        }
        Ok(outcome)
    }

    /// Bringing indices up to date is one worker's work: that of the one whose
    /// commit landed, or of the first where there was nothing to commit. The
    /// others wait until it has recorded the outcome, since the first worker to
    /// end may end them all; but not for ever, for it may have died. Large
    /// indices take it long as well, and all at once would only get in each
    /// other's way: each waits twice as long as the one before.
    async fn left_to_others(&self, outcome: &Outcome) -> Result<Option<Outcome>> {
        let nothing = outcome.mode == Mode::NoOp;
        if self.landed || self.request.workers <= 1 || (nothing && self.request.index == 0) {
            return Ok(None);
        }
        let patience = indices::left_for(self.request.index);
        self.wait_for_outcome(patience, Duration::from_secs(1))
            .await
    }
}
