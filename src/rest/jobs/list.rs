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

/// Pages of the API server's that one request looks through for what a filter
/// leaves of them.
const PAGES: usize = 6;

/// Longest token; the API server's own have some 100 characters.
const LONGEST_TOKEN: usize = 1_024;

/// Tells of jobs: `page_token`, `limit`, and as filters `table` (a view's
/// identifier path, joined), `job_type` and `state`.
pub async fn list(State(api): State<Arc<Api>>, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let limit = super::limit(&body, DEFAULT_LIMIT, MOST)?;
    let wanted = Filter::of(&body)?;
    let token = token(&body)?.map(str::to_string);
    let phases = wanted.state.map(JobState::phases).unwrap_or_default();
    let ask = |most: u32, token: Option<String>| {
        let (store, phases, wanted) = (&api.store, &phases, &wanted);
        async move {
            let page = store.page(phases, most, token.as_deref()).await?;
            let page = page.ok_or_else(wrong_token)?;
            let rows = page.items.iter().map(|Lean(refresh)| wanted.row(refresh));
            Ok(Page {
                rows: rows.collect(),
                token: page.metadata.continue_.filter(|token| !token.is_empty()),
            })
        }
    };
    let (jobs, token) = gather(limit, token, ask).await?;
    let mut answer = json!({ "jobs": jobs });
    if let Some(token) = token {
        answer["page_token"] = json!(token);
    }
    Ok(Json(answer))
}

/// A page of the API server's.
struct Page<T> {
    /// What a filter makes of each refresh on it.
    rows: Vec<Option<T>>,
    /// For what follows it.
    token: Option<String>,
}

/// At most `limit` jobs, of a few of the pages that `ask` gives from `token`
/// on, and the token for what follows them. Without a filter one page is all.
async fn gather<T, F: Future<Output = Result<Page<T>, ApiError>>>(
    limit: u32,
    mut token: Option<String>,
    ask: impl Fn(u32, Option<String>) -> F,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    let mut jobs = Vec::new();
    // Of so many all fit, whatever a filter leaves of them.
    let mut most = limit;
    for _ in 0..PAGES {
        let page = ask(most, token.clone()).await?;
        let room = limit as usize - jobs.len();
        let mut left = (0..).zip(&page.rows).filter(|(_, row)| row.is_some());
        if let Some((at, _)) = left.nth(room)
            && (at < most || token.is_some())
        {
            // A token stands between pages only, so it is asked again for what fits.
            most = at;
            continue;
        }
        jobs.extend(page.rows.into_iter().flatten());
        token = page.token;
        if token.is_none() || jobs.len() == limit as usize {
            break;
        }
        most = MOST;
    }
    Ok((jobs, token))
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::ready;

    use super::*;

    /// All jobs of which `wanted` holds, of so many, and the sizes of the pages
    /// that each request took.
    async fn listed(
        jobs: usize,
        limit: u32,
        wanted: impl Fn(usize) -> bool,
    ) -> (Vec<usize>, Vec<Vec<u32>>) {
        let asked = RefCell::new(Vec::new());
        let ask = |most: u32, token: Option<String>| {
            asked.borrow_mut().push(most);
            let from: usize = token.map_or(0, |token| token.parse().unwrap());
            let to = jobs.min(from + most as usize);
            ready(Ok(Page {
                rows: (from..to).map(|job| wanted(job).then_some(job)).collect(),
                token: (to < jobs).then(|| to.to_string()),
            }))
        };
        let (mut told, mut sizes, mut token) = (Vec::new(), Vec::new(), None);
        loop {
            let (page, next) = gather(limit, token, &ask).await.unwrap();
            assert!(page.len() <= limit as usize, "{page:?}");
            told.extend(page);
            sizes.push(asked.take());
            token = next;
            if token.is_none() {
                return (told, sizes);
            }
        }
    }

    #[tokio::test]
    async fn without_a_filter_each_request_takes_one_page_of_its_limit() {
        let (told, sizes) = listed(25, 10, |_| true).await;
        assert_eq!(told, (0..25).collect::<Vec<_>>());
        assert_eq!(sizes, [[10], [10], [10]]);
    }

    #[tokio::test]
    async fn with_a_filter_each_job_is_told_once_and_a_request_takes_few_pages() {
        for every in [1, 2, 3, 7, 100, 499, 1_999, 10_000] {
            for limit in [1, 2, 7, 100, 500] {
                let (told, sizes) = listed(5_000, limit, |job| job % every == every - 1).await;
                let wanted = (0..5_000).filter(|job| job % every == every - 1);
                assert_eq!(told, wanted.collect::<Vec<_>>(), "{every} {limit}");
                assert!(sizes.iter().all(|pages| pages.len() <= PAGES), "{sizes:?}");
                // Nor are there many requests for few jobs.
                let most = 3 + told.len() / limit as usize + 5_000 / (4 * MOST as usize);
                assert!(sizes.len() <= most, "{every} {limit}: {sizes:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_page_on_which_ever_more_jobs_are_is_left_to_the_next_request() {
        let ask = |most: u32, token: Option<String>| {
            let first = token.is_none();
            // However few are asked for, too many are wanted.
            let rows = if first {
                vec![None; 2]
            } else {
                vec![Some(1); most as usize + 2]
            };
            ready(Ok(Page {
                rows,
                token: Some("next".to_string()),
            }))
        };
        let (jobs, token) = gather(2, None, ask).await.unwrap();
        assert!(jobs.is_empty());
        assert_eq!(token.as_deref(), Some("next"));
    }
}
