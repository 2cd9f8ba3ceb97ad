//! Everybody at once: refreshes of one view by relance (tasks, workers that
//! share one, processes) and by lancedb (crate 0.41, Python 0.40), while
//! others write to the view and its source, clean up, redefine the view, or
//! drop and create it again.
//!
//! After the last refresh of each round the rows are right, none doubled and
//! none lost; each refresh ended well or with an error that says why.
//!
//! `RELANCE_RACES` says how many rounds (default 10 of each test),
//! `RELANCE_SEED` where their choices come from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatchIterator;
use arrow_schema::Schema;
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{WriteMode, WriteParams};
use lancedb::materialized_view::{DEFINITION_META_KEY, definition_metadata_from_sql};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use relance::engine::error::EngineError;
use relance::engine::refresh::Request;
use relance::engine::view;
use relance::protocol::{Task, exit};
use tokio::sync::Mutex;

use crate::support::{
    Db, Form, Python, Worker, commits_of, foreign, is_current, number, relance_refresh, request,
    update,
};

/// Two definitions of the same columns.
const DEFINITIONS: [&str; 2] = [
    "SELECT id, x * 2 AS y, name FROM src WHERE x > 20",
    "SELECT id, x * 3 AS y, name FROM src WHERE x > 50",
];
/// A database sees so many rounds, then comes a new one.
const ROUNDS_A_DATABASE: u64 = 8;

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Peer {
    Relance,
    RelanceFull,
    RelanceWorkers,
    RelanceProcess,
    RelanceProcesses,
    Lancedb,
    Python,
    Delete,
    Update,
    Append,
    Overwrite,
    Truncate,
    Compact,
    CleanUp,
    Restore,
    Redefine,
    Recreate,
    SourceAppend,
    SourceDelete,
    SourceCompact,
    SourceCleanUp,
}

use Peer::*;

const REFRESHERS: &[Peer] = &[
    Relance,
    Relance,
    RelanceFull,
    RelanceWorkers,
    RelanceProcess,
    RelanceProcesses,
];
const OTHERS: &[Peer] = &[
    Delete,
    Update,
    Append,
    Overwrite,
    Truncate,
    Compact,
    CleanUp,
    Restore,
    Redefine,
    Recreate,
    SourceAppend,
    SourceDelete,
    SourceCompact,
    SourceCleanUp,
];

struct Race {
    db: Db,
    form: Form,
    python: Option<Mutex<Python>>,
    /// UIDs of the refreshes of this round.
    uids: std::sync::Mutex<Vec<String>>,
}

impl Race {
    async fn filled(form: Form, python: Option<Python>) -> Race {
        let mut db = Db::new(form == Form::Provenance);
        let batch = db.batch(60);
        db.write(batch, WriteMode::Create, 15).await;
        let mut race = Race {
            db,
            form,
            python: python.map(Mutex::new),
            uids: Default::default(),
        };
        race.create(DEFINITIONS[0]).await.unwrap();
        for _ in 0..3 {
            race.db.refresh("v").await.unwrap();
            let more = race.db.batch(20);
            race.db.write(more, WriteMode::Append, 10).await;
        }
        race
    }

    async fn create(&self, sql: &str) -> Result<(), String> {
        match &self.python {
            None => {
                let created = self.db.try_create_view("v", sql, self.form).await;
                created.map_err(|e| e.to_string())
            }
            Some(python) => {
                let (select, filter) = sql
                    .strip_prefix("SELECT id, ")
                    .and_then(|s| s.split_once(" AS y, name FROM src WHERE "))
                    .unwrap();
                let select = [("id", "id"), ("y", select), ("name", "name")];
                let mut python = python.lock().await;
                python.create_view(&self.db, "v", &select, filter).await
            }
        }
    }

    fn uid(&self) -> String {
        let uid = uuid::Uuid::new_v4().to_string();
        self.uids.lock().unwrap().push(uid.clone());
        uid
    }

    /// What the definition that the view has now gives over the source as it is now.
    async fn wanted(&self, version: u64) -> Vec<String> {
        let info = view::inspect(&self.db.catalog().await, &["v".to_string()])
            .await
            .unwrap();
        let sql = info.definition.unwrap().to_sql().replace('`', "\"");
        let sql = match self.form {
            Form::Plain => sql,
            Form::Provenance => sql.replace(" FROM src", ", _rowid AS __source_row_id FROM src"),
        };
        self.db.evaluated_sql(&sql, None, version).await.unwrap().1
    }

    /// The rows of the view.
    async fn found(&self) -> Result<Vec<String>, String> {
        let table = self.db.open("v").await;
        let rows = table.scan().try_into_batch().await;
        rows.map(|batch| crate::support::render(&[batch]))
            .map_err(|error| error.to_string())
    }

    /// Does what `peer` does, and tells how it ended. `Err`: as it must not.
    async fn act(&self, peer: Peer, seed: u64) -> Result<String, String> {
        let mut random = StdRng::seed_from_u64(seed);
        // Nobody starts at quite the same time.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
        let said = match peer {
            Relance | RelanceFull => {
                let asked = Request {
                    refresh: self.uid(),
                    full: peer == RelanceFull,
                    ..request("v")
                };
                return documented(self.db.refresh_as(asked).await);
            }
            RelanceWorkers => {
                let refresh = self.uid();
                let runs = (0..2).map(|index| {
                    self.db.refresh_as(Request {
                        refresh: refresh.clone(),
                        workers: 2,
                        index,
                        ..request("v")
                    })
                });
                let mut said = Vec::new();
                for result in futures::future::join_all(runs).await {
                    said.push(documented(result)?);
                }
                return Ok(said.join(" and "));
            }
            RelanceProcess => {
                let (code, said) = relance_refresh(&self.db, "v").await;
                return exited(code, said);
            }
            RelanceProcesses => {
                let task = Task {
                    refresh_uid: self.uid(),
                    job_id: "race".into(),
                    view: vec!["v".into()],
                    concurrency: Some(2),
                    ..Default::default()
                };
                let workers = [0, 1].map(|index| Worker::spawn(&self.db, &task, index));
                let codes = futures::future::join_all(workers.map(Worker::wait)).await;
                for code in &codes {
                    exited(*code, String::new())?;
                }
                return Ok(format!("{codes:?}"));
            }
            Lancedb => self.lancedb().await,
            Python => {
                let mut python = self.python.as_ref().unwrap().lock().await;
                python.refresh(&self.db, "v").await
            }
            Recreate => {
                let sql = DEFINITIONS[random.random_range(0..2)];
                let mut created = Err("not tried".to_string());
                // A drop that meets a writer fails half done, as anyone's does
                // who removes a folder that others write to; so again.
                for _ in 0..10 {
                    let connection = self.db.lancedb().await;
                    let _ = connection.drop_materialized_view("v", &[]).await;
                    created = self.create(sql).await;
                    if created.is_ok() {
                        break;
                    }
                }
                created.map(|()| "done".to_string())
            }
            _ => self
                .write(peer, &mut random)
                .await
                .map(|()| "done".to_string())
                .map_err(|e| e.to_string()),
        };
        // Others may lose a race.
        Ok(match said {
            Ok(said) => said,
            Err(error) => format!("lost: {}", error.lines().next().unwrap_or_default()),
        })
    }

    async fn lancedb(&self) -> Result<String, String> {
        let view = self.db.lancedb().await.open_materialized_view("v").await;
        let view = view.map_err(|e| e.to_string())?;
        let done = view.refresh().execute().await.map_err(|e| e.to_string())?;
        Ok(format!("{:?}", done.mode))
    }

    async fn write(&self, peer: Peer, random: &mut StdRng) -> lance::Result<()> {
        let of_source = matches!(
            peer,
            SourceAppend | SourceDelete | SourceCompact | SourceCleanUp
        );
        let name = if of_source { "src" } else { "v" };
        let mut table = Dataset::open(&self.db.path(name)).await?;
        let schema = Schema::from(table.schema());
        let some = random.random_range(0..10);
        match peer {
            Delete | SourceDelete => {
                table.delete(&format!("id % 10 = {some}")).await?;
            }
            Update => {
                update(table, &format!("id % 10 = {some}"), "y", "-1").await?;
            }
            Append | Overwrite => {
                let metadata: HashMap<String, String> = schema.metadata().clone();
                let batch = foreign(&schema);
                let batch = batch.clone().with_schema(Arc::new(
                    batch.schema().as_ref().clone().with_metadata(metadata),
                ))?;
                let schema = batch.schema();
                let params = WriteParams {
                    mode: if peer == Append {
                        WriteMode::Append
                    } else {
                        WriteMode::Overwrite
                    },
                    ..Default::default()
                };
                let reader = RecordBatchIterator::new([Ok(batch)], schema);
                Dataset::write(reader, &self.db.path(name), Some(params)).await?;
            }
            Truncate => {
                table.truncate_table().await?;
            }
            Compact | SourceCompact => {
                compact_files(&mut table, CompactionOptions::default(), None).await?;
            }
            CleanUp | SourceCleanUp => {
                table
                    .cleanup_old_versions(chrono::Duration::zero(), Some(true), Some(false))
                    .await?;
            }
            Restore => {
                let versions = table.versions().await?;
                let at = versions[random.random_range(0..versions.len())].version;
                table.checkout_version(at).await?.restore().await?;
            }
            Redefine => {
                let raw = definition_metadata_from_sql(DEFINITIONS[random.random_range(0..2)]);
                table
                    .update_schema_metadata([(DEFINITION_META_KEY.to_string(), Some(raw))])
                    .await?;
            }
            SourceAppend => {
                let ids = (0..7).map(|_| random.random_range(1_000..1_000_000));
                let batch = crate::support::rows_of(ids.collect());
                self.db.write(batch, WriteMode::Append, 10).await;
            }
            other => unreachable!("{other:?} writes nothing"),
        }
        Ok(())
    }
}

fn documented(
    result: Result<relance::engine::outcome::Outcome, EngineError>,
) -> Result<String, String> {
    match result {
        Ok(outcome) => Ok(format!("{:?}", outcome.mode)),
        Err(error @ EngineError::Internal(_)) => Err(format!("it ended as a bug: {error}")),
        Err(error) => Ok(format!("{}: {error}", error.reason())),
    }
}

fn exited(code: i32, said: String) -> Result<String, String> {
    match code {
        exit::OK | exit::PERMANENT | exit::UNAVAILABLE | exit::CONTENDED => {
            Ok(format!("{code} {}", said.trim()))
        }
        _ => Err(format!("it exited with {code}: {said}")),
    }
}

/// One round. `Err`: what went wrong.
async fn round(
    race: &mut Race,
    peers: &[Peer],
    random: &mut StdRng,
    tally: &mut BTreeMap<String, u64>,
) -> Result<(), String> {
    race.uids.lock().unwrap().clear();
    let more = race.db.batch(10);
    race.db.write(more, WriteMode::Append, 5).await;
    let seeds: Vec<u64> = peers.iter().map(|_| random.random()).collect();
    let acts = peers.iter().zip(seeds).map(|(peer, seed)| {
        let race = &*race;
        async move { (*peer, race.act(*peer, seed).await) }
    });
    let ended = futures::future::join_all(acts).await;
    for (peer, how) in &ended {
        let how = match how {
            Ok(how) if how.starts_with("lost") => "lost",
            Ok(_) => "ended as it may",
            Err(_) => "went wrong",
        };
        *tally.entry(format!("{peer:?} {how}")).or_default() += 1;
    }
    if let Some((peer, Err(why))) = ended.iter().find(|(_, how)| how.is_err()) {
        return Err(format!("{peer:?}: {why}; of {ended:?}"));
    }
    // Dropped, and creating it again lost a race.
    if !std::path::Path::new(&race.db.path("v"))
        .join("_versions")
        .exists()
    {
        race.create(DEFINITIONS[0]).await?;
    }
    if is_current(&race.db, "v").await {
        let wanted = race
            .wanted(race.db.open("src").await.version().version)
            .await;
        if race.found().await.as_ref() != Ok(&wanted) {
            return Err(format!("it is told to be right, and is not; of {ended:?}"));
        }
        *tally.entry("told to be right".to_string()).or_default() += 1;
    }
    let last = race
        .db
        .refresh("v")
        .await
        .map_err(|error| format!("the last refresh: {error}; of {ended:?}"))?;
    let wanted = race.wanted(last.source_version).await;
    let found = race.found().await;
    let found = found.map_err(|why| format!("the view cannot be read: {why}; of {ended:?}"))?;
    if found != wanted {
        return Err(format!(
            "{} rows, and {} are right, after {last:?}; of {ended:?}",
            found.len(),
            wanted.len()
        ));
    }
    let uids = race.uids.lock().unwrap().clone();
    for uid in uids {
        let commits = commits_of(&race.db, "v", &uid).await;
        // A view that is created again counts its versions anew, and a clean-up may
        // take the files of a commit before it lands.
        if commits > 1 && !peers.iter().any(|peer| matches!(peer, Recreate | CleanUp)) {
            return Err(format!(
                "refresh {uid} committed {commits} times; of {ended:?}"
            ));
        }
    }
    Ok(())
}

/// Keeps a clean-up that deletes unverified files away from the source while
/// another writes to it: it may take the files of a commit that is about to
/// land, and of a source that has lost rows no view can be right.
fn spare_source(peers: &mut [Peer]) {
    let writes = |peer: &Peer| matches!(peer, SourceAppend | SourceDelete | SourceCompact);
    if peers.iter().any(writes) {
        for peer in peers.iter_mut().filter(|peer| **peer == SourceCleanUp) {
            *peer = CleanUp;
        }
    }
}

/// Races of the refreshers and `others` among each other.
async fn races(form: Form, refreshers: &[Peer], others: &[Peer]) {
    let (first, rounds) = (number("RELANCE_SEED", 1), number("RELANCE_RACES", 10));
    let begun = Instant::now();
    let mut tally = BTreeMap::new();
    let mut race: Option<Race> = None;
    for seed in first..first + rounds {
        if (seed - first) % ROUNDS_A_DATABASE == 0 {
            let python = match race.take().and_then(|old| old.python) {
                Some(python) => Some(python.into_inner()),
                None if refreshers.contains(&Peer::Python) => Some(Python::start().await),
                None => None,
            };
            race = Some(Race::filled(form, python).await);
        }
        let race = race.as_mut().unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let mut peers: Vec<Peer> = (0..random.random_range(2..=4))
            .map(|_| refreshers[random.random_range(0..refreshers.len())])
            .collect();
        if !others.is_empty() {
            peers.extend(
                (0..random.random_range(0..=2))
                    .map(|_| others[random.random_range(0..others.len())]),
            );
        }
        spare_source(&mut peers);
        peers.shuffle(&mut random);
        if let Err(why) = round(race, &peers, &mut random, &mut tally).await {
            panic!("RELANCE_SEED={seed} RELANCE_RACES=1 ({peers:?}): {why}");
        }
        let ended = seed - first + 1;
        if ended.is_multiple_of(100) {
            println!("{ended} of {rounds} rounds");
        }
    }
    println!(
        "{rounds} rounds from RELANCE_SEED={first} in {:?}:",
        begun.elapsed()
    );
    for (what, count) in &tally {
        println!("{count:8} {what}");
    }
    // Who always loses does not race.
    for peer in refreshers.iter().chain(others) {
        let count = |how| tally.get(&format!("{peer:?} {how}")).copied();
        let (ended, lost) = (count("ended as it may"), count("lost"));
        assert!(ended.is_some() || lost < Some(12), "{peer:?} always lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshes_of_relance_race_each_other() {
    races(Form::Plain, REFRESHERS, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshes_race_lancedb_and_everybody_else() {
    let refreshers = [REFRESHERS, &[Lancedb, Lancedb]].concat();
    races(Form::Plain, &refreshers, OTHERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshes_race_python_lancedb_and_everybody_else() {
    let refreshers = [REFRESHERS, &[Peer::Python, Peer::Python]].concat();
    races(Form::Provenance, &refreshers, OTHERS).await;
}
