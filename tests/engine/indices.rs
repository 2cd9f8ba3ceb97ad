//! Indices on a view: what a refresh keeps stays covered, what it writes is
//! told of, and is covered too where that is asked for.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{FixedSizeListArray, Int64Array, RecordBatch, StringArray};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::WriteMode;
use lance::index::DatasetIndexExt;
use lancedb::Table;
use lancedb::index::Index;
use lancedb::index::scalar::{BTreeIndexBuilder, FtsIndexBuilder};
use lancedb::index::vector::IvfFlatIndexBuilder;
use lancedb::query::{ExecutableQuery, QueryBase};
use relance::engine::outcome::{Mode, Outcome};
use relance::engine::refresh::Request;

use crate::support::{Db, Form, render, request};

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

/// The view's query.
const QUERY: &str = "SELECT id, vector FROM src WHERE id >= 0";
/// Its indices.
const INDICES: [&str; 2] = ["id_idx", "vector_idx"];

/// A view of 600 rows in fragments of 300, with an index on each column.
async fn indexed() -> (Db, Table) {
    let db = Db::new(true);
    db.write(vectors(0..600), WriteMode::Create, 300).await;
    db.create_view("v", QUERY, Form::Plain).await;
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
    for name in INDICES {
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

/// The fragments that index `name` covers, among them some that are gone.
async fn covered(view: &Dataset, name: &str) -> HashSet<u64> {
    let segments = view.load_indices_by_name(name).await.unwrap();
    let bitmaps = segments.iter().flat_map(|s| s.fragment_bitmap.iter());
    bitmaps.flatten().map(u64::from).collect()
}

/// The view's rows of an id from 550, found by the scalar index or without it.
async fn from_550(view: &Dataset, by_index: bool) -> Vec<String> {
    let mut scan = view.scan();
    scan.use_scalar_index(by_index).filter("id >= 550").unwrap();
    let plan = scan.explain_plan(false).await.unwrap();
    assert_eq!(plan.contains("ScalarIndexQuery"), by_index, "{plan}");
    let stream = scan.try_into_stream().await.unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    render(&batches)
}

/// Asserts that the view has the rows that it shall have, that they are found by
/// index and without, and that `done` told how many of them each index lacks.
async fn assert_found(db: &Db, done: &Outcome) {
    let version = done.source_version;
    let right = db.evaluated_sql(QUERY, None, version).await.unwrap().1;
    assert_eq!(db.rows("v").await, right);
    let view = db.open("v").await;
    let scanned = from_550(&view, false).await;
    assert_eq!(scanned.len(), right.len() - 550);
    assert_eq!(from_550(&view, true).await, scanned);
    for name in INDICES {
        let covered = covered(&view, name).await;
        let fragments = view.fragments().iter();
        let lacking = fragments.filter(|f| !covered.contains(&f.id));
        let lacking: u64 = lacking.map(|f| f.num_rows().unwrap() as u64).sum();
        assert_eq!(done.unindexed_rows, Some(lacking), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indices_stay_right_when_small_fragments_are_put_together() {
    let (db, view) = indexed().await;
    let fragments = async || -> Vec<(u64, Option<usize>)> {
        let view = db.open("v").await;
        let fragments = view.fragments().iter();
        fragments.map(|f| (f.id, f.physical_rows)).collect()
    };
    let large = fragments().await;
    let mut lacking = 0;
    for n in 1..=9 {
        let from = 580 + 20 * n;
        let more = vectors(from..from + 20);
        db.write(more, WriteMode::Append, 300).await;
        // Half of what will be put together is covered then.
        let done = match n {
            4 => db.refresh_as(optimizing(request("v"))).await.unwrap(),
            _ => db.refresh_as(small(request("v"))).await.unwrap(),
        };
        lacking = match n {
            4 => 0,
            9 => 8 * 20 + 20,
            _ => lacking + 20,
        };
        assert_eq!(told(&done), (Mode::Incremental, Some(lacking)), "{n}");
        assert_found(&db, &done).await;
    }
    // Those of eight refreshes are one fragment now, and the large ones are as they were.
    let now = fragments().await;
    let mut rows: Vec<Option<usize>> = now.iter().map(|(_, rows)| *rows).collect();
    rows.sort_unstable();
    assert_eq!(rows, [20, 160, 300, 300].map(Some));
    assert!(large.iter().all(|fragment| now.contains(fragment)));
    for name in INDICES {
        let covered = covered(&db.open("v").await, name).await;
        assert!(large.iter().all(|(id, _)| covered.contains(id)), "{name}");
    }
    assert_eq!(coverage(&db).await, [(600, 180), (600, 180)]);
    // Kept, covered before it was put together, not covered before, and new.
    let ids = [5, 595, 610, 700, 775];
    for id in ids {
        assert_eq!(found(&view, id).await, (vec![id], vec![id]), "id {id}");
    }

    let rows = db.rows("v").await;
    let done = db.refresh_as(optimizing(request("v"))).await.unwrap();
    assert_eq!(told(&done), (Mode::NoOp, Some(0)));
    assert_eq!(coverage(&db).await, [(780, 0), (780, 0)]);
    assert_eq!(db.rows("v").await, rows);
    assert_found(&db, &done).await;
    for id in ids {
        assert_eq!(found(&view, id).await, (vec![id], vec![id]), "id {id}");
    }
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
