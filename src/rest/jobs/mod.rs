//! The jobs API that stock LanceDB clients speak: a job is a refresh, and its
//! id is the refresh's name.
//!
//! All is told from the resource, which the API server is asked for anew each
//! time: so every replica knows every job, also while the catalog is away. Only
//! [`events`] looks into the view's folder. Once the resource is gone (its time
//! to live is over, or someone deleted it), the record that the refresh left
//! with the view still answers ([`past`]), and then the view's own history, for
//! what it changed.

mod events;
mod filter;
mod list;
mod past;
mod steer;
mod told;
mod turns;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::Value;

use super::Api;
use super::auth::credential::Asked;
use super::body::{JsonBody, wrong_type};
use super::error::ApiError;
use crate::resources::names;
use crate::telemetry;

pub use events::query as query_events;
pub use list::list;
pub use steer::{cancel, pause, resume};
pub use turns::Turns;

/// Tells how a job is doing. 404 for one that is not there, or no longer.
pub async fn describe(
    State(api): State<Arc<Api>>,
    Asked { caller, body }: Asked,
) -> Result<Json<Value>, ApiError> {
    let job_id = job_id(&body)?;
    match api.store.get(job_id).await? {
        Some(refresh) => Ok(Json(told::description(&refresh))),
        None => {
            let found = past::find(&api, &caller, job_id).await?;
            Ok(Json(past::description(job_id, &found)))
        }
    }
}

/// The job that a request is about.
fn job_id(body: &JsonBody) -> Result<&str, ApiError> {
    let Some(job_id) = body.string("job_id")? else {
        return Err(ApiError::InvalidInput("job_id is missing".into()));
    };
    // The name becomes a part of a URL of the Kubernetes API.
    if !names::is_refresh_name(job_id) {
        return Err(unknown(job_id));
    }
    telemetry::is_about(job_id);
    Ok(job_id)
}

fn unknown(job_id: &str) -> ApiError {
    ApiError::JobNotFound(job_id.to_string())
}

/// The request's `limit`: at least 1, and `most` where it is more.
fn limit(body: &JsonBody, default: u32, most: u32) -> Result<u32, ApiError> {
    let Some(value) = body.get("limit") else {
        return Ok(default);
    };
    match value.as_u64() {
        Some(0) => {}
        Some(limit) => return Ok(u32::try_from(limit).unwrap_or(most).min(most)),
        None => {}
    }
    let sentence = match value.is_i64() || value.is_u64() {
        true => ApiError::InvalidInput(format!("limit is {value} and must be at least 1")),
        false => wrong_type("limit", value, "an integer"),
    };
    Err(sentence)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(limit: Value) -> Result<u32, String> {
        let body = JsonBody(json!({ "limit": limit }).as_object().unwrap().clone());
        super::limit(&body, 10, 100).map_err(|error| error.to_string())
    }

    #[test]
    fn a_limit_is_a_count_that_is_cut_down_to_the_most() {
        assert_eq!(asked(Value::Null), Ok(10));
        assert_eq!(asked(json!(7)), Ok(7));
        assert_eq!(asked(json!(u64::MAX)), Ok(100));
        for wrong in [json!(0), json!(-1), json!(1.5), json!("7"), json!([])] {
            let sentence = asked(wrong.clone()).unwrap_err();
            assert!(sentence.starts_with("limit is "), "{wrong}: {sentence}");
        }
    }
}
