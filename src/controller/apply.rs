//! Writing status: whole, by server-side apply of one field manager, on the
//! resourceVersion that the status was decided on. And what else is changed of
//! resources: their finalizers, and that they are there.

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use serde_json::json;
use tracing::Instrument;

use super::context::Context;
use super::refresh::{Step, Write};
use crate::lean::Lean;
use crate::resources::{
    MaterializedViewRefresh, RefreshCluster, RefreshClusterStatus, names, reasons,
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
    let name = refresh.name_any();
    let Some(version) = marked(ctx, refresh).await? else {
        return Ok(None);
    };
    let patch = Patch::Apply(json!({
        "apiVersion": MaterializedViewRefresh::api_version(&()),
        "kind": MaterializedViewRefresh::kind(&()),
        "metadata": {"resourceVersion": version},
        "status": write.status,
    }));
    let params = PatchParams::apply(names::CONTROLLER_MANAGER).force();
    let written = ctx.refreshes.patch_status(&name, &params, &patch);
    let Some(Lean(written)) = unless_changed(written.await)? else {
        return Ok(None);
    };
    ctx.wrote(&written);
    if let Some(step) = &write.step {
        tracing::info!(
            phase = ?write.status.phase,
            reason = step.reason,
            "{}",
            step.message
        );
        // The Job follows at once, and is told of then.
        if step.reason != reasons::LAUNCHING {
            tell(ctx, &written, step);
        }
        let has_cluster = ctx.cluster(&written.spec.cluster).is_some();
        ctx.metrics.stepped(refresh, &written, has_cluster);
    }
    Ok(Some(written))
}

/// Sees to it that a backup tool restores the status with the resource, or a
/// restored refresh would run again. Returns the resourceVersion to go on
/// from, or None if the resource has changed.
async fn marked(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<Option<Option<String>>, kube::Error> {
    let (annotation, value) = names::RESTORE_STATUS;
    if refresh.annotations().contains_key(annotation) {
        return Ok(Some(refresh.metadata.resource_version.clone()));
    }
    let patch = Patch::Merge(json!({
        "metadata": {
            "resourceVersion": refresh.metadata.resource_version,
            "annotations": {annotation: value},
        },
    }));
    let params = PatchParams {
        field_manager: Some(names::CONTROLLER_MANAGER.to_string()),
        ..PatchParams::default()
    };
    let name = refresh.name_any();
    let written = ctx.refreshes.patch_metadata(&name, &params, &patch).await;
    Ok(unless_changed(written)?.map(|written| written.metadata.resource_version))
}

/// Adds the finalizer that holds a refresh for its Job in another cluster;
/// returns the resource as it is then, or None if it has changed since.
pub async fn hold(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<Option<MaterializedViewRefresh>, kube::Error> {
    let mut finalizers = refresh.metadata.finalizers.clone().unwrap_or_default();
    finalizers.push(names::REMOTE_FINALIZER.to_string());
    finalized(ctx, refresh, finalizers).await
}

/// Takes it away again and tells the step; as [`hold`], and None also if the
/// resource went with its last finalizer.
pub async fn release(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    step: Option<&Step>,
) -> Result<Option<MaterializedViewRefresh>, kube::Error> {
    let mut finalizers = refresh.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|held| held != names::REMOTE_FINALIZER);
    let released = finalized(ctx, refresh, finalizers).await?;
    if let (Some(step), Some(_)) = (step, &released) {
        tracing::warn!(reason = step.reason, "{}", step.message);
        tell(ctx, refresh, step);
    }
    Ok(released)
}

async fn finalized(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    finalizers: Vec<String>,
) -> Result<Option<MaterializedViewRefresh>, kube::Error> {
    let patch = Patch::Merge(json!({
        "metadata": {
            "resourceVersion": refresh.metadata.resource_version,
            "finalizers": finalizers,
        },
    }));
    let params = PatchParams {
        field_manager: Some(names::CONTROLLER_MANAGER.to_string()),
        ..PatchParams::default()
    };
    let name = refresh.name_any();
    let written = ctx.refreshes.patch(&name, &params, &patch).await;
    let Some(Lean(written)) = unless_changed(written)? else {
        return Ok(None);
    };
    ctx.wrote(&written);
    Ok(Some(written))
}

/// None where the resource is not what was looked at any more.
fn unless_changed<T>(written: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match written {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Publishes an Event, beside what follows: an Event that is lost is no error.
fn tell(ctx: &Context, refresh: &MaterializedViewRefresh, step: &Step) {
    let recorder = ctx.recorder();
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
    let published = async move {
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::debug!(%error, "an Event was lost");
        }
    };
    tokio::spawn(published.in_current_span());
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(NOTE_LIMIT);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_string()
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

/// Deletes a refresh whose time to live is over.
pub async fn delete_refresh(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<(), kube::Error> {
    // On this very version: a time to live that was just prolonged counts.
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: refresh.uid(),
        resource_version: refresh.resource_version(),
    });
    tracing::info!("its time to live is over");
    gone_or(ctx.refreshes.delete(&refresh.name_any(), &params).await)
}

/// What is gone, or is another by now, needs no deletion.
pub fn gone_or<T>(deleted: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match deleted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}
