//! How many threads a worker computes with is what memory is shared among.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use lance::dataset::WriteMode;
use relance::engine::refresh::Request;

use crate::faults::run;
use crate::faults::store::Faults;
use crate::support::{Db, Form, request};

/// Rows of a unit.
const UNIT: i64 = 100_000;

async fn units(count: i64) -> Db {
    let db = Db::new(true);
    let numbers: Int64Array = (0..count * UNIT).collect();
    let columns = [("id", Arc::new(numbers) as ArrayRef)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    db.write(batch, WriteMode::Append, UNIT as usize).await;
    db.create_view("v", "SELECT id, id + 1 AS y FROM src", Form::Plain)
        .await;
    db
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_writes_no_more_at_a_time_than_it_has_threads() {
    // Of so few units each is computed in parts, by several threads.
    for (units_of_it, workers, threads) in [(1, 1, 2), (3, 3, 2), (3, 1, 1)] {
        let db = units(units_of_it).await;
        // It is alone, so that it does the others' too.
        let asked = Request {
            workers,
            threads: Some(threads),
            ..request("v")
        };
        let store = Faults::gathering(threads);
        let done = run(&db, &asked, store.clone()).await.unwrap();
        assert_eq!(done.rows_written as i64, units_of_it * UNIT);
        let case = format!("{units_of_it} units, {workers} workers, {threads} threads");
        assert_eq!(store.most_at_once(), threads, "{case}");
        assert_eq!(
            db.open("v").await.count_rows(None).await.unwrap() as i64,
            units_of_it * UNIT
        );
    }
}
