//! Jobs whose resource is gone: what the refresh left on record with its view,
//! and what the view's own Lance history says.
//!
//! Recorded is what a worker did to a view or found right there, for two weeks
//! from the end of the refresh. A refresh that changed its view is known
//! longer, from its commit: until Lance's cleanup takes that version, among the
//! newest of its view. What failed, was cancelled or needed no worker leaves
//! nothing. Looking costs a few requests for each table of the catalog, so only
//! a few look at a time; the time that each may take begins with its turn; and
//! what was found, or that nothing was, is kept for the next seconds, in which
//! clients that poll ask again.
//!
//! It is 404 that there is no job; 503 that nobody can tell now: the catalog is
//! away, or it is the id of a job that was asked for lately, and a table that may
//! have it cannot be looked into.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::told::{self, JOB_TYPE, JobState};
use super::unknown;
use crate::engine::account::{self, Found};
use crate::engine::catalog::Catalog;
use crate::engine::error::EngineError;
use crate::resources::count;
use crate::rest::Api;
use crate::rest::auth::cache::{Answers, Fingerprint};
use crate::rest::auth::credential::Caller;
use crate::rest::error::ApiError;

/// How long a search may take: a few thousand requests to a store, of which the
/// engine gives a part to histories.
const PATIENCE: Duration = Duration::from_secs(45);

/// How long is waited for a turn. With the search itself it is less than a
/// request may take.
const TURN: Duration = Duration::from_secs(60);

/// For how long after it was asked for somebody may be waiting for a job: who is
/// told that there is no such job waits no more.
const AWAITED: Duration = Duration::from_secs(24 * 3600);

/// How far clocks that make ids are ahead.
const AHEAD: Duration = Duration::from_secs(3600);

/// How many tables are looked into, to tell one that is damaged from a store that
/// is away.
const PROBES: usize = 8;

/// What was found of jobs, for some seconds: by who asked, where the catalog shows
/// each caller what that one may see.
pub type Searches = Answers<(Option<Fingerprint>, String), Option<Arc<Found>>>;

/// The record of a job whose resource is not there. 404 if there is none.
pub async fn find(api: &Api, caller: &Caller, job_id: &str) -> Result<Arc<Found>, ApiError> {
    let as_whom = api.forwarded(caller)?.map(|credential| {
        let way = credential.way();
        let shown = format!("{way} {}", credential.secret());
        api.turns.salt.hash(&shown)
    });
    let question = (as_whom, job_id.to_string());
    let found = api.turns.found.get(question, search(api, caller, job_id));
    found.await?.ok_or_else(|| unknown(job_id))
}

/// The same, looked for anew.
async fn search(api: &Api, caller: &Caller, job_id: &str) -> Result<Option<Arc<Found>>, ApiError> {
    let age = age(job_id, SystemTime::now());
    if age == Some(Age::None) {
        return Ok(None);
    }
    let catalog = api.catalog_of(caller).await?;
    let since = created(job_id).and_then(|ms| u64::try_from(ms).ok());
    let since = since.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
    let job = job_id.to_string();
    let turn = turn(&api.turns.searches, TURN).await?;
    let search = async move {
        // It is another's once this search is over, or broken off.
        let _turn = turn;
        match account::find(&catalog, &job, since).await {
            Ok(found) => Ok(found),
            Err(error) if age == Some(Age::Awaited) => Err(error),
            // One table that nobody can look into, for good perhaps, does not make
            // every id that never was one to ask for again; a store that is away does.
            Err(error) => match is_readable(&catalog, &job).await {
                true => {
                    tracing::warn!(job_id = job, %error, "a job is told unknown though not all tables could be looked into");
                    Ok(None)
                }
                false => Err(error),
            },
        }
    };
    let found: Result<Option<Found>, EngineError> =
        api.catalog.look_within(PATIENCE, search).await?;
    Ok(found?.map(Arc::new))
}

/// How old a job would be whose id tells when it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// It is yet to come: nobody has asked for it.
    None,
    /// Somebody may be waiting for it.
    Awaited,
    Old,
}

fn age(job_id: &str, now: SystemTime) -> Option<Age> {
    let Some(made) = created(job_id) else {
        // One made for an Idempotency-Key does not tell.
        let id = uuid::Uuid::parse_str(job_id).ok()?;
        return (id.get_version_num() == 8).then_some(Age::Awaited);
    };
    let made = u64::try_from(made).ok()?;
    let made = UNIX_EPOCH + Duration::from_millis(made);
    Some(match now.duration_since(made) {
        Err(ahead) if ahead.duration() > AHEAD => Age::None,
        Ok(age) if age > AWAITED => Age::Old,
        _ => Age::Awaited,
    })
}

/// Whether some of the catalog's tables can be looked into.
async fn is_readable(catalog: &Catalog, job: &str) -> bool {
    let Ok(tables) = catalog.tables().await else {
        return false;
    };
    let probes = tables.iter().take(PROBES);
    let probed = join_all(probes.map(|table| account::of(catalog, table, job))).await;
    probed.into_iter().any(|probed| probed.is_ok())
}

/// A turn at looking. Errors: `Unavailable` if too many others look.
async fn turn(
    searches: &Arc<Semaphore>,
    patience: Duration,
) -> Result<OwnedSemaphorePermit, ApiError> {
    let turn = tokio::time::timeout(patience, searches.clone().acquire_owned()).await;
    turn.ok().and_then(Result::ok).ok_or_else(|| {
        ApiError::Unavailable("too many look for jobs that are over; try again".into())
    })
}

/// The answer to describe.
pub fn description(job_id: &str, found: &Found) -> Value {
    let outcome = &found.record.outcome;
    json!({
        "job_id": job_id,
        "job_type": JOB_TYPE,
        "job_state": JobState::Done.as_str(),
        "creation_ms": created(job_id).unwrap_or_else(|| ended(found)),
        "spec": {"id": found.view},
        "result": told::result(
            outcome.mode.into(),
            count(outcome.rows_written),
            count(outcome.source_version),
            count(outcome.view_version),
        ),
    })
}

/// When a job was asked for, in milliseconds since 1970, as an id that REST
/// made tells it.
pub fn created(job_id: &str) -> Option<i64> {
    let (seconds, nanoseconds) = uuid::Uuid::parse_str(job_id)
        .ok()?
        .get_timestamp()?
        .to_unix();
    i64::try_from(seconds * 1_000 + u64::from(nanoseconds) / 1_000_000).ok()
}

fn ended(found: &Found) -> i64 {
    let since = found.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_rest_made_tells_when() {
        let before = i64::try_from(
            std::time::SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_millis(),
        )
        .unwrap();
        let made = created(&uuid::Uuid::now_v7().to_string()).unwrap();
        assert!((before..before + 60_000).contains(&made));
        assert_eq!(created("nightly"), None);
    }

    #[test]
    fn an_id_tells_whether_somebody_may_be_waiting_for_the_job() {
        let now = SystemTime::now();
        let told = |at: SystemTime| {
            let since = at.duration_since(UNIX_EPOCH).unwrap();
            let at =
                uuid::Timestamp::from_unix(uuid::NoContext, since.as_secs(), since.subsec_nanos());
            age(&uuid::Uuid::new_v7(at).to_string(), now)
        };
        let minute = Duration::from_secs(60);
        assert_eq!(told(now), Some(Age::Awaited));
        assert_eq!(told(now + minute), Some(Age::Awaited), "clocks differ");
        assert_eq!(told(now - AWAITED + minute), Some(Age::Awaited));
        assert_eq!(told(now - AWAITED - minute), Some(Age::Old));
        assert_eq!(told(now + AHEAD + minute), Some(Age::None));
        assert_eq!(age("nightly", now), None);
    }

    #[tokio::test]
    async fn a_store_is_away_where_none_of_its_tables_can_be_looked_into() {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("dir://{}", folder.path().display());
        let catalog = Catalog::connect(&uri, &Default::default()).await.unwrap();
        assert!(!is_readable(&catalog, "j").await, "it has no tables");
        std::fs::create_dir_all(folder.path().join("v.lance/_versions")).unwrap();
        assert!(is_readable(&catalog, "j").await);
    }

    #[tokio::test]
    async fn a_turn_that_others_have_is_waited_for_and_not_for_ever() {
        let searches = Arc::new(Semaphore::new(1));
        let held = turn(&searches, TURN).await.unwrap();
        let refused = turn(&searches, Duration::from_millis(10))
            .await
            .unwrap_err();
        assert!(matches!(refused, ApiError::Unavailable(_)), "{refused}");
        let (waited, ()) = tokio::join!(turn(&searches, TURN), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        assert!(waited.is_ok());
    }
}
