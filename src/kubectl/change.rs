//! `cancel`, `suspend` and `resume`: one field of the spec each.

use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::access::Access;
use super::args::Named;
use super::error::PluginError;
use super::exit;
use super::follow::has_ended;
use super::show::line;
use crate::resources::{MaterializedViewRefresh, Phase, names};

/// What is changed, and how it is told.
pub struct Change {
    act: &'static str,
    field: &'static str,
    to: bool,
    told: &'static str,
}

/// `spec.cancel`.
pub const CANCEL: Change = Change {
    act: "cancel",
    field: "cancel",
    to: true,
    told: "is being cancelled",
};

/// `spec.suspend`.
pub const SUSPEND: Change = Change {
    act: "suspend",
    field: "suspend",
    to: true,
    told: "is being suspended; what it has computed is kept",
};

/// The same, taken back.
pub const RESUME: Change = Change {
    act: "resume",
    field: "suspend",
    to: false,
    told: "goes on",
};

/// Does it.
pub async fn change(access: &Access, args: &Named, change: Change) -> Result<i32, PluginError> {
    let refresh = access.get(&args.name).await?;
    if has_ended(&refresh) {
        return ended(&refresh, &change);
    }
    let patch = Patch::Merge(json!({
        // Another one may have got the name.
        "metadata": {"uid": refresh.metadata.uid},
        "spec": {change.field: change.to},
    }));
    let params = PatchParams {
        field_manager: Some(names::KUBECTL_MANAGER.to_string()),
        ..PatchParams::default()
    };
    let patched = access.refreshes.patch(&args.name, &params, &patch).await;
    let patched = patched.map_err(|error| access.error_of(&args.name, &error))?;
    // It may have ended in between.
    if has_ended(&patched) {
        return ended(&patched, &change);
    }
    line(&format!("refresh {} {}", args.name, change.told));
    Ok(exit::OK)
}

fn ended(refresh: &MaterializedViewRefresh, change: &Change) -> Result<i32, PluginError> {
    let name = refresh.metadata.name.clone().unwrap_or_default();
    let phase = refresh.phase();
    // To cancel twice is as good as once.
    if change.act == CANCEL.act && phase == Phase::Cancelled {
        line(&format!("refresh {name} is Cancelled already"));
        return Ok(exit::OK);
    }
    Err(PluginError::Ended {
        name,
        phase: format!("{phase:?}"),
        act: change.act,
    })
}
