//! How wide rows are in memory: a batch of wide rows is to have few.

use std::collections::BTreeSet;

use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Schema};
use datafusion::arrow::array::ArrayData;
use futures::TryStreamExt;
use lance::Dataset;
use lance_table::format::Fragment;

/// How much larger texts and lists are in memory than in files, mostly.
const EXPANDED: u64 = 2;

/// What a row without a fixed width has where no file tells, in bytes.
const UNKNOWN: u64 = 64;

/// How many fragments are looked into, and at how many rows of each.
const FRAGMENTS: usize = 4;
const ROWS: usize = 32;

/// How many bytes a row of `dataset` has of those top-level columns of which `reads` is
/// true, at the most as far as types and files tell: they do not tell how much of a
/// row is in which column.
pub fn most(dataset: &Dataset, reads: impl Fn(&str) -> bool) -> u64 {
    let schema = Schema::from(dataset.schema());
    most_of_columns(&schema, stored(dataset), reads)
}

/// The same of rows that have `stored` bytes in files.
fn most_of_columns(schema: &Schema, stored: Option<u64>, reads: impl Fn(&str) -> bool) -> u64 {
    let read = schema.fields().iter().filter(|field| reads(field.name()));
    let widths: Vec<Option<u64>> = read.map(|field| fixed(field.data_type())).collect();
    let known = widths.iter().flatten().sum::<u64>();
    if widths.iter().all(Option::is_some) {
        return known;
    }
    // Vectors are stored as they are.
    let fields = schema.fields().iter();
    let vectors = fields.filter(|field| matches!(field.data_type(), DataType::FixedSizeList(..)));
    let vectors = vectors.filter_map(|field| fixed(field.data_type())).sum();
    let others = stored.map_or(UNKNOWN, |stored| stored.saturating_sub(vectors) * EXPANDED);
    known + others.max(UNKNOWN)
}

/// How many bytes of files a row has; `None` if there are no rows.
fn stored(dataset: &Dataset) -> Option<u64> {
    let (mut bytes, mut rows) = (0, 0);
    for fragment in dataset.fragments().iter() {
        rows += fragment.physical_rows.unwrap_or(0) as u64;
        let files = fragment.files.iter();
        bytes += files
            .filter_map(|file| file.file_size_bytes.get())
            .map(u64::from)
            .sum::<u64>();
    }
    bytes.checked_div(rows)
}

/// How many bytes a value has, where all of the type have as many.
fn fixed(of: &DataType) -> Option<u64> {
    match of {
        DataType::Null => Some(0),
        DataType::Boolean => Some(1),
        DataType::FixedSizeBinary(bytes) => u64::try_from(*bytes).ok(),
        DataType::FixedSizeList(item, count) => {
            Some(fixed(item.data_type())? * u64::try_from(*count).ok()?)
        }
        DataType::Struct(fields) => fields.iter().map(|f| fixed(f.data_type())).sum(),
        other => other.primitive_width().map(|bytes| bytes as u64),
    }
}

/// How many bytes a row of `dataset` has of `columns`, by some of its rows; `None` if
/// there are none.
pub async fn sampled(dataset: &Dataset, columns: &BTreeSet<String>) -> lance::Result<Option<u64>> {
    let all = dataset.fragments();
    let count = all.len().min(FRAGMENTS);
    let chosen = (0..count).filter_map(|at| all.get(at * all.len() / count));
    let looks = chosen.map(|fragment| rows_of(dataset, fragment, columns));
    let batches = futures::future::try_join_all(looks).await?.concat();
    let rows = batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
    let bytes = batches.iter().map(bytes_of).sum::<usize>() as u64;
    Ok(bytes.checked_div(rows))
}

async fn rows_of(
    dataset: &Dataset,
    fragment: &Fragment,
    columns: &BTreeSet<String>,
) -> lance::Result<Vec<RecordBatch>> {
    let mut scan = dataset.scan();
    scan.with_fragments(vec![fragment.clone()]);
    scan.project(&columns.iter().collect::<Vec<_>>())?;
    scan.batch_size(ROWS);
    scan.limit(Some(ROWS as i64), None)?;
    scan.try_into_stream().await?.try_collect().await
}

/// How many bytes the rows of `batch` have: of what it shares with other batches, its
/// own part.
pub fn bytes_of(batch: &RecordBatch) -> usize {
    let columns = batch.columns().iter();
    columns.map(|column| bytes_of_data(&column.to_data())).sum()
}

/// The same of one column.
fn bytes_of_data(data: &ArrayData) -> usize {
    /// Of longer values a view has but the place.
    const IN_VIEW: u32 = 12;
    let (len, offset) = (data.len(), data.offset());
    if len == 0 {
        return 0;
    }
    let nulls = data.nulls().map_or(0, |_| len.div_ceil(8));
    let child = |from: usize, to: usize| {
        let child = data.child_data().first();
        child.map_or(0, |child| bytes_of_data(&child.slice(from, to - from)))
    };
    nulls
        + match data.data_type() {
            DataType::Utf8View | DataType::BinaryView => {
                let views = &data.buffer::<u128>(0)[..len];
                let lengths = views.iter().map(|view| *view as u32);
                let apart = lengths.filter(|length| *length > IN_VIEW);
                size_of::<u128>() * len + apart.map(|length| length as usize).sum::<usize>()
            }
            DataType::List(_) | DataType::Map(..) => {
                let offsets = &data.buffer::<i32>(0)[..=len];
                size_of::<i32>() * len + child(offsets[0] as usize, offsets[len] as usize)
            }
            DataType::LargeList(_) => {
                let offsets = &data.buffer::<i64>(0)[..=len];
                size_of::<i64>() * len + child(offsets[0] as usize, offsets[len] as usize)
            }
            DataType::FixedSizeList(_, count) => {
                let count = *count as usize;
                child(offset * count, (offset + len) * count)
            }
            DataType::Struct(_) => {
                // A part of it has the same part of each.
                data.child_data().iter().map(bytes_of_data).sum()
            }
            _ => data.get_slice_memory_size().unwrap_or_default(),
        }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::{Int32Builder, ListBuilder};
    use arrow_array::{
        ArrayRef, FixedSizeListArray, Int64Array, ListArray, StringArray, StringViewArray,
        StructArray,
    };
    use arrow_schema::Field;
    use datafusion::arrow::buffer::OffsetBuffer;

    use super::*;

    #[test]
    fn rows_are_no_wider_than_their_types_say_or_else_their_files() {
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let pair = [DataType::Int64, DataType::Boolean];
        let pair = pair.map(|of| Field::new(of.to_string(), of, true));
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("vector", DataType::FixedSizeList(item, 100), true),
            Field::new("pair", DataType::Struct(pair.to_vec().into()), true),
            Field::new("text", DataType::Utf8, true),
        ]);
        let most =
            |names: &[&str], stored| most_of_columns(&schema, stored, |name| names.contains(&name));
        assert_eq!(most(&[], Some(1000)), 0);
        assert_eq!(most(&["id", "vector", "pair"], Some(1000)), 8 + 400 + 9);
        assert_eq!(most(&["id", "text"], Some(1000)), 8 + 600 * EXPANDED);
        assert_eq!(most(&["text"], Some(300)), UNKNOWN);
        assert_eq!(most(&["text"], None), UNKNOWN);
    }

    #[test]
    fn of_what_batches_share_each_counts_its_own_rows() {
        let long = |n: usize| "x".repeat(n);
        let texts: Vec<String> = (0..100).map(long).collect();
        let mut lists = ListBuilder::new(Int32Builder::new());
        for n in 0..100 {
            lists.values().append_slice(&vec![7; n]);
            lists.append(true);
        }
        let numbers: ArrayRef = Arc::new((0..100).collect::<Int64Array>());
        let field = Arc::new(Field::new("n", DataType::Int64, true));
        let pair: ArrayRef = Arc::new(StructArray::from(vec![(field.clone(), numbers.clone())]));
        let pairs = ListArray::new(
            Arc::new(Field::new("pair", pair.data_type().clone(), true)),
            OffsetBuffer::from_lengths([1; 100]),
            pair.clone(),
            None,
        );
        let apiece = FixedSizeListArray::new(
            Arc::new(Field::new("pair", pair.data_type().clone(), true)),
            1,
            pair.clone(),
            None,
        );
        let columns: [(ArrayRef, usize, usize); 7] = [
            (numbers.clone(), 800, 80),
            (
                Arc::new(StringArray::from(texts.clone())),
                4950 + 400,
                95 + 40,
            ),
            (
                Arc::new(StringViewArray::from_iter_values(texts)),
                1600 + 4950 - 78,
                160 + 13 + 14,
            ),
            (Arc::new(lists.finish()), 400 + 4 * 4950, 40 + 4 * 95),
            (pair, 800, 80),
            (Arc::new(pairs), 1200, 120),
            (Arc::new(apiece), 800, 80),
        ];
        for (column, all, some) in columns {
            let of = column.data_type().clone();
            // Offsets may be counted one more or less.
            let near = |found: usize, meant: usize| found.abs_diff(meant) <= 8;
            let batch = RecordBatch::try_from_iter([("c", column)]).unwrap();
            let found = (bytes_of(&batch), bytes_of(&batch.slice(5, 10)));
            assert!(near(found.0, all), "{of}: {found:?}, not {all}");
            assert!(near(found.1, some), "{of}: {found:?}, not {some}");
        }
    }
}
