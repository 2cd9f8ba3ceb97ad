//! Several worker processes over a store that is far away, so that processors
//! do not decide: how the time falls with their number, and whether together
//! they work more than one alone.
//!
//! A worker is this program again, told by an environment variable; it goes
//! the way that a worker's pod goes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use lancedb::materialized_view::{MaterializedViewDefinition, prepare_definition};
use relance::engine::catalog::Catalog;
use relance::engine::refresh::{Progress, Request, refresh};
use relance::engine::unit::TARGET_ROWS;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::sync::watch;

use crate::Args;
use crate::delay::{Delay, Wrap};
use crate::peers::cpu_seconds;
use crate::report::{Report, median};

const WORKER: &str = "RELANCE_BENCH_WORKER";

/// What a worker shall do.
#[derive(Serialize, Deserialize)]
struct Task {
    catalog: String,
    refresh: String,
    workers: u32,
    index: u32,
    delay_millis: u64,
}

/// What it took.
#[derive(Serialize, Deserialize)]
struct Done {
    cpu: f64,
    calls: u64,
    peak_mib: u64,
    rows: u64,
}

/// Whether this process is a worker.
pub fn is_worker() -> bool {
    std::env::var_os(WORKER).is_some()
}

/// Works, and says what it took.
pub async fn work() {
    let task = std::env::var(WORKER).expect("a task");
    let task: Task = serde_json::from_str(&task).expect("a task");
    let delay = Arc::new(Delay {
        delay: Duration::from_millis(task.delay_millis),
        calls: AtomicU64::new(0),
    });
    let wrapper = Arc::new(Wrap(delay.clone()));
    let catalog = Catalog::connect_wrapped(&task.catalog, &BTreeMap::new(), wrapper)
        .await
        .expect("connected");
    let request = Request {
        view: vec!["v".to_string()],
        refresh: task.refresh,
        full: true,
        workers: task.workers,
        index: task.index,
        ..Default::default()
    };
    let (progress, _) = watch::channel(Progress::default());
    let outcome = refresh(&catalog, &request, &progress)
        .await
        .expect("refreshed");
    let done = Done {
        cpu: cpu_seconds(),
        calls: delay.calls.load(Ordering::Relaxed),
        peak_mib: peak_mib(),
        rows: outcome.rows_written,
    };
    println!("{}", serde_json::to_string(&done).expect("JSON"));
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0) / 1024
}

/// What some number of workers took.
#[derive(Default)]
struct Taken {
    wall: Vec<f64>,
    cpu: Vec<f64>,
    calls: u64,
    peak_mib: u64,
}

/// Measures 1, 2 and 4 workers.
pub async fn run(args: &Args, report: &mut Report) {
    report.heading(&format!(
        "Workers: {} units, {} ms added to every storage call",
        args.units, args.delay
    ));
    let folder = tempfile::Builder::new()
        .prefix("relance-bench")
        .tempdir_in(&args.folder)
        .expect("a folder");
    make(folder.path(), args.units as u64).await;
    let mut taken: BTreeMap<u32, Taken> = BTreeMap::new();
    for _ in 0..args.rounds.min(3) {
        for workers in [1, 2, 4] {
            once(
                args,
                folder.path(),
                workers,
                taken.entry(workers).or_default(),
            )
            .await;
        }
    }
    report.say("| workers | seconds | times one | processor seconds, all | times one | calls, all | most memory of one |");
    report.say("|---:|---:|---:|---:|---:|---:|---:|");
    let one = taken
        .get(&1)
        .map(|one| (median(one.wall.clone()), median(one.cpu.clone())));
    for (workers, taken) in taken {
        let (wall, cpu) = (median(taken.wall), median(taken.cpu));
        let (wall_of_one, cpu_of_one) = one.unwrap_or((f64::NAN, f64::NAN));
        report.say(&format!(
            "| {workers} | {wall:.2} | {:.2} | {cpu:.2} | {:.2} | {} | {} MiB |",
            wall_of_one / wall,
            cpu / cpu_of_one,
            taken.calls,
            taken.peak_mib
        ));
    }
}

/// A source of `units` fragments, each a unit of its own.
async fn make(folder: &Path, units: u64) {
    let rows = units * TARGET_ROWS;
    let batches = (0..rows).step_by(TARGET_ROWS as usize).map(|from| {
        let xs: Int64Array = (from..from + TARGET_ROWS)
            .map(|n| Some((n * 7 % 100) as i64))
            .collect();
        RecordBatch::try_from_iter([("x", Arc::new(xs) as _)])
    });
    let empty = Int64Array::from(Vec::<i64>::new());
    let schema = RecordBatch::try_from_iter([("x", Arc::new(empty) as _)])
        .expect("a batch")
        .schema();
    let params = WriteParams {
        mode: WriteMode::Create,
        max_rows_per_file: TARGET_ROWS as usize,
        ..Default::default()
    };
    let path = folder.join("src.lance");
    Dataset::write(
        RecordBatchIterator::new(batches, schema),
        &path.display().to_string(),
        Some(params),
    )
    .await
    .expect("written");
    let connection = lancedb::connect(&folder.display().to_string())
        .execute()
        .await
        .expect("connected");
    let source = connection
        .open_table("src")
        .execute()
        .await
        .expect("opened");
    let definition =
        MaterializedViewDefinition::from_sql("SELECT x * 2 AS y FROM src WHERE x < 90")
            .expect("a definition");
    let prepared = prepare_definition(&source, definition)
        .await
        .expect("prepared");
    prepared.create("v").await.expect("created");
}

/// Runs one refresh by `workers` workers.
async fn once(args: &Args, folder: &Path, workers: u32, taken: &mut Taken) {
    let refresh = uuid::Uuid::now_v7().to_string();
    let this = std::env::current_exe().expect("this program");
    let start = Instant::now();
    let runs = (0..workers).map(|index| {
        let task = Task {
            // Lance reads plain local files past every wrapper.
            catalog: format!("dir://file-object-store://{}", folder.display()),
            refresh: refresh.clone(),
            workers,
            index,
            delay_millis: args.delay,
        };
        let worker = Command::new(&this)
            .env(WORKER, serde_json::to_string(&task).expect("JSON"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("a worker starts");
        async move {
            let output = worker.wait_with_output().await.expect("a worker ends");
            let ended = start.elapsed().as_secs_f64();
            assert!(output.status.success(), "a worker failed");
            let done: Done = serde_json::from_slice(&output.stdout).expect("JSON");
            (ended, done)
        }
    });
    let ended = futures::future::join_all(runs).await;
    // A Job has succeeded as soon as one of its pods has.
    let first = ended
        .iter()
        .map(|(at, _)| *at)
        .fold(f64::INFINITY, f64::min);
    taken.wall.push(first);
    taken.cpu.push(ended.iter().map(|(_, done)| done.cpu).sum());
    taken.calls = ended.iter().map(|(_, done)| done.calls).sum();
    taken.peak_mib = ended.iter().map(|(_, d)| d.peak_mib).max().unwrap_or(0);
    let expected = args.units as u64 * TARGET_ROWS / 100 * 90;
    for (_, done) in &ended {
        let off = done.rows.abs_diff(expected);
        assert!(off <= 100, "{} rows were written", done.rows);
    }
}
