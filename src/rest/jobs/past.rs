//! Jobs whose resource is gone: what the refresh left on record with its view,
//! and what the view's own Lance history says.
//!
//! Recorded is what a worker did to a view or found right there, for two weeks
//! from the end of the refresh. A refresh that changed its view is known
//! longer, from its commit: until Lance's cleanup takes that version, among the
//! newest of its view. What failed, was cancelled or needed no worker leaves
//! nothing. Looking costs a few requests for each table of the catalog, so only
//! a few look at a time; the time that each may take begins with its turn.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::told::{self, JOB_TYPE, JobState};
use super::unknown;
use crate::engine::account::{self, Found};
use crate::engine::error::EngineError;
use crate::resources::count;
use crate::rest::Api;
use crate::rest::auth::credential::Caller;
use crate::rest::error::ApiError;

/// How long a search may take: a few thousand requests to a store, of which the
/// engine gives a part to histories.
const PATIENCE: Duration = Duration::from_secs(45);

/// How long is waited for a turn. With the search itself it is less than a
/// request may take.
const TURN: Duration = Duration::from_secs(60);

/// The record of a job whose resource is not there. 404 if there is none.
pub async fn find(api: &Api, caller: &Caller, job_id: &str) -> Result<Found, ApiError> {
    let catalog = api.catalog_of(caller).await?;
    let since = created(job_id).and_then(|ms| u64::try_from(ms).ok());
    let since = since.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
    let job = job_id.to_string();
    let turn = turn(&api.turns.searches, TURN).await?;
    let search = async move {
        // It is another's once this search is over, or broken off.
        let _turn = turn;
        account::find(&catalog, &job, since).await
    };
    let found: Result<Option<Found>, EngineError> =
        api.catalog.look_within(PATIENCE, search).await?;
    found?.ok_or_else(|| unknown(job_id))
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
