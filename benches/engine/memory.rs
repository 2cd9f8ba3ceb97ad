//! How much memory a worker takes that may have 2 GiB, over sources that have
//! more, and units that have as much.

use crate::Args;
use crate::database::Database;
use crate::report::Report;
use crate::worker::{self, Group, Task};
use crate::workload::LARGE;

/// What the worker may have.
const LIMIT: u64 = 2 << 30;

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
    report.say("| source | bytes | threads | rows written | most memory |");
    report.say("|---|---:|---:|---:|---:|");
    for workload in &LARGE {
        let rows = args.shape_rows / workload.part_of;
        let database = Database::new(&args.folder, workload, rows, true).await;
        database.create_view("v", false).await;
        for threads in [2, 8] {
            let done = worker::run(Task {
                catalog: format!("dir://{}", database.folder()),
                view: "v".to_string(),
                refresh: uuid::Uuid::now_v7().to_string(),
                workers: 1,
                threads,
                group: Some(group.path()),
                ..Default::default()
            })
            .await;
            assert_eq!(done.rows, database.expected().await);
            database.tidy(["v"].into_iter()).await;
            report.say(&format!(
                "| {} | {} | {threads} | {} | {} MiB |",
                workload.name,
                database.bytes("src"),
                done.rows,
                done.peak_mib
            ));
        }
    }
}
