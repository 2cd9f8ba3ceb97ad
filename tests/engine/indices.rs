//! Indices on a view: what a refresh keeps stays covered, what it writes is
//! told of, and is covered too where that is asked for.

use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{FixedSizeListArray, Int64Array, RecordBatch, StringArray};
use futures::TryStreamExt;
use lance::dataset::WriteMode;
use lance::index::DatasetIndexExt;
use lancedb::Table;
use lancedb::index::Index;
use lancedb::index::scalar::{BTreeIndexBuilder, FtsIndexBuilder};
use lancedb::index::vector::IvfFlatIndexBuilder;
use lancedb::query::{ExecutableQuery, QueryBase};
use relance::engine::outcome::{Mode, Outcome};
use relance::engine::refresh::Request;

use crate::support::{Db, Form, request};

const DIMENSIONS: i32 = 8;

/// Rows whose vector is their id, eight times.
fn vectors(ids: std::ops::Range<i64>) -> RecordBatch {
    let rows = ids
        .clone()
        .map(|id| Some(vec![Some(id as f32); DIMENSIONS as usize]));
    let vectors = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(rows, DIMENSIONS);
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(ids)) as _, true),
        ("vector", Arc::new(vectors) as _, true),
    ])
    .unwrap()
}

/// A view of 600 rows in fragments of 300, with an index on each column.
async fn indexed() -> (Db, Table) {
    let db = Db::new(true);
    db.write(vectors(0..600), WriteMode::Create, 300).await;
    let sql = "SELECT id, vector FROM src WHERE id >= 0";
    db.create_view("v", sql, Form::Plain).await;
    db.refresh_as(small(request("v"))).await.unwrap();
    let path = db.folder.path().display().to_string();
    let connection = lancedb::connect(&path).execute().await.unwrap();
    let view = connection.open_table("v").execute().await.unwrap();
    for (column, index) in [
        ("id", Index::BTree(BTreeIndexBuilder::default())),
        (
            "vector",
            Index::IvfFlat(IvfFlatIndexBuilder::default().num_partitions(2)),
        ),
    ] {
        view.create_index(&[column], index).execute().await.unwrap();
    }
    (db, view)
}

#[tokio::test]
async fn what_rows_are_in_a_view_does_not_depend_on_the_indices_of_its_source() {
    let db = Db::new(true);
    let texts = |ids: std::ops::Range<i64>| {
        let texts = StringArray::from_iter_values(ids.clone().map(|id| format!("IT of {id}")));
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from_iter_values(ids)) as _, true),
            ("text", Arc::new(texts) as _, true),
        ])
        .unwrap()
    };
    db.write(texts(0..20), WriteMode::Create, 10).await;
    // An index of words leaves the most common ones out.
    let path = db.folder.path().display().to_string();
    let connection = lancedb::connect(&path).execute().await.unwrap();
    let source = connection.open_table("src").execute().await.unwrap();
    let words = FtsIndexBuilder::default()
        .stem(false)
        .max_token_length(None);
    let words = Index::FTS(words);
    source
        .create_index(&["text"], words)
        .execute()
        .await
        .unwrap();
    let views = [
        (
            "rows",
            "SELECT id FROM src WHERE contains_tokens(text, 'IT')",
        ),
        (
            "limited",
            "SELECT id FROM src WHERE contains_tokens(text, 'IT') LIMIT 25",
        ),
        (
            "groups",
            "SELECT id FROM src WHERE contains_tokens(text, 'IT') GROUP BY id",
        ),
    ];
    for (name, sql) in views {
        db.create_view(name, sql, Form::Plain).await;
        db.refresh(name).await.unwrap();
        assert_eq!(db.rows(name).await.len(), 20, "{sql}");
    }
    db.write(texts(20..24), WriteMode::Append, 10).await;
    for (name, sql) in views {
        db.refresh(name).await.unwrap();
        assert_eq!(db.rows(name).await.len(), 24, "{sql}");
    }
    // What words of each row are looked for depends on the rows beside it.
    let sql = "SELECT id FROM src WHERE contains_tokens(text, text)";
    db.create_view("changing", sql, Form::Plain).await;
    let said = db.refresh("changing").await.unwrap_err().to_string();
    assert!(said.contains("give them as a literal"), "{said}");
}

/// Fragments, and with them units, of 300 rows.
fn small(request: Request) -> Request {
    Request {
        max_rows_per_fragment: Some(300),
        ..request
    }
}

fn optimizing(request: Request) -> Request {
    Request {
        optimize_indices: true,
        ..small(request)
    }
}

/// Indexed and unindexed rows of the view's two indices.
async fn coverage(db: &Db) -> Vec<(u64, u64)> {
    let view = db.open("v").await;
    let mut found = Vec::new();
    for name in ["id_idx", "vector_idx"] {
        let stats: serde_json::Value =
            serde_json::from_str(&view.index_statistics(name).await.unwrap()).unwrap();
        found.push((
            stats["num_indexed_rows"].as_u64().unwrap(),
            stats["num_unindexed_rows"].as_u64().unwrap(),
        ));
    }
    found
}

/// The ids that queries find: by the scalar index, and nearest to a vector.
async fn found(view: &Table, id: i64) -> (Vec<i64>, Vec<i64>) {
    view.checkout_latest().await.unwrap();
    let ids = |batches: Vec<RecordBatch>| -> Vec<i64> {
        let column = |b: &RecordBatch| b.column_by_name("id").unwrap().clone();
        let arrays = batches.iter().map(column);
        arrays
            .flat_map(|a| {
                let ids = a.as_any().downcast_ref::<Int64Array>().unwrap();
                ids.values().to_vec()
            })
            .collect()
    };
    let exact = view.query().only_if(format!("id = {id}"));
    let exact = exact.execute().await.unwrap().try_collect().await.unwrap();
    let near = view
        .query()
        .nearest_to(vec![id as f32; DIMENSIONS as usize])
        .unwrap()
        .limit(1)
        .nprobes(2)
        .unwrap();
    let near = near.execute().await.unwrap().try_collect().await.unwrap();
    (ids(exact), ids(near))
}

fn told(outcome: &Outcome) -> (Mode, Option<u64>) {
    (outcome.mode, outcome.unindexed_rows)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_refresh_keeps_stays_covered_and_what_it_writes_is_told_of() {
    let (db, view) = indexed().await;
    assert_eq!(coverage(&db).await, [(600, 0), (600, 0)]);
    assert_eq!(told(&db.refresh("v").await.unwrap()), (Mode::NoOp, Some(0)));

    db.write(vectors(600..700), WriteMode::Append, 300).await;
    let outcome = db.refresh_as(small(request("v"))).await.unwrap();
    assert_eq!(told(&outcome), (Mode::Incremental, Some(100)));
    assert_eq!(coverage(&db).await, [(600, 100), (600, 100)]);
    for id in [5, 650] {
        assert_eq!(found(&view, id).await, (vec![id], vec![id]), "id {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indices_are_brought_up_to_date_where_that_is_asked_for() {
    let (db, view) = indexed().await;
    db.write(vectors(600..700), WriteMode::Append, 300).await;
    let outcome = db.refresh_as(optimizing(request("v"))).await.unwrap();
    assert_eq!(told(&outcome), (Mode::Incremental, Some(0)));
    assert_eq!(coverage(&db).await, [(700, 0), (700, 0)]);
    assert_eq!(
        outcome.view_version,
        db.open("v").await.version().version,
        "the version that has the indices is the one that is told"
    );
    for id in [5, 650] {
        assert_eq!(found(&view, id).await, (vec![id], vec![id]), "id {id}");
    }

    // Nothing to compute, and indices that lag: they alone are brought up to date.
    db.write(vectors(700..800), WriteMode::Append, 300).await;
    db.refresh_as(small(request("v"))).await.unwrap();
    let outcome = db.refresh_as(optimizing(request("v"))).await.unwrap();
    assert_eq!(told(&outcome), (Mode::NoOp, Some(0)));
    assert_eq!(coverage(&db).await, [(800, 0), (800, 0)]);
    let version = db.open("v").await.version().version;
    let again = db.refresh_as(optimizing(request("v"))).await.unwrap();
    assert_eq!((again.mode, again.view_version), (Mode::NoOp, version));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_workers_none_ends_before_the_indices_are_up_to_date() {
    let (db, _) = indexed().await;
    for round in 0..3i64 {
        let from = 600 + 100 * round;
        db.write(vectors(from..from + 100), WriteMode::Append, 300)
            .await;
        let asked = optimizing(request("v"));
        let workers = (0..3).map(|index| {
            let asked = Request {
                workers: 3,
                index,
                ..asked.clone()
            };
            async {
                let outcome = db.refresh_as(asked).await.unwrap();
                (outcome, coverage(&db).await)
            }
        });
        for (outcome, coverage) in futures::future::join_all(workers).await {
            assert_eq!(told(&outcome), (Mode::Incremental, Some(0)));
            let rows = 700 + 100 * round as u64;
            assert_eq!(coverage, [(rows, 0), (rows, 0)]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_cannot_be_brought_up_to_date_fails_no_refresh() {
    let (db, view) = indexed().await;
    // An index whose files are gone.
    std::fs::remove_dir_all(format!("{}/_indices", db.path("v"))).unwrap();
    db.write(vectors(600..700), WriteMode::Append, 300).await;
    let outcome = db.refresh_as(optimizing(request("v"))).await.unwrap();
    assert_eq!(told(&outcome), (Mode::Incremental, Some(100)));
    view.checkout_latest().await.unwrap();
    assert_eq!(view.count_rows(None).await.unwrap(), 700);
}

#[tokio::test]
async fn a_view_without_an_index_is_told_nothing_of_indices() {
    let mut db = Db::new(false);
    let batch = db.batch(20);
    db.write(batch, WriteMode::Create, 10).await;
    db.create_view("v", "SELECT id FROM src", Form::Plain).await;
    let outcome = db.refresh_as(optimizing(request("v"))).await.unwrap();
    assert_eq!(told(&outcome), (Mode::Rebuild, None));
    assert!(
        !serde_json::to_string(&outcome)
            .unwrap()
            .contains("nindexed")
    );
}

#[tokio::test]
async fn the_watermark_of_older_clients_speaks_of_the_version_with_the_indices() {
    let mut db = Db::new(true);
    let batch = db.batch(20);
    db.write(batch, WriteMode::Create, 10).await;
    db.create_view("v", "SELECT id FROM src", Form::Provenance)
        .await;
    db.refresh("v").await.unwrap();
    let path = db.folder.path().display().to_string();
    let connection = lancedb::connect(&path).execute().await.unwrap();
    let view = connection.open_table("v").execute().await.unwrap();
    let index = Index::BTree(BTreeIndexBuilder::default());
    view.create_index(&["id"], index).execute().await.unwrap();
    let batch = db.batch(5);
    db.write(batch, WriteMode::Append, 10).await;
    let outcome = db.refresh_as(optimizing(request("v"))).await.unwrap();
    let table = db.open("v").await;
    let watermark = table.schema().metadata["mv.view_version"].clone();
    assert_eq!(watermark, outcome.view_version.to_string());
    assert_eq!(table.version().version, outcome.view_version);
    assert_eq!(outcome.unindexed_rows, Some(0));
}
