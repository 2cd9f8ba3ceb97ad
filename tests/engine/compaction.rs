//! Compactions, of the source and of the view, and fragments that are large.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use chrono::TimeDelta;
use lance::Dataset;
use lance::dataset::WriteMode;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use relance::engine::merge::FAN_IN;
use relance::engine::outcome::Mode;
use relance::engine::refresh::Request;
use relance::engine::unit::TARGET_ROWS;

use crate::support::{Db, Form, SHAPES, request, shape};

async fn filled(stable: bool) -> Db {
    let mut db = Db::new(stable);
    let batch = db.batch(400);
    db.write(batch, WriteMode::Create, 40).await;
    db
}

async fn compact(db: &Db, table: &str, target_rows: usize) {
    let mut table = db.open(table).await;
    let options = CompactionOptions {
        target_rows_per_fragment: target_rows,
        ..Default::default()
    };
    let metrics = compact_files(&mut table, options, None).await.unwrap();
    assert!(metrics.fragments_removed > 1, "{metrics:?}");
}

#[tokio::test]
async fn a_refresh_after_a_pure_compaction_of_the_source_writes_nothing() {
    for (form, stable) in [
        (Form::Plain, false),
        (Form::Plain, true),
        (Form::Provenance, true),
    ] {
        for shape in SHAPES.iter().filter(|s| s.limit.is_none()) {
            let db = filled(stable).await;
            db.create_view("v", shape.sql, form).await;
            let first = db.refresh("v").await.unwrap();
            compact(&db, "src", 150).await;
            compact(&db, "src", 1000).await;
            let then = db.refresh("v").await.unwrap();
            assert_eq!(then.mode, Mode::NoOp, "{} {form:?} {stable}", shape.name);
            assert_eq!(then.bytes_written, 0);
            assert!(then.source_version > first.source_version);
            db.assert_right(shape, form, &then).await;
        }
    }
}

#[tokio::test]
async fn units_are_cut_so_that_a_compaction_joins_no_more_of_them_than_it_must() {
    let db = Db::new(true);
    let ids = Arc::new(Int64Array::from_iter_values(0..600_000));
    let batch = RecordBatch::try_from_iter_with_nullable([("id", ids as _, true)]).unwrap();
    db.write(batch, WriteMode::Create, 30_000).await;
    // Groups of seven fragments and of all thirteen others.
    let rows = [("lance.compaction.target_rows_per_fragment", "200000")];
    db.open("src").await.update_config(rows).await.unwrap();
    let sql = "SELECT id FROM src WHERE id % 2 = 0";
    db.create_view("v", sql, Form::Plain).await;
    let first = db.refresh("v").await.unwrap();
    assert_eq!(first.units_total, 6);
    compact(&db, "src", 200_000).await;
    let then = db.refresh("v").await.unwrap();
    assert_eq!((then.mode, then.units_total), (Mode::NoOp, 2));
    // So a change costs its group, and not all that was compacted.
    db.open("src").await.delete("id >= 599990").await.unwrap();
    let done = db.refresh("v").await.unwrap();
    assert_eq!((done.mode, done.units_kept), (Mode::Incremental, 1));
    assert_eq!(db.rows("v").await.len(), 299_995);
}

#[tokio::test]
async fn row_ids_that_are_addresses_move_with_a_compaction() {
    let db = filled(false).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Provenance).await;
    db.refresh("v").await.unwrap();
    compact(&db, "src", 1000).await;
    let then = db.refresh("v").await.unwrap();
    assert_eq!(then.mode, Mode::Rebuild);
    db.assert_right(shape, Form::Provenance, &then).await;
}

#[tokio::test]
async fn a_carried_claim_outlives_the_transactions_that_carried_it() {
    let mut db = filled(false).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    compact(&db, "src", 1000).await;
    assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp);
    let more = db.batch(30);
    db.write(more, WriteMode::Append, 40).await;
    let source = db.open("src").await;
    source
        .cleanup_old_versions(TimeDelta::zero(), Some(true), None)
        .await
        .unwrap();
    let then = db.refresh("v").await.unwrap();
    assert_eq!(then.mode, Mode::Incremental);
    assert!(then.rows_written <= 30, "{then:?}");
    db.assert_right(shape, Form::Plain, &then).await;
}

#[tokio::test]
async fn a_compaction_that_was_cleaned_up_is_computed_again_and_once() {
    let mut db = filled(false).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    compact(&db, "src", 1000).await;
    let mut source = db.open("src").await;
    source.update_config([("touched", "1")]).await.unwrap();
    source
        .cleanup_old_versions(TimeDelta::zero(), Some(true), None)
        .await
        .unwrap();
    let then = db.refresh("v").await.unwrap();
    assert_eq!(then.mode, Mode::Rebuild);
    db.assert_right(shape, Form::Plain, &then).await;
    // The rebuild leaves a state that later refreshes go on from.
    assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp);
    let more = db.batch(20);
    db.write(more, WriteMode::Append, 30).await;
    let later = db.refresh("v").await.unwrap();
    assert_eq!(later.mode, Mode::Incremental);
    assert!(later.rows_written <= 20, "{later:?}");
    db.assert_right(shape, Form::Plain, &later).await;
}

#[tokio::test]
async fn changes_around_a_compaction_cost_only_what_they_touched() {
    let mut db = filled(true).await;
    let shape = shape("carried");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    for _ in 0..6 {
        let more = db.batch(40);
        db.write(more, WriteMode::Append, 40).await;
        db.refresh("v").await.unwrap();
    }
    let mut source = db.open("src").await;
    source.delete("id = 590").await.unwrap();
    compact(&db, "src", 200).await;
    let more = db.batch(7);
    db.write(more, WriteMode::Append, 40).await;
    let then = db.refresh("v").await.unwrap();
    assert_eq!(then.mode, Mode::Incremental, "{then:?}");
    // Compaction took the deleted row's fragment and its five neighbours.
    assert!(then.rows_written <= 247, "{then:?}");
    db.assert_right(shape, Form::Plain, &then).await;
}

#[tokio::test]
async fn a_column_that_was_dropped_before_a_compaction_and_added_again_is_read_anew() {
    let db = filled(false).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let mut source = db.open("src").await;
    source.drop_columns(&["x"]).await.unwrap();
    compact(&db, "src", 1000).await;
    let mut source = db.open("src").await;
    source
        .add_columns(
            lance::dataset::NewColumnTransform::AllNulls(Arc::new(arrow_schema::Schema::new(
                vec![arrow_schema::Field::new(
                    "x",
                    arrow_schema::DataType::Int64,
                    true,
                )],
            ))),
            None,
            None,
        )
        .await
        .unwrap();
    let then = db.refresh("v").await.unwrap();
    assert!(db.rows("v").await.is_empty(), "no row has an x over 20 now");
    assert_ne!(then.mode, Mode::NoOp);
}

#[tokio::test]
async fn tidying_a_view_costs_no_rebuild() {
    // A clean-up that follows takes the files that the claims are of.
    let forms = [Form::Plain, Form::Provenance].into_iter();
    for (form, cleaned) in forms.flat_map(|form| [(form, false), (form, true)]) {
        let mut db = filled(true).await;
        let shape = shape("filtered");
        db.create_view("v", shape.sql, form).await;
        db.refresh("v").await.unwrap();
        for _ in 0..3 {
            let more = db.batch(40);
            db.write(more, WriteMode::Append, 40).await;
            db.refresh("v").await.unwrap();
        }
        compact(&db, "v", 1000).await;
        if cleaned {
            let view = db.open("v").await;
            view.cleanup_old_versions(TimeDelta::zero(), Some(true), None)
                .await
                .unwrap();
        }
        let then = db.refresh("v").await.unwrap();
        assert_eq!(then.mode, Mode::NoOp, "{form:?} {cleaned}");
        let more = db.batch(40);
        db.write(more, WriteMode::Append, 40).await;
        let then = db.refresh("v").await.unwrap();
        assert_eq!(then.mode, Mode::Incremental, "{form:?} {cleaned}");
        assert!(then.rows_written <= 40);
        db.assert_right(shape, form, &then).await;
    }
}

#[tokio::test]
async fn a_view_that_was_tidied_with_foreign_rows_in_it_is_put_right() {
    let db = filled(true).await;
    let shape = shape("filtered");
    db.create_view("v", shape.sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    let mut view = db.open("v").await;
    let row = crate::support::foreign(&arrow_schema::Schema::from(view.schema()));
    let schema = row.schema();
    view.append(
        arrow_array::RecordBatchIterator::new([Ok(row)], schema),
        None,
    )
    .await
    .unwrap();
    compact(&db, "v", 1000).await;
    let then = db.refresh("v").await.unwrap();
    db.assert_right(shape, Form::Plain, &then).await;
}

/// How many rows those files of the view have that were not `seen` before.
fn written(view: &Dataset, seen: &mut HashSet<String>) -> u64 {
    let fragments = view.fragments().iter();
    let new = fragments.filter(|f| seen.insert(f.files[0].path.clone()));
    new.map(|f| f.physical_rows.unwrap() as u64).sum()
}

#[tokio::test]
async fn many_small_appends_leave_few_fragments_and_rewrite_each_row_few_times() {
    const ROWS: usize = 10;
    // Eight claims of one size are one of the next tier: of `n` appends none is
    // put together more often than this.
    let times = |n: u32| u64::from(n.ilog2() / FAN_IN.ilog2());
    // After 66 what was put together has been put together once more.
    for (form, appends) in [(Form::Plain, 66), (Form::Provenance, 40)] {
        let shape = shape("filtered");
        let mut db = Db::new(true);
        // Too large to be of a tier with anything that follows.
        let batch = db.batch(FAN_IN.pow(4));
        db.write(batch, WriteMode::Create, 1 << 20).await;
        db.create_view("v", shape.sql, form).await;
        let first = db.refresh("v").await.unwrap();
        let data = format!("{}/data", db.path("v"));
        let files = || std::fs::read_dir(&data).unwrap().count();
        let mut seen = HashSet::new();
        let view = db.open("v").await;
        assert_eq!(written(&view, &mut seen), first.rows_written);
        let before = (files(), seen.len());
        let (mut appended, mut rewritten) = (0, 0);
        for n in 1..=appends {
            let more = db.batch(ROWS);
            db.write(more, WriteMode::Append, 40).await;
            let done = db.refresh("v").await.unwrap();
            assert_eq!(done.mode, Mode::Incremental);
            assert!(done.rows_written <= ROWS as u64, "{done:?}");
            let view = db.open("v").await;
            appended += done.rows_written;
            rewritten += written(&view, &mut seen) - done.rows_written;
            let most = times(n) * appended;
            assert!(rewritten <= most, "{rewritten} of {appended} after {n}");
            let fragments = view.fragments().len();
            let most = 1 + FAN_IN * (times(n) as usize + 1);
            assert!(fragments <= most, "{fragments} fragments after {n}");
            if n % 8 == 1 || n == appends {
                db.assert_right(shape, form, &done).await;
            }
        }
        // Most rows as often as they may be, or the bound would be a poor one.
        let least = (times(appends) - 1) * appended;
        assert!(rewritten > least, "{rewritten} of {appended}");
        let rows = db.rows("v").await.len() as u64;
        assert_eq!(first.rows_written + appended, rows);
        let new = (files() - before.0, seen.len() - before.1);
        assert_eq!(new.0, new.1, "files that no version has");
        assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp);
    }
}

#[tokio::test]
async fn small_appends_to_a_source_that_is_compacted_now_and_then_leave_few_fragments() {
    for form in [Form::Plain, Form::Provenance] {
        let shape = shape("filtered");
        let mut db = filled(true).await;
        db.create_view("v", shape.sql, form).await;
        db.refresh("v").await.unwrap();
        let mut most = 0;
        for _ in 0..12 {
            for _ in 0..8 {
                let more = db.batch(10);
                db.write(more, WriteMode::Append, 40).await;
                let done = db.refresh("v").await.unwrap();
                assert_eq!(done.mode, Mode::Incremental);
                assert!(done.rows_written <= 10, "{done:?}");
                most = most.max(db.open("v").await.fragments().len());
            }
            compact(&db, "src", 100_000).await;
            let done = db.refresh("v").await.unwrap();
            assert_eq!(done.mode, Mode::NoOp);
            db.assert_right(shape, form, &done).await;
        }
        assert!(most <= 40, "{most} fragments");
    }
}

#[tokio::test]
async fn a_sole_survivor_of_three_workers_does_the_work_of_all() {
    let shape = shape("filtered");
    let db = filled(false).await;
    db.create_view("v", shape.sql, Form::Plain).await;
    let asked = Request {
        workers: 3,
        index: 1,
        ..request("v")
    };
    let done = db.refresh_as(asked).await.unwrap();
    db.assert_right(shape, Form::Plain, &done).await;
}

fn plain(ids: std::ops::Range<i64>) -> RecordBatch {
    let x = Int64Array::from_iter_values(ids.clone().map(|id| id % 100));
    let ids = Int64Array::from_iter_values(ids);
    RecordBatch::try_from_iter([("id", Arc::new(ids) as _), ("x", Arc::new(x) as _)]).unwrap()
}

#[tokio::test]
async fn a_row_deleted_from_a_huge_fragment_costs_a_slice_of_it() {
    let rows = 3 * TARGET_ROWS as i64 + 10;
    for form in [Form::Plain, Form::Provenance] {
        let db = Db::new(true);
        db.write(plain(0..rows), WriteMode::Create, rows as usize)
            .await;
        assert_eq!(db.open("src").await.fragments().len(), 1);
        db.create_view("v", "SELECT id, x + 1 AS y FROM src WHERE x < 50", form)
            .await;
        let first = db.refresh("v").await.unwrap();
        assert_eq!(first.units_total, 4);
        let count = async |filter: &str| {
            db.open("v")
                .await
                .count_rows(Some(filter.to_string()))
                .await
                .unwrap() as i64
        };
        let all = (0..rows).filter(|id| id % 100 < 50).count() as i64;
        assert_eq!(count("true").await, all);

        let mut source = db.open("src").await;
        source.delete("id = 5").await.unwrap();
        let then = db.refresh("v").await.unwrap();
        assert_eq!((then.mode, then.units_kept), (Mode::Incremental, 3));
        assert_eq!(count("true").await, all - 1);
        assert_eq!(count("id = 5").await, 0);
        // A second deletion elsewhere writes the deletion file anew, with both.
        source
            .delete(&format!("id = {}", rows - 5 - (rows - 5) % 100))
            .await
            .unwrap();
        let then = db.refresh("v").await.unwrap();
        assert_eq!((then.mode, then.units_kept), (Mode::Incremental, 3));
        assert_eq!(count("true").await, all - 2);
        assert_eq!(db.refresh("v").await.unwrap().mode, Mode::NoOp);
        let distinct = db.rows("v").await;
        assert_eq!(distinct.len() as i64, all - 2);
    }
}
