//! What is on record of a refresh, for those who ask how it went: read-only,
//! and no part of any decision.
//!
//! While a refresh runs, its staged claims tell what has been computed. Once
//! it has committed, its ledger does, as long as that is kept. Its outcome is
//! recorded by the job's id too, so that it is found by whoever knows no more
//! than that, in whichever view it is.
//!
//! | what became of a refresh | is known by its job's id |
//! |---|---|
//! | it changed the view | for two weeks by its record; then as long as Lance keeps the version that it made ([`super::landed`]) |
//! | its worker found the view right | for two weeks by its record |
//! | it needed no worker, failed, or was cancelled | not from here |

use std::pin::pin;
use std::time::SystemTime;

use futures::{Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::catalog::Catalog;
use super::error::{EngineError, Result};
use super::landed;
use super::ledger::{self, Claim, Ledger};
use super::outcome::{self, Outcome};
use super::paths;
use super::store::{HEADS, Objects};
use super::young;

/// Tables that are asked for a job's record, at a time.
const AT_A_TIME: usize = 32;

/// Most tables that are asked for a job's record.
const TABLES: usize = 10_000;

/// Most staged claims that are read; of further ones only their names are told.
const READ: usize = 1_000;

/// What a job's record says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// UID of the refresh.
    pub refresh: String,
    /// What it did.
    pub outcome: Outcome,
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The view's identifier path.
    pub view: Vec<String>,
    /// When it was written, which is right after the commit.
    pub at: SystemTime,
    /// What it says.
    pub record: Record,
}

/// A unit of work that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// What identifies it among those of its view.
    pub id: String,
    /// UID of the refresh that computed it: an earlier one, where this one
    /// could take its work over. None: not known.
    pub refresh: Option<String>,
    /// Rows that it came to. None: not known.
    pub rows: Option<u64>,
    /// When, by the store's clock.
    pub at: SystemTime,
}

/// How far a refresh has got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// What it has computed, or what it committed.
    pub units: Vec<Unit>,
    /// When its outcome was recorded, and what that was.
    pub recorded: Option<(SystemTime, Outcome)>,
}

/// Records by the job's id what `refresh` did. Where the id has been used
/// before, the latest counts.
pub(super) async fn record(
    objects: &Objects,
    job: &str,
    refresh: &str,
    outcome: &Outcome,
) -> Result<()> {
    let record = Record {
        refresh: refresh.to_string(),
        outcome: outcome.clone(),
    };
    objects
        .put(&paths::job_outcome(objects.root(), job), &record)
        .await
}

/// Looks for the record of `job` in every view of the catalog, which costs a
/// few requests for each table, of at most 10,000; and where there is none, for
/// its commit in the views' histories, no older than `since`, when the job was
/// asked for, if that is known. An id that tells this is one job's alone, and the
/// first that is found of it is all; of others, the newest counts. `Ok(None)`:
/// there is none, or no longer. A table that cannot be looked into keeps none of
/// the others from being. Errors: `Unavailable`, where nothing was found.
pub async fn find(
    catalog: &Catalog,
    job: &str,
    since: Option<SystemTime>,
) -> Result<Option<Found>> {
    let mut tables = catalog.tables().await?;
    tables.truncate(TABLES);
    let found = futures::stream::iter(tables.clone())
        .map(|view| async move { find_in(catalog, &view, job).await })
        .buffer_unordered(AT_A_TIME);
    match gathered(found, since.is_some()).await {
        Ok(None) => landed::find(catalog, tables, job, since).await,
        // Where a view cannot be looked into, the histories of the others may know.
        Err(error) => match landed::find(catalog, tables, job, since).await? {
            None => Err(error),
            found => Ok(found),
        },
        found => found,
    }
}

/// What is found in the tables of a catalog: where it `is_unique`, no more of them
/// is looked into. Else as [`newest`].
pub(super) async fn gathered(
    found: impl Stream<Item = Result<Option<Found>>>,
    is_unique: bool,
) -> Result<Option<Found>> {
    let mut all = Vec::new();
    let mut found = pin!(found);
    while let Some(one) = found.next().await {
        let is_it = matches!(one, Ok(Some(_)));
        if !matches!(one, Ok(None)) {
            all.push(one);
        }
        if is_it && is_unique {
            break;
        }
    }
    newest(all)
}

/// The newest of what was found in each table of a catalog; where there is
/// nothing, what kept from looking into one that may have had it.
fn newest(found: Vec<Result<Option<Found>>>) -> Result<Option<Found>> {
    let mut newest: Option<Found> = None;
    let mut unseen = None;
    for found in found {
        match found {
            Ok(found) => newest = newest.into_iter().chain(found).max_by_key(|found| found.at),
            // A plain table, one that was dropped meanwhile, a mere name, and one
            // that is out of bounds: for all, or for whoever asks.
            Err(
                EngineError::NotAView { .. }
                | EngineError::ViewNotFound { .. }
                | EngineError::Unsupported { .. }
                | EngineError::CatalogDenied { .. }
                | EngineError::InvalidInput(_),
            ) => {}
            Err(error) => unseen = unseen.or(Some(error)),
        }
    }
    match (newest, unseen) {
        (None, Some(error)) => Err(error),
        (newest, _) => Ok(newest),
    }
}

async fn find_in(catalog: &Catalog, view: &[String], job: &str) -> Result<Option<Found>> {
    let objects = catalog
        .store()
        .objects(&catalog.locate(view).await?)
        .await?;
    let path = paths::job_outcome(objects.root(), job);
    let Some(record) = objects.get::<Record>(&path).await? else {
        return Ok(None);
    };
    Ok(objects.modified(&path).await?.map(|at| Found {
        view: view.to_vec(),
        at,
        record,
    }))
}

/// What `refresh` has done to view `id` so far. A refresh that has not begun
/// has done nothing, and so has one whose ledger and outcome are no longer
/// kept. Errors: `ViewNotFound`, `Unavailable`.
pub async fn of(catalog: &Catalog, id: &[String], refresh: &str) -> Result<Account> {
    let objects = catalog.store().objects(&catalog.locate(id).await?).await?;
    let path = paths::outcome(objects.root(), refresh);
    let recorded = futures::try_join!(
        outcome::recorded(&objects, refresh),
        objects.modified(&path)
    )?;
    let (Some(outcome), Some(at)) = recorded else {
        return Ok(Account {
            units: staged(&objects, refresh).await?,
            recorded: None,
        });
    };
    Ok(Account {
        units: committed(&objects, refresh).await?,
        recorded: Some((at, outcome)),
    })
}

/// What is computed and not committed yet.
async fn staged(objects: &Objects, refresh: &str) -> Result<Vec<Unit>> {
    let listed = objects
        .list(&paths::claims(objects.root(), refresh))
        .await?;
    futures::stream::iter(listed.into_iter().enumerate())
        .map(|(n, listed)| async move {
            let claim = match n < READ {
                true => objects.get::<Claim>(&listed.path).await?,
                false => None,
            };
            let name = listed.name.strip_suffix(".json").unwrap_or(&listed.name);
            Ok(Unit {
                id: name.to_string(),
                rows: claim.as_ref().map(|claim| claim.rows),
                refresh: claim.map(|claim| claim.refresh),
                at: listed.modified,
            })
        })
        .buffer_unordered(HEADS)
        .try_collect()
        .await
}

/// What the ledger of `refresh` says that it brought in.
async fn committed(objects: &Objects, refresh: &str) -> Result<Vec<Unit>> {
    let mut listed = ledger::list(objects).await?;
    listed.retain(|ledger| ledger.name.contains(refresh));
    let Some(newest) = listed.pop() else {
        return Ok(Vec::new());
    };
    let Some(ledger) = objects.get::<Ledger>(&newest.path).await? else {
        return Ok(Vec::new());
    };
    let claims = ledger.brought();
    let paths = claims.iter().flat_map(ledger::Claim::paths).collect();
    let times = young::written(objects, paths).await?;
    Ok(claims
        .iter()
        .map(|claim| Unit {
            id: claim.id().to_string(),
            refresh: Some(claim.refresh.clone()),
            rows: Some(claim.rows),
            // What came to no rows has no files.
            at: claim
                .paths()
                .filter_map(|path| times.get(&path).copied())
                .max()
                .unwrap_or(newest.modified),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::engine::outcome::Mode;

    fn found(second: u64) -> Found {
        Found {
            view: vec!["v".to_string()],
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
            record: Record {
                refresh: "r".to_string(),
                outcome: Outcome {
                    mode: Mode::NoOp,
                    source_version: 1,
                    source_versions: BTreeMap::new(),
                    view_version: 1,
                    rows_written: 0,
                    bytes_written: 0,
                    units_total: 0,
                    units_kept: 0,
                    unindexed_rows: None,
                },
            },
        }
    }

    #[test]
    fn a_table_that_cannot_be_looked_into_keeps_no_record_from_being_found() {
        let away = || EngineError::Unavailable {
            what: "its bucket".to_string(),
            why: "it is gone".to_string(),
        };
        let out_of_bounds = || {
            let of_the_catalog = EngineError::Unsupported {
                view: "t".to_string(),
                kind: "a table".to_string(),
                why: "its catalog keeps its versions".to_string(),
            };
            let of_the_caller = EngineError::CatalogDenied {
                table: "t".to_string(),
                why: "it is another's".to_string(),
            };
            [Err(of_the_catalog), Err(of_the_caller)]
        };
        let mut all = vec![
            Err(away()),
            Ok(Some(found(1))),
            Ok(None),
            Ok(Some(found(2))),
        ];
        all.extend(out_of_bounds());
        assert_eq!(newest(all).expect("no error"), Some(found(2)));
        assert_eq!(newest(out_of_bounds().into()).expect("no error"), None);
        let unseen = newest(vec![Ok(None), Err(away())]);
        assert!(matches!(unseen, Err(EngineError::Unavailable { .. })));
    }

    #[tokio::test]
    async fn an_id_that_is_one_jobs_alone_is_looked_for_until_it_is_found() {
        use futures::stream::{iter, pending};
        let tables = || vec![Ok(None), Ok(Some(found(1))), Ok(Some(found(2)))];
        // The others are never answered.
        let endless = iter(tables()).chain(pending());
        assert_eq!(gathered(endless, true).await.unwrap(), Some(found(1)));
        let newest = gathered(iter(tables()), false).await;
        assert_eq!(newest.unwrap(), Some(found(2)));
    }
}
