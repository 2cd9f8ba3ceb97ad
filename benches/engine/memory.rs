//! How much memory a worker takes that may have 2 GiB, and how long: over sources that
//! have more, and units that have as much, for views of a row each and for those that
//! hold rows until all are there.

use std::time::Instant;

use clap::ValueEnum;

use crate::Args;
use crate::database::Database;
use crate::report::Report;
use crate::worker::{self, Group, Task};
use crate::workload::LARGE;

/// What the worker may have.
pub const LIMIT: u64 = 2 << 30;

/// A view that takes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Large {
    /// Rows with a vector, one by one.
    Vectors,
    /// Rows with a text, one by one.
    Texts,
    /// DISTINCT over eight scans.
    Distinct,
    /// A join of two sides that are larger each than what queries may hold.
    Joined,
    /// A join with a side of three quarters of that.
    Side,
    /// The first rows of an order, half of all.
    First,
    /// A window that is computed while rows come.
    Window,
    /// A window over all rows of a group.
    Sums,
    /// GROUP BY with a group for each row, and a text for each group.
    States,
    /// GROUP BY with millions of small groups.
    Names,
}

/// Measures full refreshes by 2 and 8 threads.
pub async fn run(args: &Args, report: &mut Report) {
    report.heading("Memory: a worker that may have 2 GiB");
    let group = match Group::new(LIMIT) {
        Ok(group) => group,
        Err(why) => {
            report.say(&format!("Left out: no control group can be made ({why})."));
            return;
        }
    };
    report.say("| view | bytes of its source | threads | seconds | rows written | most memory |");
    report.say("|---|---:|---:|---:|---:|---:|");
    for (large, workload) in LARGE {
        if !args.memory.is_empty() && !args.memory.contains(large) {
            continue;
        }
        let rows = args.shape_rows / workload.part_of;
        let database = Database::new(&args.folder, workload, rows, true).await;
        let expected = database.expected().await;
        for threads in [2, 8] {
            // A view of its own: what a worker that failed has left is no other's.
            let view = format!("v{threads}");
            database.create_view(&view, false).await;
            let start = Instant::now();
            let done = worker::try_run(Task {
                catalog: format!("dir://{}", database.folder()),
                view: view.clone(),
                refresh: uuid::Uuid::now_v7().to_string(),
                workers: 1,
                threads,
                group: Some(group.path()),
                ..Default::default()
            })
            .await;
            let seconds = start.elapsed().as_secs_f64();
            let figures = match done {
                Ok(done) if done.rows == expected => {
                    format!("{} | {} MiB", done.rows, done.peak_mib)
                }
                Ok(done) => format!("WRONG: {}, not {expected} |", done.rows),
                Err(why) => format!("FAILED: {why} |"),
            };
            report.say(&format!(
                "| {} | {} | {threads} | {seconds:.2} | {figures} |",
                workload.name,
                database.bytes("src")
            ));
            std::fs::remove_dir_all(database.path(&view)).expect("removed");
        }
    }
}
