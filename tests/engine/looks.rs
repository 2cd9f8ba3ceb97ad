//! Looks at local tables, in threads that are none of tokio's, see what any
//! other look sees: whatever the tables are called, indices and all.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow_array::RecordBatchIterator;
use arrow_schema::{DataType, Field};
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use lancedb::materialized_view::{DEFINITION_META_KEY, definition_metadata_from_sql};
use relance::catalog::{SharedCatalog, Source};
use relance::engine::catalog::Catalog;
use relance::engine::error::EngineError;
use relance::engine::freshness::{self, Freshness};
use relance::engine::view::deep::STACK;
use relance::engine::view::{self, KnownViews};
use relance::telemetry::Metrics;

use crate::support::{Db, Form, rows_of};

fn shared(db: &Db) -> SharedCatalog {
    let source = Source {
        uri: format!("dir://{}", db.folder.path().display()),
        ..Default::default()
    };
    SharedCatalog::new(source, &Metrics::default())
}

/// Whether `view` is current, and what is at `table`.
async fn seen(catalog: &Catalog, id: &str) -> (Freshness, u64, String) {
    let (info, table) = view::open(catalog, &[id.to_string()]).await.unwrap();
    let freshness = freshness::check(catalog, &info, &table, None)
        .await
        .unwrap();
    (freshness, info.version, info.uri)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_in_a_thread_for_looks_sees_what_any_other_does() {
    let db = Db::new(true);
    db.write(rows_of((0..50).collect()), WriteMode::Create, 20)
        .await;
    db.create_view("v", "SELECT id FROM src", Form::Plain).await;
    db.refresh("v").await.unwrap();
    // A path that is another one when it is written as a URI.
    for odd in ["an odd one", "a+b"] {
        let (from, to) = (db.path("v"), db.path(odd));
        let copied = std::process::Command::new("cp")
            .args(["-r", &from, &to])
            .status();
        assert!(copied.unwrap().success());
    }
    let shared = shared(&db);
    for id in ["v", "an odd one", "a+b"] {
        let catalog = shared.get().await.unwrap();
        assert!(catalog.is_local());
        let usual = seen(&catalog, id).await;
        let id: Arc<str> = id.into();
        let look = |catalog| {
            let id = id.clone();
            async move {
                (
                    seen(&catalog, &id).await,
                    std::thread::current().name().map(String::from),
                )
            }
        };
        let (found, thread) = shared.look(catalog, look).await.unwrap();
        assert_eq!(found, usual, "{id}");
        assert!(matches!(found.0, Freshness::Current(_)), "{id}");
        assert!(thread.is_some_and(|name| name.starts_with("look-")), "{id}");
    }
}

/// What finds a table there and then finds what the namespace finds, and where
/// it finds it: a view is the same as another if it is in the same place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_in_a_thread_for_looks_finds_the_tables_that_the_namespace_has() {
    let db = Db::new(true);
    for name in ["src", "gone-2"] {
        let params = WriteParams::default();
        let batch = rows_of((0..5).collect());
        let schema = batch.schema();
        let rows = RecordBatchIterator::new([Ok(batch)], schema);
        Dataset::write(rows, &db.path(name), Some(params))
            .await
            .unwrap();
    }
    std::fs::write(format!("{}/.lance-deregistered", db.path("gone-2")), "").unwrap();
    std::fs::create_dir(db.path("empty")).unwrap();
    std::fs::create_dir(format!("{}/other.lance", db.path("src"))).unwrap();
    let folder = db.folder.path().display();
    for root in [
        format!("dir://{folder}"),
        format!("dir://{folder}/"),
        format!("file://{folder}"),
    ] {
        let source = Source {
            uri: root.clone(),
            ..Default::default()
        };
        let shared = SharedCatalog::new(source, &Metrics::default());
        let mut found = 0;
        for id in [
            "src",
            "gone-2",
            "empty",
            "none",
            "src.lance/other",
            "..",
            "SRC",
        ] {
            let catalog = shared.get().await.unwrap();
            let seen = |catalog: Catalog| {
                let id = [id.to_string()];
                async move {
                    let located = catalog.locate(&id).await.ok();
                    let opened = catalog.open(&id, None).await;
                    (
                        located,
                        opened.ok().flatten().map(|table| table.uri().to_string()),
                    )
                }
            };
            let usual = seen(catalog.clone()).await;
            let inline = shared.look(catalog, seen).await.unwrap();
            assert_eq!(inline.1.is_some(), usual.1.is_some(), "{root} {id}");
            if usual.0.is_some() {
                assert_eq!(inline.0, usual.0, "{root} {id}");
                found += 1;
            }
        }
        assert_eq!(found, 1, "{root}");
    }
}

/// A view that is asked after again and again is read once, until a version of
/// it comes or it is another table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_view_is_is_read_again_when_its_versions_change() {
    let db = Db::new(true);
    db.write(rows_of((0..5).collect()), WriteMode::Create, 5)
        .await;
    db.create_view("v", "SELECT id FROM src", Form::Plain).await;
    let shared = shared(&db);
    let known = KnownViews::default();
    let sql = async || {
        let catalog = shared.get().await.unwrap();
        let look = |catalog| {
            let known = known.clone();
            async move { known.inspect(&catalog, &["v".to_string()]).await }
        };
        let found = shared.look(catalog, look).await.unwrap();
        found.map(|info| info.raw.clone())
    };
    let versions = std::path::PathBuf::from(db.path("v")).join("_versions");
    let aside = db.folder.path().join("aside");
    let age = |seconds: u64| {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        let folder = std::fs::File::open(&versions).unwrap();
        folder.set_modified(then).unwrap();
        then
    };
    // Of a folder that has just changed nothing is kept.
    let first = sql().await.unwrap();
    std::fs::rename(&versions, &aside).unwrap();
    std::fs::create_dir(&versions).unwrap();
    assert!(sql().await.is_err());
    std::fs::remove_dir(&versions).unwrap();
    std::fs::rename(&aside, &versions).unwrap();
    // What has been so for a while is kept: nobody reads what is in it now.
    let then = age(60);
    assert_eq!(sql().await.unwrap(), first);
    let manifest = std::fs::read_dir(&versions).unwrap().next().unwrap();
    let manifest = manifest.unwrap().path();
    std::fs::rename(&manifest, &aside).unwrap();
    std::fs::File::open(&versions)
        .unwrap()
        .set_modified(then)
        .unwrap();
    assert_eq!(sql().await.unwrap(), first);
    // With the manifest back it is another time, and another version comes.
    std::fs::rename(&aside, &manifest).unwrap();
    let other = definition_metadata_from_sql("SELECT id + 1 AS id FROM src");
    let mut table = db.open("v").await;
    let values = [(DEFINITION_META_KEY, other.as_str())];
    table.update_schema_metadata(values).await.unwrap();
    assert_ne!(sql().await.unwrap(), first);
    age(50);
    assert_ne!(sql().await.unwrap(), first);
    // Gone is gone.
    std::fs::rename(db.path("v"), &aside).unwrap();
    let error = sql().await.unwrap_err();
    assert!(matches!(error, EngineError::ViewNotFound { .. }), "{error}");
}

/// As [`tokio::test`], on a stack as every thread of the program has it.
fn on_a_stack_of_ours<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(STACK);
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(test());
    };
    thread.spawn(run).unwrap().join().unwrap();
}

#[test]
fn a_view_as_deep_as_may_be_is_refreshed_and_a_deeper_one_refused() {
    on_a_stack_of_ours(|| async {
        let db = Db::new(true);
        db.write(rows_of((0..300).collect()), WriteMode::Create, 100)
            .await;
        let chain = |term: &dyn Fn(usize) -> String, by: &str, count: usize| {
            (0..count).map(term).collect::<Vec<_>>().join(by)
        };
        let or = |count| chain(&|at| format!("id = {at}"), " OR ", count);
        let sum = |count| chain(&|_| "id".to_string(), " + ", count);
        let union = |count| {
            chain(
                &|at| format!("SELECT {at} + id AS id FROM src"),
                " UNION ALL ",
                count,
            )
        };
        let fields = || vec![Field::new("id", DataType::Int64, true)];
        for (name, sql, rows) in [
            (
                "or",
                format!("SELECT id FROM src WHERE {}", or(250)),
                Some(250),
            ),
            (
                "sum",
                format!("SELECT {} AS id FROM src", sum(500)),
                Some(300),
            ),
            (
                "distinct",
                format!("SELECT DISTINCT id FROM src WHERE {}", or(250)),
                Some(250),
            ),
            ("union", union(60), Some(18_000)),
            (
                "deep-or",
                format!("SELECT id FROM src WHERE {}", or(100_000)),
                None,
            ),
            (
                "deep-sum",
                format!("SELECT {} AS id FROM src", sum(502)),
                None,
            ),
            ("deep-union", union(502), None),
        ] {
            let definition = definition_metadata_from_sql(&sql);
            db.create_stored(name, fields(), definition).await;
            match (db.refresh(name).await, rows) {
                (Ok(done), Some(rows)) => assert_eq!(done.rows_written, rows, "{name}"),
                (Err(EngineError::Unsupported { why, .. }), None) => {
                    assert!(why.contains("operators deep"), "{name}: {why}");
                }
                (other, _) => panic!("{name}: {other:?}"),
            }
        }
    });
}
