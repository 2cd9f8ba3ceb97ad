//! How far a running Job is, from its workers' logs, and why it has no pod.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::ListParams;

use super::context::Context;
use super::look::refresh_uid;
use super::refresh::{JobSeen, Observed, ProgressSeen};
use crate::launch::target::Target;
use crate::launch::{progress, state};

/// After how long a Job without a pod is asked why.
const POD_PATIENCE: i64 = 3;

/// How far a running Job is, and why it has no pod.
pub async fn progress(
    ctx: &Context,
    target: &Target,
    seen: &Observed,
) -> (ProgressSeen, Option<String>) {
    let (progress, stuck) = sampled(ctx, target, seen).await;
    let uid = refresh_uid(&seen.refresh);
    match progress {
        ProgressSeen::At(_) => ctx.heard(&uid),
        _ if ctx.is_silent(&uid) => return (ProgressSeen::Silent, stuck),
        _ => {}
    }
    (progress, stuck)
}

async fn sampled(
    ctx: &Context,
    target: &Target,
    seen: &Observed,
) -> (ProgressSeen, Option<String>) {
    let nothing = (ProgressSeen::Nothing, None);
    let uid = refresh_uid(&seen.refresh);
    // A little less than the pause between looks, or every other one comes too early.
    let interval = ctx
        .between_looks()
        .saturating_sub(Duration::from_millis(100));
    let Some(JobSeen::Ours(job)) = &seen.job else {
        return nothing;
    };
    if !ctx.time_to_look(&uid, interval) {
        return nothing;
    }
    let mut pods = target.pods_of(&job.uid);
    if pods.is_empty() {
        let start = seen
            .refresh
            .status
            .as_ref()
            .and_then(|s| s.start_time.as_ref());
        let late = start.is_some_and(|at| seen.now.duration_since(at.0).as_secs() >= POD_PATIENCE);
        if late && ctx.reads.take() {
            return (ProgressSeen::Nothing, why_no_pod(target, &job.uid).await);
        }
        return nothing;
    }
    pods.retain(|pod| state::works(pod));
    pods.sort_by_key(|pod| pod.name_any());
    let Some(pod) = pods.first() else {
        return nothing;
    };
    if !ctx.reads.take() {
        return nothing;
    }
    match progress::sample(&target.pods, &pod.name_any()).await {
        Some(progress) => (ProgressSeen::At(progress), None),
        None => nothing,
    }
}

/// What the Job controller says of pods that it could not create: a quota, a
/// Pod Security Standard, a service account that is not there.
async fn why_no_pod(target: &Target, job_uid: &str) -> Option<String> {
    let of = format!("involvedObject.uid={job_uid},reason=FailedCreate");
    let of = ListParams::default().fields(&of);
    let events = target.ask(target.events.list(&of)).await;
    let events = events
        .inspect_err(|error| tracing::debug!(%error, "no Events can be read"))
        .ok()?;
    let last = events
        .items
        .into_iter()
        .max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0))?;
    let message = last.message.unwrap_or_default();
    Some(format!("The worker pod is not allowed now: {message}"))
}
