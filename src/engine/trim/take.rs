//! The taking out: which rows of the view came of those that are gone, and the
//! deletion files that say so.

use std::collections::{HashMap, HashSet};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, RecordBatch};
use arrow_select::concat::concat_batches;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance_core::ROW_ADDR;
use lance_core::utils::address::RowAddress;
use tracing::debug;

use super::{OldPiece, Trim, offsets};
use crate::engine::error::EngineError;
use crate::engine::execute::{UnitError, Workbench};
use crate::engine::fingerprint::Fingerprint;
use crate::engine::ledger::{Claim, Columns, Standing};
use crate::engine::plan::Pinned;
use crate::engine::unit::Extent;
use crate::engine::view::planned::Planned;

/// Rows of one of the view's fragments.
struct Found {
    fragment: FileFragment,
    /// Which of the claim's fragments it is.
    place: usize,
    offsets: Vec<u32>,
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
        let claim = &trim.claim;
        let Some(found) = self.positions(&old, trim, planned.filter()).await? else {
            return Ok(None);
        };
        let (rows, positions): (HashSet<u64>, Vec<u64>) = found.iter().copied().unzip();
        let expected = extent(&old, rows_of(&rows, &trim.gone));
        let (expected, view) = futures::try_join!(
            async {
                let rows = planned.evaluate(&old, Some(&expected)).await;
                self.collect(rows.map_err(|e| self.sort(e))?).await
            },
            self.rows_at(claim, positions)
        )?;
        let Some((fragments, view)) = view else {
            return Ok(None);
        };
        if !self.are_equal(&expected, &view) {
            debug!("rows of a unit are in another order than its source's");
            return Ok(None);
        }
        let mut left = claim.fragments.clone();
        for found in fragments {
            let id = found.fragment.id() as u64;
            let files = &claim.fragments[found.place].files;
            let Some(at) = left.iter().position(|f| f.files == *files) else {
                return Ok(None);
            };
            let less = found.fragment.extend_deletions(found.offsets).await;
            match less.map_err(|e| self.sort(e))? {
                Some(less) => {
                    left[at].id = id;
                    left[at].deletion_file = less.metadata().deletion_file.clone();
                }
                // No row of it is left.
                None => drop(left.remove(at)),
            }
        }
        Ok(Some(Claim {
            inputs,
            refresh: self.refresh.clone(),
            rows: claim.rows - found.len() as u64,
            bytes: claim.bytes,
            fragments: left,
            of: claim.fragments.clone(),
        }))
    }

    /// The addresses of the rows of `trim` that are gone and pass the `filter`,
    /// each with how many rows that pass it come before; `None` if the claim cannot
    /// have been made of these pieces.
    async fn positions(
        &self,
        old: &Dataset,
        trim: &Trim,
        filter: Option<&str>,
    ) -> std::result::Result<Option<Vec<(u64, u64)>>, UnitError> {
        let gone: HashSet<u64> = trim.gone.iter().copied().collect();
        let all = trim.pieces.iter().cloned();
        let scan = async {
            let mut scanner = old.scan();
            self.memory.bound(&mut scanner);
            extent(old, all).restrict(&mut scanner).await?;
            if let Some(filter) = filter {
                scanner.filter(filter)?;
            }
            scanner.project::<&str>(&[])?.with_row_address();
            scanner.try_into_stream().await
        };
        let mut rows = scan.await.map_err(|e| self.sort(e))?;
        let (mut found, mut before) = (Vec::new(), 0u64);
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(|e| self.sort(e))?;
            let addresses = batch.column_by_name(ROW_ADDR);
            let Some(addresses) = addresses.and_then(|a| a.as_primitive_opt::<UInt64Type>()) else {
                return Ok(None);
            };
            for address in addresses.values() {
                if gone.contains(address) {
                    found.push((*address, before));
                }
                before += 1;
            }
        }
        Ok((before == trim.claim.rows).then_some(found))
    }

    /// Where the rows of `claim` at these `positions` among all of it are, and what
    /// they are. `Ok(None)`: the claim does not stand.
    async fn rows_at(
        &self,
        claim: &Claim,
        positions: Vec<u64>,
    ) -> std::result::Result<Option<(Vec<Found>, Vec<RecordBatch>)>, UnitError> {
        let names = self.planned.computed_names();
        let columns = Columns::new(self.table.schema(), names.iter().copied());
        let standing = Standing::new(self.table.fragments(), &columns);
        let Some(ids) = standing.fragments_of(claim) else {
            return Ok(None);
        };
        let fields = self.table.schema().fields.iter();
        let read = fields.filter(|field| names.contains(&field.name.as_str()));
        let read: Vec<i32> = read.map(|field| field.id).collect();
        let read = self.table.schema().project_by_ids(&read, true);
        let mut positions = positions.into_iter().peekable();
        let (mut fragments, mut batches) = (Vec::new(), Vec::new());
        let mut start = 0u64;
        for (place, id) in ids.into_iter().enumerate() {
            let Some(fragment) = self.table.get_fragment(id as usize) else {
                return Ok(None);
            };
            let physical = fragment.metadata().physical_rows.unwrap_or(0) as u64;
            let deleted = offsets(&fragment).await.map_err(|e| self.sort(e))?;
            let end = start + physical - deleted.len() as u64;
            let mut live = Vec::new();
            while let Some(at) = positions.next_if(|at| *at < end) {
                live.push((at - start) as u32);
            }
            start = end;
            if live.is_empty() {
                continue;
            }
            let rows = fragment.take(&live, &read).await;
            batches.push(rows.map_err(|e| self.sort(e))?);
            fragments.push(Found {
                fragment,
                place,
                offsets: physical_offsets(&live, &deleted),
            });
        }
        let complete = start == claim.rows && positions.next().is_none();
        Ok(complete.then_some((fragments, batches)))
    }

    async fn collect(
        &self,
        rows: SendableRecordBatchStream,
    ) -> std::result::Result<Vec<RecordBatch>, UnitError> {
        let rows = rows.try_collect().await;
        rows.map_err(|error| self.sort(error.into()))
    }

    /// Whether both hold the same values in the columns that a refresh computes.
    fn are_equal(&self, one: &[RecordBatch], other: &[RecordBatch]) -> bool {
        let all = |batches: &[RecordBatch]| match batches {
            [] => Some(None),
            [first, ..] => concat_batches(&first.schema(), batches).ok().map(Some),
        };
        match (all(one), all(other)) {
            (Some(None), Some(None)) => true,
            (Some(Some(one)), Some(Some(other))) => {
                let names = self.planned.computed_names();
                one.num_rows() == other.num_rows()
                    && names.into_iter().all(|name| {
                        let (one, other) = (one.column_by_name(name), other.column_by_name(name));
                        one.zip(other)
                            .is_some_and(|(one, other)| one.to_data() == other.to_data())
                    })
            }
            // A batch without rows beside none at all.
            (Some(one), Some(other)) => one.or(other).is_some_and(|rows| rows.num_rows() == 0),
            _ => false,
        }
    }
}

/// Those of the addresses `gone` that are among `rows`, as pieces of one row each.
fn rows_of(rows: &HashSet<u64>, gone: &[u64]) -> impl Iterator<Item = OldPiece> {
    gone.iter().filter(|at| rows.contains(at)).map(|address| {
        let address = RowAddress::from(*address);
        let offset = u64::from(address.row_offset());
        OldPiece {
            fragment: u64::from(address.fragment_id()),
            slice: Some(offset..offset + 1),
        }
    })
}

/// The rows of `pieces` of the source's version `old`.
fn extent(old: &Dataset, pieces: impl Iterator<Item = OldPiece>) -> Extent {
    let at: HashMap<u64, usize> = old.fragments().iter().map(|f| f.id).zip(0..).collect();
    let pieces = pieces.filter_map(|piece| Some((*at.get(&piece.fragment)?, piece.slice)));
    Extent::of_rows(old.fragments(), pieces)
}

/// The physical offsets of the rows that are the `live`th of a fragment, of which
/// the rows `deleted` are not; both ascending.
fn physical_offsets(live: &[u32], deleted: &[u32]) -> Vec<u32> {
    let mut skipped = 0;
    live.iter()
        .map(|at| {
            while deleted
                .get(skipped)
                .is_some_and(|gone| *gone <= at + skipped as u32)
            {
                skipped += 1;
            }
            at + skipped as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_rows_are_found_among_deleted_ones() {
        assert_eq!(physical_offsets(&[0, 1, 2, 5], &[]), [0, 1, 2, 5]);
        assert_eq!(physical_offsets(&[0, 1, 2, 3], &[0, 1, 4]), [2, 3, 5, 6]);
        for deleted in [vec![], vec![3], vec![0, 2, 4, 6], vec![1, 2, 3, 8, 9]] {
            let alive: Vec<u32> = (0..10).filter(|at| !deleted.contains(at)).collect();
            let all: Vec<u32> = (0..alive.len() as u32).collect();
            assert_eq!(physical_offsets(&all, &deleted), alive);
        }
    }
}
