//! Random histories of views in any SQL over three tables, which change in every
//! way, are dropped and created again. The views are written to by others and
//! redefined, and their refreshes are shared by workers, struck by faults, left
//! midway, or held while the world goes on ([`disturbed`]).
//!
//! After each refresh the view equals its definition, evaluated from scratch over
//! the tables in memory; it is told to be right just then; and another refresh
//! does nothing.
//!
//! `RELANCE_HISTORIES` (default 12), `RELANCE_SEED` and `RELANCE_STEPS` are those
//! of [`super`].

mod disturbed;
mod queries;
mod sources;

use std::collections::{BTreeMap, HashMap};

use lancedb::materialized_view::DEFINITION_META_KEY;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relance::engine::error::EngineError;
use relance::engine::outcome::Outcome;
use relance::engine::view;

use super::changes::change_view;
use super::runs::{self, History, Tally};
use super::{could_not, same, shared, stays};
use crate::support::{Db, is_current, render, request};
use queries::Query;
use sources::{Sources, TABLES};

const VIEWS: usize = 3;

static TALLY: Tally = Tally::new();

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_history_of_several_sources_a_view_equals_its_definition() {
    runs::all(12, &TALLY, live).await;
}

/// A view and what it is now.
struct View {
    name: String,
    query: Query,
    /// All that it has been: who restores its table restores its definition.
    queries: Vec<Query>,
}

/// What the view should be: its rows, or why there are none to be had.
type Right = Result<Vec<String>, String>;

/// The version of each table.
type Versions = BTreeMap<String, u64>;

impl View {
    /// Evaluates the view from scratch over the tables as they are.
    async fn right(&self, db: &Db) -> Right {
        let tables = db.in_memory(TABLES).await;
        let said = |e: datafusion::error::DataFusionError| e.strip_backtrace();
        let rows = tables.sql(&self.query.evaluated).await.map_err(said)?;
        let rows = rows.collect().await.map_err(said)?;
        Ok(self.query.compared(render(&rows)))
    }

    /// The rows that the view has.
    async fn rows(&self, db: &Db) -> Vec<String> {
        self.query.compared(db.rows(&self.name).await)
    }

    /// Whether what is told of the view now is true.
    async fn told(&self, db: &Db, right: &Right) -> Result<bool, String> {
        if !is_current(db, &self.name).await {
            return Ok(false);
        }
        let right = right
            .as_ref()
            .map_err(|e| format!("told to be right, and from scratch it is: {e}"))?;
        same(&self.name, "told to be right", &self.rows(db).await, right)?;
        TALLY.note("told to be right");
        Ok(true)
    }

    /// Makes it a view of something else.
    async fn redefine(&mut self, db: &Db, query: Query) -> lance::Result<String> {
        let metadata = HashMap::from([(DEFINITION_META_KEY, query.stored.as_str())]);
        let mut table = db.open(&self.name).await;
        table.update_schema_metadata(metadata).await?;
        self.queries.push(query.clone());
        self.query = query;
        Ok(format!("{} is now {}", self.name, self.query.stored))
    }

    /// Has someone else write to it.
    async fn disturb(&mut self, db: &Db, random: &mut StdRng) -> lance::Result<String> {
        let told = change_view(db, &self.name, random).await?;
        let table = db.open(&self.name).await;
        let stored = &table.schema().metadata[DEFINITION_META_KEY];
        let is = |query: &&Query| *stored == query.stored;
        self.query = self.queries.iter().find(is).unwrap().clone();
        Ok(told)
    }

    /// The first of its sources.
    async fn source(&self, db: &Db) -> String {
        let id = [self.name.clone()];
        let info = view::inspect(&db.catalog().await, &id).await.unwrap();
        info.sources[0].join("$")
    }
}

/// The versions of the sources that `outcome` tells of; `source` is the first.
fn versions_of(outcome: &Outcome, source: &str) -> Versions {
    match outcome.source_versions.is_empty() {
        true => BTreeMap::from([(source.to_string(), outcome.source_version)]),
        false => outcome.source_versions.clone(),
    }
}

/// The version of each of the tables that are there.
async fn versions_now(db: &Db) -> Versions {
    let mut found = BTreeMap::new();
    for table in TABLES {
        if let Ok(dataset) = lance::Dataset::open(&db.path(table)).await {
            found.insert(table.to_string(), dataset.version().version);
        }
    }
    found
}

/// Whether `all` has the versions `some`.
fn among(some: &Versions, all: &Versions) -> bool {
    some.iter()
        .all(|(table, version)| all.get(table) == Some(version))
}

async fn live(history: History) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(!history.seed);
    let db = Db::new(random.random_bool(0.5));
    let mut sources = Sources::new(&db, &mut random)
        .await
        .map_err(|e| format!("the sources could not be written: {e}"))?;
    let mut log = Vec::new();
    let mut views = Vec::new();
    let tables = db.in_memory(TABLES).await;
    for n in 0..VIEWS {
        let (name, query) = (format!("v{n}"), Query::new(&mut random));
        db.create_query_view(&tables, &name, &query.evaluated, query.stored.clone())
            .await;
        log.push(format!("{name} is {}", query.stored));
        let queries = vec![query.clone()];
        views.push(View {
            name,
            query,
            queries,
        });
    }
    for seed in &history.steps {
        let mut random = StdRng::seed_from_u64(*seed);
        step(&db, &mut sources, &mut views, &mut random, &mut log)
            .await
            .map_err(|why| format!("{why}\nafter {log:#?}"))?;
    }
    let mut random = StdRng::seed_from_u64(history.seed);
    for view in &views {
        refresh(&db, view, &mut random, &mut log)
            .await
            .map_err(|why| format!("{why}\nafter {log:#?}"))?;
    }
    Ok(())
}

async fn step(
    db: &Db,
    sources: &mut Sources,
    views: &mut [View],
    random: &mut StdRng,
    log: &mut Vec<String>,
) -> Result<(), String> {
    let at = random.random_range(0..views.len());
    let view = &mut views[at];
    match random.random_range(0..24) {
        0..=5 => {
            for _ in 0..random.random_range(1..4) {
                let told = sources.change(db, random).await;
                log.push(told.unwrap_or_else(|e| could_not(&TALLY, &e)));
            }
        }
        // One after the other: much of the view stays as it is.
        6..=8 => {
            for _ in 0..random.random_range(2..5) {
                let told = sources.touch(db, random).await;
                log.push(told.unwrap_or_else(|e| could_not(&TALLY, &e)));
                refresh(db, view, random, log).await?;
            }
        }
        9 => {
            let told = view.disturb(db, random).await;
            log.push(told.unwrap_or_else(|e| could_not(&TALLY, &e)));
        }
        10..=11 => {
            let query = view.query.edited(random);
            let told = view.redefine(db, query).await;
            log.push(told.unwrap_or_else(|e| could_not(&TALLY, &e)));
        }
        12..=13 => disturbed::faulty(db, view, random, log).await?,
        14..=15 => disturbed::held(db, sources, view, random, log).await?,
        _ => refresh(db, view, random, log).await?,
    }
    Ok(())
}

async fn refresh(
    db: &Db,
    view: &View,
    random: &mut StdRng,
    log: &mut Vec<String>,
) -> Result<(), String> {
    let mut asked = request(&view.name);
    let mut workers = 1;
    match random.random_range(0..16) {
        0..=1 => asked.full = true,
        2 => asked.max_rows_per_fragment = Some(random.random_range(1..30)),
        3..=5 => workers = random.random_range(2..4),
        _ => {}
    }
    let before = view.rows(db).await;
    let right = view.right(db).await;
    view.told(db, &right).await?;
    let done = shared(db, &asked, workers).await;
    log.push(format!("refresh of {} by {workers}: {done:?}", view.name));
    settled(db, view, &done, &before, &right).await
}

/// Whether a refresh that nothing disturbed has ended as it should.
async fn settled(
    db: &Db,
    view: &View,
    done: &Result<Outcome, EngineError>,
    before: &[String],
    right: &Right,
) -> Result<(), String> {
    match done {
        Ok(outcome) => {
            let told = format!("{:?}", outcome.mode);
            let right_rows = right
                .as_ref()
                .map_err(|e| format!("{told}, and from scratch it is: {e}"))?;
            same(&view.name, &told, &view.rows(db).await, right_rows)?;
            let told_of = versions_of(outcome, &view.source(db).await);
            let now = versions_now(db).await;
            if !among(&told_of, &now) {
                return Err(format!("{told} of {told_of:?}, and there is {now:?}"));
            }
            if !view.told(db, right).await? {
                return Err(format!("{told}, and it is told to need another"));
            }
            TALLY.note(told);
            stays(db, &request(&view.name)).await
        }
        Err(error) => {
            same(&view.name, "failed", &view.rows(db).await, before)?;
            let expected = matches!(
                error,
                EngineError::DefinitionMismatch { .. }
                    | EngineError::EvaluationFailed { .. }
                    | EngineError::SourceNotFound { .. }
            );
            if right.is_ok() || !expected {
                return Err(format!("{}: refused by {error}", view.name));
            }
            TALLY.note(error.reason());
            Ok(())
        }
    }
}
