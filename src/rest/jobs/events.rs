//! The events of a job, as an Arrow IPC stream: what happened to the refresh
//! and when, from its resource and from what its workers left in the view's
//! folder.
//!
//! | `state` | when | `updated_by` | `emitted_from` | `emitted_by` |
//! |---|---|---|---|---|
//! | `queued` | it was made | who made it: a field manager | its resource | the same |
//! | `launched` | its Job was asked for | the controller | its resource | the controller |
//! | `suspended`, `resumed` | it was held, or let go | the controller | its resource | the controller |
//! | `claim_complete` | a unit was computed (`claim_entity`, `rows_processed`) | the UID of the refresh that computed it | its Job | `worker` |
//! | `committed` | the view was changed (`rows_processed`: by how much) | the refresh's UID | its Job | `worker` |
//! | `done`, `failed`, `cancelled`, `timed_out` | it ended | the controller | its resource | the controller |
//!
//! Units of a refresh that has committed are known as long as its ledger is
//! kept: for the last 16 commits of the view. Of a job whose resource is gone,
//! what [`past`] finds is told.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, TimeUnit};
use arrow_select::filter::filter_record_batch;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kube::ResourceExt;

use super::{filter, job_id, past, told};
use crate::engine::account::{self, Account, Found};
use crate::engine::error::EngineError;
use crate::engine::outcome::Mode;
use crate::resources::reasons::{self, condition};
use crate::resources::{MaterializedViewRefresh, count, names};
use crate::rest::Api;
use crate::rest::auth::credential::Asked;
use crate::rest::error::ApiError;

/// Rows of an answer, unless `limit` says otherwise.
const DEFAULT_LIMIT: u32 = 1_000;

/// Most rows of an answer.
const MOST: u32 = 10_000;

/// The media type of an Arrow IPC stream.
const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";

/// The place of the end among events of the same time.
const ENDED: u8 = 5;

/// Who emits what a worker did.
const WORKER: &str = "worker";

/// The events of a job, the oldest first: `filter`, and then the first `limit`.
pub async fn query(
    State(api): State<Arc<Api>>,
    Asked { caller, body }: Asked,
) -> Result<Response, ApiError> {
    let limit = super::limit(&body, DEFAULT_LIMIT, MOST)?;
    let filter = body.string("filter")?;
    if let Some(filter) = filter {
        // What is malformed is so whatever the job.
        select(&api, &events_of(Vec::new())?, filter).await?;
    }
    let job_id = job_id(&body)?;
    let source = match api.store.get(job_id).await? {
        Some(refresh) => Source::Resource(Box::new(refresh)),
        None => Source::Past(past::find(&api, &caller, job_id).await?),
    };
    let uid = source.uid();
    let catalog = api.catalog_of(&caller).await?;
    let looked = {
        let (view, uid) = (source.view().to_vec(), uid.clone());
        let accounts = api.turns.accounts.clone();
        async move {
            let turn = accounts.acquire_owned().await;
            (account::of(&catalog, &view, &uid).await, turn)
        }
    };
    // It has the turn until the answer is written.
    let (looked, _turn) = api.catalog.look_long(looked).await?;
    let mut account = match looked {
        Ok(account) => account,
        // It was dropped, or never was: then nothing was done to it.
        Err(EngineError::ViewNotFound { .. } | EngineError::InvalidInput(_)) => Account::default(),
        Err(error) => return Err(error.into()),
    };
    if let (None, Source::Past(found)) = (&account.recorded, &source) {
        // The record is gone; the view's history has the commit.
        account.recorded = Some((found.at, found.record.outcome.clone()));
    }
    let mut events = source.events(job_id);
    events.extend(of_account(&account, &uid, source.job().as_deref()));
    let mut batch = events_of(in_order(events))?;
    if let Some(filter) = filter {
        batch = select(&api, &batch, filter).await?;
    }
    let batch = batch.slice(0, batch.num_rows().min(limit as usize));
    let bytes = stream(&batch).map_err(internal)?;
    Ok(([(header::CONTENT_TYPE, ARROW_STREAM)], bytes).into_response())
}

/// `events` as they came about. What comes at the same time is in the order of a
/// life. Kubernetes tells the second in which a refresh ended; what its workers did
/// within that was before.
fn in_order(mut events: Vec<Event>) -> Vec<Event> {
    let before = events.iter().filter(|event| event.rank < ENDED);
    let last = before.map(|event| event.at).max().unwrap_or_default();
    for ended in events.iter_mut().filter(|event| event.rank == ENDED) {
        ended.at = ended.at.max(last.min(ended.at.saturating_add(999)));
    }
    events.sort_by_key(|event| (event.at, event.rank));
    events
}

/// What tells of a job.
enum Source {
    Resource(Box<MaterializedViewRefresh>),
    /// The resource is gone; what it left in the catalog.
    Past(Arc<Found>),
}

impl Source {
    fn view(&self) -> &[String] {
        match self {
            Source::Resource(refresh) => &refresh.spec.view,
            Source::Past(found) => &found.view,
        }
    }

    fn uid(&self) -> String {
        match self {
            Source::Resource(refresh) => refresh.uid().unwrap_or_default(),
            Source::Past(found) => found.record.refresh.clone(),
        }
    }

    fn events(&self, job_id: &str) -> Vec<Event> {
        match self {
            Source::Resource(refresh) => of_refresh(refresh),
            Source::Past(found) => of_record(job_id, found),
        }
    }

    /// Its Kubernetes Job, as events name it.
    fn job(&self) -> Option<String> {
        let Source::Resource(refresh) = self else {
            return None;
        };
        let job = refresh.status.as_ref()?.job.as_ref()?;
        Some(format!("Job/{}", job.name))
    }
}

/// One event.
#[derive(Clone, Debug, Default)]
struct Event {
    state: String,
    /// Milliseconds since 1970.
    at: i64,
    /// Its place among those of the same time.
    rank: u8,
    updated_by: Option<String>,
    emitted_from: Option<String>,
    emitted_by: Option<String>,
    claim_entity: Option<String>,
    rows_processed: Option<i64>,
    message: Option<String>,
}

/// What the resource tells.
fn of_refresh(refresh: &MaterializedViewRefresh) -> Vec<Event> {
    let resource = format!("MaterializedViewRefresh/{}", refresh.name_any());
    let made_by = refresh.managed_fields().first();
    let made_by = made_by.and_then(|fields| fields.manager.clone());
    let mut events = vec![Event {
        state: "queued".to_string(),
        at: told::created(refresh),
        updated_by: made_by.clone(),
        emitted_by: made_by,
        emitted_from: Some(resource.clone()),
        ..Default::default()
    }];
    let status = refresh.status.clone().unwrap_or_default();
    let mut by_controller = |state: &str, at: i64, rank: u8, message: Option<String>| {
        events.push(Event {
            state: state.to_string(),
            at,
            rank,
            updated_by: Some(names::CONTROLLER_MANAGER.to_string()),
            emitted_by: Some(names::CONTROLLER_MANAGER.to_string()),
            emitted_from: Some(resource.clone()),
            message,
            ..Default::default()
        });
    };
    if let Some(started) = &status.start_time {
        by_controller("launched", started.0.as_millisecond(), 1, None);
    }
    let held = |c: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        c.type_ == condition::SUSPENDED
    };
    if let Some(held) = status.conditions.iter().find(held) {
        let at = held.last_transition_time.0.as_millisecond();
        let ended = status.completion_time.as_ref();
        // What was held when it ended was not let go: since when it was is not
        // known any more.
        let until_its_end = held.reason != reasons::RESUMED
            && ended.is_some_and(|ended| ended.0.as_millisecond() <= at);
        let state = match (held.status == "True", until_its_end) {
            (true, _) => Some("suspended"),
            (false, true) => None,
            (false, false) => Some("resumed"),
        };
        if let Some(state) = state {
            by_controller(state, at, 2, Some(held.message.clone()));
        }
    }
    if let Some(ended) = &status.completion_time {
        let state = told::state(&status).as_str().to_lowercase();
        let at = ended.0.as_millisecond();
        by_controller(&state, at, ENDED, status.message.clone());
    }
    events
}

/// What the record of a refresh tells whose resource is gone.
fn of_record(job_id: &str, found: &Found) -> Vec<Event> {
    let queued = past::created(job_id).map(|at| Event {
        state: "queued".to_string(),
        at,
        ..Default::default()
    });
    let done = Event {
        state: told::JobState::Done.as_str().to_lowercase(),
        at: milliseconds(found.at),
        rank: ENDED,
        ..Default::default()
    };
    queued.into_iter().chain([done]).collect()
}

/// What the workers left.
fn of_account(account: &Account, uid: &str, job: Option<&str>) -> Vec<Event> {
    let by_worker = |state: &str, at: SystemTime, rank: u8| Event {
        state: state.to_string(),
        at: milliseconds(at),
        rank,
        emitted_from: job.map(str::to_string),
        emitted_by: Some(WORKER.to_string()),
        ..Default::default()
    };
    let units = account.units.iter().map(|unit| Event {
        updated_by: unit.refresh.clone(),
        claim_entity: Some(unit.id.clone()),
        rows_processed: unit.rows.map(count),
        ..by_worker("claim_complete", unit.at, 3)
    });
    let recorded = account.recorded.iter();
    let changed = recorded.filter(|(_, outcome)| outcome.mode != Mode::NoOp);
    let committed = changed.map(|(at, outcome)| Event {
        updated_by: Some(uid.to_string()),
        rows_processed: Some(count(outcome.rows_written)),
        ..by_worker("committed", *at, 4)
    });
    units.chain(committed).collect()
}

fn milliseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or_default()
}

fn events_of(events: Vec<Event>) -> Result<RecordBatch, ApiError> {
    let text = |name: &str, nullable: bool| Field::new(name, DataType::Utf8, nullable);
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let schema = Schema::new(vec![
        text("state", false),
        Field::new("emitted_at", time, false),
        text("updated_by", true),
        text("emitted_from", true),
        text("emitted_by", true),
        text("claim_entity", true),
        Field::new("rows_processed", DataType::Int64, true),
        text("message", true),
    ]);
    let column = |of: fn(&Event) -> Option<&str>| -> ArrayRef {
        Arc::new(events.iter().map(of).collect::<StringArray>())
    };
    let times: TimestampMillisecondArray = events.iter().map(|e| Some(e.at)).collect();
    let rows: Int64Array = events.iter().map(|e| e.rows_processed).collect();
    let columns: Vec<ArrayRef> = vec![
        column(|e| Some(&e.state)),
        Arc::new(times.with_timezone("UTC")),
        column(|e| e.updated_by.as_deref()),
        column(|e| e.emitted_from.as_deref()),
        column(|e| e.emitted_by.as_deref()),
        column(|e| e.claim_entity.as_deref()),
        Arc::new(rows),
        column(|e| e.message.as_deref()),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).map_err(internal)
}

async fn select(api: &Api, batch: &RecordBatch, wanted: &str) -> Result<RecordBatch, ApiError> {
    let rows = filter::select(wanted, batch, &api.turns.filters).await?;
    filter_record_batch(batch, &rows).map_err(internal)
}

fn stream(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema())?;
    if batch.num_rows() > 0 {
        writer.write(batch)?;
    }
    writer.finish()?;
    drop(writer);
    Ok(bytes)
}

fn internal(error: ArrowError) -> ApiError {
    ApiError::Internal(format!("the events cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_cancelled_while_it_is_held_was_never_resumed() {
        let told = |held: serde_json::Value| {
            let refresh = serde_json::json!({
                "apiVersion": "relance.dev/v1alpha1", "kind": "MaterializedViewRefresh",
                "metadata": {"name": "r", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"view": ["v"]},
                "status": {
                    "phase": "Cancelled", "completionTime": "2026-01-01T00:00:09Z",
                    "conditions": [held],
                },
            });
            let refresh = serde_json::from_value(refresh).unwrap();
            let states = of_refresh(&refresh).into_iter().map(|event| event.state);
            states.collect::<Vec<_>>()
        };
        let held = |reason: &str, second: u32| {
            serde_json::json!({
                "type": "Suspended", "status": "False", "reason": reason, "message": "",
                "lastTransitionTime": format!("2026-01-01T00:00:{second:02}Z"),
            })
        };
        assert_eq!(told(held("Cancelled", 9)), ["queued", "cancelled"]);
        assert_eq!(told(held("Resumed", 5)), ["queued", "resumed", "cancelled"]);
        // As an older relance wrote it.
        assert_eq!(
            told(held("Cancelled", 5)),
            ["queued", "resumed", "cancelled"]
        );
    }

    #[test]
    fn a_refresh_ends_after_what_its_workers_did_within_that_second() {
        let event = |state: &str, at: i64, rank: u8| Event {
            state: state.to_string(),
            at,
            rank,
            ..Default::default()
        };
        let told = |committed: i64| {
            let events = vec![
                event("done", 5_000, ENDED),
                event("queued", 3_000, 0),
                event("committed", committed, 4),
                event("launched", 3_000, 1),
            ];
            let events = in_order(events).into_iter();
            events.map(|e| (e.state, e.at)).collect::<Vec<_>>()
        };
        let ends = |committed: i64| told(committed).pop().unwrap();
        assert_eq!(told(4_100)[0].0, "queued");
        assert_eq!(told(4_100)[1].0, "launched");
        assert_eq!(ends(4_100), ("done".to_string(), 5_000));
        assert_eq!(ends(5_640), ("done".to_string(), 5_640));
        // By clocks that differ there is no telling.
        assert_eq!(ends(9_000), ("committed".to_string(), 9_000));
    }
}
