//! The status of RefreshClusters: whether Jobs can be launched through them,
//! and how many refreshes run and wait.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::PostParams;
use kube::runtime::reflector::Store;

use super::apply;
use super::context::Context;
use super::reconcile::PassError;
use super::targets::Reach;
use crate::launch::job;
use crate::launch::target::{Target, TargetError};
use crate::lean::Lean;
use crate::panics;
use crate::resources::reasons::{self, condition};
use crate::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshSpec, Phase, RefreshCluster,
    RefreshClusterStatus,
};

/// How often a cluster is looked at though nothing of it has changed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How often another cluster is, and one that is not ready.
const LOOK_SOON: Duration = Duration::from_secs(20);
const NOT_READY: Duration = Duration::from_secs(5);
/// And after a look that failed.
const AFTER_ERROR: Duration = Duration::from_secs(10);

/// What a look at a cluster gave.
pub(super) struct Seen {
    pub(super) status: &'static str,
    reason: &'static str,
    pub(super) message: String,
    /// The API server's version, if it answered.
    version: Option<String>,
}

impl Seen {
    fn new(status: &'static str, reason: &'static str, message: impl Into<String>) -> Seen {
        Seen {
            status,
            reason,
            message: message.into(),
            version: None,
        }
    }
}

/// Looks at a cluster and writes its status; how long until the next look.
pub async fn pass(cluster: Arc<RefreshCluster>, ctx: Arc<Context>) -> Option<Duration> {
    let looked = panics::caught(looked(&cluster, &ctx)).await;
    let looked = looked.unwrap_or_else(|panicked| Err(panicked.into()));
    Some(looked.unwrap_or_else(|error| {
        tracing::warn!(cluster = cluster.name_any(), %error, "a RefreshCluster could not be looked at");
        AFTER_ERROR
    }))
}

async fn looked(cluster: &RefreshCluster, ctx: &Context) -> Result<Duration, PassError> {
    let name = cluster.name_any();
    let before = cluster.status.clone().unwrap_or_default();
    let was_closed = ctx.targets.closed().contains_key(&name);
    let (active, queued) = count(&ctx.known.refreshes, &name);
    let seen = look(ctx, cluster).await;
    if was_closed && !ctx.targets.closed().contains_key(&name) {
        ctx.places.changed();
    }
    let old = before
        .conditions
        .iter()
        .find(|c| c.type_ == condition::READY);
    let since = old.filter(|c| c.status == seen.status);
    let since = since.map(|c| c.last_transition_time.clone());
    let contact = seen.version.is_some().then(|| Time(Timestamp::now()));
    let status = RefreshClusterStatus {
        conditions: vec![Condition {
            type_: condition::READY.to_string(),
            status: seen.status.to_string(),
            reason: seen.reason.to_string(),
            message: seen.message,
            observed_generation: cluster.metadata.generation,
            last_transition_time: since.unwrap_or_else(|| Time(Timestamp::now())),
        }],
        observed_generation: cluster.metadata.generation,
        server_version: seen.version.or(before.server_version.clone()),
        last_contact_time: contact.or(before.last_contact_time.clone()),
        active,
        queued,
    };
    if is_news(&before, &status) {
        apply::cluster_status(ctx, cluster, &status).await?;
    }
    Ok(match seen.status {
        "True" if cluster.spec.is_remote() => LOOK_SOON,
        "True" => LOOK_AGAIN,
        _ => NOT_READY,
    })
}

/// Contact alone is worth a write once in a while.
fn is_news(before: &RefreshClusterStatus, now: &RefreshClusterStatus) -> bool {
    let at = |status: &RefreshClusterStatus| status.last_contact_time.as_ref().map(|at| at.0);
    let fresh = match (at(before), at(now)) {
        (Some(before), Some(now)) => now.duration_since(before).as_secs() < 50,
        (before, now) => before == now,
    };
    let same = RefreshClusterStatus {
        last_contact_time: before.last_contact_time.clone(),
        ..now.clone()
    };
    !fresh || *before != same
}

pub(super) async fn look(ctx: &Context, cluster: &RefreshCluster) -> Seen {
    let name = cluster.name_any();
    let reach = match cluster.spec.is_remote() {
        true => ctx.targets.reach(&name, Some(&cluster.spec)).await,
        false => {
            ctx.targets.forget(&name);
            Reach::By(ctx.targets.home().clone())
        }
    };
    let target = match reach {
        Reach::By(target) => target,
        Reach::Missing(why) | Reach::Gone(why) => {
            let message = format!("{why}; make it");
            return Seen::new("False", reasons::KUBECONFIG_NOT_FOUND, message);
        }
        Reach::Unread(why) => {
            return Seen::new("Unknown", reasons::CLUSTER_UNREACHABLE, why);
        }
        Reach::Refused(why) => return Seen::new("False", reasons::KUBECONFIG_REFUSED, why),
    };
    let version = match target.version().await {
        Ok(version) => version,
        Err(error) => {
            let message = match target.is_remote() {
                true => error.to_string(),
                false => format!("the API server does not answer: {error}"),
            };
            return Seen::new("Unknown", reasons::CLUSTER_UNREACHABLE, message);
        }
    };
    let judged = judge(ctx, &target, cluster).await;
    Seen {
        version: Some(version),
        ..judged
    }
}

/// How many refreshes run through a cluster, and how many wait for it.
pub fn count(refreshes: &Store<MaterializedViewRefresh>, cluster: &str) -> (i32, i32) {
    let (mut active, mut queued) = (0, 0);
    for refresh in refreshes.state() {
        if refresh.spec.cluster != cluster {
            continue;
        }
        match refresh.phase() {
            Phase::Running => active += 1,
            Phase::Queued => queued += 1,
            _ => {}
        }
    }
    (active, queued)
}

/// Whether the API server would take a Job of this cluster, by a dry run.
async fn judge(ctx: &Context, target: &Target, cluster: &RefreshCluster) -> Seen {
    let mut refresh = MaterializedViewRefresh::new(
        "template-check",
        MaterializedViewRefreshSpec::of(["template-check"]),
    );
    refresh.metadata.namespace = cluster.namespace();
    refresh.metadata.uid = cluster.uid();
    refresh.spec.cluster = cluster.name_any();
    let place = job::Place {
        namespace: &target.namespace,
        remote: target.is_remote(),
    };
    let mut job = match job::job(&refresh, &cluster.spec, &ctx.home, place) {
        Ok(job) => job,
        Err(why) => return Seen::new("False", why.reason(), why.to_string()),
    };
    job.metadata.owner_references = None;
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let made = target.ask(target.jobs.create(&dry_run, &Lean(job))).await;
    let status = match made {
        Ok(_) => {
            return Seen::new("True", reasons::CLUSTER_READY, "Jobs can be launched");
        }
        Err(TargetError::Away(why)) => {
            return Seen::new("Unknown", reasons::CLUSTER_UNREACHABLE, why);
        }
        Err(TargetError::Kube(kube::Error::Api(status))) => status,
        Err(TargetError::Kube(error)) => return undecided(&error.to_string()),
    };
    match status.code {
        400 | 422 => Seen::new(
            "False",
            reasons::INVALID_TEMPLATE,
            format!(
                "the API server refuses Jobs of this cluster: {}; mend spec.template",
                status.message
            ),
        ),
        404 if target.is_remote() => Seen::new(
            "False",
            reasons::NAMESPACE_NOT_FOUND,
            format!(
                "the cluster has no namespace '{}'; create it there, or name another by spec.namespace",
                target.namespace
            ),
        ),
        // What RBAC refuses it will refuse again, unlike a quota that is used up.
        403 if status.message.contains("cannot create resource") => Seen::new(
            "False",
            reasons::CLUSTER_FORBIDDEN,
            format!("{}; let that user create Jobs there", status.message),
        ),
        403 => Seen::new(
            "True",
            reasons::CLUSTER_READY,
            format!("Jobs must wait: {}", status.message),
        ),
        _ => undecided(&status.message),
    }
}

/// The API server answers, and not to the question: an admission webhook that is
/// down, say. What was known before holds no longer.
fn undecided(why: &str) -> Seen {
    let message =
        format!("the API server does not say whether it takes Jobs: {why}; it is asked again");
    Seen::new("Unknown", reasons::CLUSTER_UNREACHABLE, message)
}
