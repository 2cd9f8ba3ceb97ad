//! Which rows of the view came of those that are gone: by their values, which one
//! column of the view tells, or by their place, which the source's filter tells.

use std::collections::HashSet;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use arrow_select::concat::concat_batches;
use datafusion_common::{Column, ScalarValue};
use datafusion_expr::{Expr, lit};
use futures::StreamExt;
use lance::Dataset;
use lance_core::ROW_ADDR;
use lance_core::utils::address::RowAddress;

use super::take::{Part, extent};
use super::{MOST_BYTES, Trim};
use crate::engine::execute::{UnitError, Workbench};
use crate::engine::ledger::Claim;

/// Most rows that are looked for by their values: each is compared with all that
/// share its key.
const MOST_VALUES: usize = 64;

/// So many rows that are looked at for each one looked for, and [`SPARE`] more, tell
/// that the column is no key.
const EACH: usize = 4;
/// See [`EACH`].
const SPARE: usize = 64;

/// Physical offsets of rows of each part of a claim, ascending.
type Places = Vec<Vec<u32>>;

impl Workbench {
    /// Rows of `parts` that are equal to `rows`, as many as these are. `Ok(None)` where
    /// no column tells them apart from most others, or some are not there.
    pub(super) async fn by_value(
        &self,
        claim: &Claim,
        parts: &[Part],
        rows: &RecordBatch,
    ) -> std::result::Result<Option<Places>, UnitError> {
        if rows.num_rows() == 0 {
            return Ok(Some(vec![Vec::new(); parts.len()]));
        }
        if rows.num_rows() > MOST_VALUES {
            return Ok(None);
        }
        let names = self.planned.computed_names();
        let Some((name, values)) = key(rows, &names) else {
            return Ok(None);
        };
        let mean = (claim.bytes / claim.rows.max(1)).max(1);
        let affordable = usize::try_from(MOST_BYTES / mean).unwrap_or(usize::MAX);
        let most = (EACH * rows.num_rows() + SPARE).min(affordable.max(rows.num_rows()));
        let scan = async {
            let mut scanner = self.table.scan();
            self.memory.bound(&mut scanner);
            let fragments = parts.iter().map(|part| part.fragment.metadata().clone());
            scanner.with_fragments(fragments.collect());
            scanner.use_scalar_index(false);
            let key = Expr::Column(Column::new_unqualified(name));
            scanner.filter_expr(key.in_list(values, false));
            scanner.project::<&str>(&[])?.with_row_address();
            scanner.limit(Some(most as i64 + 1), None)?;
            self.addresses(scanner.try_into_stream().await?).await
        };
        let Some(addresses) = scan.await.map_err(|e| self.sort(e))? else {
            return Ok(None);
        };
        if addresses.len() > most {
            return Ok(None);
        }
        let mut places = vec![Vec::new(); parts.len()];
        for address in addresses.into_iter().map(RowAddress::from) {
            let id = address.fragment_id() as usize;
            match parts.iter().position(|part| part.fragment.id() == id) {
                Some(part) => places[part].push(address.row_offset()),
                None => return Ok(None),
            }
        }
        places.iter_mut().for_each(|places| places.sort_unstable());
        let Some(candidates) = self.rows_at(parts, &places).await? else {
            return Ok(None);
        };
        let Some(mut chosen) = chosen(rows, &candidates, &names) else {
            return Ok(None);
        };
        for places in &mut places {
            let mut kept = chosen.drain(..places.len());
            places.retain(|_| kept.next().unwrap_or(false));
        }
        Ok(Some(places))
    }

    /// The rows of `parts` in whose place among them are those of `trim` that are gone
    /// and pass the view's `filter`, among all that pass it. `Ok(None)` where these are
    /// not equal to `rows`, or the claim cannot have been made of these pieces.
    pub(super) async fn by_place(
        &self,
        old: &Dataset,
        trim: &Trim,
        filter: Option<&str>,
        parts: &[Part],
        rows: &RecordBatch,
    ) -> std::result::Result<Option<Places>, UnitError> {
        let scan = async {
            let mut scanner = old.scan();
            self.memory.bound(&mut scanner);
            scanner.use_scalar_index(false);
            let pieces = trim.pieces.iter().cloned();
            extent(old, pieces).restrict(&mut scanner).await?;
            if let Some(filter) = filter {
                scanner.filter(filter)?;
            }
            scanner.project::<&str>(&[])?.with_row_address();
            self.addresses(scanner.try_into_stream().await?).await
        };
        let Some(addresses) = scan.await.map_err(|e| self.sort(e))? else {
            return Ok(None);
        };
        if addresses.len() as u64 != trim.claim.rows {
            return Ok(None);
        }
        let places = ranked(&addresses, &trim.gone, parts);
        let Some(found) = self.rows_at(parts, &places).await? else {
            return Ok(None);
        };
        let names = self.planned.computed_names();
        let are_equal = found.num_rows() == rows.num_rows()
            && names.iter().all(|name| {
                let (one, other) = (rows.column_by_name(name), found.column_by_name(name));
                one.zip(other)
                    .is_some_and(|(one, other)| one.to_data() == other.to_data())
            });
        Ok(are_equal.then_some(places))
    }

    /// The row addresses that a scan gives; `None` if it gives others than that.
    async fn addresses(
        &self,
        mut rows: lance::dataset::scanner::DatasetRecordBatchStream,
    ) -> lance::Result<Option<Vec<u64>>> {
        let mut found = Vec::new();
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let addresses = batch.column_by_name(ROW_ADDR);
            let Some(addresses) = addresses.and_then(|a| a.as_primitive_opt::<UInt64Type>()) else {
                return Ok(None);
            };
            found.extend_from_slice(addresses.values());
        }
        Ok(Some(found))
    }

    /// What a refresh computes of the rows at `places` of `parts`, in their order;
    /// `None` if there are none.
    async fn rows_at(
        &self,
        parts: &[Part],
        places: &[Vec<u32>],
    ) -> std::result::Result<Option<RecordBatch>, UnitError> {
        let names = self.planned.computed_names();
        let fields = self.table.schema().fields.iter();
        let read = fields.filter(|field| names.contains(&field.name.as_str()));
        let read: Vec<i32> = read.map(|field| field.id).collect();
        let read = self.table.schema().project_by_ids(&read, true);
        let mut batches = Vec::new();
        for (part, places) in parts.iter().zip(places).filter(|(_, p)| !p.is_empty()) {
            let live = live_offsets(places, &part.deleted);
            let rows = part.fragment.take(&live, &read).await;
            batches.push(rows.map_err(|e| self.sort(e))?);
        }
        let Some(schema) = batches.first().map(RecordBatch::schema) else {
            return Ok(None);
        };
        let rows = concat_batches(&schema, &batches);
        Ok(Some(rows.map_err(|error| self.sort(error.into()))?))
    }
}

/// Where the rows of `parts` are that have the rank which those that are `gone` have
/// among `addresses`.
fn ranked(addresses: &[u64], gone: &[u64], parts: &[Part]) -> Places {
    let gone: HashSet<u64> = gone.iter().copied().collect();
    let ranks = addresses.iter().zip(0u64..);
    let mut ranks = ranks
        .filter_map(|(address, rank)| gone.contains(address).then_some(rank))
        .peekable();
    let mut start = 0;
    parts
        .iter()
        .map(|part| {
            let end = start + part.rows();
            let mut live = Vec::new();
            while let Some(rank) = ranks.next_if(|rank| *rank < end) {
                live.push((rank - start) as u32);
            }
            start = end;
            physical_offsets(&live, &part.deleted)
        })
        .collect()
}

/// The column of `rows` that likeliest tells one row of a table from another, and its
/// values: a narrow one that is exact, and has no NULL in them.
fn key<'a>(rows: &RecordBatch, names: &[&'a str]) -> Option<(&'a str, Vec<Expr>)> {
    let width = |name: &&str| {
        let column = rows.column_by_name(name)?;
        let data_type = column.data_type();
        let is_exact = data_type.is_integer()
            || data_type.is_temporal()
            || matches!(data_type, DataType::Decimal128(..));
        // What a scan would take for a path is left out.
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let width = data_type.primitive_width().unwrap_or(0).min(8);
        (is_exact && is_plain && width >= 4 && column.null_count() == 0).then_some(width)
    };
    let widths = names.iter().filter_map(|name| Some((width(name)?, *name)));
    // The first of the widest.
    let (_, name) = widths.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
    let column = rows.column_by_name(name)?;
    let values = (0..rows.num_rows()).map(|at| ScalarValue::try_from_array(column, at).map(lit));
    Some((name, values.collect::<Result<_, _>>().ok()?))
}

/// Which of `candidates` are equal to `rows` in the columns `names`, each to another;
/// `None` if one of `rows` is equal to none that is left.
fn chosen(rows: &RecordBatch, candidates: &RecordBatch, names: &[&str]) -> Option<Vec<bool>> {
    let columns = names.iter().map(|name| {
        rows.column_by_name(name)
            .zip(candidates.column_by_name(name))
    });
    let columns: Vec<_> = columns.collect::<Option<_>>()?;
    let mut chosen = vec![false; candidates.num_rows()];
    for row in 0..rows.num_rows() {
        let is_equal = |at: usize| {
            columns
                .iter()
                .all(|(one, other)| one.slice(row, 1).to_data() == other.slice(at, 1).to_data())
        };
        let at = (0..chosen.len()).find(|at| !chosen[*at] && is_equal(*at))?;
        chosen[at] = true;
    }
    Some(chosen)
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

/// The other way: the how manieth rows that are not `deleted` are at `physical`.
fn live_offsets(physical: &[u32], deleted: &[u32]) -> Vec<u32> {
    let before = |at: &u32| deleted.partition_point(|gone| gone < at) as u32;
    physical.iter().map(|at| at - before(at)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Float64Array, Int32Array, Int64Array, StringArray};

    use super::*;

    #[test]
    fn live_rows_are_found_among_deleted_ones() {
        assert_eq!(physical_offsets(&[0, 1, 2, 5], &[]), [0, 1, 2, 5]);
        assert_eq!(physical_offsets(&[0, 1, 2, 3], &[0, 1, 4]), [2, 3, 5, 6]);
        for deleted in [vec![], vec![3], vec![0, 2, 4, 6], vec![1, 2, 3, 8, 9]] {
            let alive: Vec<u32> = (0..10).filter(|at| !deleted.contains(at)).collect();
            let all: Vec<u32> = (0..alive.len() as u32).collect();
            assert_eq!(physical_offsets(&all, &deleted), alive);
            assert_eq!(live_offsets(&alive, &deleted), all);
        }
    }

    fn batch(columns: [(&str, ArrayRef); 4]) -> RecordBatch {
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn numbers<const N: usize>(values: [i64; N]) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(values))
    }

    #[test]
    fn the_key_is_the_first_of_the_widest_that_are_exact_and_plain() {
        let rows = batch([
            ("price", Arc::new(Float64Array::from(vec![1.0]))),
            ("a.b", numbers([1])),
            ("small", Arc::new(Int32Array::from(vec![7]))),
            ("id", numbers([5])),
        ]);
        let names = ["price", "a.b", "small", "id"];
        assert_eq!(key(&rows, &names), Some(("id", vec![lit(5i64)])));
        assert_eq!(key(&rows, &names[..3]), Some(("small", vec![lit(7i32)])));
        assert_eq!(key(&rows, &names[..2]), None);
        let rows = batch([
            ("nothing", Arc::new(Int64Array::from(vec![Some(1), None]))),
            ("first", numbers([1, 2])),
            ("second", numbers([3, 4])),
            ("text", Arc::new(StringArray::from(vec!["a", "b"]))),
        ]);
        let names = ["nothing", "first", "second", "text"];
        assert_eq!(key(&rows, &names).unwrap().0, "first");
        assert_eq!(key(&rows, &["nothing", "text"]), None);
    }

    #[test]
    fn each_row_is_found_in_another_that_is_equal_to_it() {
        let rows = |ids: ArrayRef, floats: Vec<Option<f64>>| {
            let text = StringArray::from(vec!["x"; ids.len()]);
            let floats = Float64Array::from(floats);
            let (text, other) = (Arc::new(text), ids.clone());
            batch([
                ("id", ids),
                ("f", Arc::new(floats)),
                ("t", text),
                ("more", other),
            ])
        };
        let nan = Some(f64::NAN);
        let view = rows(
            numbers([1, 1, 2, 1, 2]),
            vec![nan, None, nan, nan, Some(0.0)],
        );
        let names = ["id", "f", "t"];
        let find = |ids, floats| chosen(&rows(ids, floats), &view, &names);
        let both = find(numbers([1, 1]), vec![nan, nan]);
        assert_eq!(both, Some(vec![true, false, false, true, false]));
        assert_eq!(find(numbers([1, 1, 1]), vec![nan, nan, nan]), None);
        let null = find(numbers([2, 1]), vec![nan, None]);
        assert_eq!(null, Some(vec![false, true, true, false, false]));
        assert_eq!(find(numbers([2]), vec![Some(-0.0)]), None);
    }
}
