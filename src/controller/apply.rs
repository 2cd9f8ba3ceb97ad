//! Writing status: whole, by server-side apply of one field manager, on the
//! resourceVersion that the status was decided on.

use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::context::Context;
use super::metrics::Ended;
use super::refresh::{Step, Write};
use crate::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshStatus, RefreshCluster, RefreshClusterStatus,
    names,
};

/// Longest note that the Events API takes, in bytes.
const NOTE_LIMIT: usize = 1024;

/// Writes a status and tells its step; returns the resource as it is then, or
/// None if it has changed since (or is gone) and must be looked at again.
pub async fn status(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    write: &Write,
) -> Result<Option<MaterializedViewRefresh>, kube::Error> {
    let patch = Patch::Apply(json!({
        "apiVersion": MaterializedViewRefresh::api_version(&()),
        "kind": MaterializedViewRefresh::kind(&()),
        "metadata": {"resourceVersion": refresh.metadata.resource_version},
        "status": write.status,
    }));
    let params = PatchParams::apply(names::CONTROLLER_MANAGER).force();
    let name = refresh.name_any();
    let written = ctx.refreshes.patch_status(&name, &params, &patch);
    let mut written = match written.await {
        Ok(written) => written,
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(None),
        Err(error) => return Err(error),
    };
    written.metadata.managed_fields = None;
    ctx.wrote(&written);
    if let Some(step) = &write.step {
        tracing::info!(
            refresh = name,
            phase = ?write.status.phase,
            reason = step.reason,
            "{}",
            step.message
        );
        tell(ctx, &written, step);
        if write.status.phase.is_terminal() {
            count(ctx, &written, &write.status);
        }
    }
    Ok(Some(written))
}

/// Publishes an Event, beside what follows: an Event that is lost is no error.
fn tell(ctx: &Context, refresh: &MaterializedViewRefresh, step: &Step) {
    let recorder = ctx.recorder.clone();
    let reference = refresh.object_ref(&());
    let event = Event {
        type_: match step.warning {
            true => EventType::Warning,
            false => EventType::Normal,
        },
        reason: step.reason.clone(),
        note: Some(shortened(&step.message)),
        action: step.reason.clone(),
        secondary: None,
    };
    tokio::spawn(async move {
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::debug!(%error, "an Event was lost");
        }
    });
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(NOTE_LIMIT);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_string()
}

fn count(ctx: &Context, refresh: &MaterializedViewRefresh, status: &MaterializedViewRefreshStatus) {
    let reason = status.conditions.last().map(|c| c.reason.clone());
    let ended = Ended {
        phase: format!("{:?}", status.phase),
        reason: reason.unwrap_or_default(),
    };
    ctx.metrics.ended.get_or_create(&ended).inc();
    let created = refresh.metadata.creation_timestamp.as_ref();
    if let (Some(created), Some(end)) = (created, &status.completion_time) {
        let seconds = end.0.duration_since(created.0).as_secs_f64();
        ctx.metrics.seconds.observe(seconds.max(0.0));
    }
}

/// Writes the status of a RefreshCluster.
pub async fn cluster_status(
    ctx: &Context,
    cluster: &RefreshCluster,
    status: &RefreshClusterStatus,
) -> Result<(), kube::Error> {
    let patch = json!({
        "apiVersion": RefreshCluster::api_version(&()),
        "kind": RefreshCluster::kind(&()),
        "status": status,
    });
    let params = PatchParams::apply(names::CONTROLLER_MANAGER).force();
    ctx.clusters
        .patch_status(&cluster.name_any(), &params, &Patch::Apply(&patch))
        .await?;
    Ok(())
}
