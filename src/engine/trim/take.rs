//! The taking out: deletion files that say which of the view's rows are no more.

use std::collections::HashMap;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance_arrow::json::convert_lance_json_to_arrow;
use lance_core::utils::address::RowAddress;
use tracing::debug;

use super::{OldPiece, READS, Trim, offsets};
use crate::engine::error::EngineError;
use crate::engine::execute::{UnitError, Workbench};
use crate::engine::fingerprint::Fingerprint;
use crate::engine::ledger::Claim;
use crate::engine::plan::Pinned;
use crate::engine::standing::{Columns, Standing};
use crate::engine::unit::Extent;
use crate::engine::view::planned::Planned;

/// One of the view's fragments that rows of a claim are in.
pub(super) struct Part {
    pub fragment: FileFragment,
    /// The physical offsets of its deleted rows, ascending.
    pub deleted: Vec<u32>,
}

impl Part {
    /// How many rows of it are not deleted.
    pub fn rows(&self) -> u64 {
        let physical = self.fragment.metadata().physical_rows.unwrap_or(0) as u64;
        physical.saturating_sub(self.deleted.len() as u64)
    }
}

impl Workbench {
    /// Takes out of the claim of `trim` what is gone, and stages that as a claim of
    /// `inputs`. `Ok(None)`: it is to be computed. The claim is not recorded yet.
    pub async fn trim(
        &self,
        trim: &Trim,
        inputs: Vec<Fingerprint>,
    ) -> std::result::Result<Option<Claim>, UnitError> {
        match self.taken_out(trim, inputs).await {
            // What computes the unit will say what is wrong.
            Err(UnitError::SourceGone(_) | UnitError::OutOfMemory(_)) => Ok(None),
            Err(UnitError::Other(EngineError::EvaluationFailed { why, .. })) => {
                debug!(why, "rows could not be taken out of a unit");
                Ok(None)
            }
            other => other,
        }
    }

    async fn taken_out(
        &self,
        trim: &Trim,
        inputs: Vec<Fingerprint>,
    ) -> std::result::Result<Option<Claim>, UnitError> {
        let source = self.source()?;
        let old = source.checkout_version(trim.source.version).await;
        let old = old.map_err(|e| self.sort(e))?;
        let (true, Planned::Sql(planned)) = (Pinned::of(&old) == trim.source, &*self.planned)
        else {
            return Ok(None);
        };
        let gone = extent(&old, trim.gone.iter().map(|address| row(*address)));
        let rows = async {
            let rows = planned.evaluate(&old, Some(&gone), false).await;
            let rows = rows.map_err(|e| self.sort(e))?;
            let schema = rows.schema();
            let batches: Vec<RecordBatch> = rows
                .try_collect()
                .await
                .map_err(|error| self.sort(error.into()))?;
            // What is taken out of the view has JSON as text too.
            let rows = concat_batches(&schema, &batches);
            rows.and_then(|rows| convert_lance_json_to_arrow(&rows))
                .map_err(|error| self.sort(error.into()))
        };
        let (rows, parts) = futures::try_join!(rows, self.parts(&trim.claim))?;
        let Some(parts) = parts else {
            return Ok(None);
        };
        let found = match self.by_value(&trim.claim, &parts, &rows).await? {
            None => {
                let filter = planned.filter();
                self.by_place(&old, trim, filter, &parts, &rows).await?
            }
            found => found,
        };
        let Some(places) = found else {
            debug!("rows of a unit are in another order than its source's");
            return Ok(None);
        };
        let mut left = Vec::with_capacity(parts.len());
        for ((part, places), held) in parts.iter().zip(places).zip(&trim.claim.fragments) {
            let mut held = held.clone();
            if !places.is_empty() {
                let less = part.fragment.clone().extend_deletions(places).await;
                let Some(less) = less.map_err(|e| self.sort(e))? else {
                    // No row of it is left.
                    continue;
                };
                held.id = part.fragment.id() as u64;
                held.deletion_file = less.metadata().deletion_file.clone();
            }
            left.push(held);
        }
        Ok(Some(Claim {
            inputs,
            refresh: self.refresh.clone(),
            rows: trim.claim.rows - rows.num_rows() as u64,
            bytes: trim.claim.bytes,
            fragments: left,
            of: trim.claim.fragments.clone(),
        }))
    }

    /// The view's fragments that the rows of `claim` are in, in the claim's order.
    /// `Ok(None)`: the claim does not stand.
    async fn parts(&self, claim: &Claim) -> std::result::Result<Option<Vec<Part>>, UnitError> {
        let names = self.planned.computed_names();
        let columns = Columns::new(self.table.schema(), names.into_iter());
        let standing = Standing::new(self.table.fragments(), &columns);
        let ids = standing.fragments_of(claim).unwrap_or_default();
        let fragments = ids
            .into_iter()
            .filter_map(|id| self.table.get_fragment(id as usize));
        let reads = fragments.map(|fragment| async move {
            let deleted = offsets(&fragment).await?;
            Ok::<_, lance::Error>(Part { fragment, deleted })
        });
        let reads: Vec<_> = reads.collect();
        let parts = futures::stream::iter(reads).buffered(READS).try_collect();
        let parts: Vec<Part> = parts.await.map_err(|e| self.sort(e))?;
        let rows: u64 = parts.iter().map(Part::rows).sum();
        let complete = parts.len() == claim.fragments.len() && rows == claim.rows;
        Ok(complete.then_some(parts))
    }
}

/// A row as a piece of its own.
fn row(address: u64) -> OldPiece {
    let address = RowAddress::from(address);
    let offset = u64::from(address.row_offset());
    OldPiece {
        fragment: u64::from(address.fragment_id()),
        slice: Some(offset..offset + 1),
    }
}

/// The rows of `pieces` of the source's version `old`.
pub(super) fn extent(old: &Dataset, pieces: impl Iterator<Item = OldPiece>) -> Extent {
    let at: HashMap<u64, usize> = old.fragments().iter().map(|f| f.id).zip(0..).collect();
    let pieces = pieces.filter_map(|piece| Some((*at.get(&piece.fragment)?, piece.slice)));
    Extent::of_rows(old.fragments(), pieces)
}
