//! Jobs that are gone, and refreshes that go.

use std::time::{Duration, Instant};

use kube::api::DeleteParams;
use relance::resources::Phase;
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
