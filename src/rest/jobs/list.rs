//! The list of jobs, in pages.
//!
//! A page is one of the API server's own, whose tokens hold the list as it was
//! when it was begun: what is made or deleted meanwhile neither doubles nor
//! hides a job. Jobs come in the order of their names, which for those that
//! REST made is that of their making. What a filter leaves of a page may be
//! less than was asked for, and even nothing: the token says whether there is
//! more.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::told::{self, JOB_TYPE, JobState};
use crate::lean::Lean;
use crate::resources::MaterializedViewRefresh;
use crate::rest::Api;
use crate::rest::body::JsonBody;
use crate::rest::error::ApiError;
use crate::rest::id::DELIMITER;

/// Jobs on a page, unless `limit` says otherwise.
const DEFAULT_LIMIT: u32 = 100;

/// Most jobs on a page.
const MOST: u32 = 500;

/// Refreshes that one request looks at for those that a filter leaves.
const LOOKED_AT: u32 = 2_000;

/// Longest token; the API server's own have some 100 characters.
const LONGEST_TOKEN: usize = 1_024;

/// Tells of jobs: `page_token`, `limit`, and as filters `table` (a view's
/// identifier path, joined), `job_type` and `state`.
pub async fn list(State(api): State<Arc<Api>>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let limit = super::limit(&body, DEFAULT_LIMIT, MOST)?;
    let wanted = Filter::of(&body)?;
    let mut token = token(&body)?.map(str::to_string);
    let phases = wanted.state.map(JobState::phases).unwrap_or_default();
    let mut jobs: Vec<Value> = Vec::new();
    let mut looked_at = 0;
    loop {
        // Never more than fit: a token stands between pages only.
        let room = limit - u32::try_from(jobs.len()).unwrap_or(limit);
        let page = api.store.page(&phases, room, token.as_deref()).await?;
        let page = page.ok_or_else(wrong_token)?;
        token = page.metadata.continue_.filter(|token| !token.is_empty());
        jobs.extend(
            page.items
                .iter()
                .filter_map(|Lean(refresh)| wanted.row(refresh)),
        );
        looked_at += room;
        if token.is_none() || jobs.len() >= limit as usize || looked_at >= LOOKED_AT {
            break;
        }
    }
    let mut answer = json!({ "jobs": jobs });
    if let Some(token) = token {
        answer["page_token"] = json!(token);
    }
    Ok(Json(answer))
}

/// Which jobs are asked for.
#[derive(Debug, Default)]
struct Filter {
    table: Option<String>,
    job_type: Option<String>,
    state: Option<JobState>,
}

impl Filter {
    fn of(body: &JsonBody) -> Result<Filter, ApiError> {
        let text = |name: &str| Ok::<_, ApiError>(body.string(name)?.map(str::to_string));
        let state = body.string("state")?.map(|text| {
            JobState::parse(text).ok_or_else(|| {
                ApiError::InvalidInput(format!(
                    "state is '{text}' and must be IN_PROGRESS, DONE, FAILED, CANCELLED or TIMED_OUT"
                ))
            })
        });
        Ok(Filter {
            table: text("table")?,
            job_type: text("job_type")?,
            state: state.transpose()?,
        })
    }

    /// The job's row, if it is asked for.
    fn row(&self, refresh: &MaterializedViewRefresh) -> Option<Value> {
        let table = refresh.spec.view.join(DELIMITER);
        let state = told::state(&refresh.status.clone().unwrap_or_default());
        let wanted = self.table.as_ref().is_none_or(|wanted| *wanted == table)
            && self
                .job_type
                .as_ref()
                .is_none_or(|wanted| wanted == JOB_TYPE)
            && self.state.is_none_or(|wanted| wanted == state);
        wanted.then(|| {
            json!({
                "job_id": refresh.name_any(),
                "table": table,
                "job_type": JOB_TYPE,
                "state": state.as_str(),
                "created_at_millis": told::created(refresh),
            })
        })
    }
}

fn token(body: &JsonBody) -> Result<Option<&str>, ApiError> {
    let token = body.string("page_token")?.filter(|token| !token.is_empty());
    let plausible = |token: &&str| {
        token.len() <= LONGEST_TOKEN
            && token
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte))
    };
    match token {
        Some(token) if !plausible(&token) => Err(wrong_token()),
        token => Ok(token),
    }
}

fn wrong_token() -> ApiError {
    ApiError::InvalidInput(
        "page_token is none that this API gave, or an old one; leave it out to begin anew".into(),
    )
}
