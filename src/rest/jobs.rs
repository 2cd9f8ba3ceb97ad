//! The least of LanceDB's jobs API: `POST /v1/jobs/describe`, told from the
//! refresh alone, so that it works while the catalog does not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::Api;
use super::body::JsonBody;
use super::error::ApiError;
use crate::resources::{MaterializedViewRefresh, Mode, Phase, names};
use crate::telemetry;

/// The `job_type` of a refresh.
const JOB_TYPE: &str = "refresh_materialized_view";

/// Tells how a job is doing. 404 for one that is not there, or no longer.
pub async fn describe(
    State(api): State<Arc<Api>>,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let Some(job_id) = body.string("job_id")? else {
        return Err(ApiError::InvalidInput("job_id is missing".into()));
    };
    // The name becomes a part of a URL of the Kubernetes API.
    if !names::is_refresh_name(job_id) {
        return Err(ApiError::JobNotFound(job_id.to_string()));
    }
    telemetry::is_about(job_id);
    match api.store.get(job_id).await? {
        Some(refresh) => Ok(Json(description(&refresh))),
        None => Err(ApiError::JobNotFound(job_id.to_string())),
    }
}

fn description(refresh: &MaterializedViewRefresh) -> Value {
    let status = refresh.status.clone().unwrap_or_default();
    let spec = &refresh.spec;
    let mut job = json!({
        "job_id": refresh.name_any(),
        "job_type": JOB_TYPE,
        "job_state": match status.phase {
            Phase::Queued | Phase::Running | Phase::Suspended => "IN_PROGRESS",
            Phase::Succeeded => "DONE",
            Phase::Failed => "FAILED",
            Phase::Cancelled => "CANCELLED",
        },
        "creation_ms": refresh
            .creation_timestamp()
            .map_or(0, |created| created.0.as_millisecond()),
        "spec": {
            "id": spec.view,
            "cluster": spec.cluster,
            "src_version": spec.src_version,
            "full": spec.full,
        },
    });
    match status.phase {
        Phase::Succeeded => {
            job["result"] = json!({
                "mode": match status.mode {
                    Some(Mode::Incremental) => "incremental",
                    Some(Mode::Rebuild) => "rebuild",
                    Some(Mode::NoOp) | None => "no_op",
                },
                "rows_written": status.progress.map_or(0, |progress| progress.rows_written),
                "source_version": status.source_version.unwrap_or(0),
                "version": status.view_version.unwrap_or(0),
            });
        }
        Phase::Failed | Phase::Cancelled => {
            job["failure"] = json!({ "phase": "execute", "message": status.message });
        }
        Phase::Queued | Phase::Running | Phase::Suspended => {}
    }
    job
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{MaterializedViewRefreshSpec, MaterializedViewRefreshStatus, Progress};

    fn told(status: Option<MaterializedViewRefreshStatus>) -> Value {
        let mut refresh = MaterializedViewRefresh::new("r", MaterializedViewRefreshSpec::of(["v"]));
        refresh.status = status;
        description(&refresh)
    }

    #[test]
    fn a_refresh_that_no_controller_has_seen_is_in_progress() {
        assert_eq!(told(None)["job_state"], "IN_PROGRESS");
    }

    #[test]
    fn a_finished_refresh_tells_the_result_that_lancedb_reads() {
        let job = told(Some(MaterializedViewRefreshStatus {
            phase: Phase::Succeeded,
            mode: Some(Mode::Incremental),
            source_version: Some(7),
            view_version: Some(9),
            progress: Some(Progress {
                rows_written: 2,
                ..Default::default()
            }),
            ..Default::default()
        }));
        assert_eq!(job["job_state"], "DONE");
        assert_eq!(
            job["result"],
            json!({"mode": "incremental", "rows_written": 2, "source_version": 7, "version": 9})
        );
    }

    #[test]
    fn a_failed_or_cancelled_refresh_tells_why() {
        for (phase, state) in [(Phase::Failed, "FAILED"), (Phase::Cancelled, "CANCELLED")] {
            let job = told(Some(MaterializedViewRefreshStatus {
                phase,
                message: Some("because".into()),
                ..Default::default()
            }));
            assert_eq!(job["job_state"], state);
            assert_eq!(job["failure"]["message"], "because");
        }
    }
}
