//! How far a running Job is, from its workers' logs, and why it has no pod.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::ListParams;

use super::context::Context;
use super::look::refresh_uid;
use super::refresh::{JobSeen, Observed, ProgressSeen};
use super::status::NOT_ALLOWED;
use crate::launch::target::Target;
use crate::launch::{progress, state};

/// After how long a Job without a pod is asked why.
const POD_PATIENCE: i64 = 3;

/// What a look at a running Job's pods gave.
#[derive(Debug, PartialEq)]
pub struct Sampled {
    /// How far it is.
    pub progress: ProgressSeen,
    /// Why it has no pod, if that was told.
    pub stuck: Option<String>,
    /// It has none, and why could not be asked now.
    pub unexplained: bool,
}

impl Default for Sampled {
    /// Nothing.
    fn default() -> Self {
        Sampled {
            progress: ProgressSeen::Nothing,
            stuck: None,
            unexplained: false,
        }
    }
}

/// How far a running Job is, and why it has no pod.
pub async fn progress(ctx: &Context, target: &Target, seen: &Observed) -> Sampled {
    let sampled = sampled(ctx, target, seen).await;
    let uid = refresh_uid(&seen.refresh);
    match sampled.progress {
        ProgressSeen::At(_) => ctx.heard(&uid),
        _ if ctx.is_silent(&uid) => {
            return Sampled {
                progress: ProgressSeen::Silent,
                ..sampled
            };
        }
        _ => {}
    }
    sampled
}

async fn sampled(ctx: &Context, target: &Target, seen: &Observed) -> Sampled {
    let nothing = Sampled::default();
    let uid = refresh_uid(&seen.refresh);
    // A little less than the pause between looks, or every other one comes too early.
    let interval = ctx
        .between_looks()
        .saturating_sub(Duration::from_millis(100));
    let Some(JobSeen::Ours(job)) = &seen.job else {
        return nothing;
    };
    let is_time = ctx.time_to_look(&uid, interval);
    let mut pods = target.pods_of(&job.uid);
    if pods.is_empty() {
        let status = seen.refresh.status.as_ref();
        let start = status.and_then(|s| s.start_time.as_ref());
        let late = start.is_some_and(|at| seen.now.duration_since(at.0).as_secs() >= POD_PATIENCE);
        if is_time && late && ctx.reads.take() {
            return why_no_pod(target, &job.uid).await;
        }
        return Sampled {
            unexplained: true,
            ..nothing
        };
    }
    if !is_time {
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
        Some(progress) => Sampled {
            progress: ProgressSeen::At(progress),
            ..nothing
        },
        None => nothing,
    }
}

/// What the Job controller says of pods that it could not create: a quota, a
/// Pod Security Standard, a service account that is not there.
async fn why_no_pod(target: &Target, job_uid: &str) -> Sampled {
    let of = format!("involvedObject.uid={job_uid},reason=FailedCreate");
    let of = ListParams::default().fields(&of);
    let nothing = Sampled::default();
    let events = match target.ask(target.events.list(&of)).await {
        Ok(events) => events.items,
        Err(error) => {
            tracing::debug!(%error, "no Events can be read");
            return Sampled {
                unexplained: true,
                ..nothing
            };
        }
    };
    let last = events
        .into_iter()
        .max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    let why = last.map(|event| event.message.unwrap_or_default());
    Sampled {
        stuck: why.map(|why| format!("{NOT_ALLOWED}: {why}")),
        ..nothing
    }
}
