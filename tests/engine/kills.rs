//! Workers that are killed: real processes, real SIGKILLs, at random moments
//! of a refresh, and started again as a Job starts its pods again. However
//! that goes, each refresh commits once and leaves the right rows.
//!
//! `RELANCE_KILLS` says how many workers are killed in each test (default 6),
//! `RELANCE_SEED` where the moments come from.

use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use futures::TryStreamExt;
use lance::dataset::WriteMode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relance::protocol::{Task, exit};
use std::sync::Arc;

use crate::support::{Db, Form, Worker, commits_of, number};

/// Rows of one source fragment: more than half a unit, so that each is one.
const ROWS: i64 = 140_000;
const FRAGMENTS: i64 = 4;

fn rows(from: i64, count: i64) -> RecordBatch {
    let ids: Vec<i64> = (from..from + count).collect();
    let x = Int64Array::from_iter_values(ids.iter().map(|id| id * 7 % 101));
    let columns: [(&str, ArrayRef); 2] =
        [("id", Arc::new(Int64Array::from(ids))), ("x", Arc::new(x))];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn filled() -> Db {
    let db = Db::new(true);
    let all = rows(0, ROWS * FRAGMENTS);
    db.write(all, WriteMode::Create, ROWS as usize).await;
    let sql = "SELECT id, x * 2 AS y FROM src WHERE x > 20";
    db.create_view("v", sql, Form::Plain).await;
    db
}

/// The two columns of a table, sorted.
async fn pairs(db: &Db, table: &str) -> Vec<(i64, i64)> {
    let mut found = Vec::new();
    let table = db.open(table).await;
    let mut batches = table.scan().try_into_stream().await.unwrap();
    while let Some(batch) = batches.try_next().await.unwrap() {
        let column = |n: usize| batch.column(n).as_primitive::<Int64Type>().values().clone();
        found.extend(column(0).iter().copied().zip(column(1).iter().copied()));
    }
    found.sort_unstable();
    found
}

/// Runs one refresh with `workers`, of which up to `kills` are killed.
/// Returns how many were, and how long the workers ran.
async fn killed(
    db: &Db,
    workers: u32,
    kills: u64,
    pace: Duration,
    random: &mut StdRng,
) -> (u64, Duration) {
    let begun = Instant::now();
    let task = Task {
        refresh_uid: uuid::Uuid::new_v4().to_string(),
        job_id: "killed".into(),
        view: vec!["v".into()],
        full: random.random_bool(0.4),
        concurrency: Some(workers),
        ..Default::default()
    };
    let mut running: Vec<(u32, Worker)> = (0..workers)
        .map(|index| (index, Worker::spawn(db, &task, index)))
        .collect();
    let mut done = 0;
    while done < kills && !running.is_empty() {
        tokio::time::sleep(pace.mul_f64(random.random_range(0.0..1.0))).await;
        let (index, victim) = running.swap_remove(random.random_range(0..running.len()));
        // One that has ended by itself said that all is right.
        if victim.kill().await {
            done += 1;
            running.push((index, Worker::spawn(db, &task, index)));
        }
    }
    for (index, worker) in running {
        assert_eq!(worker.wait().await, exit::OK, "worker {index} of {task:?}");
    }
    let took = begun.elapsed();
    // The killed ones' successors found everything done, or did it.
    let last = Worker::spawn(db, &task, 0).wait().await;
    assert_eq!(last, exit::OK, "{task:?}");
    let source: Vec<(i64, i64)> = pairs(db, "src").await;
    let wanted: Vec<(i64, i64)> = source
        .into_iter()
        .filter(|(_, x)| *x > 20)
        .map(|(id, x)| (id, x * 2))
        .collect();
    let found = pairs(db, "v").await;
    assert_eq!(found.len(), wanted.len(), "rows after {task:?}");
    assert!(found == wanted, "other rows than there should be: {task:?}");
    assert_eq!(
        commits_of(db, "v", &task.refresh_uid).await,
        1,
        "commits of {task:?}"
    );
    (done, took)
}

async fn kill(workers: u32) {
    let (seed, wanted) = (number("RELANCE_SEED", 1), number("RELANCE_KILLS", 6));
    let mut random = StdRng::seed_from_u64(seed);
    let template = filled().await;
    let clean = template.copied();
    let begun = Instant::now();
    // A refresh sees several kills, and its workers come to any of its steps.
    let pace = killed(&clean, workers, 0, Duration::ZERO, &mut random)
        .await
        .1
        / 2;
    let (mut kills, mut rounds) = (0, 0);
    let mut db = clean;
    let mut next_id = ROWS * FRAGMENTS;
    while kills < wanted {
        if rounds % 8 == 7 {
            db = template.copied();
        }
        let mut source = db.open("src").await;
        let picked = random.random_range(0..1000);
        let which = format!("id % {} = {picked}", 2 * ROWS);
        source.delete(&which).await.unwrap();
        let more = rows(next_id, 500);
        db.write(more, WriteMode::Append, 500).await;
        next_id += 500;
        let most = (wanted - kills).min(random.random_range(3..12));
        kills += killed(&db, workers, most, pace, &mut random).await.0;
        rounds += 1;
        if rounds % 20 == 0 {
            println!("{kills} of {wanted} kills of {workers} worker(s)");
        }
    }
    println!(
        "{kills} kills of {workers} worker(s) in {rounds} refreshes, RELANCE_SEED={seed}, {:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_worker_that_is_killed_again_and_again_leaves_the_right_rows() {
    kill(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_workers_that_are_killed_again_and_again_leave_the_right_rows() {
    kill(3).await;
}
