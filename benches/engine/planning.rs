//! What it costs to find that nothing is to be done, over very many fragments.
//!
//! The files of such a source are one file under many names, so that it is
//! made in seconds; Lance and the engine read each of them as a file of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lance::Dataset;
use lance::dataset::transaction::{Operation, TransactionBuilder};
use lance::dataset::{CommitBuilder, WriteDestination};
use lance_table::format::Fragment;
use relance::engine::catalog::Catalog;
use relance::engine::ledger::{Claim, LEDGERS_KEPT, Ledger};
use relance::engine::outcome::{Mode, Outcome};
use relance::engine::paths;
use relance::engine::refresh::{Progress, Request, refresh};
use relance::engine::work::Work;
use tokio::sync::watch;

use crate::Args;
use crate::database::{Database, FRAGMENTS};
use crate::memory::LIMIT;
use crate::report::{Report, median};
use crate::worker::{self, Group, Task};
use crate::workload::ROWS;

/// Rows of each fragment.
const ROWS_A_FRAGMENT: u64 = 10;

/// Measures a NoOp over `--fragments` fragments: as few units as the engine
/// cuts of small fragments, and one unit for each.
pub async fn run(args: &Args, report: &mut Report) {
    report.heading(&format!(
        "{} source fragments, nothing to do",
        args.fragments
    ));
    report.say("| units | seconds | bytes of the ledger |");
    report.say("|---:|---:|---:|");

    let rows = FRAGMENTS * ROWS_A_FRAGMENT;
    let database = Database::new(&args.folder, &ROWS, rows, true).await;
    multiply(&database, "src", args.fragments).await;
    database.create_view("v", false).await;
    let first = no_op(&database).await;
    assert_ne!(first.1.mode, Mode::NoOp);
    measure(args, &database, report).await;

    // A unit for each fragment, which the engine cuts only of large ones: the
    // view and its ledger are made to be what such a refresh would leave.
    let database = Database::new(&args.folder, &ROWS, rows, true).await;
    multiply(&database, "src", args.fragments).await;
    database.create_view("v", false).await;
    forge(&database).await;
    measure(args, &database, report).await;
    drift(args, &database, report).await;
}

/// What a worker takes that may have 2 GiB, of whose view a fragment is in no ledger:
/// it reads all that there are, which say the same of nearly all units.
async fn drift(args: &Args, database: &Database, report: &mut Report) {
    let ledgers = std::path::PathBuf::from(database.path("v")).join("_relance/ledgers");
    let named = |name: &str| ledgers.join(format!("{:020}-{name}.json", 0));
    let entries = std::fs::read_dir(&ledgers).expect("ledgers");
    let sizes = entries.map(|entry| entry.expect("a ledger").path());
    let largest = sizes.max_by_key(|path| path.metadata().map_or(0, |m| m.len()));
    let largest = largest.expect("a ledger");
    for n in 1..LEDGERS_KEPT {
        std::fs::copy(&largest, named(&format!("old-{n:02}"))).expect("copied");
    }
    let view = database.open("v").await;
    let rows = view.count_rows(None).await.expect("counted") as u64;
    let data = std::path::PathBuf::from(database.path("v")).join("data");
    let foreign = copy(&view.fragments()[0], &data, args.fragments + 1);
    append(view, vec![foreign]).await;
    report.say(&format!(
        "\nOf a view of so many units, all its {LEDGERS_KEPT} ledgers, and rows that somebody \
         appended, by a worker that may have 2 GiB:\n"
    ));
    let group = match Group::new(LIMIT) {
        Ok(group) => group,
        Err(why) => {
            report.say(&format!("Left out: no control group can be made ({why})."));
            return;
        }
    };
    let start = Instant::now();
    let done = worker::try_run(Task {
        catalog: format!("dir://{}", database.folder()),
        view: "v".to_string(),
        refresh: uuid::Uuid::now_v7().to_string(),
        workers: 1,
        threads: 2,
        incremental: true,
        group: Some(group.path()),
        ..Default::default()
    })
    .await;
    let seconds = start.elapsed().as_secs_f64();
    report.say("| seconds | rows written | most memory |");
    report.say("|---:|---:|---:|");
    report.say(&match done {
        Ok(done) => {
            assert_eq!(database.count("v").await, rows, "what was appended is gone");
            format!("| {seconds:.2} | {} | {} MiB |", done.rows, done.peak_mib)
        }
        Err(why) => format!("| {seconds:.2} | FAILED: {why} | |"),
    });
}

async fn measure(args: &Args, database: &Database, report: &mut Report) {
    let mut times = Vec::new();
    let mut units = 0;
    for _ in 0..args.rounds {
        let (time, outcome) = no_op(database).await;
        assert_eq!(outcome.mode, Mode::NoOp);
        units = outcome.units_kept;
        times.push(time);
    }
    let ledgers = std::fs::read_dir(format!("{}/_relance/ledgers", database.path("v")));
    let bytes: Vec<u64> = ledgers
        .expect("ledgers")
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .collect();
    report.say(&format!(
        "| {units} | {:.3} | {} |",
        median(times),
        bytes.iter().max().unwrap_or(&0)
    ));
}

fn request() -> Request {
    Request {
        view: vec!["v".to_string()],
        refresh: uuid::Uuid::now_v7().to_string(),
        ..Default::default()
    }
}

async fn catalog(database: &Database) -> Catalog {
    let uri = format!("dir://{}", database.folder());
    let catalog = Catalog::connect(&uri, &BTreeMap::new()).await;
    catalog.expect("connected")
}

async fn no_op(database: &Database) -> (f64, Outcome) {
    let start = Instant::now();
    let catalog = catalog(database).await;
    let (progress, _) = watch::channel(Progress::default());
    let outcome = refresh(&catalog, &request(), &progress).await;
    (
        start.elapsed().as_secs_f64(),
        outcome.expect("a refreshed view"),
    )
}

/// Appends fragments to `table` until it has `total`: copies of those that it
/// has, their files under names of their own. Returns them as they were staged.
async fn multiply(database: &Database, table: &str, total: usize) -> Vec<Fragment> {
    let dataset = database.open(table).await;
    let there: Vec<Fragment> = dataset.fragments().to_vec();
    let data = std::path::PathBuf::from(database.path(table)).join("data");
    let added: Vec<Fragment> = (there.len()..total)
        .map(|at| copy(&there[at % there.len()], &data, at))
        .collect();
    append(dataset, added.clone()).await;
    added
}

fn copy(of: &Fragment, data: &std::path::Path, at: usize) -> Fragment {
    let mut copy = of.clone();
    copy.id = 0;
    copy.row_id_meta = None;
    copy.created_at_version_meta = None;
    copy.last_updated_at_version_meta = None;
    for file in &mut copy.files {
        let name = format!("{at:08}-{}", file.path);
        std::fs::hard_link(data.join(&file.path), data.join(&name)).expect("linked");
        file.path = name;
    }
    copy
}

async fn append(dataset: Dataset, fragments: Vec<Fragment>) {
    let version = dataset.version().version;
    let transaction = TransactionBuilder::new(version, Operation::Append { fragments }).build();
    CommitBuilder::new(WriteDestination::Dataset(Arc::new(dataset)))
        .execute(transaction)
        .await
        .expect("committed");
}

/// Fills the view with a fragment for each of the source's, and claims each of
/// them with its own fingerprint.
async fn forge(database: &Database) {
    let (_, filled) = no_op(database).await;
    let catalog = catalog(database).await;
    let asked = request();
    let work = Work::open(&catalog, &asked, None)
        .await
        .expect("opened")
        .expect("work");
    let table = database.open("v").await;
    let data = std::path::PathBuf::from(database.path("v")).join("data");
    let there = table.fragments().to_vec();
    let staged: Vec<Fragment> = (0..work.inputs.fingerprints.len())
        .map(|at| copy(&there[at % there.len()], &data, at))
        .collect();
    let emptied = Operation::Delete {
        updated_fragments: Vec::new(),
        deleted_fragment_ids: there.iter().map(|f| f.id).collect(),
        predicate: "true".to_string(),
    };
    let transaction = TransactionBuilder::new(table.version().version, emptied).build();
    let table = CommitBuilder::new(WriteDestination::Dataset(Arc::new(table)))
        .execute(transaction)
        .await
        .expect("emptied");
    let read_version = table.version().version;
    append(table, staged.clone()).await;
    let claims: Vec<Claim> = work
        .inputs
        .fingerprints
        .iter()
        .zip(staged)
        .map(|(input, fragment)| Claim {
            inputs: vec![input.clone()],
            refresh: asked.refresh.clone(),
            rows: fragment.physical_rows.unwrap_or(0) as u64,
            bytes: 1,
            fragments: vec![fragment],
            of: Vec::new(),
        })
        .collect();
    let objects = catalog
        .store()
        .objects(&database.path("v"))
        .await
        .expect("objects");
    let ledger = Ledger {
        refresh: asked.refresh.clone(),
        read_version,
        outcome: filled,
        young: Vec::new(),
        added: 0,
        claims,
        partials: Vec::new(),
    };
    let path = paths::ledger(objects.root(), read_version, &asked.refresh, "forged");
    objects.put(&path, &ledger).await.expect("written");
}
