//! Random histories of a source and of its views, with refreshes in between:
//! after each refresh the view equals its definition at the reported version.
//!
//! `RELANCE_HISTORIES` says how many (default 40), `RELANCE_SEED` where to
//! start; a failure prints the seed of its history.

use std::sync::Arc;

use arrow_array::RecordBatchIterator;
use futures::StreamExt;
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{
    MergeInsertBuilder, NewColumnTransform, UpdateBuilder, WhenMatched, WhenNotMatched, WriteMode,
    WriteParams,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relance::engine::error::EngineError;

use crate::support::{Db, Form, SHAPES, foreign, rows_of};

const STEPS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_history_a_view_equals_its_definition() {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    };
    let histories = number("RELANCE_HISTORIES", 40);
    let first = number("RELANCE_SEED", 1);
    futures::stream::iter(first..first + histories)
        .for_each_concurrent(4, |seed| async move {
            println!("history with RELANCE_SEED={seed}");
            if let Err(error) = tokio::spawn(history(seed)).await {
                panic!("run again with RELANCE_SEED={seed} RELANCE_HISTORIES=1: {error}");
            }
        })
        .await;
}

async fn history(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let stable = random.random_bool(0.5);
    let mut db = Db::new(stable);
    let rows = random.random_range(0..80);
    let batch = db.batch(rows);
    db.write(batch, WriteMode::Create, random.random_range(5..40))
        .await;
    let mut views = Vec::new();
    for shape in SHAPES {
        // The older form stands on stable row ids.
        let form = if stable && random.random_bool(0.5) {
            Form::Provenance
        } else {
            Form::Plain
        };
        db.create_view(shape.name, shape.sql, form).await;
        views.push((shape, form));
    }
    let mut log = Vec::new();
    for _ in 0..STEPS {
        log.push(change_source(&mut db, &mut random).await);
        if random.random_bool(0.3) {
            let (shape, _) = &views[random.random_range(0..views.len())];
            log.push(change_view(&db, shape.name, &mut random).await);
        }
        for (shape, form) in &views {
            if random.random_bool(0.5) {
                continue;
            }
            let before = db.rows(shape.name).await;
            match db.refresh(shape.name).await {
                Ok(outcome) => {
                    let expected = db.evaluated(shape, *form, outcome.source_version).await;
                    assert_eq!(
                        db.rows(shape.name).await,
                        expected,
                        "seed {seed}: {} ({form:?}, stable {stable}) after {log:?}, {outcome:?}",
                        shape.name
                    );
                    assert_eq!(
                        outcome.source_version,
                        db.open("src").await.version().version
                    );
                    log.push(format!("refresh {} {:?}", shape.name, outcome.mode));
                }
                Err(error) => {
                    // Only a source without a column that the view reads may
                    // make it fail, and the view is then as it was.
                    let source = db.open("src").await;
                    let reads = ["x", "name", "tags"]
                        .into_iter()
                        .any(|c| shape.sql.contains(c) && source.schema().field(c).is_none());
                    assert!(
                        matches!(error, EngineError::DefinitionMismatch { .. }) && reads,
                        "seed {seed}: {} after {log:?}: {error}",
                        shape.name
                    );
                    assert_eq!(db.rows(shape.name).await, before);
                    log.push(format!("refused {}", shape.name));
                }
            }
        }
    }
}

async fn change_source(db: &mut Db, random: &mut StdRng) -> String {
    let mut source = db.open("src").await;
    let has = |source: &Dataset, name: &str| source.schema().field(name).is_some();
    let whole = ["id", "x", "name", "tags"]
        .into_iter()
        .all(|c| has(&source, c))
        && source.schema().fields.len() == 4;
    let some_id = random.random_range(0..120);
    match random.random_range(0..12) {
        0..=2 if whole => {
            let rows = random.random_range(1..30);
            let batch = db.batch(rows);
            db.write(batch, WriteMode::Append, random.random_range(3..40))
                .await;
            format!("append {rows}")
        }
        3 => {
            source
                .delete(&format!("id % 9 = {}", some_id % 9))
                .await
                .unwrap();
            "delete".into()
        }
        4 if has(&source, "x") => {
            UpdateBuilder::new(Arc::new(source))
                .update_where(&format!("id > {some_id} AND id < {}", some_id + 8))
                .unwrap()
                .set("x", "coalesce(x, 0) + 17")
                .unwrap()
                .build()
                .unwrap()
                .execute()
                .await
                .unwrap();
            "update".into()
        }
        5 if whole => {
            let mut ids: Vec<i64> = (some_id..some_id + 10).collect();
            let fresh = db.batch(3);
            ids.retain(|id| *id < 100_000);
            let batch = rows_of(ids.into_iter().map(|id| id * 1000 + 7).collect());
            let schema = batch.schema();
            let reader = RecordBatchIterator::new([Ok(batch), Ok(fresh)], schema);
            let mut builder =
                MergeInsertBuilder::try_new(Arc::new(source), vec!["id".into()]).unwrap();
            builder
                .when_matched(WhenMatched::UpdateAll)
                .when_not_matched(WhenNotMatched::InsertAll);
            builder
                .try_build()
                .unwrap()
                .execute_reader(Box::new(reader))
                .await
                .unwrap();
            "merge-insert".into()
        }
        6 => {
            compact_files(&mut source, CompactionOptions::default(), None)
                .await
                .unwrap();
            "compact".into()
        }
        7 => {
            let name = format!("extra{some_id}");
            if has(&source, &name) {
                return "nothing".into();
            }
            source
                .add_columns(
                    NewColumnTransform::SqlExpressions(vec![(name, "id * 5".into())]),
                    None,
                    None,
                )
                .await
                .unwrap();
            "add a column".into()
        }
        8 => {
            let extras: Vec<String> = source
                .schema()
                .fields
                .iter()
                .map(|f| f.name.clone())
                .filter(|n| n.starts_with("extra") || (n == "name" && some_id < 15))
                .collect();
            let extras: Vec<&str> = extras.iter().map(String::as_str).collect();
            if extras.is_empty() {
                return "nothing".into();
            }
            source.drop_columns(&extras).await.unwrap();
            format!("drop {extras:?}")
        }
        9 => {
            let versions = source.versions().await.unwrap();
            let at = versions[random.random_range(0..versions.len())].version;
            let mut old = source.checkout_version(at).await.unwrap();
            old.restore().await.unwrap();
            format!("restore {at}")
        }
        10 if random.random_bool(0.5) => {
            let rows = random.random_range(0..60);
            let batch = db.batch(rows);
            db.write(batch, WriteMode::Overwrite, random.random_range(5..40))
                .await;
            format!("overwrite with {rows}")
        }
        _ => {
            source
                .cleanup_old_versions(chrono_zero(), Some(true), Some(false))
                .await
                .unwrap();
            "clean up".into()
        }
    }
}

fn chrono_zero() -> chrono::Duration {
    chrono::Duration::zero()
}

async fn change_view(db: &Db, name: &str, random: &mut StdRng) -> String {
    let mut view = db.open(name).await;
    let what = match random.random_range(0..5) {
        0 => {
            compact_files(&mut view, CompactionOptions::default(), None)
                .await
                .unwrap();
            "compacts"
        }
        1 => {
            let schema = arrow_schema::Schema::from(view.schema());
            let numbers = |f: &&std::sync::Arc<arrow_schema::Field>| {
                *f.data_type() == arrow_schema::DataType::Int64
            };
            let column = schema.fields().iter().find(numbers).unwrap().name();
            view.delete(&format!("{column} % 2 = 0")).await.unwrap();
            "deletes from"
        }
        2 => {
            let schema = arrow_schema::Schema::from(view.schema());
            let batch = foreign(&schema);
            let schema = batch.schema();
            Dataset::write(
                RecordBatchIterator::new([Ok(batch)], schema),
                &db.path(name),
                Some(WriteParams {
                    mode: WriteMode::Append,
                    ..Default::default()
                }),
            )
            .await
            .unwrap();
            "appends to"
        }
        3 => {
            view.cleanup_old_versions(chrono_zero(), Some(true), Some(false))
                .await
                .unwrap();
            "cleans up"
        }
        _ => {
            let versions = view.versions().await.unwrap();
            let at = versions[random.random_range(0..versions.len())].version;
            let mut old = view.checkout_version(at).await.unwrap();
            old.restore().await.unwrap();
            "restores"
        }
    };
    format!("someone {what} {name}")
}
