//! The columns of a view's table, and rows brought to them.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StructArray, new_null_array};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use lancedb::table::computed_columns::computed_column_from_field;

use super::ViewInfo;
use crate::engine::error::{EngineError, Result};

/// The columns that a refresh computes: those that no declaration of their own
/// fills.
pub(super) fn computed(schema: &Schema) -> impl Iterator<Item = &Field> {
    schema
        .fields()
        .iter()
        .map(AsRef::as_ref)
        .filter(|field| computed_column_from_field(field).is_none())
}

/// Checks that a query's columns (`types`) are those of the view's table
/// (`stored`). Errors: `DefinitionMismatch`.
pub(super) fn check<'a>(
    view: &ViewInfo,
    mut stored: impl Iterator<Item = &'a Field>,
    types: &[(String, DataType)],
    fits: impl Fn(&DataType, &DataType) -> bool,
) -> Result<()> {
    let mismatch = |why: String| EngineError::DefinitionMismatch {
        view: view.name(),
        why,
    };
    for (name, data_type) in types {
        let same = stored
            .next()
            .is_some_and(|f| f.name() == name && fits(f.data_type(), data_type));
        if !same {
            return Err(mismatch(format!(
                "its query gives column '{name}' of type {data_type}, which is not what the \
                 view's table holds there; recreate the view"
            )));
        }
    }
    match stored.next() {
        Some(extra) => Err(mismatch(format!(
            "its query no longer gives column '{}'; recreate the view",
            extra.name()
        ))),
        None => Ok(()),
    }
}

/// Whether a column that a query gives may be stored as `stored`: the same type,
/// text or bytes in another layout of them, or a blob of these bytes.
pub(super) fn stores(stored: &DataType, given: &DataType) -> bool {
    use DataType::*;
    let text = |t: &DataType| matches!(t, Utf8 | LargeUtf8 | Utf8View);
    let bytes = |t: &DataType| matches!(t, Binary | LargeBinary | BinaryView);
    stored.equals_datatype(given)
        || (text(stored) && text(given))
        || (bytes(stored) && bytes(given))
        || matches!((stored, given), (Struct(fields), LargeBinary) if is_blob(fields))
}

/// Brings the columns of `batch`, in their order, to the view's `schema`.
pub(super) fn conform(
    batch: &RecordBatch,
    schema: &SchemaRef,
) -> datafusion::common::Result<RecordBatch> {
    let mut given = batch.columns().iter();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        if computed_column_from_field(field).is_some() {
            columns.push(new_null_array(field.data_type(), batch.num_rows()));
            continue;
        }
        let column = given.next().ok_or_else(|| {
            DataFusionError::Internal(format!("the query gave no column '{}'", field.name()))
        })?;
        columns.push(brought(column, field.data_type())?);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(
        schema.clone(),
        columns,
        &options,
    )?)
}

/// `column` as the view's table stores it.
pub(super) fn brought(
    column: &ArrayRef,
    stored: &DataType,
) -> datafusion::common::Result<ArrayRef> {
    match (stored, column.data_type()) {
        (stored, given) if stored == given => Ok(column.clone()),
        // A blob, which is read as its bytes, and written with where it is to be found.
        (DataType::Struct(fields), DataType::LargeBinary) if is_blob(fields) => {
            let place = new_null_array(&DataType::Utf8, column.len());
            let nulls = column.nulls().cloned();
            let columns = vec![column.clone(), place];
            Ok(Arc::new(StructArray::try_new(
                fields.clone(),
                columns,
                nulls,
            )?))
        }
        _ => Ok(arrow_cast::cast(column, stored)?),
    }
}

fn is_blob(fields: &Fields) -> bool {
    let found = fields.iter().map(|f| (f.name().as_str(), f.data_type()));
    found.eq([("data", &DataType::LargeBinary), ("uri", &DataType::Utf8)])
}
