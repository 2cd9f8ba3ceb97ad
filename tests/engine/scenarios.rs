//! Named situations, each with what must come out.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchIterator};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::WriteMode;
use lance::dataset::mem_wal::DatasetMemWalExt;
use lance_namespace::LanceNamespace;
use lance_namespace::models::{CreateNamespaceRequest, DeclareTableRequest, DropTableRequest};
use lance_namespace_impls::{DirectoryNamespace, DirectoryNamespaceBuilder};
use lancedb::materialized_view::{DEFINITION_META_KEY, definition_metadata_from_sql};
use relance::engine::error::EngineError;
use relance::engine::freshness::{self, Current, Freshness};
use relance::engine::outcome::{self, Mode};
use relance::engine::refresh::Request;
use relance::engine::view;

use crate::faults::run;
use crate::faults::store::Faults;
use crate::support::{Db, Form, SHAPES, render, request};

pub async fn filled(stable: bool) -> Db {
    let mut db = Db::new(stable);
    let batch = db.batch(100);
    db.write(batch, WriteMode::Create, 30).await;
    db
}

#[tokio::test]
async fn a_first_refresh_rebuilds_a_second_does_nothing_and_an_append_is_incremental() {
    for form in [Form::Plain, Form::Provenance] {
        for shape in SHAPES {
            let mut db = filled(true).await;
            db.create_view("v", shape.sql, form).await;
            let first = db.refresh("v").await.unwrap();
            assert_eq!(first.mode, Mode::Rebuild, "{}", shape.name);
            assert_eq!(
                db.rows("v").await,
                db.evaluated(shape, form, first.source_version).await,
                "{} {form:?}",
                shape.name
            );
            assert_eq!(first.rows_written as usize, db.rows("v").await.len());

            let again = db.refresh("v").await.unwrap();
            assert_eq!(again.mode, Mode::NoOp);
            assert_eq!(again.rows_written, 0);
            assert_eq!(
                again.view_version, first.view_version,
                "a NoOp commits nothing"
            );

            let more = db.batch(50);
            db.write(more, WriteMode::Append, 30).await;
            let third = db.refresh("v").await.unwrap();
            let row_wise = shape.limit.is_none() && shape.name != "grouped";
            if row_wise {
                assert_eq!(third.mode, Mode::Incremental, "{}", shape.name);
                assert!(third.units_kept > 0);
            }
            assert_eq!(
                db.rows("v").await,
                db.evaluated(shape, form, third.source_version).await
            );
        }
    }
}

#[tokio::test]
async fn freshness_is_told_without_planning() {
    let mut db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let catalog = db.catalog().await;
    let look = async |version| {
        let (info, table) = view::open(&catalog, &["v".to_string()]).await.unwrap();
        let found = freshness::check(&catalog, &info, &table, version).await;
        found.unwrap()
    };
    assert!(matches!(look(None).await, Freshness::Stale { .. }));
    let done = db.refresh("v").await.unwrap();
    let current = Freshness::Current(Current {
        source_version: done.source_version,
        view_version: done.view_version,
        unindexed_rows: None,
    });
    assert_eq!(look(None).await, current);
    let more = db.batch(5);
    db.write(more, WriteMode::Append, 30).await;
    assert!(matches!(look(None).await, Freshness::Stale { .. }));
    assert_eq!(look(Some(done.source_version)).await, current);
    let mut table = db.open("v").await;
    table.delete("id = 40").await.unwrap();
    assert!(matches!(look(Some(1)).await, Freshness::Stale { .. }));
}

#[tokio::test]
async fn a_refresh_that_has_committed_is_not_run_again() {
    let mut db = filled(false).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let asked = request("v");
    let done = db.refresh_as(asked.clone()).await.unwrap();
    let more = db.batch(50);
    db.write(more, WriteMode::Append, 30).await;
    assert_eq!(db.refresh_as(asked.clone()).await.unwrap(), done);
    let catalog = db.catalog().await;
    let found = outcome::find(&catalog, &asked.view, &asked.refresh)
        .await
        .unwrap();
    assert_eq!(found, Some(done));
    assert_eq!(
        outcome::find(&catalog, &asked.view, "another")
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn a_pinned_version_is_what_the_view_then_equals() {
    let mut db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let more = db.batch(50);
    db.write(more, WriteMode::Append, 30).await;
    db.refresh("v").await.unwrap();
    let back = db
        .refresh_as(Request {
            src_version: Some(1),
            ..request("v")
        })
        .await
        .unwrap();
    assert_eq!(back.source_version, 1);
    assert_eq!(
        db.rows("v").await,
        db.evaluated(&SHAPES[0], Form::Plain, 1).await
    );
    let gone = db
        .refresh_as(Request {
            src_version: Some(99),
            ..request("v")
        })
        .await
        .unwrap_err();
    assert!(
        matches!(gone, EngineError::SourceVersionGone { version: 99, .. }),
        "{gone}"
    );
}

#[tokio::test]
async fn a_full_refresh_writes_every_row_again() {
    let db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let first = db.refresh("v").await.unwrap();
    let full = db
        .refresh_as(Request {
            full: true,
            max_rows_per_fragment: Some(10),
            ..request("v")
        })
        .await
        .unwrap();
    assert_eq!(full.mode, Mode::Rebuild);
    assert_eq!(full.rows_written, first.rows_written);
    let table = db.open("v").await;
    assert!(
        table
            .fragments()
            .iter()
            .all(|f| f.physical_rows <= Some(10))
    );
    assert_eq!(
        db.rows("v").await,
        db.evaluated(&SHAPES[0], Form::Plain, 1).await
    );
}

#[tokio::test]
async fn tables_that_are_no_views_and_names_that_are_nothing_are_told_apart() {
    let db = filled(true).await;
    let error = db.refresh("src").await.unwrap_err();
    assert!(matches!(error, EngineError::NotAView { .. }), "{error}");
    let error = db.refresh("nothing").await.unwrap_err();
    assert!(matches!(error, EngineError::ViewNotFound { .. }), "{error}");
    let nested = Request {
        view: vec!["a".into(), "b".into()],
        ..request("v")
    };
    let error = db.refresh_as(nested).await.unwrap_err();
    assert!(matches!(error, EngineError::ViewNotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_dropped_source_column_fails_the_refresh_and_leaves_the_view() {
    let db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let before = db.rows("v").await;
    db.open("src").await.drop_columns(&["x"]).await.unwrap();
    let error = db.refresh("v").await.unwrap_err();
    assert!(
        matches!(error, EngineError::DefinitionMismatch { .. }),
        "{error}"
    );
    assert_eq!(db.rows("v").await, before);
}

#[tokio::test]
async fn a_missing_column_of_the_filter_is_told_even_of_a_source_without_rows() {
    let db = filled(true).await;
    db.create_view("v", "SELECT id FROM src WHERE x > 3", Form::Plain)
        .await;
    let mut source = db.open("src").await;
    source.delete("true").await.unwrap();
    source.drop_columns(&["x"]).await.unwrap();
    let error = db.refresh("v").await.unwrap_err();
    assert!(
        matches!(error, EngineError::DefinitionMismatch { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("no column 'x'"), "{error}");
}

#[tokio::test]
async fn a_column_that_the_view_does_not_read_costs_nothing() {
    let db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let mut source = db.open("src").await;
    source
        .add_columns(
            lance::dataset::NewColumnTransform::SqlExpressions(vec![(
                "extra".into(),
                "id + 1".into(),
            )]),
            None,
            None,
        )
        .await
        .unwrap();
    let outcome = db.refresh("v").await.unwrap();
    assert_eq!(outcome.mode, Mode::NoOp);
    assert_eq!(outcome.source_version, source.version().version);
}

#[tokio::test]
async fn a_function_whose_result_changes_by_itself_is_refused_by_name() {
    let db = filled(true).await;
    db.create_view("v", "SELECT id, random() AS r FROM src", Form::Plain)
        .await;
    let error = db.refresh("v").await.unwrap_err();
    assert!(matches!(error, EngineError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("random"), "{error}");
}

#[tokio::test]
async fn rows_that_cannot_be_computed_are_a_failure_that_no_retry_mends() {
    let db = filled(true).await;
    db.create_view("v", "SELECT id, 10 / (id - 40) AS q FROM src", Form::Plain)
        .await;
    let error = db.refresh("v").await.unwrap_err();
    assert!(
        matches!(error, EngineError::EvaluationFailed { .. }),
        "{error}"
    );
    assert!(!error.retryable());
    assert!(db.rows("v").await.is_empty());
}

#[tokio::test]
async fn another_incarnation_of_the_view_is_not_touched() {
    let db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Provenance).await;
    let error = db
        .refresh_as(Request {
            expected_incarnation: Some("another".into()),
            ..request("v")
        })
        .await
        .unwrap_err();
    assert!(
        matches!(error, EngineError::IncarnationMismatch { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn many_workers_share_one_refresh_and_commit_once() {
    let mut db = filled(true).await;
    for _ in 0..6 {
        let more = db.batch(20);
        db.write(more, WriteMode::Append, 5).await;
    }
    db.create_view("v", SHAPES[1].sql, Form::Plain).await;
    let asked = request("v");
    let before = db.open("v").await.version().version;
    let runs = (0..3).map(|index| {
        db.refresh_as(Request {
            workers: 3,
            index,
            ..asked.clone()
        })
    });
    let outcomes: Vec<_> = futures::future::join_all(runs)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(outcomes.windows(2).all(|w| w[0] == w[1]), "{outcomes:?}");
    assert_eq!(db.open("v").await.version().version, before + 1);
    assert_eq!(
        db.rows("v").await,
        db.evaluated(&SHAPES[1], Form::Plain, outcomes[0].source_version)
            .await
    );
}

#[tokio::test]
async fn names_that_need_quoting_are_read_and_written() {
    let db = Db::new(true);
    let ids: Vec<i64> = (0..10).collect();
    let column = |factor: i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(ids.iter().map(|i| i * factor)))
    };
    let batch = RecordBatch::try_from_iter([
        ("Mixed Case", column(1)),
        ("order", column(2)),
        ("Ünïcode", column(3)),
    ])
    .unwrap();
    db.write(batch, WriteMode::Create, 5).await;
    let sql = "SELECT \"Mixed Case\", \"order\" + 1 AS \"Next One\", \"order\" * 2 AS \"select\" \
               FROM src WHERE \"Mixed Case\" > 3";
    db.create_view("v", sql, Form::Plain).await;
    db.create_view("star", "SELECT * FROM src", Form::Plain)
        .await;
    db.refresh("v").await.unwrap();
    assert_eq!(
        db.rows("v").await,
        [
            "4 | 9 | 16",
            "5 | 11 | 20",
            "6 | 13 | 24",
            "7 | 15 | 28",
            "8 | 17 | 32",
            "9 | 19 | 36"
        ]
    );
    db.refresh("star").await.unwrap();
    assert_eq!(db.rows("star").await.len(), 10);
    let again = db.refresh("star").await.unwrap();
    assert_eq!(again.mode, Mode::NoOp);
}

/// The namespace `team` of a folder, with the table `src`.
struct Team(DirectoryNamespace);

impl Team {
    async fn new(root: &str) -> Team {
        let namespace = DirectoryNamespaceBuilder::new(root).build().await.unwrap();
        let team = CreateNamespaceRequest {
            id: Some(vec!["team".into()]),
            ..Default::default()
        };
        namespace.create_namespace(team).await.unwrap();
        let team = Team(namespace);
        let source = team.declare("src").await;
        let rows = Self::rows();
        let schema = rows.schema();
        let rows = RecordBatchIterator::new([Ok(rows)], schema);
        Dataset::write(rows, &source, None).await.unwrap();
        team
    }

    fn rows() -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        RecordBatch::try_from_iter_with_nullable([("id", column, true)]).unwrap()
    }

    /// Where a new table of this name is to be.
    async fn declare(&self, name: &str) -> String {
        let table = DeclareTableRequest {
            id: Some(vec!["team".into(), name.into()]),
            ..Default::default()
        };
        let declared = self.0.declare_table(table).await.unwrap();
        declared.location.unwrap()
    }

    async fn drop(&self, name: &str) {
        let table = DropTableRequest {
            id: Some(vec!["team".into(), name.into()]),
            ..Default::default()
        };
        self.0.drop_table(table).await.unwrap();
    }

    /// Writes a view of its source, empty, to `location`.
    async fn write_view(&self, location: &str, sql: &str) {
        let definition = definition_metadata_from_sql(sql);
        let metadata = [(DEFINITION_META_KEY.to_string(), definition)].into();
        let schema = Self::rows().schema().as_ref().clone();
        let schema = Arc::new(schema.with_metadata(metadata));
        let none = std::iter::empty::<Result<RecordBatch, arrow_schema::ArrowError>>();
        let rows = RecordBatchIterator::new(none, schema);
        Dataset::write(rows, location, None).await.unwrap();
    }
}

async fn rows_at(location: &str) -> Vec<String> {
    let table = Dataset::open(location).await.unwrap();
    let rows = table.scan().try_into_stream().await.unwrap();
    render(&rows.try_collect::<Vec<RecordBatch>>().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_is_re_created_elsewhere_meanwhile_is_refreshed_there() {
    let db = Db::new(false);
    let team = Team::new(&db.folder.path().display().to_string()).await;
    let sql = "SELECT id FROM team.src WHERE id > 1";
    let before = team.declare("v").await;
    team.write_view(&before, sql).await;
    let asked = Request {
        view: vec!["team".into(), "v".into()],
        ..request("v")
    };
    let faults = Faults::holding("/claims/");
    let moved = async {
        faults.reached().await;
        team.drop("v").await;
        let now = team.declare("v").await;
        assert_ne!(now, before);
        team.write_view(&now, sql).await;
        faults.go_on();
        now
    };
    let (done, now) = futures::join!(run(&db, &asked, faults.clone()), moved);
    assert_eq!(done.unwrap().rows_written, 2);
    assert_eq!(rows_at(&now).await, ["2", "3"]);
    // What tells of it is there, too.
    let catalog = db.catalog().await;
    let found = outcome::find(&catalog, &asked.view, &asked.refresh).await;
    assert_eq!(found.unwrap().unwrap().rows_written, 2);
    let again = Request {
        refresh: "again".into(),
        ..asked
    };
    let again = db.refresh_as(again).await.unwrap();
    assert_eq!(again.mode, Mode::NoOp);
}

#[tokio::test]
async fn views_and_sources_in_namespaces_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display().to_string();
    let team = Team::new(&root).await;
    let view_at = team.declare("v").await;
    team.write_view(&view_at, "SELECT id FROM team.src WHERE id > 1")
        .await;

    let catalog =
        relance::engine::catalog::Catalog::connect(&format!("dir://{root}"), &Default::default())
            .await
            .unwrap();
    let tables = catalog.tables().await.unwrap();
    assert_eq!(tables, [["team", "src"], ["team", "v"]]);
    let (progress, _) = tokio::sync::watch::channel(Default::default());
    let asked = Request {
        view: vec!["team".into(), "v".into()],
        ..request("v")
    };
    relance::engine::refresh::refresh(&catalog, &asked, &progress)
        .await
        .unwrap();
    assert_eq!(rows_at(&view_at).await, ["2", "3"]);

    for missing in [vec!["team", "w"], vec!["elsewhere", "v"], vec!["v"]] {
        let id: Vec<String> = missing.iter().map(|s| s.to_string()).collect();
        let error = view::inspect(&catalog, &id).await.unwrap_err();
        assert!(
            matches!(error, EngineError::ViewNotFound { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn progress_counts_what_is_kept_and_ends_full() {
    let mut db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let more = db.batch(50);
    db.write(more, WriteMode::Append, 30).await;
    let (progress, seen) = tokio::sync::watch::channel(Default::default());
    let outcome = relance::engine::refresh::refresh(&db.catalog().await, &request("v"), &progress)
        .await
        .unwrap();
    let last = *seen.borrow();
    assert!(outcome.units_kept > 0);
    assert_eq!(last.units_total, outcome.units_total);
    assert_eq!(last.units_done, outcome.units_total);
    assert_eq!(last.rows_written, outcome.rows_written);
}

#[tokio::test]
async fn refreshes_leave_no_folders_behind_among_local_files() {
    let mut db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let plans = std::path::Path::new(&db.path("v")).join("_relance/plans");
    // Such as earlier versions left.
    for n in 0..3 {
        std::fs::create_dir_all(plans.join(format!("old-{n}/claims"))).unwrap();
    }
    let other = plans.join("under-way/claims");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("unit.json"), "{}").unwrap();
    for _ in 0..3 {
        let more = db.batch(50);
        db.write(more, WriteMode::Append, 30).await;
        db.refresh("v").await.unwrap();
        db.refresh("v").await.unwrap();
        let left: Vec<_> = std::fs::read_dir(&plans).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(other.join("unit.json").exists(), "it is not a day old");
    }
}

#[tokio::test]
async fn a_view_redefined_over_another_source_is_computed_from_that_one() {
    let mut db = filled(true).await;
    let sql = |source: &str| format!("SELECT id FROM {source} WHERE id >= 0");
    db.create_view("v", &sql("src"), Form::Plain).await;
    db.refresh("v").await.unwrap();
    let other = db.batch(7);
    let ids = other.project(&[other.schema().index_of("id").unwrap()]);
    let reader = RecordBatchIterator::new([Ok(other.clone())], other.schema());
    Dataset::write(reader, &db.path("other"), None)
        .await
        .unwrap();
    let mut view = db.open("v").await;
    let redefined = Some(definition_metadata_from_sql(&sql("other")));
    view.update_schema_metadata([(DEFINITION_META_KEY.to_string(), redefined)])
        .await
        .unwrap();
    // What it was refreshed from last, and is opened ahead, is the wrong table.
    assert_eq!(db.refresh("v").await.unwrap().rows_written, 7);
    assert_eq!(db.rows("v").await, render(&[ids.unwrap()]));
    // And a source that is gone is missed by nobody.
    std::fs::remove_dir_all(db.path("src")).unwrap();
    assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp);
    std::fs::remove_dir_all(db.path("other")).unwrap();
    let error = db.refresh("v").await.unwrap_err();
    assert!(
        matches!(&error, EngineError::SourceNotFound { table, .. } if table == "other"),
        "{error}"
    );
}

#[tokio::test]
async fn a_table_with_a_write_ahead_log_is_refused_wherever_it_stands() {
    let mut db = Db::new(true);
    let batch = db.batch(20);
    db.write(batch, WriteMode::Create, 20).await;
    db.create_view("v", "SELECT id FROM src", Form::Plain).await;
    let shard = format!("_mem_wal/{}", uuid::Uuid::new_v4());
    for refreshed in [false, true] {
        for (table, what) in [("src", "its source table"), ("v", "the view")] {
            let log = format!("{}/{shard}", db.path(table));
            std::fs::create_dir_all(format!("{log}/manifest")).unwrap();
            std::fs::write(format!("{log}/manifest/1.binpb"), "").unwrap();
            let shards = db.open(table).await.list_mem_wal_latest_shard_ids().await;
            assert_eq!(shards.unwrap().len(), 1, "lance sees it too");
            let why = db.refresh("v").await.unwrap_err().to_string();
            let said = format!("{what} has rows in a write-ahead log");
            assert!(why.contains(&said), "{table} {refreshed}: {why}");
            std::fs::remove_dir_all(format!("{}/_mem_wal", db.path(table))).unwrap();
        }
        let more = db.batch(5);
        db.write(more, WriteMode::Append, 20).await;
        db.refresh("v").await.unwrap();
    }
}
