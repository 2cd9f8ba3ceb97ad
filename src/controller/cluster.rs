//! The status of RefreshClusters: whether Jobs can be launched through them,
//! and how many refreshes run and wait.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::controller::Action as Requeue;
use kube::runtime::reflector::Store;
use kube::{Client, ResourceExt};

use super::apply;
use super::context::Context;
use super::reconcile::PassError;
use crate::launch::job;
use crate::resources::reasons::{self, condition};
use crate::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshSpec, Phase, RefreshCluster,
    RefreshClusterStatus,
};

/// How often a cluster is looked at though nothing of it has changed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Looks at a cluster and writes its status.
pub async fn reconcile(
    cluster: Arc<RefreshCluster>,
    ctx: Arc<(Client, Arc<Context>)>,
) -> Result<Requeue, PassError> {
    let (client, ctx) = (&ctx.0, &ctx.1);
    let before = cluster.status.clone().unwrap_or_default();
    let (active, queued) = count(&ctx.known.refreshes, &cluster.name_any());
    let (ready, server_version) = match client.apiserver_version().await {
        Ok(version) => (judge(ctx, &cluster).await?, Some(version.git_version)),
        Err(error) => (
            (
                "Unknown",
                reasons::CLUSTER_UNREACHABLE,
                format!("the API server does not answer: {error}"),
            ),
            before.server_version.clone(),
        ),
    };
    let (status, reason, message) = ready;
    let old = before
        .conditions
        .iter()
        .find(|c| c.type_ == condition::READY);
    let since = old.filter(|c| c.status == status);
    let since = since.map(|c| c.last_transition_time.clone());
    let status = RefreshClusterStatus {
        conditions: vec![Condition {
            type_: condition::READY.to_string(),
            status: status.to_string(),
            reason: reason.to_string(),
            message,
            observed_generation: cluster.metadata.generation,
            last_transition_time: since.unwrap_or_else(|| Time(Timestamp::now())),
        }],
        observed_generation: cluster.metadata.generation,
        server_version,
        active,
        queued,
    };
    if status != before {
        apply::cluster_status(ctx, &cluster, &status).await?;
    }
    Ok(Requeue::requeue(LOOK_AGAIN))
}

/// How long to wait after a look that failed.
pub fn after_error(
    cluster: Arc<RefreshCluster>,
    error: &PassError,
    _: Arc<(Client, Arc<Context>)>,
) -> Requeue {
    tracing::warn!(cluster = cluster.name_any(), %error, "a RefreshCluster could not be looked at");
    Requeue::requeue(Duration::from_secs(10))
}

/// How many refreshes run through a cluster, and how many wait for it.
pub fn count(refreshes: &Store<MaterializedViewRefresh>, cluster: &str) -> (i32, i32) {
    let (mut active, mut queued) = (0, 0);
    for refresh in refreshes.state() {
        if refresh.spec.cluster != cluster {
            continue;
        }
        match refresh.status.as_ref().map_or(Phase::Queued, |s| s.phase) {
            Phase::Running => active += 1,
            Phase::Queued => queued += 1,
            _ => {}
        }
    }
    (active, queued)
}

/// Whether the API server would take a Job of this cluster, by a dry run.
async fn judge(
    ctx: &Context,
    cluster: &RefreshCluster,
) -> Result<(&'static str, &'static str, String), kube::Error> {
    let invalid = |why: String| Ok(("False", reasons::INVALID_TEMPLATE, why));
    let mut refresh = MaterializedViewRefresh::new(
        "template-check",
        MaterializedViewRefreshSpec::of(["template-check"]),
    );
    refresh.metadata.namespace = cluster.namespace();
    refresh.metadata.uid = cluster.uid();
    refresh.spec.cluster = cluster.name_any();
    let mut job = match job::job(&refresh, &cluster.spec, &ctx.home) {
        Ok(job) => job,
        Err(why) => return invalid(why),
    };
    job.metadata.owner_references = None;
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match ctx.jobs.create(&dry_run, &job).await {
        Ok(_) => Ok((
            "True",
            reasons::CLUSTER_READY,
            "Jobs can be launched".to_string(),
        )),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => invalid(format!(
            "the API server refuses Jobs of this cluster: {}; mend spec.template",
            status.message
        )),
        // A quota that is used up, for one: it does not speak against the template.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok((
            "True",
            reasons::CLUSTER_READY,
            format!("Jobs must wait: {}", status.message),
        )),
        Err(error) => Err(error),
    }
}
