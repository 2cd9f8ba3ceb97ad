//! Several worker processes over a store that is far away, so that processors
//! do not decide: how the time falls with their number, and whether together
//! they work more than one alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use lancedb::materialized_view::{MaterializedViewDefinition, prepare_definition};
use relance::engine::unit::TARGET_ROWS;

use crate::Args;
use crate::report::{Report, median};
use crate::worker::{self, Task};

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
    for units in &args.units {
        measure(args, *units, report).await;
    }
}

async fn measure(args: &Args, units: u64, report: &mut Report) {
    report.heading(&format!(
        "Workers: {units} units, {} ms added to every storage call",
        args.delay
    ));
    let folder = tempfile::Builder::new()
        .prefix("relance-bench")
        .tempdir_in(&args.folder)
        .expect("a folder");
    make(folder.path(), units).await;
    let mut taken: BTreeMap<u32, Taken> = BTreeMap::new();
    // The view is filled when the first of them starts, as it is for the others.
    once(args, units, folder.path(), 4, &mut Taken::default()).await;
    for _ in 0..args.rounds.min(3) {
        for workers in [1, 2, 4] {
            once(
                args,
                units,
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
async fn once(args: &Args, units: u64, folder: &Path, workers: u32, taken: &mut Taken) {
    let refresh = uuid::Uuid::now_v7().to_string();
    let start = Instant::now();
    let runs = (0..workers).map(|index| {
        let task = Task {
            // Lance reads plain local files past every wrapper.
            catalog: format!("dir://file-object-store://{}", folder.display()),
            view: "v".to_string(),
            refresh: refresh.clone(),
            workers,
            index,
            delay_millis: args.delay,
            ..Default::default()
        };
        async move {
            let done = worker::run(task).await;
            (start.elapsed().as_secs_f64(), done)
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
    let expected = units * TARGET_ROWS / 100 * 90;
    for (_, done) in &ended {
        let off = done.rows.abs_diff(expected);
        assert!(off <= 100, "{} rows were written", done.rows);
    }
}
