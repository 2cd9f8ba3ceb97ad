//! The commit of a job, found in the histories of views.
//!
//! A commit's transaction carries the id of the job that made it, and is known
//! as long as Lance keeps that version of the view: until a cleanup of the
//! view's old versions takes it, which nobody but its owner decides. So this
//! answers when the record that a refresh leaves for two weeks is gone. It
//! knows commits alone: of a refresh that found nothing to do, failed or was
//! cancelled, a history says nothing.
//!
//! Looking is bounded: the newest [`VERSIONS`] versions of a view, none that is
//! older than the job, and as many as [`MANIFESTS`] and [`BUDGET`] allow in all.
//! An id that nobody ever heard of is looked for through all of that, and is to
//! be answered all the same, by whatever store.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;

use super::account::{Found, Record, gathered};
use super::catalog::Catalog;
use super::commit::{JOB, OUTCOME, REFRESH};
use super::error::Result;
use super::outcome::Outcome;
use super::store::{is_missing, storage};
use super::view;

/// Versions of one view that are looked at, the newest first.
const VERSIONS: usize = 256;

/// Manifests that are read in one search.
const MANIFESTS: usize = 2_000;

/// How long histories are looked through in one search.
const BUDGET: Duration = Duration::from_secs(8);

/// Views that are looked into at a time.
const AT_A_TIME: usize = 16;

/// Versions of one view that are read at a time: one after the other, those of
/// a single view would take longer than [`BUDGET`] in a bucket that is far away.
const AHEAD: usize = 4;

/// How far the clocks of those who commit and of those who name jobs may differ.
const CLOCKS: Duration = Duration::from_secs(3600);

/// Looks for the newest commit of `job` among `tables`, made after `since`.
/// `Ok(None)`: there is none, or no longer, or it is too far back to be found in
/// the time that there is. Errors: `Unavailable`, where nothing was found.
pub(super) async fn find(
    catalog: &Catalog,
    tables: Vec<Vec<String>>,
    job: &str,
    since: Option<SystemTime>,
) -> Result<Option<Found>> {
    let is_unique = since.is_some();
    let since = since.map(|since| since - CLOCKS);
    let left = AtomicUsize::new(MANIFESTS);
    let left = &left;
    let found = futures::stream::iter(tables)
        .map(|id| async move {
            if left.load(Ordering::Relaxed) == 0 {
                return Ok(None);
            }
            take(left);
            let (_, table) = view::open(catalog, &id).await?;
            in_history(&id, table, job, since, left).await
        })
        .buffer_unordered(AT_A_TIME)
        .take_until(tokio::time::sleep(BUDGET));
    gathered(found, is_unique).await
}

/// Whether one more manifest may be read.
fn take(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        .is_ok()
}

async fn in_history(
    id: &[String],
    latest: Dataset,
    job: &str,
    since: Option<SystemTime>,
    left: &AtomicUsize,
) -> Result<Option<Found>> {
    let latest = &latest;
    let versions = (1..=latest.version().version).rev().take(VERSIONS);
    let versions = futures::stream::iter(versions)
        .map(|number| read(latest, number, since, left))
        .buffered(AHEAD);
    let mut versions = pin!(versions);
    while let Some(Some(version)) = versions.try_next().await? {
        if version.properties.get(JOB).map(String::as_str) == Some(job) {
            return Ok(version.found(id));
        }
    }
    Ok(None)
}

/// A version of a view, as its commit describes it.
struct Version {
    number: u64,
    at: SystemTime,
    properties: HashMap<String, String>,
}

impl Version {
    fn found(&self, id: &[String]) -> Option<Found> {
        let outcome: Outcome = serde_json::from_str(self.properties.get(OUTCOME)?).ok()?;
        Some(Found {
            view: id.to_vec(),
            at: self.at,
            record: Record {
                refresh: self.properties.get(REFRESH).cloned().unwrap_or_default(),
                outcome: Outcome {
                    view_version: self.number,
                    ..outcome
                },
            },
        })
    }
}

/// One version. None: neither it nor what came before it counts.
async fn read(
    latest: &Dataset,
    number: u64,
    since: Option<SystemTime>,
    left: &AtomicUsize,
) -> Result<Option<Version>> {
    let unread = |error| storage("the view's history", error);
    let table = match latest.checkout_version(number).await {
        Ok(table) => table,
        // It was cleaned up, and what came before it with it.
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(unread(error)),
    };
    let at = SystemTime::from(table.version().timestamp);
    if since.is_some_and(|since| at < since) || !take(left) {
        return Ok(None);
    }
    let transaction = match table.read_transaction().await {
        Ok(transaction) => transaction,
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(unread(error)),
    };
    let properties = transaction.and_then(|t| t.transaction_properties);
    let properties = properties.map(|properties| (*properties).clone());
    Ok(Some(Version {
        number,
        at,
        properties: properties.unwrap_or_default(),
    }))
}
