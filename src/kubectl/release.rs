//! `release`: what is left to do for refreshes whose Jobs are in other
//! clusters once no operator runs any more. The chart runs it after
//! `helm uninstall`; anybody may who is about to delete the namespace.
//!
//! Such a refresh is held by a finalizer until its Job works no more, and only
//! an operator would take it away. So each one's Job is stopped as far as its
//! cluster answers (what it has finished is kept for days), the refresh goes
//! back to the queue, from where an operator that is installed again takes it
//! up, and the finalizer goes. Where the cluster does not answer, the Job's own
//! deadline and time to live clean it up.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::access::Access;
use super::args::ReleaseArgs;
use super::error::{PluginError, in_full};
use super::exit;
use super::follow::has_ended;
use super::show::line;
use crate::launch::kubeconfig;
use crate::resources::{JobRef, MaterializedViewRefresh, Phase, names};

/// How long a call to another cluster may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether the operator has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Does it.
pub async fn release(access: &Access, args: &ReleaseArgs) -> Result<i32, PluginError> {
    let all = access.list().await?;
    let held = all.into_iter().filter(is_held);
    let held: Vec<MaterializedViewRefresh> = held.collect();
    if held.is_empty() {
        line("no refresh is held");
        return Ok(exit::OK);
    }
    until_nobody_acts(access, args).await?;
    let mut there = HashMap::new();
    for refresh in &held {
        let name = refresh.name_any();
        let job = refresh.status.as_ref().and_then(|s| s.job.as_ref());
        let cluster = job.map_or(&refresh.spec.cluster, |job| &job.cluster);
        if !there.contains_key(cluster) {
            there.insert(cluster.clone(), connect(access, cluster).await);
        }
        let stopped = match (job, &there[cluster]) {
            (None, _) => Ok("it had no Job yet".to_string()),
            (Some(job), Ok(client)) => stop(client, job).await,
            (Some(job), Err(why)) => Err((job, why.clone())),
        };
        let told = stopped.unwrap_or_else(|(job, why)| {
            format!(
                "its Job {} in namespace {} of RefreshCluster '{cluster}' could not be stopped ({why}); its deadline and its time to live clean it up",
                job.name, job.namespace
            )
        });
        let_go(access, refresh).await?;
        line(&format!("refresh {name} is let go: {told}"));
    }
    Ok(exit::OK)
}

fn is_held(refresh: &MaterializedViewRefresh) -> bool {
    let held = refresh.finalizers().iter();
    held.into_iter().any(|held| held == names::REMOTE_FINALIZER)
}

/// An operator that acts would hold what is let go again.
async fn until_nobody_acts(access: &Access, args: &ReleaseArgs) -> Result<(), PluginError> {
    let leases: Api<Lease> = Api::namespaced(access.client.clone(), &access.namespace);
    let patience = tokio::time::Instant::now() + args.timeout;
    loop {
        let lease = leases.get_opt(&args.lease).await;
        let lease = lease.map_err(|error| access.error(&error))?;
        let Some(holder) = lease.as_ref().and_then(|l| holder(l, Timestamp::now())) else {
            return Ok(());
        };
        if tokio::time::Instant::now() >= patience {
            return Err(PluginError::Acting {
                lease: args.lease.clone(),
                holder,
            });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Who acts by this Lease, as far as its times tell.
fn holder(lease: &Lease, now: Timestamp) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    let holder = spec.holder_identity.clone().filter(|h| !h.is_empty())?;
    let held = SignedDuration::from_secs(i64::from(spec.lease_duration_seconds.unwrap_or(0)));
    let renewed = spec.renew_time.as_ref()?.0;
    (now.duration_since(renewed) <= held).then_some(holder)
}

/// A client for the cluster of a RefreshCluster, or why there is none.
async fn connect(access: &Access, cluster: &str) -> Result<Client, String> {
    let found = access.clusters.get_opt(cluster).await;
    let found = found.map_err(|error| access.error(&error).to_string())?;
    let reference = found.and_then(|found| found.spec.kubeconfig_secret_ref);
    let reference = reference.ok_or("that RefreshCluster is gone, or of this cluster now")?;
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), &access.namespace);
    let secret = secrets.get_opt(&reference.name).await;
    let secret = secret.map_err(|error| access.error(&error).to_string())?;
    let bytes = secret.and_then(|secret| secret.data?.remove(&reference.key));
    let bytes = bytes.ok_or_else(|| format!("Secret '{}' is gone", reference.name))?;
    let mut config = kubeconfig::config(&bytes.0).map_err(|refusal| refusal.to_string())?;
    config.default_retry = false;
    // Its words could repeat a key.
    Client::try_from(config).map_err(|_| "its kubeconfig makes no client".to_string())
}

/// Stops a Job; what is to be told, or why it could not be.
async fn stop<'a>(client: &Client, job: &'a JobRef) -> Result<String, (&'a JobRef, String)> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), &job.namespace);
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: job.uid.clone(),
        resource_version: None,
    });
    let deleted = tokio::time::timeout(PATIENCE, jobs.delete(&job.name, &params)).await;
    match deleted {
        Ok(Ok(_)) => Ok(format!("its Job {} is stopped", job.name)),
        // It is gone, or another one has its name.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
            Ok(format!("its Job {} is gone", job.name))
        }
        Ok(Err(error)) => Err((job, in_full(&error))),
        Err(_) => Err((job, "no answer".to_string())),
    }
}

/// Takes the finalizer away, and a refresh that has not ended back to the queue first.
async fn let_go(access: &Access, refresh: &MaterializedViewRefresh) -> Result<(), PluginError> {
    let name = refresh.name_any();
    let params = PatchParams {
        field_manager: Some(names::KUBECTL_MANAGER.to_string()),
        ..PatchParams::default()
    };
    if !has_ended(refresh) {
        let message = "Its Job in another cluster was stopped when relance was taken away; it goes on once relance is installed again";
        let mut status = json!({"phase": Phase::Queued, "message": message});
        if refresh.status.as_ref().is_some_and(|s| s.job.is_some()) {
            status["job"] = json!({"uid": null});
        }
        let patch = Patch::Merge(json!({"status": status}));
        let patched = access.refreshes.patch_status(&name, &params, &patch).await;
        gone_is_well(patched).map_err(|error| access.error(&error))?;
    }
    let mut finalizers = refresh.finalizers().to_vec();
    finalizers.retain(|held| held != names::REMOTE_FINALIZER);
    let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    let patched = access.refreshes.patch(&name, &params, &patch).await;
    gone_is_well(patched).map_err(|error| access.error(&error))
}

fn gone_is_well<T>(patched: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match patched {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_somebodys_until_it_is_given_back_or_has_run_out() {
        let lease = |holder: &str| {
            serde_json::from_value(json!({"spec": {
                "holderIdentity": holder, "leaseDurationSeconds": 15,
                "renewTime": "2026-01-01T00:00:00.000000Z",
            }}))
            .unwrap()
        };
        let at = |second: &str| format!("2026-01-01T00:00:{second}Z").parse().unwrap();
        assert_eq!(holder(&lease("me"), at("10")).as_deref(), Some("me"));
        assert_eq!(holder(&lease("me"), at("16")), None);
        assert_eq!(holder(&lease(""), at("10")), None);
        assert_eq!(holder(&Lease::default(), at("10")), None);
    }
}
