//! `FROM table, UNNEST(column) AS alias`: one view row for each element of a
//! list column.
//!
//! A scan cannot filter or project here, since both read the element, which is
//! there only after the list is opened up; so batches are expanded one by one.
//! What is read of a row is copied for each of its elements. A batch is therefore
//! expanded some elements at a time: of one document with a thousand elements there
//! are never a thousand copies.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, ListArray, OffsetSizeTrait, RecordBatch, RecordBatchOptions, UInt32Array,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::{filter, filter_record_batch};
use arrow_select::take::take;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;
use lance::dataset::ROW_ID;
use lance_datafusion::planner::Planner;
use lancedb::materialized_view::MaterializedViewDefinition;

use super::sql::roots;
use crate::engine::words::first_line;

type Physical = Arc<dyn PhysicalExpr>;

/// The most bytes that are copied at a time, unless one row has more: as much as a
/// scan's batch.
const MOST_BYTES: u64 = 8 << 20;
/// The most elements that are expanded at a time.
const MOST_ROWS: usize = 8192;

/// How to expand a batch of source rows into view rows.
#[derive(Clone, Debug)]
pub struct Unnest {
    column: String,
    inputs: Vec<String>,
    /// The columns that expressions are evaluated over, without row ids.
    read_schema: SchemaRef,
    projections: Vec<(String, Physical)>,
    filter: Option<Physical>,
}

/// The schema that a query over `UNNEST(column) AS alias` sees: the source's,
/// with the element under its alias in the list's place.
pub(super) fn flattened(
    source: &Schema,
    column: &str,
    alias: &str,
) -> std::result::Result<SchemaRef, String> {
    let field = source.field_with_name(column).map_err(|_| {
        format!("the source has no column '{column}' to unnest; restore it or recreate the view")
    })?;
    let DataType::List(element) = field.data_type() else {
        return Err(format!(
            "column '{column}' is {}, and UNNEST takes a list; recreate the view",
            field.data_type()
        ));
    };
    if source.field_with_name(alias).is_ok() {
        return Err(format!(
            "the UNNEST alias '{alias}' is also a column of the source; recreate the view with \
             another alias"
        ));
    }
    let fields: Vec<Field> = source
        .fields()
        .iter()
        .map(|f| {
            if f.name() == column {
                Field::new(alias, element.data_type().clone(), true)
            } else {
                f.as_ref().clone()
            }
        })
        .collect();
    Ok(Arc::new(Schema::new(fields)))
}

impl Unnest {
    /// Plans `definition` over `source`. The error is the end of a sentence.
    pub(super) fn new(
        source: &Schema,
        definition: &MaterializedViewDefinition,
        column: &str,
        alias: &str,
    ) -> std::result::Result<Unnest, String> {
        let seen = flattened(source, column, alias)?;
        let said = |e: lance::Error| first_line(&e.to_string());
        let planner = Planner::new(seen.clone());
        let mut exprs = Vec::new();
        for projection in &definition.projections {
            let parsed = planner.parse_expr(&projection.expression).map_err(said)?;
            exprs.push((projection.output.clone(), parsed));
        }
        let filter = definition
            .filter
            .as_deref()
            .map(|sql| planner.parse_filter(sql).map_err(said))
            .transpose()?;
        let mut read: BTreeSet<String> = exprs
            .iter()
            .map(|(_, expr)| expr)
            .chain(&filter)
            .flat_map(|expr| roots(&seen, expr))
            .collect();
        read.insert(alias.to_string());
        let read_schema = Arc::new(Schema::new(
            seen.fields()
                .iter()
                .filter(|f| read.contains(f.name()))
                .cloned()
                .collect::<Vec<_>>(),
        ));
        let planner = Planner::new(read_schema.clone());
        let physical = |expr| -> std::result::Result<Physical, String> {
            let optimized = planner.optimize_expr(expr).map_err(said)?;
            planner.create_physical_expr(&optimized).map_err(said)
        };
        let projections = exprs
            .into_iter()
            .map(|(name, expr)| Ok((name, physical(expr)?)))
            .collect::<std::result::Result<_, String>>()?;
        let filter = filter.map(physical).transpose()?;
        let inputs = read_schema
            .fields()
            .iter()
            .map(|f| {
                if f.name() == alias {
                    column.to_string()
                } else {
                    f.name().clone()
                }
            })
            .collect();
        Ok(Unnest {
            column: column.to_string(),
            inputs,
            read_schema,
            projections,
            filter,
        })
    }

    /// The source columns to scan.
    pub(super) fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// The view rows of `batch`, in as many batches as it takes: the projected
    /// columns, and the row id of each row's source row if the batch has them. A
    /// null or empty list gives none.
    pub(super) fn apply(
        self: Arc<Self>,
        batch: RecordBatch,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
        let list = column(&batch, &self.column)?;
        let list = list.as_list_opt::<i32>().ok_or_else(|| {
            DataFusionError::Internal(format!("column '{}' is no list", self.column))
        })?;
        let beside = self.inputs.iter().filter(|name| **name != self.column);
        let chunks = Chunks {
            list: list.clone(),
            beside: beside
                .map(|name| column(&batch, name).cloned())
                .collect::<Result<_>>()?,
            row: 0,
            element: 0,
        };
        let values = list.values().clone();
        Ok(chunks.map(move |chunk| self.expand(&batch, &values, chunk)))
    }

    /// The view rows of the elements of `batch` that are in `chunk`.
    fn expand(&self, batch: &RecordBatch, values: &ArrayRef, chunk: Chunk) -> Result<RecordBatch> {
        let parents = UInt32Array::from(chunk.parents);
        let elements = UInt32Array::from(chunk.elements);
        let mut columns = Vec::with_capacity(self.inputs.len());
        for name in &self.inputs {
            columns.push(match *name == self.column {
                true => take(values.as_ref(), &elements, None)?,
                false => take(column(batch, name)?.as_ref(), &parents, None)?,
            });
        }
        let mut rows = RecordBatch::try_new(self.read_schema.clone(), columns)?;
        let mut row_ids = batch
            .column_by_name(ROW_ID)
            .map(|ids| take(ids.as_ref(), &parents, None))
            .transpose()?;
        // First: an expression may fail of rows that the view does not have.
        if let Some(condition) = &self.filter {
            let keep = condition.evaluate(&rows)?.into_array(rows.num_rows())?;
            let keep = keep.as_boolean_opt().ok_or_else(|| {
                DataFusionError::Internal("the view's filter gave no booleans".to_string())
            })?;
            rows = filter_record_batch(&rows, keep)?;
            row_ids = row_ids.map(|ids| filter(&ids, keep)).transpose()?;
        }

        let mut outputs = Vec::with_capacity(self.projections.len() + 1);
        for (name, expr) in &self.projections {
            outputs.push((
                name.clone(),
                expr.evaluate(&rows)?.into_array(rows.num_rows())?,
            ));
        }
        if let Some(ids) = row_ids {
            outputs.push((ROW_ID.to_string(), ids));
        }
        let fields: Vec<Field> = outputs
            .iter()
            .map(|(name, array)| Field::new(name, array.data_type().clone(), true))
            .collect();
        Ok(RecordBatch::try_new_with_options(
            Arc::new(Schema::new(fields)),
            outputs.into_iter().map(|(_, array)| array).collect(),
            &RecordBatchOptions::new().with_row_count(Some(rows.num_rows())),
        )?)
    }
}

/// Elements that are expanded together, in their order.
#[derive(Debug, Default)]
struct Chunk {
    /// The row of each.
    parents: Vec<u32>,
    /// Where each stands among the lists' values.
    elements: Vec<u32>,
}

/// Cuts the elements of a batch's lists into chunks.
struct Chunks {
    list: ListArray,
    /// What is read besides, and copied for each element.
    beside: Vec<ArrayRef>,
    /// The row of the next element, or one before it.
    row: usize,
    /// Where that stands among the lists' values, or before it.
    element: u32,
}

impl Iterator for Chunks {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        let offsets = self.list.value_offsets();
        let mut chunk = Chunk::default();
        let mut free = MOST_BYTES;
        while self.row < self.list.len() {
            let end = offsets[self.row + 1] as u32;
            let from = self.element.max(offsets[self.row] as u32);
            if self.list.is_valid(self.row) && from < end {
                let row = self.row..self.row + 1;
                let beside = self.beside.iter();
                let each: u64 = beside.map(|column| bytes(column, row.clone())).sum();
                let fit = free / each.max(1);
                let fit = fit.min((MOST_ROWS - chunk.elements.len()) as u64);
                // The first is taken, however large.
                let fit = fit.max(u64::from(chunk.elements.is_empty()));
                let to = end.min(from.saturating_add(fit as u32));
                let parents = std::iter::repeat_n(self.row as u32, (to - from) as usize);
                chunk.parents.extend(parents);
                chunk.elements.extend(from..to);
                free = free.saturating_sub(each * u64::from(to - from));
                self.element = to;
                if to < end {
                    return Some(chunk);
                }
            }
            self.row += 1;
        }
        (!chunk.elements.is_empty()).then_some(chunk)
    }
}

/// About how many bytes a copy of `rows` of `column` takes.
fn bytes(column: &dyn Array, rows: Range<usize>) -> u64 {
    fn span<O: OffsetSizeTrait>(offsets: &[O], rows: Range<usize>) -> Range<usize> {
        offsets[rows.start].as_usize()..offsets[rows.end].as_usize()
    }
    let spanned = match column.data_type() {
        DataType::Utf8 => span(column.as_string::<i32>().value_offsets(), rows).len(),
        DataType::LargeUtf8 => span(column.as_string::<i64>().value_offsets(), rows).len(),
        DataType::Binary => span(column.as_binary::<i32>().value_offsets(), rows).len(),
        DataType::LargeBinary => span(column.as_binary::<i64>().value_offsets(), rows).len(),
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            return bytes(list.values(), span(list.value_offsets(), rows));
        }
        DataType::LargeList(_) => {
            let list = column.as_list::<i64>();
            return bytes(list.values(), span(list.value_offsets(), rows));
        }
        DataType::Map(..) => {
            let map = column.as_map();
            return bytes(map.entries(), span(map.value_offsets(), rows));
        }
        DataType::FixedSizeList(_, length) => {
            let length = (*length).max(0) as usize;
            let items = rows.start * length..rows.end * length;
            return bytes(column.as_fixed_size_list().values(), items);
        }
        DataType::Struct(_) => {
            let fields = column.as_struct().columns().iter();
            return fields.map(|field| bytes(field, rows.clone())).sum();
        }
        DataType::FixedSizeBinary(length) => rows.len() * (*length).max(0) as usize,
        // Of what refers to bytes elsewhere just that is copied.
        other => rows.len() * other.primitive_width().unwrap_or(size_of::<u128>()),
    };
    spanned as u64
}

/// The column of that name.
fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch
        .column_by_name(name)
        .ok_or_else(|| DataFusionError::Internal(format!("the scan gave no column '{name}'")))
}

#[cfg(test)]
mod tests {
    use arrow_array::builder::{Int32Builder, ListBuilder, StringBuilder};
    use arrow_array::types::{Int32Type, Int64Type};
    use arrow_array::{
        FixedSizeListArray, Int32Array, Int64Array, StringArray, StructArray, UInt64Array,
    };

    use super::*;

    #[test]
    fn each_element_gives_a_row_and_empty_and_null_lists_give_none() {
        let mut lists = ListBuilder::new(Int32Builder::new());
        lists.append_value([Some(1), Some(2), None]);
        lists.append_null();
        lists.append_value([]);
        lists.append_value([Some(5)]);
        let lists = lists.finish();
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("xs", lists.data_type().clone(), true),
        ]);
        let definition = MaterializedViewDefinition::from_sql(
            "SELECT id, x * 10 AS y FROM t, UNNEST(xs) AS x WHERE x IS NULL OR x <> 2",
        )
        .unwrap();
        let unnest = Unnest::new(&schema, &definition, "xs", "x").unwrap();
        let batch = RecordBatch::try_from_iter([
            (
                "id",
                Arc::new(Int64Array::from(vec![7, 8, 9, 10])) as Arc<dyn Array>,
            ),
            ("xs", Arc::new(lists)),
            (ROW_ID, Arc::new(UInt64Array::from(vec![70, 80, 90, 100]))),
        ])
        .unwrap();
        let mut expanded = Arc::new(unnest).apply(batch).unwrap();
        let rows = expanded.next().unwrap().unwrap();
        assert!(expanded.next().is_none());
        assert_eq!(rows["id"].as_primitive::<Int64Type>().values(), &[7, 7, 10]);
        let y: Vec<_> = arrow_cast::cast(&rows["y"], &DataType::Int32)
            .unwrap()
            .as_primitive::<Int32Type>()
            .iter()
            .collect();
        assert_eq!(y, [Some(10), None, Some(50)]);
        assert_eq!(rows[ROW_ID].len(), 3);
    }

    /// Lists of so many elements each, or null, whose values go up by one.
    fn lists(lengths: &[Option<usize>]) -> ListArray {
        let mut lists = ListBuilder::new(Int32Builder::new());
        let mut next = 0;
        for length in lengths {
            for _ in 0..length.unwrap_or(0) {
                lists.values().append_value(next);
                next += 1;
            }
            lists.append(length.is_some());
        }
        lists.finish()
    }

    fn chunks(list: ListArray, beside: Vec<ArrayRef>) -> Vec<Chunk> {
        let chunks = Chunks {
            list,
            beside,
            row: 0,
            element: 0,
        };
        chunks.collect()
    }

    /// The row of each element and what it is, one chunk after the other.
    fn covered(list: &ListArray, chunks: &[Chunk]) -> Vec<(u32, i32)> {
        let values = list.values().as_primitive::<Int32Type>();
        let of = |chunk: &Chunk| {
            let elements = chunk.elements.iter();
            let values = elements.map(|at| values.value(*at as usize));
            let parents = chunk.parents.iter().copied();
            parents.zip(values).collect::<Vec<_>>()
        };
        chunks.iter().flat_map(of).collect()
    }

    fn elements(list: &ListArray) -> Vec<(u32, i32)> {
        let rows = list.iter().enumerate();
        let of = |(row, values): (usize, Option<ArrayRef>)| {
            let values = values.map(|values| values.as_primitive::<Int32Type>().clone());
            let values = values.iter().flat_map(|values| values.values().to_vec());
            values.map(|value| (row as u32, value)).collect::<Vec<_>>()
        };
        rows.flat_map(of).collect()
    }

    #[test]
    fn chunks_are_all_elements_in_their_order_each_once() {
        let long = 2 * MOST_ROWS + 5;
        for lengths in [
            vec![],
            vec![None, Some(0)],
            vec![Some(3), None, Some(0), Some(2), None],
            vec![Some(1), Some(long), Some(0), Some(MOST_ROWS), Some(1)],
            vec![Some(MOST_ROWS), None, Some(MOST_ROWS - 1), Some(2)],
        ] {
            let list = lists(&lengths);
            let ids = Int64Array::from(vec![0; list.len()]);
            for from in 0..=list.len() {
                let list = list.slice(from, list.len() - from);
                let beside: ArrayRef = Arc::new(ids.slice(from, list.len()));
                let chunks = chunks(list.clone(), vec![beside]);
                assert_eq!(
                    covered(&list, &chunks),
                    elements(&list),
                    "{lengths:?} {from}"
                );
                assert!(chunks.iter().all(|chunk| chunk.elements.len() <= MOST_ROWS));
                let most = elements(&list).len().div_ceil(MOST_ROWS);
                assert_eq!(chunks.len(), most, "{lengths:?} {from}");
            }
        }
    }

    #[test]
    fn elements_of_null_lists_are_left_out() {
        let (field, offsets, values, _) = lists(&[Some(2), Some(3), Some(1)]).into_parts();
        let nulls = vec![true, false, true].into();
        let list = ListArray::new(field, offsets, values, Some(nulls));
        let chunks = chunks(list.clone(), Vec::new());
        assert_eq!(covered(&list, &chunks), [(0, 0), (0, 1), (2, 5)]);
    }

    #[test]
    fn a_chunk_copies_no_more_than_a_batch_or_one_row() {
        let most = MOST_BYTES as usize;
        let lengths = [10, most / 4, 0, most + 1, most / 2, 10];
        let list = lists(&[Some(1), Some(9), Some(5), Some(3), Some(2), Some(1)]);
        let texts = StringArray::from_iter_values(lengths.map(|length| "x".repeat(length)));
        let chunks = chunks(list.clone(), vec![Arc::new(texts)]);
        assert_eq!(covered(&list, &chunks), elements(&list));
        let copied = |chunk: &Chunk| -> usize {
            let parents = chunk.parents.iter();
            parents.map(|row| lengths[*row as usize]).sum()
        };
        for chunk in &chunks {
            assert!(
                copied(chunk) <= most || chunk.parents.len() == 1,
                "{chunk:?}"
            );
        }
        // The nine quarters make three, four and two of a chunk.
        let sizes: Vec<usize> = chunks.iter().map(|chunk| chunk.parents.len()).collect();
        assert_eq!(sizes, [4, 4, 7, 1, 1, 1, 2, 1]);
    }

    #[test]
    fn what_a_row_takes_is_told_of_every_type() {
        let texts = StringArray::from(vec!["", "four", "sixsix"]);
        assert_eq!(bytes(&texts, 1..3), 10);
        assert_eq!(bytes(&texts.slice(1, 1), 0..1), 4);
        let mut of_texts = ListBuilder::new(StringBuilder::new());
        of_texts.append_value([Some("a"), Some("bc")]);
        of_texts.append_null();
        of_texts.append_value([Some("def")]);
        let of_texts = of_texts.finish();
        assert_eq!(bytes(&of_texts, 0..1), 3);
        assert_eq!(bytes(&of_texts.slice(1, 2), 0..2), 3);
        let item = Arc::new(Field::new("item", DataType::Int32, true));
        let numbers = Arc::new(Int32Array::from(vec![0; 12]));
        let vectors = FixedSizeListArray::new(item, 4, numbers, None);
        assert_eq!(bytes(&vectors, 1..3), 32);
        assert_eq!(bytes(&vectors.slice(1, 2), 0..1), 16);
        let both = StructArray::from(vec![
            (
                Arc::new(Field::new("t", DataType::Utf8, true)),
                Arc::new(texts) as ArrayRef,
            ),
            (
                Arc::new(Field::new("v", vectors.data_type().clone(), true)),
                Arc::new(vectors),
            ),
        ]);
        assert_eq!(bytes(&both, 1..2), 20);
        assert_eq!(bytes(&both.slice(1, 2), 1..2), 22);
    }
}
