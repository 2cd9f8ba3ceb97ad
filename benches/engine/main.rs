//! What a refresh costs beside lancedb's own and beside the floor: one scan
//! with the same expressions into one Lance write.
//!
//! All of them run side by side in one run, in turn, so that a machine that is
//! slow for a while is slow for all; ratios of medians are what counts. Every
//! result is checked for its number of rows. Needs no cluster.
//!
//! ```text
//! cargo bench --bench engine                                  everything: 20 M, 2 M and 200,000 rows
//! cargo bench --bench engine -- rows --rows 200000 --rounds 3 one part, small
//! cargo bench --bench engine -- memory --memory joined,window two views in a small pod's memory
//! cargo bench --bench engine -- --write benches/RESULTS.md    and keep the tables
//! ```
//!
//! Peers: the lancedb crate that relance is built with, in this process, and
//! Python lancedb (`--python`, as `tests/python/venv` makes it), which times
//! itself, so that its start does not count.

mod changes;
mod database;
mod delay;
mod memory;
mod peers;
mod planning;
mod report;
mod rows;
mod scaling;
mod worker;
mod workload;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use relance::engine::processors;

use changes::Change;
use memory::Large;
use report::Report;

/// Benchmarks the engine.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// Which parts; all, if none is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Source rows of part `rows`; may be given again.
    #[arg(long, value_delimiter = ',', default_values_t = [20_000_000, 2_000_000, 200_000])]
    rows: Vec<u64>,
    /// Which changes to a source; all, if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    changes: Vec<Change>,
    /// Source rows of `grouped`, `unnest` and `joined`; a hundredth of it for `wide`. Of
    /// `memory` all for `names`, a fortieth for `vectors` and `texts`, an eightieth else.
    #[arg(long, default_value_t = 20_000_000)]
    shape_rows: u64,
    /// Which views of part `memory`; all, if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    memory: Vec<Large>,
    /// How often each figure is taken.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Source fragments of part `planning`.
    #[arg(long, default_value_t = 100_000)]
    fragments: usize,
    /// Source fragments, a unit each, of part `scaling`; may be given again.
    #[arg(long, value_delimiter = ',', default_values_t = [160, 400, 800])]
    units: Vec<u64>,
    /// Milliseconds added to every storage call in part `scaling`.
    #[arg(long, default_value_t = 50)]
    delay: u64,
    /// A Python with lancedb 0.40; without one that peer is left out.
    #[arg(long, env = "RELANCE_TEST_PYTHON")]
    python: Option<PathBuf>,
    /// Leaves out lancedb of either version: a rebuild for each change takes its time.
    #[arg(long)]
    alone: bool,
    /// Where to write the tables.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Where to make tables; they are removed afterwards.
    #[arg(long, env = "TMPDIR", default_value = "/tmp")]
    folder: PathBuf,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Projection and filter, and every change to the source, at several sizes.
    Rows,
    /// A vector column carried through.
    Wide,
    /// GROUP BY.
    Grouped,
    /// UNNEST.
    Unnest,
    /// A join of two sources.
    Joined,
    /// A refresh that finds nothing to do, over very many fragments.
    Planning,
    /// Several worker processes over a slow store.
    Scaling,
    /// What a worker takes of a small pod's memory.
    Memory,
}

fn main() {
    // As the program does. The peers in this process have it better so, too.
    // SAFETY: nothing has started a thread yet.
    unsafe { processors::use_all() };
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(run());
}

async fn run() {
    if worker::is_worker() {
        return worker::work().await;
    }
    let args = Args::parse();
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut report = Report::new(&args);
    if wanted(Part::Rows) {
        for rows in &args.rows {
            rows::history(&args, *rows, &mut report).await;
        }
        report.growth();
    }
    for (part, workload) in workload::SHAPES {
        if wanted(*part) {
            rows::shape(&args, workload, &mut report).await;
        }
    }
    if wanted(Part::Planning) {
        planning::run(&args, &mut report).await;
    }
    if wanted(Part::Scaling) {
        scaling::run(&args, &mut report).await;
    }
    if wanted(Part::Memory) {
        memory::run(&args, &mut report).await;
    }
    report.finish(&args);
}
