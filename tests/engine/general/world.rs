//! The tables that the queries read, and what happens to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, RecordBatchIterator, StringArray,
};
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{WriteMode, WriteParams};
use lancedb::materialized_view::definition_metadata_from_sql;
use rand::Rng;
use rand::rngs::StdRng;
use relance::engine::outcome::Outcome;

use super::cases::Case;
use crate::support::{Db, render, update};

const TABLES: &[&str] = &["orders", "customers", "regions"];

/// The tables that the queries read, and views over them.
pub struct World {
    pub db: Db,
    next: BTreeMap<&'static str, i64>,
}

impl World {
    pub async fn new(stable_row_ids: bool) -> World {
        let mut world = World {
            db: Db::new(stable_row_ids),
            next: BTreeMap::new(),
        };
        world.append("orders", 60).await;
        world.append("orders", 40).await;
        world.append("orders", 30).await;
        world.append("customers", 20).await;
        world.append("regions", 4).await;
        world
    }

    pub async fn append(&mut self, table: &'static str, rows: i64) {
        let from = *self.next.entry(table).or_insert(0);
        self.next.insert(table, from + rows);
        let ids: Vec<i64> = (from..from + rows).collect();
        self.write(table, rows_of(table, ids), WriteMode::Append)
            .await;
    }

    pub async fn write(&self, table: &str, batch: RecordBatch, mode: WriteMode) {
        let schema = batch.schema();
        let params = WriteParams {
            mode,
            enable_stable_row_ids: self.db.stable_row_ids,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        Dataset::write(reader, &self.db.path(table), Some(params))
            .await
            .unwrap();
    }

    /// Some change to some table.
    pub async fn change(&mut self, random: &mut StdRng) {
        let table = ["orders", "orders", "customers", "regions"][random.random_range(0..4)];
        let mut dataset = self.db.open(table).await;
        let id = random.random_range(0..self.next[table]);
        match random.random_range(0..6) {
            0 | 1 => {
                let rows = random.random_range(1..9);
                self.append(table, rows).await;
            }
            2 => {
                dataset
                    .delete(&format!("id = {id} OR id = {}", id + 3))
                    .await
                    .unwrap();
            }
            3 => {
                let (column, value) = match table {
                    "orders" => ("amount", "amount + 1"),
                    "customers" => ("name", "'changed'"),
                    _ => ("title", "'changed'"),
                };
                let which = format!("id >= {id}");
                update(dataset, &which, column, value).await.unwrap();
            }
            4 => {
                compact_files(&mut dataset, CompactionOptions::default(), None)
                    .await
                    .unwrap();
            }
            _ => {}
        }
    }

    pub async fn evaluated(&self, sql: &str) -> Vec<String> {
        let rows = self.db.in_memory(TABLES).await.sql(sql).await.unwrap();
        render(&rows.collect().await.unwrap())
    }

    /// Creates view `name`, empty, as a SQL server stores it.
    pub async fn create_view(&self, name: &str, sql: &str) {
        let tables = self.db.in_memory(TABLES).await;
        let definition = definition_metadata_from_sql(sql);
        self.db
            .create_query_view(&tables, name, sql, definition)
            .await;
    }

    pub async fn check(&self, name: &str, case: &Case, why: &str) -> Outcome {
        let outcome = self.db.refresh(name).await.unwrap();
        assert_eq!(
            self.db.rows(name).await,
            self.evaluated(case.sql).await,
            "{} {why}",
            case.name
        );
        outcome
    }
}

fn rows_of(table: &str, ids: Vec<i64>) -> RecordBatch {
    let numbers = |f: fn(i64) -> Option<i64>| -> ArrayRef {
        Arc::new(Int64Array::from_iter(ids.iter().map(|id| f(*id))))
    };
    let texts = |f: fn(i64) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter(ids.iter().map(|id| f(*id))))
    };
    let id = numbers(Some);
    let columns: Vec<(&str, ArrayRef)> = match table {
        "orders" => vec![
            ("id", id),
            (
                "customer",
                numbers(|id| (id % 9 != 5).then_some(id * 7 % 17)),
            ),
            (
                "amount",
                numbers(|id| (id % 8 != 3).then_some(id * 13 % 101)),
            ),
            ("note", texts(|id| Some(format!("note {id}")))),
        ],
        "customers" => vec![
            ("id", id),
            (
                "name",
                texts(|id| (id % 5 != 4).then(|| format!("customer {id}"))),
            ),
            ("region", texts(|id| Some(format!("r{}", id % 3)))),
            (
                "score",
                Arc::new(Float64Array::from_iter(
                    ids.iter().map(|id| Some(*id as f64 * 1.5)),
                )),
            ),
        ],
        _ => vec![
            ("id", id),
            ("code", texts(|id| Some(format!("r{id}")))),
            ("title", texts(|id| Some(format!("Region {id}")))),
        ],
    };
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
        .unwrap()
}
