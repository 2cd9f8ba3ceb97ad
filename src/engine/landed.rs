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
//! older than the job, and [`MANIFESTS`] in all.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use lance::Dataset;

use super::account::{Found, Record, newest};
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

/// Views that are looked into at a time.
const AT_A_TIME: usize = 16;

/// How far the clocks of those who commit and of those who name jobs may differ.
const CLOCKS: Duration = Duration::from_secs(3600);

/// Looks for the newest commit of `job` among `tables`, made after `since`.
/// `Ok(None)`: there is none, or no longer, or it is too far back. Errors:
/// `Unavailable`, where nothing was found.
pub(super) async fn find(
    catalog: &Catalog,
    tables: Vec<Vec<String>>,
    job: &str,
    since: Option<SystemTime>,
) -> Result<Option<Found>> {
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
        .collect()
        .await;
    newest(found)
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
    let unread = |error| storage("the view's history", error);
    let versions = (1..=latest.version().version).rev();
    for version in versions.take(VERSIONS) {
        let table = match latest.checkout_version(version).await {
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
            Err(error) if is_missing(&error) => continue,
            Err(error) => return Err(unread(error)),
        };
        let Some(properties) = transaction.and_then(|t| t.transaction_properties) else {
            continue;
        };
        if properties.get(JOB).map(String::as_str) != Some(job) {
            continue;
        }
        let outcome = properties.get(OUTCOME).map(String::as_str);
        let outcome = outcome.and_then(|json| serde_json::from_str::<Outcome>(json).ok());
        return Ok(outcome.map(|outcome| Found {
            view: id.to_vec(),
            at,
            record: Record {
                refresh: properties.get(REFRESH).cloned().unwrap_or_default(),
                outcome: Outcome {
                    view_version: version,
                    ..outcome
                },
            },
        }));
    }
    Ok(None)
}
