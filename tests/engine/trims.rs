//! Rows that are deleted from large units are taken out of them; nothing else of
//! these is computed or written again.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use chrono::TimeDelta;
use lance::dataset::WriteMode;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use relance::engine::outcome::Mode;
use relance::engine::refresh::Request;
use relance::engine::unit::TARGET_ROWS;

use crate::support::{Db, Form, SHAPES, Shape, request, shape, update};

async fn filled(stable: bool) -> Db {
    let mut db = Db::new(stable);
    let batch = db.batch(400);
    db.write(batch, WriteMode::Create, 100).await;
    db
}

async fn delete(db: &Db, which: &str) {
    db.open("src").await.delete(which).await.unwrap();
}

/// The view's data files, and how many rows are taken out of them.
async fn files(db: &Db) -> (BTreeSet<String>, usize) {
    let view = db.open("v").await;
    let files = view.fragments().iter().flat_map(|f| &f.files);
    let files = files.map(|file| file.path.clone()).collect();
    let physical: usize = view
        .fragments()
        .iter()
        .filter_map(|f| f.physical_rows)
        .sum();
    (files, physical - view.count_rows(None).await.unwrap())
}

fn by_rows() -> impl Iterator<Item = &'static Shape> {
    let apart = ["unnested", "grouped"];
    let shapes = SHAPES.iter().filter(|shape| shape.limit.is_none());
    shapes.filter(move |shape| !apart.contains(&shape.name))
}

#[tokio::test]
async fn a_deleted_row_is_taken_out_and_no_other_is_written() {
    for stable in [true, false] {
        for form in [Form::Plain, Form::Provenance] {
            for shape in by_rows() {
                let db = filled(stable).await;
                db.create_view("v", shape.sql, form).await;
                db.refresh("v").await.unwrap();
                let (before, none) = files(&db).await;
                assert_eq!(none, 0);
                // Rows of several fragments, some of which the filter drops.
                for (which, gone) in [("id IN (41, 250)", 0), ("id IN (42, 300)", 2)] {
                    delete(&db, which).await;
                    let done = db.refresh("v").await.unwrap();
                    let place = format!("{} {form:?} {stable} {which}: {done:?}", shape.name);
                    assert_eq!((done.rows_written, done.bytes_written), (0, 0), "{place}");
                    db.assert_right(shape, form, &done).await;
                    let (after, taken) = files(&db).await;
                    assert_eq!(after, before, "{place}");
                    assert!(taken >= gone, "{place}");
                    assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp, "{place}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_updated_row_is_taken_out_and_written_once() {
    for stable in [true, false] {
        for form in [Form::Plain, Form::Provenance] {
            let db = filled(stable).await;
            let shape = shape("filtered");
            db.create_view("v", shape.sql, form).await;
            db.refresh("v").await.unwrap();
            let (before, _) = files(&db).await;
            let source = db.open("src").await;
            update(source, "id = 42", "name", "'other'").await.unwrap();
            let done = db.refresh("v").await.unwrap();
            assert_eq!(done.rows_written, 1, "{form:?} {stable}: {done:?}");
            db.assert_right(shape, form, &done).await;
            let (after, taken) = files(&db).await;
            assert!(before.is_subset(&after));
            assert_eq!((after.len(), taken), (before.len() + 1, 1));
        }
    }
}

#[tokio::test]
async fn a_unit_that_has_lost_many_rows_is_computed_again() {
    let db = filled(true).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let (before, _) = files(&db).await;
    let mut most = 0;
    for from in (0..400).step_by(20) {
        delete(&db, &format!("id >= {from} AND id < {}", from + 10)).await;
        let done = db.refresh("v").await.unwrap();
        db.assert_right(shape, Form::Plain, &done).await;
        let (_, taken) = files(&db).await;
        most = most.max(taken);
        let rows = db.rows("v").await.len();
        assert!(taken * 8 <= taken + rows, "{taken} beside {rows}");
    }
    assert!(most > 10, "rows were taken out, {most} at the most");
    assert!(files(&db).await.0.is_disjoint(&before));
}

#[tokio::test]
async fn one_row_of_a_huge_fragment_is_taken_out_of_its_slice() {
    let mut db = Db::new(false);
    let rows = (3 * TARGET_ROWS) as i64;
    let ids = Arc::new(Int64Array::from_iter_values(0..rows));
    let batch = RecordBatch::try_from_iter([("id", ids.clone() as _), ("x", ids as _)]).unwrap();
    db.write(batch, WriteMode::Create, rows as usize).await;
    let sql = "SELECT id, x + 1 AS y FROM src WHERE x % 3 <> 0";
    db.create_view("v", sql, Form::Plain).await;
    let first = db.refresh("v").await.unwrap();
    assert_eq!(first.units_total, 3);
    let (before, _) = files(&db).await;
    for id in [200_000, 200_002, 5, 390_001] {
        delete(&db, &format!("id = {id}")).await;
        let done = db.refresh("v").await.unwrap();
        assert_eq!((done.units_kept, done.rows_written), (2, 0), "{done:?}");
        let view = db.open("v").await;
        let left = view.count_rows(Some(format!("id = {id}"))).await.unwrap();
        assert_eq!(left, 0);
    }
    let (after, taken) = files(&db).await;
    assert_eq!((after, taken), (before, 4));
    let more = db.batch(1);
    drop(more);
    assert_eq!(db.rows("v").await.len(), (rows / 3 * 2) as usize - 4);
}

#[tokio::test]
async fn what_rows_were_taken_out_of_follows_compactions_and_restores() {
    for form in [Form::Plain, Form::Provenance] {
        let mut db = filled(true).await;
        let shape = shape("filtered");
        db.create_view("v", shape.sql, form).await;
        db.refresh("v").await.unwrap();
        let version = db.open("v").await.version().version;
        let more = db.batch(100);
        db.write(more, WriteMode::Append, 100).await;
        delete(&db, "id IN (41, 42, 43)").await;
        db.refresh("v").await.unwrap();
        assert!(files(&db).await.1 > 0);
        let mut view = db.open("v").await;
        let options = CompactionOptions {
            materialize_deletions_threshold: 0.0,
            ..Default::default()
        };
        let tidied = compact_files(&mut view, options, None).await.unwrap();
        assert!(tidied.fragments_removed > 0);
        assert_eq!(files(&db).await.1, 0);
        let done = db.refresh("v").await.unwrap();
        assert_eq!(done.mode, Mode::NoOp, "{form:?}");
        db.assert_right(shape, form, &done).await;
        // What was merged by a compaction can lose rows too.
        delete(&db, "id IN (50, 450)").await;
        let done = db.refresh("v").await.unwrap();
        assert_eq!(done.rows_written, 0, "{form:?} {done:?}");
        db.assert_right(shape, form, &done).await;
        // The rows are there again that had been taken out.
        let mut view = db.open("v").await.checkout_version(version).await.unwrap();
        view.restore().await.unwrap();
        let done = db.refresh("v").await.unwrap();
        db.assert_right(shape, form, &done).await;
        let mut source = db.open("src").await.checkout_version(1).await.unwrap();
        source.restore().await.unwrap();
        let done = db.refresh("v").await.unwrap();
        db.assert_right(shape, form, &done).await;
    }
}

#[tokio::test]
async fn where_the_old_version_of_the_source_was_cleaned_up_the_unit_is_computed() {
    let db = filled(true).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    delete(&db, "id = 42").await;
    let source = db.open("src").await;
    source
        .cleanup_old_versions(TimeDelta::zero(), Some(true), None)
        .await
        .unwrap();
    let done = db.refresh("v").await.unwrap();
    assert!(done.rows_written > 100, "{done:?}");
    db.assert_right(shape, Form::Plain, &done).await;
    assert_eq!(files(&db).await.1, 0);
}

#[tokio::test]
async fn rows_that_others_take_out_or_put_back_are_found() {
    let db = filled(true).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    delete(&db, "id = 42").await;
    db.refresh("v").await.unwrap();
    let trimmed = db.open("v").await.version().version;
    let mut view = db.open("v").await;
    view.delete("id = 50").await.unwrap();
    let done = db.refresh("v").await.unwrap();
    db.assert_right(shape, Form::Plain, &done).await;
    assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp);
    // The version with the row taken out is right as it is, and its claim revives.
    let mut view = db.open("v").await.checkout_version(trimmed).await.unwrap();
    view.restore().await.unwrap();
    let done = db.refresh("v").await.unwrap();
    assert_eq!(done.rows_written, 0);
    db.assert_right(shape, Form::Plain, &done).await;
}

#[tokio::test]
async fn a_fragment_whose_rows_are_all_deleted_is_taken_out_of_its_unit() {
    let mut db = filled(true).await;
    // Four fragments of a unit, and a small one that joins them in another.
    let small = db.batch(4);
    db.write(small, WriteMode::Append, 100).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let (before, _) = files(&db).await;
    delete(&db, "id >= 400").await;
    assert_eq!(db.open("src").await.fragments().len(), 4);
    let done = db.refresh("v").await.unwrap();
    assert_eq!(done.rows_written, 0, "{done:?}");
    db.assert_right(shape, Form::Plain, &done).await;
    assert_eq!(files(&db).await.0, before);
}

#[tokio::test]
async fn a_full_refresh_takes_nothing_out() {
    let db = filled(true).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    delete(&db, "id = 42").await;
    let full = Request {
        full: true,
        ..request("v")
    };
    let done = db.refresh_as(full).await.unwrap();
    assert_eq!(done.mode, Mode::Rebuild);
    db.assert_right(shape, Form::Plain, &done).await;
    assert_eq!(files(&db).await.1, 0);
}

/// Takes the files of `src` away that hold no row of `kept`, ids of fragments, and
/// gives how to put them back.
async fn hidden(db: &Db, kept: &[u64]) -> impl Fn() {
    let source = db.open("src").await;
    let fragments = source.fragments().iter();
    let others = fragments.filter(|f| !kept.contains(&f.id));
    let data = std::path::PathBuf::from(db.path("src")).join("data");
    let paths = others.flat_map(|f| f.files.iter().map(|file| data.join(&file.path)));
    let paths: Vec<_> = paths.collect();
    assert!(!paths.is_empty());
    for path in &paths {
        std::fs::rename(path, path.with_extension("hidden")).unwrap();
    }
    move || {
        for path in &paths {
            std::fs::rename(path.with_extension("hidden"), path).unwrap();
        }
    }
}

#[tokio::test]
async fn where_a_column_tells_the_rows_no_file_is_read_but_those_that_lost_some() {
    for stable in [true, false] {
        for form in [Form::Plain, Form::Provenance] {
            let db = filled(stable).await;
            let shape = shape("filtered");
            db.create_view("v", shape.sql, form).await;
            db.refresh("v").await.unwrap();
            let (before, _) = files(&db).await;
            // Two rows of the second fragment and one of the last, one at a time after the
            // others, so that the view's fragment has deletions when it loses more.
            for (which, taken) in [("id IN (142, 144)", 2), ("id = 344", 3), ("id = 145", 4)] {
                delete(&db, which).await;
                let back = hidden(&db, &[1, 3]).await;
                let done = db.refresh("v").await.unwrap();
                back();
                assert_eq!(done.rows_written, 0, "{form:?} {stable} {which}: {done:?}");
                db.assert_right(shape, form, &done).await;
                let (after, gone) = files(&db).await;
                assert_eq!(after, before, "{form:?} {stable} {which}");
                assert_eq!(gone, taken, "{form:?} {stable} {which}");
            }
        }
    }
}

#[tokio::test]
async fn rows_that_no_column_tells_apart_are_found_by_their_place() {
    // Texts alone, a column that nearly all share, and rows that are there many times.
    let queries = [
        "SELECT name FROM src WHERE id >= 10",
        "SELECT 7 AS seven, name FROM src WHERE id >= 10",
        "SELECT id % 3 AS third FROM src WHERE id >= 10",
        "SELECT id / 2 AS half FROM src WHERE id >= 10",
    ];
    for sql in queries {
        let db = filled(true).await;
        db.create_view("v", sql, Form::Plain).await;
        db.refresh("v").await.unwrap();
        let (before, _) = files(&db).await;
        for (which, taken) in [
            ("id IN (42, 43)", 2),
            ("id IN (5, 44, 301)", 4),
            ("id = 45", 5),
        ] {
            delete(&db, which).await;
            let done = db.refresh("v").await.unwrap();
            assert_eq!(done.rows_written, 0, "{sql} {which}: {done:?}");
            let version = db.open("src").await.version().version;
            let right = db.evaluated_sql(sql, None, version).await;
            assert_eq!(db.rows("v").await, right.unwrap().1, "{sql} {which}");
            assert_eq!(files(&db).await, (before.clone(), taken), "{sql} {which}");
        }
    }
}
