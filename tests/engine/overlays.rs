//! Values laid over the rows of a table without rewriting them (Lance's data
//! overlay files): in the source they cost the fragments that they touch if the
//! view reads the column; in the view they are drift.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt64Array};
use lance::dataset::transaction::{Operation, TransactionBuilder};
use lance::dataset::{CommitBuilder, WriteDestination, WriteMode};
use lance_core::utils::address::RowAddress;
use relance::engine::outcome::Mode;

use crate::support::{Db, Form, SHAPES, Shape};

/// Lays `value` over `column` of the first rows of `table`'s fragment at
/// `fragment`.
async fn lay_over(db: &Db, table: &str, fragment: usize, column: &str, values: ArrayRef) {
    let dataset = db.open(table).await;
    let file = dataset.get_fragments().swap_remove(fragment);
    let addresses = (0..values.len() as u32)
        .map(|offset| u64::from(RowAddress::new_from_parts(file.id() as u32, offset)));
    let addresses: ArrayRef = Arc::new(UInt64Array::from_iter_values(addresses));
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("_rowaddr", addresses, false),
        (column, values, true),
    ]);
    let schema = dataset.schema().project(&[column]).unwrap();
    let mut writer = file.write_overlay(&schema).await.unwrap();
    writer.write_batch(&batch.unwrap()).await.unwrap();
    let group = writer.finish().await.unwrap().unwrap();
    let version = dataset.version().version;
    let operation = Operation::DataOverlay {
        groups: vec![group],
    };
    CommitBuilder::new(WriteDestination::Dataset(Arc::new(dataset)))
        .execute(TransactionBuilder::new(version, operation).build())
        .await
        .unwrap();
}

/// A view of two units, both right.
async fn filled(stable: bool) -> (Db, &'static Shape) {
    let mut db = Db::new(stable);
    let shape = &SHAPES[0];
    let batch = db.batch(100);
    db.write(batch, WriteMode::Create, 100).await;
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let more = db.batch(60);
    db.write(more, WriteMode::Append, 100).await;
    db.refresh("v").await.unwrap();
    (db, shape)
}

#[tokio::test]
async fn values_laid_over_a_column_that_the_view_reads_cost_the_fragments_touched() {
    for stable in [true, false] {
        let (db, shape) = filled(stable).await;
        let values: ArrayRef = Arc::new(Int64Array::from(vec![Some(7777), None, Some(1)]));
        lay_over(&db, "src", 1, "x", values).await;
        let before = db.rows("v").await;
        let outcome = db.refresh("v").await.unwrap();
        assert_eq!(outcome.mode, Mode::Incremental);
        assert_eq!((outcome.units_total, outcome.units_kept), (2, 1));
        let rows = db.rows("v").await;
        assert_ne!(rows, before);
        let version = outcome.source_version;
        assert_eq!(rows, db.evaluated(shape, Form::Plain, version).await);
        // And once more over the same rows.
        lay_over(&db, "src", 1, "x", Arc::new(Int64Array::from(vec![5555]))).await;
        let version = db.refresh("v").await.unwrap().source_version;
        let rows = db.rows("v").await;
        assert!(rows.iter().any(|row| row.contains("11110")), "{rows:?}");
        assert_eq!(rows, db.evaluated(shape, Form::Plain, version).await);
        assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp);
    }
}

#[tokio::test]
async fn values_laid_over_a_column_that_the_view_does_not_read_cost_nothing() {
    let mut db = Db::new(true);
    let batch = db.batch(50);
    db.write(batch, WriteMode::Create, 20).await;
    db.create_view("v", "SELECT id, x FROM src", Form::Plain)
        .await;
    db.refresh("v").await.unwrap();
    let names: ArrayRef = Arc::new(StringArray::from(vec!["another", "name"]));
    lay_over(&db, "src", 1, "name", names).await;
    let outcome = db.refresh("v").await.unwrap();
    assert_eq!((outcome.mode, outcome.rows_written), (Mode::NoOp, 0));
}

#[tokio::test]
async fn values_laid_over_the_view_are_put_right() {
    let (db, shape) = filled(true).await;
    let right = db.rows("v").await;
    lay_over(&db, "v", 0, "y", Arc::new(Int64Array::from(vec![-1, -2]))).await;
    assert_ne!(db.rows("v").await, right);
    let outcome = db.refresh("v").await.unwrap();
    assert_eq!((outcome.mode, outcome.units_kept), (Mode::Incremental, 1));
    assert_eq!(db.rows("v").await, right);
    let version = outcome.source_version;
    assert_eq!(right, db.evaluated(shape, Form::Plain, version).await);
}
