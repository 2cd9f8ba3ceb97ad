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
//!
//! Refreshes are looked at once no operator acts any more, and written only as
//! they were seen: whoever else writes one in between has it looked at again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::access::Access;
use super::args::ReleaseArgs;
use super::error::{PluginError, in_full};
use super::exit;
use super::follow::has_ended;
use super::show::line;
use crate::controller::lease::{Candidate, Step, Timing};
use crate::launch::kubeconfig;
use crate::resources::{JobRef, MaterializedViewRefresh, Phase, names};

/// How long a call to another cluster may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether the operator has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How often a refresh is looked at again that others change meanwhile.
const ATTEMPTS: u32 = 8;

/// Does it.
pub async fn release(access: &Access, args: &ReleaseArgs) -> Result<i32, PluginError> {
    until_nobody_acts(access, args).await?;
    let held: Vec<_> = access.list().await?.into_iter().filter(is_held).collect();
    if held.is_empty() {
        line("no refresh is held");
        return Ok(exit::OK);
    }
    let mut there = HashMap::new();
    for refresh in held {
        let name = refresh.name_any();
        let mut told = None;
        let mut attempt = 1;
        let mut seen = Some(refresh);
        while let Some(refresh) = seen.filter(is_held) {
            let stopped = stop_job(access, &refresh, &mut there).await;
            let told: &String = told.get_or_insert(stopped);
            match let_go(access, &refresh).await {
                Ok(()) => {
                    line(&format!("refresh {name} is let go: {told}"));
                    break;
                }
                Err(kube::Error::Api(status)) if status.is_not_found() => break,
                Err(kube::Error::Api(status)) if status.is_conflict() && attempt < ATTEMPTS => {
                    attempt += 1;
                    seen = look(access, &name).await?;
                }
                Err(error) => return Err(access.error(&error)),
            }
        }
    }
    Ok(exit::OK)
}

/// Stops the Job of a refresh as far as its cluster answers; what is to be told of it.
async fn stop_job(
    access: &Access,
    refresh: &MaterializedViewRefresh,
    there: &mut HashMap<String, Result<There, String>>,
) -> String {
    let Some(job) = refresh.status.as_ref().and_then(|s| s.job.as_ref()) else {
        return "it had no Job yet".to_string();
    };
    let cluster = &job.cluster;
    if !there.contains_key(cluster) {
        there.insert(cluster.clone(), connect(access, cluster).await);
    }
    let stopped = match &there[cluster] {
        Ok(there) => stop(there, job).await,
        Err(why) => Err(why.clone()),
    };
    stopped.unwrap_or_else(|why| {
        format!(
            "its Job {} in namespace {} of RefreshCluster '{cluster}' could not be stopped ({why}); its deadline and its time to live clean it up",
            job.name, job.namespace
        )
    })
}

/// The refresh of that name as it is now; the right to list is all that is needed.
async fn look(access: &Access, name: &str) -> Result<Option<MaterializedViewRefresh>, PluginError> {
    let by_name = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = access.refreshes.list(&by_name).await;
    let found = found.map_err(|error| access.error(&error))?;
    Ok(found.items.into_iter().next())
}

fn is_held(refresh: &MaterializedViewRefresh) -> bool {
    let held = refresh.finalizers().iter();
    held.into_iter().any(|held| held == names::REMOTE_FINALIZER)
}

/// An operator that acts would hold what is let go again. Whether one does is
/// told by the Lease as candidates for it read it: by one's own clock alone.
async fn until_nobody_acts(access: &Access, args: &ReleaseArgs) -> Result<(), PluginError> {
    let leases: Api<Lease> = Api::namespaced(access.client.clone(), &access.namespace);
    let timing = Timing { lease: LOOK_AGAIN };
    let mut candidate = Candidate::new(uuid::Uuid::new_v4().to_string(), timing);
    let patience = Instant::now() + args.timeout;
    loop {
        let lease = leases.get_opt(&args.lease).await;
        let lease = lease.map_err(|error| access.error(&error))?;
        let Some(spec) = lease.and_then(|lease| lease.spec) else {
            return Ok(());
        };
        let now = Instant::now();
        if let Step::Write(_) = candidate.decide(Some(&spec), now, Timestamp::now()) {
            return Ok(());
        }
        if now >= patience {
            return Err(PluginError::Acting {
                lease: args.lease.clone(),
                holder: spec.holder_identity.unwrap_or_default(),
            });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The cluster of a RefreshCluster.
struct There {
    client: Client,
    /// By what it is known again.
    server: String,
}

/// The cluster of a RefreshCluster, or why it cannot be reached.
async fn connect(access: &Access, cluster: &str) -> Result<There, String> {
    let found = access.clusters.get_opt(cluster).await;
    let found = found.map_err(|error| access.error(&error).to_string())?;
    let reference = found.and_then(|found| found.spec.kubeconfig_secret_ref);
    let reference = reference.ok_or("that RefreshCluster is gone, or of this cluster now")?;
    if !names::is_secret_name(&reference.name) {
        return Err(format!(
            "its kubeconfig is said to be in Secret '{}', which none can be called",
            reference.name
        ));
    }
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), &access.namespace);
    let secret = secrets.get_opt(&reference.name).await;
    let secret = secret.map_err(|error| access.error(&error).to_string())?;
    let bytes = secret.and_then(|secret| secret.data?.remove(&reference.key));
    let bytes = bytes.ok_or_else(|| format!("Secret '{}' is gone", reference.name))?;
    let mut config = kubeconfig::config(&bytes.0).map_err(|refusal| refusal.to_string())?;
    config.default_retry = false;
    let server = kubeconfig::server_digest(&config);
    // Its words could repeat a key.
    let client = Client::try_from(config).map_err(|_| "its kubeconfig makes no client")?;
    Ok(There { client, server })
}

/// Stops a Job; what is to be told, or why it could not be.
async fn stop(there: &There, job: &JobRef) -> Result<String, String> {
    let jobs: Api<Job> = Api::namespaced(there.client.clone(), &job.namespace);
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: job.uid.clone(),
        resource_version: None,
    });
    let deleted = tokio::time::timeout(PATIENCE, jobs.delete(&job.name, &params)).await;
    match deleted {
        Ok(Ok(_)) => Ok(format!("its Job {} is stopped", job.name)),
        Ok(Err(kube::Error::Api(_))) if job.is_elsewhere(&there.server) => {
            Err("it was made in another cluster than that names now".to_string())
        }
        // It is gone, or another one has its name.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
            Ok(format!("its Job {} is gone", job.name))
        }
        Ok(Err(error)) => Err(in_full(&error)),
        Err(_) => Err("no answer".to_string()),
    }
}

/// Takes the finalizer away, and a refresh that has not ended back to the queue
/// first; both only of the refresh as it was seen.
async fn let_go(access: &Access, refresh: &MaterializedViewRefresh) -> Result<(), kube::Error> {
    let name = refresh.name_any();
    let params = PatchParams {
        field_manager: Some(names::KUBECTL_MANAGER.to_string()),
        ..PatchParams::default()
    };
    let mut version = refresh.metadata.resource_version.clone();
    if !has_ended(refresh) {
        let message = "Its Job in another cluster was stopped when relance was taken away; it goes on once relance is installed again";
        let mut status = json!({"phase": Phase::Queued, "message": message});
        if refresh.status.as_ref().is_some_and(|s| s.job.is_some()) {
            status["job"] = json!({"uid": null});
        }
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        let patch = Patch::Merge(patch);
        let queued = access
            .refreshes
            .patch_status(&name, &params, &patch)
            .await?;
        version = queued.metadata.resource_version;
    }
    let mut finalizers = refresh.finalizers().to_vec();
    finalizers.retain(|held| held != names::REMOTE_FINALIZER);
    let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
    let patch = Patch::Merge(patch);
    access.refreshes.patch(&name, &params, &patch).await?;
    Ok(())
}
