//! `GROUP BY` views by parts: what a change costs, that the groups are right
//! whatever happens to the parts, and what is computed whole.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_select::concat::concat_batches;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use lance::dataset::WriteMode;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance_io::stream::RecordBatchStream;
use lancedb::materialized_view::{DEFINITION_META_KEY, definition_metadata_from_sql};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relance::engine::error::EngineError;
use relance::engine::ledger::Ledger;
use relance::engine::outcome::{Mode, Outcome};
use relance::engine::refresh::Request;

use crate::faults::{self, store::Faults};
use crate::support::{Db, Form, render, request, update};

/// Aggregates that are merged from parts. `{id}` is where the older form has
/// its row ids.
const MERGED: &[&str] = &[
    "SELECT k, count(*) AS n, count(x) AS c, sum(x) AS s, min(x) AS lo, max(name) AS hi FROM src GROUP BY k",
    "SELECT k, avg(x) AS m, stddev(y) AS d, var_pop(y) AS v, sum(y) AS t FROM src GROUP BY k",
    "SELECT k, count(DISTINCT x) AS d, sum(DISTINCT x) AS s, median(x) AS m FROM src WHERE id <> 7 GROUP BY k",
    "SELECT x % 4 AS g, k, bool_or(x > 50) AS w, bit_xor(x) AS b, count(y) * 2 + 1 AS n FROM src \
     WHERE y > 1.5 OR x IS NULL GROUP BY x % 4, k",
    "SELECT name, approx_distinct(k) AS a FROM src GROUP BY name",
    "SELECT k FROM src GROUP BY k",
    "SELECT coalesce(k, '?') AS k, sum(coalesce(x, 0)) AS s, coalesce(max(x), -1) AS m, \
     count(nvl2(x, 1, id)) AS n FROM src GROUP BY coalesce(k, '?')",
    "SELECT arrow_cast(k, 'LargeUtf8') AS k, ifnull(min(x), 7) AS m FROM src \
     GROUP BY arrow_cast(k, 'LargeUtf8')",
];

/// Those that depend on the order of rows, and are computed whole.
const WHOLE: &[&str] = &[
    "SELECT id, array_agg(x) AS xs FROM src GROUP BY id",
    "SELECT k, approx_percentile_cont(y, 0.0) AS p FROM src GROUP BY k",
];

fn rows_of(ids: std::ops::Range<i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.collect();
    let numbers = |f: fn(i64) -> Option<i64>| -> ArrayRef {
        Arc::new(Int64Array::from_iter(ids.iter().map(|id| f(*id))))
    };
    let texts = |f: fn(i64) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter(ids.iter().map(|id| f(*id))))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", numbers(Some)),
        (
            "k",
            texts(|id| (id % 6 != 5).then(|| format!("key {}", id % 6))),
        ),
        ("x", numbers(|id| (id % 7 != 3).then_some(id * 31 % 101))),
        (
            "y",
            Arc::new(Float64Array::from_iter(
                ids.iter()
                    .map(|id| (id % 9 != 2).then_some(*id as f64 / 3.0)),
            )),
        ),
        ("name", texts(|id| Some(format!("name {}", id % 40)))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
        .unwrap()
}

/// A database whose source has two fragments of 100 rows.
async fn filled(stable_row_ids: bool) -> Db {
    let db = Db::new(stable_row_ids);
    db.write(rows_of(0..200), WriteMode::Create, 100).await;
    db
}

async fn append(db: &Db, ids: std::ops::Range<i64>) {
    db.write(rows_of(ids), WriteMode::Append, 1_000_000).await;
}

/// What `sql` gives over all rows in memory.
async fn evaluated(db: &Db, sql: &str, form: Form) -> Vec<String> {
    let source = db.open("src").await;
    let mut scan = source.scan();
    scan.with_row_id();
    let stream = scan.try_into_stream().await.unwrap();
    let schema = stream.schema();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    let context = SessionContext::new();
    let table = MemTable::try_new(schema, vec![batches]).unwrap();
    context.register_table("src", Arc::new(table)).unwrap();
    let sql = match form {
        Form::Plain => sql.to_string(),
        Form::Provenance => sql.replacen(" FROM src", ", min(_rowid) AS rid FROM src", 1),
    };
    let groups = context.sql(&sql).await.unwrap().collect().await.unwrap();
    render(&groups)
}

/// Whether two renderings are the same, floating-point values up to a part in
/// a billion.
fn same(left: &[String], right: &[String]) -> bool {
    let close = |a: &str, b: &str| match (a.parse::<f64>(), b.parse::<f64>()) {
        _ if a == b => true,
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0),
        _ => false,
    };
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| {
            let (left, right): (Vec<_>, Vec<_>) =
                (left.split(" | ").collect(), right.split(" | ").collect());
            left.len() == right.len() && left.iter().zip(&right).all(|(a, b)| close(a, b))
        })
}

async fn check(db: &Db, view: &str, sql: &str, form: Form, why: &str) -> Outcome {
    let outcome = db.refresh(view).await.unwrap();
    let (now, right) = (db.rows(view).await, evaluated(db, sql, form).await);
    assert!(
        same(&now, &right),
        "{sql} {form:?} {why}:\n{now:#?}\n{right:#?}"
    );
    outcome
}

fn folder(db: &Db, view: &str) -> PathBuf {
    PathBuf::from(db.path(view)).join("_relance/partials")
}

/// The objects of partial aggregates of a view.
fn objects(db: &Db, view: &str) -> BTreeSet<PathBuf> {
    match std::fs::read_dir(folder(db, view)) {
        Ok(found) => found.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => BTreeSet::new(),
    }
}

#[tokio::test]
async fn a_group_of_everything_is_there_without_rows_too() {
    for sql in [
        "SELECT 'all' AS k, count(*) AS n, max(x) AS m FROM src WHERE x > 98 GROUP BY 'all'",
        "SELECT 1 + 1 AS two, sum(x) AS s FROM src WHERE x > 98 GROUP BY 1 + 1",
    ] {
        let db = Db::new(true);
        db.write(rows_of(0..0), WriteMode::Create, 100).await;
        db.create_view("v", sql, Form::Plain).await;
        check(&db, "v", sql, Form::Plain, "over an empty table").await;
        append(&db, 0..3).await;
        check(&db, "v", sql, Form::Plain, "with no row that passes").await;
        append(&db, 3..200).await;
        check(&db, "v", sql, Form::Plain, "with some that do").await;
        db.open("src").await.delete("x > 98").await.unwrap();
        check(&db, "v", sql, Form::Plain, "and without them").await;
        assert_eq!(db.rows("v").await.len(), 1, "{sql}");
    }
}

#[tokio::test]
async fn every_aggregate_is_right_through_random_changes() {
    for stable_row_ids in [false, true] {
        let mut random = StdRng::seed_from_u64(11);
        let db = filled(stable_row_ids).await;
        let mut next = 200;
        let views: Vec<(String, &str, Form)> = MERGED
            .iter()
            .chain(WHOLE)
            .enumerate()
            .map(|(at, sql)| {
                let form = [Form::Plain, Form::Provenance][at % 2];
                (format!("v{at}"), *sql, form)
            })
            .collect();
        for (view, sql, form) in &views {
            db.create_view(view, sql, *form).await;
        }
        for round in 0..5 {
            for (view, sql, form) in &views {
                let why = format!("round {round} {stable_row_ids}");
                check(&db, view, sql, *form, &why).await;
                let again = check(&db, view, sql, *form, &why).await;
                assert_eq!(again.mode, Mode::NoOp, "{sql} {why}");
            }
            for _ in 0..random.random_range(1..4) {
                let id = random.random_range(0..next);
                let mut source = db.open("src").await;
                match random.random_range(0..5) {
                    0 | 1 => {
                        let rows = random.random_range(1..40);
                        append(&db, next..next + rows).await;
                        next += rows;
                    }
                    2 => {
                        source.delete(&format!("id = {id}")).await.unwrap();
                    }
                    3 => {
                        let which = format!("id < {id} AND id > {id} - 5");
                        update(source, &which, "x", "x + 1").await.unwrap();
                    }
                    _ => {
                        compact_files(&mut source, CompactionOptions::default(), None)
                            .await
                            .unwrap();
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_small_change_costs_its_own_part_and_the_merge() {
    for form in [Form::Plain, Form::Provenance] {
        let db = filled(true).await;
        let sql = MERGED[0];
        db.create_view("v", sql, form).await;
        let first = check(&db, "v", sql, form, "at first").await;
        assert_eq!((first.mode, first.units_total), (Mode::Rebuild, 1));
        let before = objects(&db, "v");
        assert_eq!(before.len(), 1);

        append(&db, 200..201).await;
        let appended = check(&db, "v", sql, form, "after an append").await;
        assert_eq!(
            (appended.mode, appended.units_kept, appended.units_total),
            (Mode::Incremental, 1, 2)
        );
        let after = objects(&db, "v");
        assert!(after.is_superset(&before) && after.len() == 2);

        db.open("src").await.delete("id = 200").await.unwrap();
        append(&db, 201..202).await;
        let deleted = check(&db, "v", sql, form, "after a row went and one came").await;
        assert_eq!((deleted.units_kept, deleted.units_total), (1, 2));
        assert_eq!(objects(&db, "v").len(), 3);

        // A column that the view does not read.
        let mut source = db.open("src").await;
        source.drop_columns(&["y"]).await.unwrap();
        let dropped = check(&db, "v", sql, form, "after a column went").await;
        assert_eq!(dropped.mode, Mode::NoOp);
    }
}

#[tokio::test]
async fn parts_follow_a_compaction_of_the_source() {
    let db = filled(true).await;
    let sql = MERGED[1];
    db.create_view("v", sql, Form::Plain).await;
    check(&db, "v", sql, Form::Plain, "at first").await;
    append(&db, 200..230).await;
    check(&db, "v", sql, Form::Plain, "after an append").await;
    compact_files(
        &mut db.open("src").await,
        CompactionOptions::default(),
        None,
    )
    .await
    .unwrap();
    let compacted = check(&db, "v", sql, Form::Plain, "after a compaction").await;
    assert_eq!(compacted.mode, Mode::NoOp);
    let before = objects(&db, "v");
    append(&db, 230..240).await;
    let then = check(&db, "v", sql, Form::Plain, "and another append").await;
    assert_eq!((then.units_kept, then.units_total), (1, 2));
    assert_eq!(objects(&db, "v").difference(&before).count(), 1);
}

#[tokio::test]
async fn parts_that_are_gone_or_damaged_are_computed_again() {
    let db = filled(false).await;
    let sql = MERGED[2];
    db.create_view("v", sql, Form::Plain).await;
    check(&db, "v", sql, Form::Plain, "at first").await;
    append(&db, 200..220).await;
    check(&db, "v", sql, Form::Plain, "after an append").await;
    let mut next = 220;
    for harm in ["gone", "cut", "changed", "empty"] {
        for path in objects(&db, "v") {
            let bytes = std::fs::read(&path).unwrap();
            match harm {
                "gone" => std::fs::remove_file(&path).unwrap(),
                "cut" => std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap(),
                "changed" => {
                    let mut changed = bytes;
                    let at = changed.len() / 2;
                    changed[at] ^= 0x55;
                    std::fs::write(&path, changed).unwrap();
                }
                _ => std::fs::write(&path, []).unwrap(),
            }
        }
        append(&db, next..next + 3).await;
        next += 3;
        let why = format!("after the parts were {harm}");
        let done = check(&db, "v", sql, Form::Plain, &why).await;
        assert_eq!(done.mode, Mode::Incremental, "{why}");
    }
    std::fs::remove_dir_all(PathBuf::from(db.path("v")).join("_relance")).unwrap();
    check(
        &db,
        "v",
        sql,
        Form::Plain,
        "after all that was kept is gone",
    )
    .await;
}

#[tokio::test]
async fn a_part_that_is_joined_of_many_objects_is_right_whatever_became_of_one() {
    for harm in ["nothing", "gone", "cut"] {
        let db = filled(true).await;
        let sql = MERGED[2];
        db.create_view("v", sql, Form::Plain).await;
        check(&db, "v", sql, Form::Plain, "at first").await;
        for from in (200..260).step_by(10) {
            append(&db, from..from + 10).await;
            check(&db, "v", sql, Form::Plain, "after an append").await;
        }
        let options = CompactionOptions::default();
        let mut source = db.open("src").await;
        compact_files(&mut source, options, None).await.unwrap();
        let compacted = check(&db, "v", sql, Form::Plain, "after a compaction").await;
        assert_eq!(compacted.mode, Mode::NoOp);
        let objects = objects(&db, "v");
        assert!(objects.len() >= 6);
        let one = objects.iter().nth(3).unwrap();
        match harm {
            "gone" => std::fs::remove_file(one).unwrap(),
            "cut" => std::fs::write(one, &std::fs::read(one).unwrap()[..99]).unwrap(),
            _ => {}
        }
        append(&db, 300..305).await;
        let last = check(&db, "v", sql, Form::Plain, harm).await;
        assert_eq!(last.mode, Mode::Incremental);
    }
}

/// Rows whose texts no two share, and nothing compresses.
fn texts(ids: std::ops::Range<u64>) -> RecordBatch {
    let mixed = |id: u64| (id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let part = |id: u64, n: u64| mixed(mixed(id) ^ n) ^ (mixed(id + n) >> 31);
    let text = |id| {
        (0..32)
            .map(|n| format!("{:016x}", part(id, n)))
            .collect::<String>()
    };
    let texts = StringArray::from_iter_values(ids.map(text));
    RecordBatch::try_from_iter_with_nullable([("text", Arc::new(texts) as _, true)]).unwrap()
}

#[tokio::test]
async fn a_part_of_objects_that_are_large_together_is_merged_from_one_after_the_other() {
    const ROWS: u64 = 8_000;
    let db = Db::new(true);
    // More than twice as much as its groups.
    let thrice = |ids| {
        let once = texts(ids);
        concat_batches(&once.schema(), &[once.clone(), once.clone(), once]).unwrap()
    };
    db.write(thrice(0..ROWS), WriteMode::Create, 1 << 20).await;
    let sql = "SELECT text, count(*) AS n FROM src GROUP BY text";
    db.create_view("v", sql, Form::Plain).await;
    for n in 1..6 {
        db.refresh("v").await.unwrap();
        let more = thrice(n * ROWS..(n + 1) * ROWS);
        db.write(more, WriteMode::Append, 1 << 20).await;
    }
    db.refresh("v").await.unwrap();
    let options = CompactionOptions::default();
    let mut source = db.open("src").await;
    compact_files(&mut source, options, None).await.unwrap();
    db.refresh("v").await.unwrap();
    let objects = objects(&db, "v");
    let size = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    let sizes: Vec<u64> = objects.iter().map(size).collect();
    assert!(sizes.iter().sum::<u64>() > 16 << 20, "{sizes:?}");
    let groups = async |n: u64| {
        db.write(texts(n..n + 5), WriteMode::Append, 100).await;
        let done = db.refresh("v").await?;
        assert_eq!(done.mode, Mode::Incremental);
        let view = db.open("v").await;
        assert_eq!(
            view.count_rows(Some("n = 3 OR n = 1".into()))
                .await
                .unwrap() as u64,
            n + 5
        );
        Ok::<_, EngineError>(())
    };
    groups(6 * ROWS).await.unwrap();
    let one = objects.iter().nth(3).unwrap();
    std::fs::write(one, &std::fs::read(one).unwrap()[..99]).unwrap();
    // Whatever came of the others before it was read is merged by then.
    let said = groups(6 * ROWS + 5).await.unwrap_err();
    assert!(said.to_string().contains("is damaged"), "{said}");
    groups(6 * ROWS + 10).await.unwrap();
}

#[tokio::test]
async fn aggregates_that_depend_on_order_and_full_refreshes_use_no_parts_of_before() {
    let db = filled(true).await;
    db.create_view("w", WHOLE[0], Form::Plain).await;
    check(&db, "w", WHOLE[0], Form::Plain, "at first").await;
    assert!(objects(&db, "w").is_empty());

    let sql = MERGED[0];
    db.create_view("v", sql, Form::Plain).await;
    check(&db, "v", sql, Form::Plain, "at first").await;
    let before = objects(&db, "v");
    let full = Request {
        full: true,
        ..request("v")
    };
    let done = db.refresh_as(full).await.unwrap();
    assert_eq!((done.mode, done.units_kept), (Mode::Rebuild, 0));
    assert_eq!(objects(&db, "v").difference(&before).count(), 1);
    append(&db, 200..210).await;
    let then = check(&db, "v", sql, Form::Plain, "after an append").await;
    assert_eq!(then.units_kept, 1);
}

#[tokio::test]
async fn the_least_and_the_greatest_are_those_of_a_full_refresh_whatever_is_no_number() {
    let nan = f64::NAN;
    let rows = |from: i64, values: &[f64]| {
        let ids = from..from + values.len() as i64;
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(Int64Array::from_iter_values(ids))),
            ("k", Arc::new(StringArray::from(vec!["k"; values.len()]))),
            ("y", Arc::new(Float64Array::from(values.to_vec()))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
            .unwrap()
    };
    for (first, second, after) in [
        (vec![nan, 5.0], vec![1.0], "k | 1.0 | NaN"),
        (vec![1.0, 5.0], vec![nan, 6.0], "k | 1.0 | NaN"),
        (vec![nan, 5.0], vec![nan], "k | NaN | NaN"),
        (vec![0.0, 5.0], vec![-0.0], "k | -0.0 | 0.0"),
    ] {
        for form in [Form::Plain, Form::Provenance] {
            let db = Db::new(true);
            let sql = "SELECT k, min(y) AS lo, max(y) AS hi FROM src GROUP BY k";
            db.write(rows(0, &first), WriteMode::Create, 100).await;
            db.create_view("v", sql, form).await;
            db.refresh("v").await.unwrap();
            db.write(rows(2, &second), WriteMode::Append, 100).await;
            db.refresh("v").await.unwrap();
            db.open("src").await.delete("y = 5").await.unwrap();
            let done = db.refresh("v").await.unwrap();
            assert_eq!((done.units_kept, done.units_total), (1, 2));
            let by_parts = db.rows("v").await;
            let full = Request {
                full: true,
                ..request("v")
            };
            db.refresh_as(full).await.unwrap();
            let place = format!("{first:?} {second:?} {form:?}");
            assert_eq!(by_parts, db.rows("v").await, "{place}");
            assert!(by_parts[0].starts_with(after), "{place}: {by_parts:?}");
        }
    }
}

#[tokio::test]
async fn parts_of_another_version_are_computed_again() {
    let db = filled(false).await;
    let sql = MERGED[0];
    db.create_view("v", sql, Form::Plain).await;
    let mut next = 200;
    for (was, is) in [("DataFusion ", "DataFusion 1"), ("madeBy", "once")] {
        check(&db, "v", sql, Form::Plain, "before").await;
        // As if all that is kept were of another version, or of one that did not say.
        let ledgers = PathBuf::from(db.path("v")).join("_relance/ledgers");
        for entry in std::fs::read_dir(ledgers).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(was), "{text}");
            std::fs::write(&path, text.replace(was, is)).unwrap();
        }
        append(&db, next..next + 5).await;
        next += 5;
        let done = check(&db, "v", sql, Form::Plain, &format!("with {is}")).await;
        assert_eq!((done.mode, done.units_kept), (Mode::Rebuild, 0), "{is}");
        append(&db, next..next + 5).await;
        next += 5;
        let then = check(&db, "v", sql, Form::Plain, "after that").await;
        assert_eq!(then.mode, Mode::Incremental, "{is}");
    }
}

#[tokio::test]
async fn groups_that_are_as_many_as_rows_are_computed_whole() {
    let db = Db::new(false);
    let wide = |ids: std::ops::Range<i64>| {
        let keys = StringArray::from_iter_values(ids.clone().map(|id| format!("{id:0>400}")));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("k", Arc::new(keys)),
            ("x", Arc::new(Int64Array::from_iter_values(ids))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
            .unwrap()
    };
    let sql = "SELECT k, sum(x) AS s FROM src GROUP BY k";
    db.write(wide(0..50_000), WriteMode::Create, 1_000_000)
        .await;
    db.create_view("v", sql, Form::Plain).await;
    check(&db, "v", sql, Form::Plain, "at first").await;
    let sizes = |db: &Db| -> Vec<u64> {
        let paths = objects(db, "v").into_iter();
        paths.map(|path| path.metadata().unwrap().len()).collect()
    };
    // A mark that its states are too large, and no states.
    assert_eq!(sizes(&db), [40]);
    db.write(wide(50_000..50_010), WriteMode::Append, 1_000_000)
        .await;
    let then = check(&db, "v", sql, Form::Plain, "after an append").await;
    assert_eq!(then.mode, Mode::Rebuild);
    assert_eq!(sizes(&db), [40]);
    let again = check(&db, "v", sql, Form::Plain, "again").await;
    assert_eq!(again.mode, Mode::NoOp);
}

#[tokio::test]
async fn several_workers_share_the_parts_and_commit_once() {
    let db = filled(true).await;
    let sql = MERGED[0];
    db.create_view("v", sql, Form::Plain).await;
    for round in 0..3 {
        let before = db.open("v").await.version().version;
        let uid = uuid::Uuid::new_v4().to_string();
        let workers = (0..3).map(|index| {
            db.refresh_as(Request {
                refresh: uid.clone(),
                workers: 3,
                index,
                ..request("v")
            })
        });
        let done = futures::future::try_join_all(workers).await.unwrap();
        assert!(done.iter().all(|o| o == &done[0]), "{done:?}");
        assert_eq!(done[0].units_kept, round);
        assert!(same(
            &db.rows("v").await,
            &evaluated(&db, sql, Form::Plain).await
        ));
        assert_eq!(db.open("v").await.version().version, before + 1);
        let from = 200 + round as i64 * 5;
        append(&db, from..from + 5).await;
    }
}

#[tokio::test]
async fn many_small_changes_leave_few_parts_and_few_objects() {
    let db = filled(false).await;
    let sql = MERGED[5];
    db.create_view("v", sql, Form::Plain).await;
    let mut most = 0;
    for at in 0..80 {
        append(&db, 200 + at..201 + at).await;
        let done = db.refresh("v").await.unwrap();
        most = most.max(done.units_total);
    }
    check(&db, "v", sql, Form::Plain, "after all").await;
    assert!(most <= 34, "{most} parts");
    let objects = objects(&db, "v").len();
    assert!(objects <= 200, "{objects} objects");
}

#[tokio::test]
async fn small_changes_of_a_source_that_is_compacted_now_and_then_leave_few_objects() {
    let db = filled(true).await;
    let sql = MERGED[1];
    db.create_view("v", sql, Form::Plain).await;
    let (mut next, mut most) = (200, 0);
    for _ in 0..20 {
        for _ in 0..3 {
            append(&db, next..next + 2).await;
            next += 2;
            db.refresh("v").await.unwrap();
        }
        let mut source = db.open("src").await;
        compact_files(&mut source, CompactionOptions::default(), None)
            .await
            .unwrap();
        check(&db, "v", sql, Form::Plain, "after a compaction").await;
        most = most.max(listed(&db, "v"));
    }
    assert!(most <= 36, "{most} objects");
}

#[tokio::test]
async fn a_view_that_is_redefined_without_groups_keeps_no_parts() {
    let db = filled(false).await;
    let grouped = "SELECT k, max(id) AS n FROM src GROUP BY k";
    db.create_view("v", grouped, Form::Plain).await;
    db.refresh("v").await.unwrap();
    assert_eq!(objects(&db, "v").len(), 1);
    let definition = definition_metadata_from_sql("SELECT k, id AS n FROM src");
    let redefined = HashMap::from([(DEFINITION_META_KEY, definition.as_str())]);
    let mut view = db.open("v").await;
    view.update_schema_metadata(redefined).await.unwrap();
    let done = db.refresh("v").await.unwrap();
    assert_eq!((done.mode, done.rows_written), (Mode::Rebuild, 200));
    assert_eq!(objects(&db, "v").len(), 0);
}

/// How many objects the partials of the newest ledger of a view have.
fn listed(db: &Db, view: &str) -> usize {
    let ledgers = PathBuf::from(db.path(view)).join("_relance/ledgers");
    let ledgers = std::fs::read_dir(ledgers).unwrap().map(|e| e.unwrap());
    let newest = ledgers.max_by_key(|e| e.metadata().unwrap().modified().unwrap());
    let ledger = std::fs::read(newest.unwrap().path()).unwrap();
    let ledger: Ledger = serde_json::from_slice(&ledger).unwrap();
    ledger.partials.iter().map(|p| p.objects.len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_refresh_that_failed_are_used_by_the_next() {
    let db = filled(false).await;
    let sql = MERGED[0];
    db.create_view("v", sql, Form::Plain).await;
    check(&db, "v", sql, Form::Plain, "at first").await;
    append(&db, 200..205).await;
    // The first fault that leaves a part behind.
    let mut left = None;
    for k in 0.. {
        let copy = db.copied();
        let result = faults::run(&copy, &request("v"), Faults::new(k, true)).await;
        if result.is_err() && objects(&copy, "v").len() == 2 {
            left = Some(copy);
            break;
        }
        assert!(result.is_err(), "no fault left a part behind");
    }
    let db = left.unwrap();
    let before = objects(&db, "v");
    append(&db, 205..208).await;
    let done = check(&db, "v", sql, Form::Plain, "after a fault and an append").await;
    // What was committed, what the fault left, and the last append.
    assert_eq!((done.units_kept, done.units_total), (1, 3));
    assert_eq!(objects(&db, "v").difference(&before).count(), 1);
}

#[tokio::test]
async fn a_plan_that_another_version_made_is_carried_out_without_its_parts() {
    let db = filled(false).await;
    let sql = MERGED[0];
    db.create_view("v", sql, Form::Plain).await;
    check(&db, "v", sql, Form::Plain, "at first").await;
    append(&db, 200..205).await;
    let asked = request("v");
    // A worker that has planned and is gone before it left a part.
    let faults = Faults::holding("_relance/partials");
    tokio::select! {
        ended = faults::run(&db, &asked, faults.clone()) => panic!("{ended:?}"),
        () = faults.reached() => {}
    }
    let plans = PathBuf::from(db.path("v")).join("_relance/plans");
    let plan = plans.join(&asked.refresh).join("plan-0001.json");
    let text = std::fs::read_to_string(&plan).unwrap();
    assert!(text.contains("DataFusion "), "{text}");
    std::fs::write(&plan, text.replace("DataFusion ", "DataFusion 1")).unwrap();
    let before = objects(&db, "v");
    db.refresh_as(asked).await.unwrap();
    let (now, right) = (db.rows("v").await, evaluated(&db, sql, Form::Plain).await);
    assert!(same(&now, &right), "{now:#?}\n{right:#?}");
    assert_eq!(objects(&db, "v"), before);
}
