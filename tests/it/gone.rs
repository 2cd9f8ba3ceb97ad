//! Jobs that are gone, and refreshes that go.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use relance::resources::{Phase, names};
use serde_json::json;

use crate::operator::{Operator, PATIENCE};

#[tokio::test]
async fn a_job_that_is_deleted_under_a_running_refresh_is_made_again_and_commits_once() {
    let operator = Operator::running().await;
    // With no image the Job is sure to be there when it is deleted.
    operator
        .cluster("default", json!({"image": "localhost/not-there:1"}))
        .await;
    let refresh = operator.apply("r", json!({"view": ["v"]})).await;
    let running = operator.until("r", "launched", |s| {
        s.job.as_ref().is_some_and(|j| j.uid.is_some())
    });
    let job = running.await.job.unwrap();
    operator.cluster("default", json!({})).await;
    operator
        .jobs
        .delete(&job.name, &DeleteParams::background())
        .await
        .unwrap();
    let status = operator.succeeded("r").await;
    let again = status.job.unwrap();
    assert_eq!(again.name, job.name);
    assert_ne!(again.uid, job.uid);
    assert_eq!(operator.commits("v", &refresh).await, 1);
}

#[tokio::test]
async fn a_finished_refresh_whose_job_is_gone_does_not_run_again_after_a_restart() {
    let mut operator = Operator::running().await;
    let refresh = operator
        .apply("r", json!({"view": ["v"], "full": true}))
        .await;
    operator.succeeded("r").await;
    operator.kill();
    operator
        .jobs
        .delete_collection(&DeleteParams::background(), &Default::default())
        .await
        .unwrap();
    operator.start().await;
    // Another refresh that runs shows that the operator has been through its list.
    operator
        .apply("s", json!({"view": ["v"], "full": true}))
        .await;
    operator.succeeded("s").await;
    assert_eq!(operator.job_count().await, 1);
    assert_eq!(operator.commits("v", &refresh).await, 1);
    assert_eq!(operator.status("r").await.phase, Phase::Succeeded);
}

#[tokio::test]
async fn a_job_that_vanished_after_its_commit_while_nobody_watched_is_a_success() {
    let mut operator = Operator::running().await;
    let refresh = operator.apply("r", json!({"view": ["v"]})).await;
    let running = operator.until("r", "launched", |s| {
        s.job.as_ref().is_some_and(|j| j.uid.is_some())
    });
    let job = running.await.job.unwrap();
    operator.kill();
    let start = Instant::now();
    while operator.commits("v", &refresh).await == 0 {
        assert!(start.elapsed() < PATIENCE, "the Job does not commit");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    operator
        .jobs
        .delete(&job.name, &DeleteParams::background())
        .await
        .unwrap();
    operator.start().await;
    let status = operator.succeeded("r").await;
    assert_eq!(status.job.unwrap().uid, job.uid, "it was launched again");
    assert_eq!(operator.commits("v", &refresh).await, 1);
}

#[tokio::test]
async fn a_finished_refresh_goes_when_its_time_to_live_is_over_and_takes_its_job_along() {
    let operator = Operator::running().await;
    operator.apply("r", json!({"view": ["v"]})).await;
    operator.succeeded("r").await;
    assert_eq!(operator.job_count().await, 1);
    operator
        .patch("r", json!({"ttlSecondsAfterFinished": 1}))
        .await;
    let start = Instant::now();
    while operator
        .space
        .refreshes
        .get_opt("r")
        .await
        .unwrap()
        .is_some()
        || operator.job_count().await > 0
    {
        assert!(start.elapsed() < PATIENCE, "it is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_refresh_that_is_deleted_while_it_runs_takes_its_job_along_and_lets_the_next_one_go() {
    let operator = Operator::running().await;
    operator
        .cluster("default", json!({"image": "localhost/not-there:1"}))
        .await;
    operator.apply("gone", json!({"view": ["v"]})).await;
    operator
        .until("gone", "launched", |s| {
            s.phase == Phase::Running && s.job.as_ref().is_some_and(|j| j.uid.is_some())
        })
        .await;
    operator.apply("next", json!({"view": ["v"]})).await;
    operator
        .until("next", "queued", |s| {
            s.message
                .as_ref()
                .is_some_and(|m| m.contains("behind mvr/gone"))
        })
        .await;
    operator.cluster("default", json!({})).await;
    operator.kubectl(&["delete", "mvr", "gone", "--timeout=10s"]);
    operator.succeeded("next").await;
    let start = Instant::now();
    while operator.job_count().await > 1 {
        assert!(start.elapsed() < PATIENCE, "its Job is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whether a worker of that refresh runs.
async fn works(operator: &Operator, refresh: &str) -> bool {
    let pods: Api<Pod> = Api::namespaced(operator.space.client.clone(), &operator.space.namespace);
    let of = format!("{}={refresh}", names::REFRESH_LABEL);
    let found = pods.list(&ListParams::default().labels(&of)).await.unwrap();
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
    found
        .iter()
        .any(|pod| phase(pod).as_deref() == Some("Running"))
}

async fn until_works(operator: &Operator, refresh: &str) {
    let start = Instant::now();
    while !works(operator, refresh).await {
        assert!(start.elapsed() < PATIENCE, "no worker of {refresh} runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_next_refresh_of_a_view_waits_for_the_workers_of_one_that_was_deleted() {
    let mut operator = Operator::running().await;
    let lasting = "trap 'sleep 20; exit 143' TERM; sleep 600 & wait; sleep 20";
    let mut template = crate::far::slow_template(&operator, 600);
    template["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", lasting]);
    template["spec"]["terminationGracePeriodSeconds"] = json!(40);
    operator
        .cluster("default", json!({"template": template}))
        .await;
    operator.apply("gone", json!({"view": ["v"]})).await;
    until_works(&operator, "gone").await;
    operator.cluster("default", json!({})).await;
    operator.apply("next", json!({"view": ["v"]})).await;
    let behind = |what: &'static str| {
        operator.until("next", what, move |s| {
            let message = s.message.as_deref().unwrap_or_default();
            s.phase == Phase::Queued && message.contains(what)
        })
    };
    behind("behind mvr/gone").await;
    operator.kubectl(&["delete", "mvr", "gone", "--timeout=5s"]);
    behind("its workers are still ending").await;
    // Also for an operator that has never known it.
    operator.kill();
    operator.start().await;

    let start = Instant::now();
    let mut outlived = false;
    loop {
        // In this order: what runs after the phase was said ran when it was.
        let phase = operator.status("next").await.phase;
        let runs = works(&operator, "gone").await;
        if phase != Phase::Queued {
            assert!(!runs, "launched while a worker of the one before runs");
            break;
        }
        outlived |= runs;
        assert!(start.elapsed() < PATIENCE, "never launched");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(outlived, "the worker did not outlive its refresh");
    operator.succeeded("next").await;
}

#[tokio::test]
async fn a_refresh_whose_deletion_somebodys_finalizer_holds_up_lets_its_view_go() {
    let operator = Operator::running().await;
    let template = crate::far::slow_template(&operator, 600);
    operator
        .cluster("default", json!({"template": template}))
        .await;
    operator.apply("kept", json!({"view": ["v"]})).await;
    until_works(&operator, "kept").await;
    operator.cluster("default", json!({})).await;
    operator.apply("next", json!({"view": ["v"]})).await;
    let finalizers = |held: &str| {
        let patch = format!(r#"{{"metadata":{{"finalizers":{held}}}}}"#);
        operator.kubectl(&["patch", "mvr", "kept", "--type=merge", "-p", &patch]);
    };
    finalizers(r#"["somebody.example/keeps"]"#);
    operator.kubectl(&["delete", "mvr", "kept", "--wait=false"]);
    let status = operator.settled("kept").await;
    assert_eq!(status.phase, Phase::Cancelled);
    let message = status.message.unwrap();
    assert!(
        message.starts_with("Cancelled by its deletion"),
        "{message}"
    );
    assert!(!works(&operator, "kept").await);
    operator.succeeded("next").await;
    finalizers("[]");
    let left = operator.space.refreshes.get_opt("kept").await.unwrap();
    assert!(left.is_none_or(|left| left.finalizers().is_empty()));
}
