//! Plans that others have outrun: of workers that see different versions of the
//! source, of a definition that was changed, and of refreshes that failed.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::TimeDelta;
use lance::dataset::transaction::{Operation, Transaction};
use lance::dataset::{CommitBuilder, WriteMode};
use lancedb::materialized_view::{DEFINITION_META_KEY, definition_metadata_from_sql};
use relance::engine::outcome::Mode;
use relance::engine::refresh::Request;
use relance::engine::{pulse, share};

use crate::faults::run;
use crate::faults::store::Faults;
use crate::scenarios::filled;
use crate::support::{Db, Form, SHAPES, commits_of, is_current, is_current_at, request, shape};

/// Has the source get `more` rows, and lose the versions before.
async fn move_on(db: &Db, more: arrow_array::RecordBatch) {
    db.write(more, WriteMode::Append, 30).await;
    let source = db.open("src").await;
    source
        .cleanup_old_versions(TimeDelta::zero(), Some(true), Some(false))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_plans_anew_does_not_take_the_others_commit_for_its_own() {
    let mut db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let asked = request("v");
    let worker = |index| Request {
        workers: 2,
        index,
        ..asked.clone()
    };
    let before = db.open("src").await.version().version;
    let more = db.batch(20);
    // The second computes all, and is about to commit what it read of the
    // source as it was.
    let late = Faults::holding("v.lance/_transactions");
    let second = async { run(&db, &worker(1), late.clone()).await.unwrap() };
    let first = async {
        late.reached().await;
        move_on(&db, more).await;
        // So the first has to plan anew, and is about to record what it computed.
        let slow = Faults::holding("/claims/");
        let first = async { run(&db, &worker(0), slow.clone()).await.unwrap() };
        let let_go = async {
            slow.reached().await;
            late.go_on();
            while commits_of(&db, "v", &asked.refresh).await == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            slow.go_on();
        };
        futures::join!(first, let_go).0
    };
    let (second, first) = futures::join!(second, first);
    for done in [&second, &first] {
        assert_eq!(done.source_version, before, "{done:?}");
    }
    assert_eq!(commits_of(&db, "v", &asked.refresh).await, 1);
    assert!(
        !is_current(&db, "v").await,
        "rows of the source are missing"
    );
    let done = db.refresh("v").await.unwrap();
    db.assert_right(&SHAPES[0], Form::Plain, &done).await;
    assert!(is_current(&db, "v").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_an_older_plan_does_not_undo_a_commit_that_another_change_came_beside() {
    let mut db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let asked = request("v");
    let worker = |index| Request {
        workers: 2,
        index,
        ..asked.clone()
    };
    let more = db.batch(20);
    // About to commit what it read of the source as it was.
    let late = Faults::holding("v.lance/_transactions");
    let older = async { run(&db, &worker(1), late.clone()).await.unwrap() };
    let newer = async {
        late.reached().await;
        move_on(&db, more).await;
        let newer = Faults::holding("v.lance/_transactions");
        let beside = async {
            newer.reached().await;
            // Of no row: lance lets both through.
            let mut view = db.open("v").await;
            view.update_config([("key", "value")]).await.unwrap();
            newer.go_on();
        };
        let first = worker(0);
        let (done, ()) = futures::join!(run(&db, &first, newer.clone()), beside);
        late.go_on();
        done.unwrap()
    };
    let (older, newer) = futures::join!(older, newer);
    let now = db.open("src").await.version().version;
    assert_eq!(newer.source_version, now);
    assert_eq!(older, newer);
    let alone = commits_of(&db, "v", &asked.refresh).await;
    assert_eq!(alone, 0, "nothing came beside it");
    db.assert_right(&SHAPES[0], Form::Plain, &newer).await;
    assert!(is_current(&db, "v").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_died_when_it_had_committed_leaves_all_records_when_it_is_run_again() {
    for form in [Form::Plain, Form::Provenance] {
        for moved in [false, true] {
            let mut db = filled(true).await;
            db.create_view("v", SHAPES[0].sql, form).await;
            db.refresh("v").await.unwrap();
            let more = db.batch(20);
            db.write(more, WriteMode::Append, 30).await;
            let asked = request("v");
            let before = db.open("src").await.version().version;
            run(&db, &asked, Faults::after("v.lance/_versions"))
                .await
                .unwrap_err();
            assert_eq!(commits_of(&db, "v", &asked.refresh).await, 1);
            let left = std::path::PathBuf::from(db.path("v")).join("_relance");
            let outcome = left.join(format!("outcomes/{}.json", asked.refresh));
            let plan = left.join(format!("plans/{}", asked.refresh));
            assert!(!outcome.exists() && plan.exists());
            if moved {
                let more = db.batch(20);
                db.write(more, WriteMode::Append, 30).await;
            }

            let done = db.refresh_as(asked.clone()).await.unwrap();
            assert_eq!(
                (done.mode, done.source_version),
                (Mode::Incremental, before)
            );
            assert!(outcome.exists() && !plan.exists(), "{form:?} {moved}");
            assert_eq!(commits_of(&db, "v", &asked.refresh).await, 1);
            db.assert_right(&SHAPES[0], form, &done).await;
            assert_eq!(is_current(&db, "v").await, !moved);
            assert!(is_current_at(&db, "v", Some(before)).await);
            if form == Form::Provenance {
                let view = db.open("v").await;
                let watermark = &view.schema().metadata["mv.source_version"];
                assert_eq!(*watermark, before.to_string());
                assert_eq!(done.view_version, view.version().version);
            }
        }
    }
}

#[tokio::test]
async fn a_worker_that_comes_when_all_is_done_does_nothing() {
    let mut db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let more = db.batch(20);
    db.write(more, WriteMode::Append, 30).await;
    for late in ["/plan-0001.json", "/outcomes/"] {
        let asked = request("v");
        let worker = |index| Request {
            workers: 2,
            index,
            ..asked.clone()
        };
        let late = Faults::holding_read(late);
        let first = async {
            late.reached().await;
            let done = run(&db, &worker(0), Faults::none()).await;
            late.go_on();
            done
        };
        let second = worker(1);
        let (first, second) = futures::join!(first, run(&db, &second, late.clone()));
        assert_eq!(first.unwrap(), second.unwrap());
        assert_eq!(late.written("v.lance/"), 0);
        db.open("src").await.delete("id = 7").await.unwrap();
    }
}

#[tokio::test]
async fn a_plan_that_was_made_before_the_view_was_redefined_is_not_carried_out() {
    let redefined = "SELECT id, id * 3 AS y FROM src WHERE x > 10";
    for gone in ["id = 3", "id IN (3, 77)"] {
        let db = filled(true).await;
        let sql = "SELECT id, id * 2 AS y FROM src WHERE x > 10";
        db.create_view("v", sql, Form::Plain).await;
        db.refresh("v").await.unwrap();
        db.open("src").await.delete(gone).await.unwrap();
        let asked = request("v");
        // A worker that is gone before it has recorded anything.
        let faults = Faults::holding("/claims/");
        tokio::select! {
            ended = run(&db, &asked, faults.clone()) => panic!("{ended:?}"),
            () = faults.reached() => {}
        }
        let definition = definition_metadata_from_sql(redefined);
        let metadata = HashMap::from([(DEFINITION_META_KEY, definition.as_str())]);
        let mut view = db.open("v").await;
        view.update_schema_metadata(metadata).await.unwrap();
        let done = db.refresh_as(asked).await.unwrap();
        let right = db.evaluated_sql(redefined, None, done.source_version).await;
        assert_eq!(db.rows("v").await, right.unwrap().1, "{gone}");
        assert!(is_current(&db, "v").await);
    }
}

#[tokio::test]
async fn a_source_that_has_files_twice_gives_each_row_twice() {
    for files in [1, 2] {
        let mut db = Db::new(false);
        // Two of them are more than a unit.
        let batch = db.batch(files * 70_000);
        db.write(batch, WriteMode::Create, 70_000).await;
        // As a distributed append does that is committed again.
        let source = Arc::new(db.open("src").await);
        let mut fragments = source.fragments().to_vec();
        fragments.iter_mut().for_each(|fragment| fragment.id = 0);
        let again = Operation::Append { fragments };
        let transaction = Transaction::new(source.version().version, again, None);
        CommitBuilder::new(source)
            .execute(transaction)
            .await
            .unwrap();
        let more = db.batch(10);
        db.write(more, WriteMode::Append, 100_000).await;
        let sql = "SELECT id, x + 1 AS x1 FROM src WHERE id % 1000 < 3";
        db.create_view("v", sql, Form::Plain).await;
        for step in ["at first", "after a row was deleted"] {
            let done = db.refresh("v").await.unwrap();
            let right = db.evaluated_sql(sql, None, done.source_version).await;
            let right = right.unwrap().1;
            assert!(right.len() > files * 400, "{}", right.len());
            assert_eq!(db.rows("v").await, right, "{files} files, {step}");
            assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp);
            db.open("src").await.delete("id = 2").await.unwrap();
        }
    }
}

#[tokio::test]
async fn units_that_come_to_no_rows_are_computed_once() {
    let mut db = filled(true).await;
    db.create_view("v", "SELECT id FROM src WHERE x > 1000000", Form::Plain)
        .await;
    let operations = async |db: &Db| {
        let faults = Faults::none();
        let done = run(db, &request("v"), faults.clone()).await.unwrap();
        assert_eq!(done.mode, Mode::NoOp);
        (faults.operations(), done.view_version)
    };
    for step in ["at first", "after an append"] {
        let (first, version) = operations(&db).await;
        let (again, same) = operations(&db).await;
        assert!(again < first, "{step}: {again} of {first}");
        assert_eq!(version, same, "a view that is right is not written");
        assert_eq!(operations(&db).await.0, again, "{step}");
        let more = db.batch(20);
        db.write(more, WriteMode::Append, 30).await;
    }
}

#[tokio::test]
async fn a_query_that_was_changed_in_brackets_or_literals_alone_is_computed_anew() {
    let queries = [
        (
            "SELECT DISTINCT id, id - (id - 1) AS d FROM src",
            "SELECT DISTINCT id, id - id - 1 AS d FROM src",
        ),
        (
            "SELECT DISTINCT id FROM src WHERE NOT (id > 10 AND id < 20)",
            "SELECT DISTINCT id FROM src WHERE NOT id > 10 AND id < 20",
        ),
        (
            "SELECT DISTINCT id FROM src WHERE id IN (SELECT column1 FROM (VALUES (1), (2), (3), (4), (5), (6)))",
            "SELECT DISTINCT id FROM src WHERE id IN (SELECT column1 FROM (VALUES (1), (2), (3), (4), (5), (7)))",
        ),
    ];
    for (before, after) in queries {
        let db = filled(true).await;
        db.create_general_view("v", before).await;
        db.refresh("v").await.unwrap();
        let first = db.rows("v").await;
        let definition = definition_metadata_from_sql(after);
        let mut table = db.open("v").await;
        let metadata = HashMap::from([(DEFINITION_META_KEY, definition.as_str())]);
        table.update_schema_metadata(metadata).await.unwrap();
        db.refresh("v").await.unwrap();
        let changed = db.rows("v").await;
        assert_ne!(changed, first, "{after}");
        let full = Request {
            full: true,
            ..request("v")
        };
        db.refresh_as(full).await.unwrap();
        assert_eq!(db.rows("v").await, changed, "{after}");
    }
}

#[tokio::test]
async fn what_a_failed_refresh_has_left_costs_those_nothing_that_find_the_view_right() {
    let db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let failed = request("v");
    let mut left = 0;
    for k in (0..).step_by(5) {
        let tried = db.copied();
        if run(&tried, &failed, Faults::new(k, false)).await.is_ok() {
            break;
        }
        let folder = format!(
            "{}/_relance/plans/{}/claims",
            tried.path("v"),
            failed.refresh
        );
        let claims = std::fs::read_dir(&folder).map_or(0, |claims| claims.count());
        if claims == 0 || commits_of(&tried, "v", &failed.refresh).await > 0 {
            continue;
        }
        left += 1;
        tried.refresh("v").await.unwrap();
        let claims = std::fs::read_dir(&folder).map_or(0, |claims| claims.count());
        assert_eq!(claims, 0, "what was taken over is of no use any more");
        // Nor is it computed again by the one that had staged it.
        let again = tried.copied();
        let files = || {
            let data = format!("{}/data", again.path("v"));
            std::fs::read_dir(data).unwrap().count()
        };
        let before = files();
        let done = again.refresh_as(failed.clone()).await.unwrap();
        assert_eq!((done.mode, files()), (Mode::NoOp, before));
        let mut view = tried.open("v").await;
        for n in 0..60 {
            let n = n.to_string();
            view.update_config([("key", n.as_str())]).await.unwrap();
        }
        let operations = async || {
            let mut view = tried.open("v").await;
            view.update_config([("key", "again")]).await.unwrap();
            let faults = Faults::none();
            let done = run(&tried, &request("v"), faults.clone()).await.unwrap();
            assert_eq!(done.mode, Mode::NoOp);
            faults.operations()
        };
        let beside = operations().await;
        let plans = format!("{}/_relance/plans", tried.path("v"));
        let _ = std::fs::remove_dir_all(plans);
        let without = operations().await;
        assert!(beside <= without + 2, "{beside}, and {without} without");
    }
    assert!(left > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_a_worker_long_is_left_to_it_until_it_is_dead() {
    let db = filled(true).await;
    let shape = shape("window");
    db.create_general_view("v", shape.sql).await;
    let asked = request("v");
    let worker = |index| Request {
        workers: 2,
        index,
        ..asked.clone()
    };
    // The view is one unit: the first worker's.
    let (slow, idle) = (Faults::holding("v.lance/data/"), Faults::none());
    let (first, second) = (worker(0), worker(1));
    let mut first = Box::pin(run(&db, &first, slow.clone()));
    tokio::select! {
        ended = &mut first => panic!("{ended:?}"),
        () = slow.reached() => {}
    }
    let mut second = std::pin::pin!(run(&db, &second, idle.clone()));
    tokio::select! {
        ended = &mut first => panic!("{ended:?}"),
        ended = &mut second => panic!("{ended:?}"),
        () = tokio::time::sleep(pulse::ALIVE + share::PATIENCE) => {}
    }
    assert_eq!(idle.written("v.lance/"), 0, "the first is at it");
    // Now it is dead.
    drop(first);
    let done = second.await.unwrap();
    assert_eq!(idle.written("v.lance/"), 1);
    db.assert_right(shape, Form::Plain, &done).await;
}
