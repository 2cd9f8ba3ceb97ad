//! The credential of a refresh's caller, where it is forwarded to the catalog:
//! from the Secret that the refresh owns, until the refresh has ended.
//!
//! What it needs of RBAC: get and delete `secrets`, by name.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};

use super::apply::gone_or;
use super::context::Context;
use super::look::{is_young, refresh_uid, refused};
use super::refresh::{CredentialSeen, World};
use crate::catalog::credential::{Credential, Place};
use crate::resources::{MaterializedViewRefresh, RefreshClusterSpec, names, reasons};
use crate::world;

/// The credential of a refresh's caller, where it is to be shown to the
/// catalog; else what is wrong with it.
pub async fn of(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    cluster: &RefreshClusterSpec,
) -> Result<Result<Option<Credential>, World>, kube::Error> {
    if !refresh.spec.forwarded_credential {
        return Ok(Ok(None));
    }
    if let Err(error) = ctx.catalog.source().require_remote() {
        return Ok(Err(refused(&error.into())));
    }
    if let Err(error) = world::may_take_credential(&refresh.spec.cluster, cluster) {
        return Ok(Err(refused(&error)));
    }
    if let Some(credential) = credential(ctx, refresh).await? {
        return Ok(Ok(Some(credential)));
    }
    let secret = names::credential_secret(&refresh.name_any());
    Ok(Err(is_young(refresh, &secret).unwrap_or_else(|| {
        World::Refused {
            reason: reasons::CREDENTIAL_NOT_FOUND.to_string(),
            message: format!(
                "there is no Secret '{secret}' that the refresh owns and that holds its caller's credential; ask REST for the refresh again"
            ),
        }
    })))
}

/// The credential of a refresh's caller.
pub async fn credential(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<Option<Credential>, kube::Error> {
    let secret = credential_secret(ctx, refresh).await?;
    let data = secret.and_then(|secret| secret.data).unwrap_or_default();
    let read = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    Ok(Place::SECRET.credential(read))
}

/// The Secret with the credential of a refresh's caller, which the refresh
/// owns: another one's would lend its caller's rights to whoever knows its name.
async fn credential_secret(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<Option<Secret>, kube::Error> {
    let name = names::credential_secret(&refresh.name_any());
    let uid = refresh_uid(refresh);
    let is_owned = |secret: &Secret| secret.owner_references().iter().any(|o| o.uid == uid);
    Ok(ctx.secrets.get_opt(&name).await?.filter(is_owned))
}

/// Sees to it that this Secret is gone. Where there is none, one may still be on
/// its way.
pub async fn delete_credential(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<CredentialSeen, kube::Error> {
    let Some(secret) = credential_secret(ctx, refresh).await? else {
        return Ok(CredentialSeen::Absent);
    };
    let this_one = DeleteParams::default().preconditions(Preconditions {
        uid: secret.uid(),
        resource_version: None,
    });
    gone_or(ctx.secrets.delete(&secret.name_any(), &this_one).await)?;
    Ok(CredentialSeen::Deleted)
}
