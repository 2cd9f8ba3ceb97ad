//! Jobs in other clusters that no refresh speaks of any more: their refresh was
//! deleted while its cluster could not be reached, or a create landed after all
//! was over. In this cluster an ownerReference sees to it; there nobody does
//! before the Job's own deadline, so now and then the operator looks.
//!
//! Only Jobs of this home are looked at, by their label: another home's in the
//! same cluster are that home's.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::reflector::ObjectRef;

use super::context::Context;
use super::refresh::is_held;
use crate::launch::target::{Target, TargetError};
use crate::launch::{job, state};
use crate::lean::Lean;
use crate::resources::{MaterializedViewRefresh, names};

/// How often it is looked.
const SWEEP: Duration = Duration::from_secs(15);

/// How old a Job must be: a younger one's refresh may be on its way here.
const AGE: SignedDuration = SignedDuration::from_secs(15);

/// Sweeps until it is dropped.
pub async fn run(ctx: &Context) {
    loop {
        tokio::time::sleep(SWEEP).await;
        for target in ctx.targets.connected() {
            if target.silent().is_none() {
                sweep(ctx, &target).await;
            }
        }
    }
}

async fn sweep(ctx: &Context, target: &Target) {
    for found in target.known_jobs.state() {
        let name = found.name_any();
        let Some(refresh) = found.labels().get(names::REFRESH_LABEL) else {
            continue;
        };
        let namespace = ctx.refreshes.namespace().unwrap_or_default();
        let known = ObjectRef::new(refresh).within(namespace);
        let known = ctx.known.refreshes.get(&known);
        if known.is_some_and(|known| job::is_of(&found, &known)) {
            // The watch shows none that has ended.
            continue;
        }
        // The API server is asked before one is taken for an orphan.
        let refresh = match ctx.refreshes.get_opt(refresh).await {
            Ok(refresh) => refresh.map(|Lean(refresh)| refresh),
            Err(error) => {
                tracing::debug!(%error, "orphans cannot be looked for");
                return;
            }
        };
        if !is_orphan(&found, refresh.as_ref(), Timestamp::now()) {
            continue;
        }
        tracing::info!(job = name, "deleting a Job whose refresh is gone or over");
        let params = DeleteParams::foreground().preconditions(Preconditions {
            uid: found.uid(),
            resource_version: None,
        });
        match target.ask(target.jobs.delete(&name, &params)).await {
            Ok(_) => {}
            Err(TargetError::Away(_)) => return,
            Err(error) => tracing::debug!(job = name, %error, "an orphan stays"),
        }
    }
}

/// Whether a Job does nothing for the refresh that is stored under the name it
/// was made for. One that has ended stays for its logs while its refresh does.
fn is_orphan(found: &Job, refresh: Option<&MaterializedViewRefresh>, now: Timestamp) -> bool {
    let young = found
        .creation_timestamp()
        .is_none_or(|at| now.duration_since(at.0) < AGE);
    if young || found.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let Some(refresh) = refresh.filter(|refresh| job::is_of(found, refresh)) else {
        return true;
    };
    let status = refresh.status.clone().unwrap_or_default();
    let runs = state::of(found, []).end.is_none();
    let its_own = status.job.and_then(|job| job.uid) == found.uid();
    runs && status.phase.is_terminal() && !is_held(refresh) && !its_own
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn job(age: i64) -> Job {
        serde_json::from_value(json!({
            "metadata": {
                "name": "r-0", "uid": "job",
                "creationTimestamp": Timestamp::from_second(NOW - age).unwrap(),
                "labels": {names::REFRESH_UID_LABEL: "uid"},
            },
        }))
        .unwrap()
    }

    fn refresh(uid: &str, phase: &str, job: &str) -> MaterializedViewRefresh {
        serde_json::from_value(json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "MaterializedViewRefresh",
            "metadata": {"name": "r", "uid": uid},
            "spec": {"view": ["v"]},
            "status": {"phase": phase, "job": {"name": "r-0", "namespace": "n", "cluster": "c", "uid": job}},
        }))
        .unwrap()
    }

    fn orphan(job: &Job, refresh: Option<&MaterializedViewRefresh>) -> bool {
        is_orphan(job, refresh, Timestamp::from_second(NOW).unwrap())
    }

    #[test]
    fn a_job_whose_refresh_is_gone_or_is_another_of_that_name_is_an_orphan() {
        assert!(orphan(&job(60), None));
        assert!(orphan(&job(60), Some(&refresh("other", "Running", "job"))));
    }

    #[test]
    fn a_young_job_and_one_that_is_being_deleted_are_left_alone() {
        assert!(!orphan(&job(5), None));
        let mut deleting = job(60);
        deleting.metadata.deletion_timestamp = deleting.metadata.creation_timestamp.clone();
        assert!(!orphan(&deleting, None));
    }

    #[test]
    fn the_job_of_a_refresh_that_runs_or_of_a_success_that_was_seen_early_is_none() {
        assert!(!orphan(&job(60), Some(&refresh("uid", "Running", "job"))));
        assert!(!orphan(&job(60), Some(&refresh("uid", "Succeeded", "job"))));
    }

    #[test]
    fn a_job_that_landed_after_its_refresh_was_over_is_one() {
        assert!(orphan(
            &job(60),
            Some(&refresh("uid", "Cancelled", "before"))
        ));
        let mut held = refresh("uid", "Cancelled", "before");
        held.metadata.finalizers = Some(vec![names::REMOTE_FINALIZER.into()]);
        assert!(!orphan(&job(60), Some(&held)), "its pass sees to it");
    }

    #[test]
    fn a_job_that_has_ended_stays_while_its_refresh_does() {
        let mut ended = job(60);
        ended.status = serde_json::from_value(json!({
            "conditions": [{"type": "Failed", "status": "True"}],
        }))
        .unwrap();
        assert!(!orphan(&ended, Some(&refresh("uid", "Failed", "before"))));
        assert!(orphan(&ended, None));
    }
}
