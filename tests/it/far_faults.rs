//! Parts of the other cluster die under running refreshes, its credentials
//! change, and what names it is deleted.

use std::time::{Duration, Instant};

use kube::api::DeleteParams;
use relance::resources::{MaterializedViewRefresh, Phase, reasons};
use serde_json::json;

use crate::far::{Far, bring_back, give, is_held, script, shown, until_ready};
use crate::operator::{Operator, PATIENCE};

async fn until_released(operator: &Operator, refresh: &str) {
    let start = Instant::now();
    while is_held(operator, refresh).await {
        assert!(
            start.elapsed() < PATIENCE,
            "{refresh} is held for ever; the other cluster has:\n{}",
            shown()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn launched(operator: &Operator, refresh: &str) {
    operator
        .until(refresh, "launched", |s| {
            s.job.as_ref().is_some_and(|j| j.uid.is_some())
        })
        .await;
}

/// Applies refresh `r` of view `v` to the other cluster, and waits for its Job.
async fn launched_there(operator: &Operator) -> MaterializedViewRefresh {
    let spec = json!({"view": ["v"], "cluster": "far"});
    let refresh = operator.apply("r", spec).await;
    launched(operator, "r").await;
    refresh
}

/// The worker's container runs, and sleeps.
async fn works(far: &Far) {
    let start = Instant::now();
    loop {
        let pods = far.pods.list(&Default::default()).await.unwrap();
        let runs = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        };
        if pods.items.iter().any(runs) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "no worker runs");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_api_server_that_stops_mid_refresh_hides_the_job_and_not_its_commit() {
    let operator = Operator::running().await;
    let far = Far::alone(&operator).await;
    operator
        .view("long", "SELECT id FROM src WHERE id > 3")
        .await;
    far.slow(&operator, 20).await;
    let refresh = launched_there(&operator).await;
    works(&far).await;
    script(&["kill", "apiserver"]);
    let away = operator
        .until("r", "out of sight, or over", |s| {
            let message = s.message.as_ref();
            s.phase.is_terminal() || message.is_some_and(|m| m.contains("out of sight"))
        })
        .await;
    assert_eq!(away.phase, Phase::Running, "{away:?}");
    until_ready(&operator, "Unknown", reasons::CLUSTER_UNREACHABLE).await;
    // One that comes now waits, and keeps nobody from another cluster.
    operator
        .apply("waits", json!({"view": ["long"], "cluster": "far"}))
        .await;
    operator
        .until("waits", "waiting for the cluster", |s| {
            let message = s.message.as_ref();
            s.phase == Phase::Queued && message.is_some_and(|m| m.contains("cannot be reached"))
        })
        .await;
    operator.apply("near", json!({"view": ["long"]})).await;
    operator.succeeded("near").await;
    // The worker needs no API server.
    let status = operator.succeeded("r").await;
    assert_eq!(status.progress.unwrap().rows_written, 8);
    assert!(is_held(&operator, "r").await);
    bring_back();
    until_ready(&operator, "True", reasons::CLUSTER_READY).await;
    until_released(&operator, "r").await;
    operator.succeeded("waits").await;
    assert_eq!(operator.commits("v", &refresh).await, 1);
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_api_server_and_etcd_that_come_back_while_the_job_runs_lose_nothing() {
    let operator = Operator::running().await;
    let far = Far::alone(&operator).await;
    far.slow(&operator, 12).await;
    let refresh = launched_there(&operator).await;
    works(&far).await;
    for component in ["etcd", "apiserver"] {
        script(&["kill", component]);
    }
    operator
        .until("r", "out of sight", |s| {
            s.message
                .as_ref()
                .is_some_and(|m| m.contains("out of sight"))
        })
        .await;
    bring_back();
    let status = operator.succeeded("r").await;
    until_released(&operator, "r").await;
    assert_eq!(far.job_count().await, 1, "{status:?}");
    assert_eq!(operator.commits("v", &refresh).await, 1);
}

#[tokio::test]
async fn a_kubelet_that_dies_mid_refresh_leaves_a_commit_that_is_found() {
    let operator = Operator::running().await;
    let far = Far::alone(&operator).await;
    far.slow(&operator, 5).await;
    let refresh = launched_there(&operator).await;
    works(&far).await;
    script(&["kill", "kubelet"]);
    // Nobody tells the API server that the worker ended.
    let status = operator.succeeded("r").await;
    assert_eq!(status.mode, Some(relance::resources::Mode::Rebuild));
    script(&["start", "kubelet"]);
    until_released(&operator, "r").await;
    assert_eq!(operator.commits("v", &refresh).await, 1);
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_kubelet_that_is_dead_when_the_job_comes_starts_it_when_it_is_back() {
    let operator = Operator::running().await;
    let _far = Far::alone(&operator).await;
    until_ready(&operator, "True", reasons::CLUSTER_READY).await;
    script(&["kill", "kubelet"]);
    let refresh = launched_there(&operator).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(operator.status("r").await.phase, Phase::Running);
    script(&["start", "kubelet"]);
    operator.succeeded("r").await;
    assert_eq!(operator.commits("v", &refresh).await, 1);
}

#[tokio::test]
async fn a_secret_that_is_rotated_needs_no_restart() {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    far.slow(&operator, 15).await;
    let refresh = launched_there(&operator).await;
    far.user("second").await;
    far.give_kubeconfig(&operator, "second").await;
    far.remove_user("relance").await;
    operator.succeeded("r").await;
    assert_eq!(operator.commits("v", &refresh).await, 1);
    assert_eq!(far.job_count().await, 1);
    until_released(&operator, "r").await;
    // Also where it is deleted first and made anew then.
    operator
        .space
        .secrets
        .delete("far", &DeleteParams::default())
        .await
        .unwrap();
    far.user("third").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    far.give_kubeconfig(&operator, "third").await;
    far.remove_user("second").await;
    let spec = json!({"view": ["v"], "cluster": "far", "full": true});
    operator.apply("next", spec).await;
    operator.succeeded("next").await;
    until_ready(&operator, "True", reasons::CLUSTER_READY).await;
}

#[tokio::test]
async fn a_refresh_cluster_that_is_deleted_mid_refresh_loses_sight_of_the_job_and_not_of_its_commit()
 {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    far.slow(&operator, 10).await;
    let refresh = launched_there(&operator).await;
    operator.view("w", "SELECT id FROM src").await;
    operator
        .apply("ended", json!({"view": ["w"], "cluster": "far"}))
        .await;
    launched(&operator, "ended").await;
    operator
        .space
        .clusters
        .delete("far", &DeleteParams::default())
        .await
        .unwrap();
    operator
        .until("r", "lost", |s| {
            s.message
                .as_ref()
                .is_some_and(|m| m.contains("RefreshCluster 'far' is gone"))
        })
        .await;
    // Whoever does not want to wait for a commit cancels.
    operator.patch("ended", json!({"cancel": true})).await;
    let status = operator.settled("ended").await;
    assert!(matches!(status.phase, Phase::Cancelled | Phase::Succeeded));
    operator.succeeded("r").await;
    until_released(&operator, "r").await;
    until_released(&operator, "ended").await;
    let told = operator.kubectl(&["get", "events", "-o", "custom-columns=R:.reason"]);
    assert!(told.contains(reasons::REMOTE_JOB_LEFT), "{told}");
    assert_eq!(operator.commits("v", &refresh).await, 1);
    // A refresh that comes now is told what is wrong.
    operator
        .apply("late", json!({"view": ["v"], "cluster": "far"}))
        .await;
    let status = operator.settled("late").await;
    assert_eq!(status.conditions[0].reason, reasons::CLUSTER_NOT_FOUND);
}

#[tokio::test]
async fn a_refresh_cluster_that_comes_to_name_another_cluster_has_its_job_lost_and_not_made_again()
{
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    // Longer than a Secret goes unread.
    far.slow(&operator, 45).await;
    let refresh = launched_there(&operator).await;
    // The cluster at home is another one, and has no such Job.
    let elsewhere = far.kubeconfig_at(&crate::support::kubeconfig());
    give(&operator, &elsewhere).await;
    operator
        .until("r", "lost", |s| {
            s.message
                .as_ref()
                .is_some_and(|m| m.contains("made in another cluster"))
        })
        .await;
    operator.succeeded("r").await;
    until_released(&operator, "r").await;
    assert_eq!(operator.commits("v", &refresh).await, 1);
    assert_eq!(operator.job_count().await, 0);
    assert_eq!(far.job_count().await, 1, "it was made again");
}

#[tokio::test]
async fn a_cluster_at_another_address_is_the_one_it_was_where_the_job_is_found_there() {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    // Longer than a Secret goes unread.
    far.slow(&operator, 45).await;
    let refresh = launched_there(&operator).await;
    let before = operator.status("r").await.job.unwrap().server;
    assert!(before.is_some());
    give(&operator, &far.kubeconfig_elsewhere("relance").await).await;
    operator
        .until("r", "found at the other address", |s| {
            s.job.as_ref().is_some_and(|job| job.server != before)
        })
        .await;
    operator.succeeded("r").await;
    until_released(&operator, "r").await;
    assert_eq!(operator.commits("v", &refresh).await, 1);
    assert_eq!(far.job_count().await, 1, "it was made again");
}

#[tokio::test]
async fn a_far_refresh_whose_deletion_somebodys_finalizer_holds_up_lets_its_job_and_view_go() {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    far.slow(&operator, 600).await;
    launched_there(&operator).await;
    works(&far).await;
    let add = r#"[{"op":"add","path":"/metadata/finalizers/-","value":"somebody.example/keeps"}]"#;
    operator.kubectl(&["patch", "mvr", "r", "--type=json", "-p", add]);
    operator.kubectl(&["delete", "mvr", "r", "--wait=false"]);
    let status = operator.settled("r").await;
    assert_eq!(status.phase, Phase::Cancelled);
    let message = status.message.unwrap();
    assert!(
        message.starts_with("Cancelled by its deletion"),
        "{message}"
    );
    far.until_no_job().await;
    until_released(&operator, "r").await;
    operator.apply("next", json!({"view": ["v"]})).await;
    operator.succeeded("next").await;
    let none = r#"{"metadata":{"finalizers":[]}}"#;
    operator.kubectl(&["patch", "mvr", "r", "--type=merge", "-p", none]);
    operator.kubectl(&["wait", "--for=delete", "mvr", "r", "--timeout=20s"]);
}

#[tokio::test]
async fn a_cluster_that_never_comes_back_frees_the_view_after_the_deadline() {
    let operator = Operator::running().await;
    let far = Far::alone(&operator).await;
    far.slow(&operator, 600).await;
    let spec = json!({"view": ["v"], "cluster": "far", "activeDeadlineSeconds": 20});
    operator.apply("r", spec).await;
    launched(&operator, "r").await;
    script(&["kill", "apiserver"]);
    operator.apply("next", json!({"view": ["v"]})).await;
    let status = operator.settled("r").await;
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.conditions[0].reason, reasons::CLUSTER_LOST);
    operator.succeeded("next").await;
    until_released(&operator, "r").await;
    operator.kubectl(&["delete", "mvr", "r", "--timeout=20s"]);
    // Its Job is swept up once the cluster answers again.
    bring_back();
    far.until_no_job().await;
}

/// Seconds from the cancel to the moment at which no pod is left.
async fn cancel_seconds(
    operator: &Operator,
    pods: &kube::Api<k8s_openapi::api::core::v1::Pod>,
    cluster: &str,
    at: usize,
) -> (f64, f64) {
    let name = format!("cancel-{cluster}-{at}");
    operator
        .apply(
            &name,
            json!({"view": ["v"], "cluster": cluster, "full": true}),
        )
        .await;
    let start = Instant::now();
    loop {
        let all = pods.list(&Default::default()).await.unwrap();
        let running = all
            .items
            .iter()
            .any(|pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
        if running {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "no worker runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let start = Instant::now();
    operator.patch(&name, json!({"cancel": true})).await;
    while !pods
        .list(&Default::default())
        .await
        .unwrap()
        .items
        .is_empty()
    {
        assert!(start.elapsed() < PATIENCE, "pods stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gone = start.elapsed().as_secs_f64();
    let status = operator.settled(&name).await;
    assert_eq!(status.phase, Phase::Cancelled);
    (gone, start.elapsed().as_secs_f64())
}

#[tokio::test]
async fn pods_are_gone_three_seconds_and_the_grace_period_after_a_cancel() {
    /// Of worker pods.
    const GRACE: f64 = 5.0;
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    far.slow(&operator, 600).await;
    let template = crate::far::slow_template(&operator, 600);
    operator
        .cluster("default", json!({"template": template}))
        .await;
    let near = kube::Api::namespaced(operator.space.client.clone(), &operator.space.namespace);
    for (cluster, pods) in [("default", &near), ("far", &far.pods)] {
        for at in 0..3 {
            let (gone, said) = cancel_seconds(&operator, pods, cluster, at).await;
            println!("cancel in {cluster}: pods gone after {gone:.2} s, said after {said:.2} s");
            assert!(gone <= 3.0 + GRACE, "{gone}");
        }
    }
}
