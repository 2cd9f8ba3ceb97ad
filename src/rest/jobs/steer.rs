//! Cancel, pause and resume: changes of the refresh's spec, which the
//! controller then brings about.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::{job_id, past};
use crate::resources::{MaterializedViewRefresh, Phase};
use crate::rest::Api;
use crate::rest::auth::credential::Asked;
use crate::rest::error::ApiError;

/// What the spec shall be changed to, if at all, and what the answer says.
type Change = (Option<Value>, Value);

/// Ends a job. One that has ended is left as it is.
pub async fn cancel(State(api): State<Arc<Api>>, asked: Asked) -> Result<Json<Value>, ApiError> {
    steer(&api, &asked, cancelled).await
}

/// Holds a job; what it has computed is kept for when it goes on.
pub async fn pause(State(api): State<Arc<Api>>, asked: Asked) -> Result<Json<Value>, ApiError> {
    steer(&api, &asked, paused).await
}

/// Lets a job go on that was held.
pub async fn resume(State(api): State<Arc<Api>>, asked: Asked) -> Result<Json<Value>, ApiError> {
    steer(&api, &asked, resumed).await
}

async fn steer(
    api: &Api,
    Asked { caller, body }: &Asked,
    change: impl Fn(&str, Option<&MaterializedViewRefresh>) -> Result<Change, ApiError>,
) -> Result<Json<Value>, ApiError> {
    let job_id = job_id(body)?;
    let steered = api
        .store
        .steer(job_id, |refresh| change(job_id, Some(refresh)));
    if let Some(answer) = steered.await? {
        return Ok(Json(answer));
    }
    // It has ended long ago, or it never was.
    past::find(api, caller, job_id).await?;
    Ok(Json(change(job_id, None)?.1))
}

/// The refresh, unless it has ended.
fn active(refresh: Option<&MaterializedViewRefresh>) -> Option<&MaterializedViewRefresh> {
    refresh.filter(|refresh| !refresh.phase().is_terminal())
}

fn cancelled(job_id: &str, refresh: Option<&MaterializedViewRefresh>) -> Result<Change, ApiError> {
    let Some(refresh) = active(refresh) else {
        return Ok((None, json!({"job_id": job_id, "cancelled": false})));
    };
    let change = (!refresh.spec.cancel).then(|| json!({"cancel": true}));
    Ok((change, json!({"job_id": job_id, "cancelled": true})))
}

fn paused(job_id: &str, refresh: Option<&MaterializedViewRefresh>) -> Result<Change, ApiError> {
    let Some(refresh) = active(refresh) else {
        return Err(ApiError::Conflict(format!(
            "job '{job_id}' has ended, and what has ended cannot be paused; describe it to see how it ended"
        )));
    };
    let held = refresh.spec.suspend;
    // A commit that is under way may land before its pods are stopped; the
    // refresh has then succeeded.
    let progress = refresh.status.as_ref().and_then(|s| s.progress.as_ref());
    let committing = refresh.phase() == Phase::Running
        && progress.is_some_and(|p| p.units_total > 0 && p.units_done >= p.units_total);
    let answer = json!({"job_id": job_id, "paused": !held, "committing": !held && committing});
    Ok(((!held).then(|| json!({"suspend": true})), answer))
}

fn resumed(job_id: &str, refresh: Option<&MaterializedViewRefresh>) -> Result<Change, ApiError> {
    let held = active(refresh).filter(|refresh| refresh.spec.suspend);
    let answer = json!({
        "job_id": job_id,
        "resumed": held.is_some(),
        // Its pods are still being stopped; new ones follow them.
        "still_pausing": held.is_some_and(|refresh| refresh.phase() == Phase::Running),
    });
    Ok((held.map(|_| json!({"suspend": false})), answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{MaterializedViewRefreshSpec, MaterializedViewRefreshStatus, Progress};

    fn refresh(phase: Phase, suspend: bool, units: (i64, i64)) -> MaterializedViewRefresh {
        let mut refresh = MaterializedViewRefresh::new("r", MaterializedViewRefreshSpec::of(["v"]));
        refresh.spec.suspend = suspend;
        refresh.status = Some(MaterializedViewRefreshStatus {
            phase,
            progress: Some(Progress {
                units_done: units.0,
                units_total: units.1,
                ..Default::default()
            }),
            ..Default::default()
        });
        refresh
    }

    #[test]
    fn what_has_ended_is_not_cancelled_resumed_or_paused() {
        for phase in Phase::TERMINAL {
            let ended = refresh(phase, false, (2, 2));
            for ended in [Some(&ended), None] {
                let (change, answer) = cancelled("r", ended).unwrap();
                assert_eq!((change, &answer["cancelled"]), (None, &json!(false)));
                let (change, answer) = resumed("r", ended).unwrap();
                assert_eq!((change, &answer["resumed"]), (None, &json!(false)));
                let error = paused("r", ended).unwrap_err();
                assert!(matches!(error, ApiError::Conflict(_)), "{error}");
            }
        }
    }

    #[test]
    fn a_pause_says_whether_it_changed_something_and_whether_a_commit_is_under_way() {
        let told = |refresh: MaterializedViewRefresh| {
            let (change, answer) = paused("r", Some(&refresh)).unwrap();
            assert_eq!(change.is_some(), answer["paused"] == true);
            (answer["paused"] == true, answer["committing"] == true)
        };
        assert_eq!(told(refresh(Phase::Queued, false, (0, 0))), (true, false));
        assert_eq!(told(refresh(Phase::Running, false, (1, 2))), (true, false));
        assert_eq!(told(refresh(Phase::Running, false, (2, 2))), (true, true));
        assert_eq!(
            told(refresh(Phase::Suspended, true, (2, 2))),
            (false, false)
        );
    }

    #[test]
    fn a_resume_says_whether_it_changed_something_and_whether_the_pause_is_still_under_way() {
        let told = |refresh: MaterializedViewRefresh| {
            let (change, answer) = resumed("r", Some(&refresh)).unwrap();
            assert_eq!(change.is_some(), answer["resumed"] == true);
            (answer["resumed"] == true, answer["still_pausing"] == true)
        };
        assert_eq!(told(refresh(Phase::Suspended, true, (1, 2))), (true, false));
        assert_eq!(told(refresh(Phase::Running, true, (1, 2))), (true, true));
        assert_eq!(told(refresh(Phase::Running, false, (1, 2))), (false, false));
    }
}
