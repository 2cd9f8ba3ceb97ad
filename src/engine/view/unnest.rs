//! `FROM table, UNNEST(column) AS alias`: one view row for each element of a
//! list column.
//!
//! A scan cannot filter or project here, since both read the element, which is
//! there only after the list is opened up; so batches are expanded one by one.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::{filter, filter_record_batch};
use arrow_select::take::take;
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;
use lance::dataset::ROW_ID;
use lance_datafusion::planner::Planner;
use lancedb::materialized_view::MaterializedViewDefinition;

use super::sql::roots;
use crate::engine::store::first_line;

type Physical = Arc<dyn PhysicalExpr>;

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

    /// The view rows of `batch`: the projected columns, and the row id of each
    /// row's source row if the batch has them. A null or empty list gives none.
    pub(super) fn apply(&self, batch: &RecordBatch) -> datafusion::common::Result<RecordBatch> {
        let list = batch.column_by_name(&self.column).ok_or_else(|| {
            DataFusionError::Internal(format!("the scan gave no column '{}'", self.column))
        })?;
        let list = list.as_list_opt::<i32>().ok_or_else(|| {
            DataFusionError::Internal(format!("column '{}' is no list", self.column))
        })?;
        let offsets = list.value_offsets();
        let mut parents = Vec::with_capacity(list.values().len());
        let mut elements = Vec::with_capacity(list.values().len());
        for row in (0..list.len()).filter(|row| list.is_valid(*row)) {
            let range = offsets[row] as u32..offsets[row + 1] as u32;
            parents.extend(std::iter::repeat_n(row as u32, range.len()));
            elements.extend(range);
        }
        let parents = UInt32Array::from(parents);
        let elements = take(list.values().as_ref(), &UInt32Array::from(elements), None)?;

        let mut columns = Vec::with_capacity(self.inputs.len());
        for name in &self.inputs {
            if *name == self.column {
                columns.push(elements.clone());
                continue;
            }
            let column = batch.column_by_name(name).ok_or_else(|| {
                DataFusionError::Internal(format!("the scan gave no column '{name}'"))
            })?;
            columns.push(take(column.as_ref(), &parents, None)?);
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

#[cfg(test)]
mod tests {
    use arrow_array::builder::{Int32Builder, ListBuilder};
    use arrow_array::types::{Int32Type, Int64Type};
    use arrow_array::{Int64Array, UInt64Array};

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
        let rows = unnest.apply(&batch).unwrap();
        assert_eq!(rows["id"].as_primitive::<Int64Type>().values(), &[7, 7, 10]);
        let y: Vec<_> = arrow_cast::cast(&rows["y"], &DataType::Int32)
            .unwrap()
            .as_primitive::<Int32Type>()
            .iter()
            .collect();
        assert_eq!(y, [Some(10), None, Some(50)]);
        assert_eq!(rows[ROW_ID].len(), 3);
    }
}
