//! Random histories of a source and of its views, over random schemas, with
//! refreshes in between. After each refresh the view equals its definition at
//! the reported source version, evaluated from scratch, and equals what
//! lancedb's own refresh makes of a view of the same definition.
//!
//! `RELANCE_HISTORIES` says how many (default 24), `RELANCE_SEED` where to
//! start. A failing history is cut down to the steps that matter and printed
//! as `RELANCE_SEED=… RELANCE_STEPS=…`, which runs it again.

mod changes;
mod data;
mod runs;
mod several;
mod views;

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::Schema;
use lance::dataset::WriteMode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relance::engine::error::EngineError;
use relance::engine::outcome::{Mode, Outcome};
use relance::engine::refresh::Request;

use crate::support::{Db, Form, is_current_at, request};
use changes::{Source, change_view};
use data::new_schema;
use runs::{History, Tally};
use views::View;

const VIEWS: usize = 3;

/// What the histories did, to see that they did it.
static TALLY: Tally = Tally::new();

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_history_a_view_equals_its_definition() {
    let histories = runs::all(24, &TALLY, live).await;
    for what in ["NoOp", "Incremental", "Rebuild", "equal to lancedb's"] {
        assert!(histories < 20 || TALLY.count(what) > 0, "none did: {what}");
    }
}

async fn live(history: History) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(!history.seed);
    let db = Db::new(random.random_bool(0.5));
    let key = ["id", "Row Id", "key"][random.random_range(0..3)].to_string();
    let schema = new_schema(&mut random, &key);
    let mut source = Source { key, next_id: 0 };
    let count = random.random_range(0..80);
    let per_file = random.random_range(5..40);
    source
        .write(&db, &schema, count, WriteMode::Create, per_file)
        .await
        .map_err(|e| format!("the source could not be written: {e}"))?;
    let mut log = vec![format!(
        "{schema:?} with {count} rows, stable row ids: {}",
        db.stable_row_ids
    )];
    let mut views = Vec::new();
    for n in 0..VIEWS {
        // The older form stands on stable row ids.
        let form = if db.stable_row_ids && random.random_bool(0.5) {
            Form::Provenance
        } else {
            Form::Plain
        };
        let mut view = View::new(&mut random, &schema, &source.key, form, n);
        let sql = view.sql();
        match &view.twin {
            Some(twin) => {
                if let Err(error) = db.try_create_view(&view.name, &sql, form).await {
                    TALLY.note(format!("lancedb creates no such view: {error}"));
                    continue;
                }
                db.create_view(twin, &sql, Form::Plain).await;
            }
            None => db.create_general_view(&view.name, &sql).await,
        }
        view.types = match view.evaluated(&db, view.form, 1).await {
            Ok((types, _)) => types,
            Err(_) => Vec::new(),
        };
        log.push(format!("{} {:?} is {sql}", view.name, view.form));
        views.push(view);
    }
    if views.is_empty() {
        return Ok(());
    }
    for seed in &history.steps {
        let mut random = StdRng::seed_from_u64(*seed);
        let view = &views[random.random_range(0..views.len())];
        let told = match random.random_range(0..26) {
            24 => trickle(&db, &mut source, view, &mut random)
                .await
                .map_err(|why| format!("{why}\nafter {log:#?}"))?,
            0..=8 => match source.change(&db, &mut random).await {
                Ok(told) => told,
                Err(error) => could_not(&TALLY, &error),
            },
            9..=11 => match change_view(&db, &view.name, &mut random).await {
                Ok(told) => told,
                Err(error) => could_not(&TALLY, &error),
            },
            _ => refresh(&db, view, &mut random)
                .await
                .map_err(|why| format!("{why}\nafter {log:#?}"))?,
        };
        log.push(told);
    }
    let mut random = StdRng::seed_from_u64(history.seed);
    for view in &views {
        let told = refresh(&db, view, &mut random)
            .await
            .map_err(|why| format!("{why}\nafter {log:#?}"))?;
        log.push(told);
    }
    Ok(())
}

/// Small appends with a refresh after each: a view of many small units.
async fn trickle(
    db: &Db,
    source: &mut Source,
    view: &View,
    random: &mut StdRng,
) -> Result<String, String> {
    let schema = Schema::from(db.open("src").await.schema());
    let schema = Arc::new(schema.with_metadata(HashMap::new()));
    let times = random.random_range(4..11);
    for _ in 0..times {
        let count = random.random_range(1..6);
        if let Err(error) = source
            .write(db, &schema, count, WriteMode::Append, 10)
            .await
        {
            return Ok(could_not(&TALLY, &error));
        }
        refresh(db, view, random).await?;
    }
    Ok(format!(
        "{times} small appends, each with a refresh of {}",
        view.name
    ))
}

/// Lance has limits of its own.
fn could_not(tally: &Tally, error: &lance::Error) -> String {
    let line = error.to_string();
    let line: String = line.chars().take(90).collect();
    tally.note(format!("lance could not: {line}"));
    format!("lance could not: {line}")
}

async fn refresh(db: &Db, view: &View, random: &mut StdRng) -> Result<String, String> {
    let mut asked = request(&view.name);
    let versions = db.open("src").await.versions().await.unwrap();
    let mut workers = 1;
    match random.random_range(0..20) {
        0 => asked.full = true,
        1..=2 => asked.src_version = Some(versions[random.random_range(0..versions.len())].version),
        3 => asked.max_rows_per_fragment = Some(random.random_range(1..30)),
        4 => workers = random.random_range(2..4),
        _ => {}
    }
    let version = match asked.src_version {
        Some(version) => version,
        None => db.open("src").await.version().version,
    };
    let before = db.rows(&view.name).await;
    let expected = view.evaluated(db, view.form, version).await;
    if is_current_at(db, &view.name, asked.src_version).await {
        let (_, expected) = expected
            .as_ref()
            .map_err(|e| format!("told to be right, and from scratch it is: {e}"))?;
        same(&view.name, "told to be right", &before, expected)?;
        TALLY.note("told to be right");
    }
    match shared(db, &asked, workers).await {
        Ok(outcome) => {
            let told = format!("{:?} by {asked:?}", outcome.mode);
            let (_, expected) =
                expected.map_err(|e| format!("{told}, and from scratch it is: {e}"))?;
            same(&view.name, &told, &db.rows(&view.name).await, &expected)?;
            if outcome.source_version != version {
                return Err(format!("{told}, asked for version {version}: {outcome:?}"));
            }
            TALLY.note(format!("{:?}", outcome.mode));
            if !is_current_at(db, &view.name, asked.src_version).await {
                return Err(format!("{told}, and it is told to need another"));
            }
            compare_with_lancedb(db, view, version, &told).await?;
            if random.random_bool(0.2) {
                stays(db, &asked).await?;
            }
            Ok(format!("{} {told}", view.name))
        }
        Err(error) => {
            let now = db.rows(&view.name).await;
            same(&view.name, "failed", &now, &before)?;
            let right = match &error {
                EngineError::DefinitionMismatch { .. } => match &expected {
                    Err(_) => true,
                    Ok((types, _)) => {
                        *types != view.types || lancedb_refuses(db, view, version).await
                    }
                },
                EngineError::EvaluationFailed { .. } => {
                    expected.is_err() || lancedb_refuses(db, view, version).await
                }
                _ => false,
            };
            if !right {
                return Err(format!("{}: refused by {error}", view.name));
            }
            TALLY.note(error.reason());
            Ok(format!("{} refused by {error}", view.name))
        }
    }
}

/// One refresh by several workers at once: all of them say the same.
async fn shared(db: &Db, asked: &Request, workers: u32) -> Result<Outcome, EngineError> {
    let runs = (0..workers).map(|index| {
        db.refresh_as(Request {
            workers,
            index,
            ..asked.clone()
        })
    });
    let mut outcomes = futures::future::join_all(runs).await;
    let first = outcomes.swap_remove(0);
    for other in outcomes {
        match (&first, &other) {
            (Ok(first), Ok(other)) => assert_eq!(first, other, "workers of one refresh"),
            (Err(first), Err(other)) => assert_eq!(first.reason(), other.reason()),
            _ => panic!("workers of one refresh ended as {first:?} and {other:?}"),
        }
    }
    first
}

/// What was refreshed just now needs nothing.
async fn stays(db: &Db, asked: &Request) -> Result<(), String> {
    let view = asked.view.join(".");
    let again = Request {
        refresh: request(&view).refresh,
        full: false,
        ..asked.clone()
    };
    let before = db.open(&view).await.version().version;
    let again = db.refresh_as(again).await;
    let now = db.open(&view).await.version().version;
    match again {
        Ok(outcome) if outcome.mode == Mode::NoOp && now == before => Ok(()),
        other => Err(format!(
            "{view}: refreshed twice, and the second one did {other:?}, from version {before} to {now}"
        )),
    }
}

/// Whether lancedb, too, cannot refresh such a view.
async fn lancedb_refuses(db: &Db, view: &View, version: u64) -> bool {
    match &view.twin {
        Some(twin) => lancedb(db, twin, version).await.is_err(),
        None => false,
    }
}

/// Has lancedb refresh a view.
async fn lancedb(db: &Db, twin: &str, version: u64) -> lancedb::Result<()> {
    let twin = db.lancedb().await.open_materialized_view(twin).await?;
    twin.refresh().source_version(version).execute().await?;
    Ok(())
}

async fn compare_with_lancedb(
    db: &Db,
    view: &View,
    version: u64,
    told: &str,
) -> Result<(), String> {
    let Some(twin) = &view.twin else {
        return Ok(());
    };
    if let Err(error) = lancedb(db, twin, version).await {
        let line: String = error.to_string().chars().take(90).collect();
        TALLY.note(format!("lancedb could not: {line}"));
        return Ok(());
    }
    TALLY.note("equal to lancedb's");
    let (_, ours) = match view.form {
        Form::Plain => {
            return same(
                &view.name,
                told,
                &db.rows(&view.name).await,
                &db.rows(twin).await,
            );
        }
        // Without the column of row ids, which the twin has not.
        Form::Provenance => view.evaluated(db, Form::Plain, version).await?,
    };
    same(twin, told, &db.rows(twin).await, &ours)
}

fn same(view: &str, told: &str, found: &[String], expected: &[String]) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let missing: Vec<&String> = expected
        .iter()
        .filter(|r| !found.contains(r))
        .take(5)
        .collect();
    let surplus: Vec<&String> = found
        .iter()
        .filter(|r| !expected.contains(r))
        .take(5)
        .collect();
    Err(format!(
        "{view} ({told}) has {} rows and should have {}; missing {missing:?}, surplus {surplus:?}",
        found.len(),
        expected.len()
    ))
}
