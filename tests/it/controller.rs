//! The life of applied refreshes, on a real cluster with real Jobs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};
use relance::resources::reasons::{self, condition};
use relance::resources::{MaterializedViewRefreshStatus, Mode, Phase, names};
use serde_json::json;

use crate::operator::{Operator, PATIENCE};

#[tokio::test]
async fn an_applied_refresh_runs_to_its_end_and_reads_well() {
    let operator = Operator::running().await;
    let first = operator.apply("first", json!({"view": ["v"]})).await;
    operator.kubectl(&[
        "wait",
        "--for=condition=Complete",
        "mvr/first",
        "--timeout=180s",
    ]);
    let status = operator.status("first").await;
    assert_eq!(status.phase, Phase::Succeeded);
    assert_eq!(status.mode, Some(Mode::Rebuild));
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.progress.as_ref().unwrap().rows_written, 8);
    assert!(status.job.unwrap().uid.is_some());
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());
    assert_eq!(operator.commits("v", &first).await, 1);
    // A backup that restores it restores its end too.
    let stored = operator.space.refreshes.get("first").await.unwrap();
    let (annotation, value) = names::RESTORE_STATUS;
    assert_eq!(stored.annotations()[annotation], value);

    let described = operator.kubectl(&["describe", "mvr", "first"]);
    for word in ["JobCreated", "Refreshed", "The view equals its definition"] {
        assert!(described.contains(word), "no {word} in {described}");
    }
    let listed = operator.kubectl(&["get", "mvr"]);
    for column in [
        "VIEW",
        "PHASE",
        "PROGRESS",
        "MODE",
        "ROWS",
        "SOURCE VERSION",
    ] {
        assert!(listed.contains(column), "no {column} in {listed}");
    }

    // Nothing has changed: no pod is needed.
    let jobs = operator.job_count().await;
    operator.apply("again", json!({"view": ["v"]})).await;
    let status = operator.succeeded("again").await;
    assert_eq!(status.mode, Some(Mode::NoOp));
    assert_eq!(operator.job_count().await, jobs);

    operator.append("src", 10..12).await;
    operator.apply("more", json!({"view": ["v"]})).await;
    let status = operator.succeeded("more").await;
    assert_eq!(status.mode, Some(Mode::Incremental));
    assert_eq!(operator.ids("v").await, (2..12).collect::<Vec<_>>());

    operator
        .apply("full", json!({"view": ["v"], "full": true}))
        .await;
    assert_eq!(operator.succeeded("full").await.mode, Some(Mode::Rebuild));
    assert_eq!(operator.ids("v").await, (2..12).collect::<Vec<_>>());

    let metrics = operator.metrics().await;
    for line in [
        r#"relance_refreshes_ended_total{phase="Succeeded",reason="Refreshed",cluster="default"} 3"#,
        r#"relance_refreshes_ended_total{phase="Succeeded",reason="UpToDate",cluster="default"} 1"#,
        "relance_controller_launches_total 3",
        "relance_refresh_seconds_count 4",
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
}

#[tokio::test]
async fn what_the_world_rules_out_ends_failed_with_the_sentence_that_rest_says() {
    let operator = Operator::running().await;
    let http = reqwest::Client::new();
    for (name, view, spec, reason) in [
        ("no-view", "none", json!({}), "ViewNotFound"),
        ("no-mv", "src", json!({}), "NotAMaterializedView"),
        (
            "no-cluster",
            "v",
            json!({"cluster": "none"}),
            reasons::CLUSTER_NOT_FOUND,
        ),
        (
            "no-chunker",
            "v",
            json!({"output_limit": 5}),
            "InvalidInput",
        ),
    ] {
        let url = format!("{}/v1/materialized_view/{view}/refresh", operator.url);
        let body = spec.to_string();
        let answer = http.post(url).body(body).send().await.unwrap();
        assert!(answer.status().is_client_error(), "{name}: {answer:?}");
        let answer: serde_json::Value =
            serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let mut spec = spec;
        spec["view"] = json!([view]);
        if let Some(limit) = spec.as_object_mut().unwrap().remove("output_limit") {
            spec["outputLimit"] = limit;
        }
        operator.apply(name, spec).await;
        let status = operator.settled(name).await;
        assert_eq!(status.phase, Phase::Failed, "{name}");
        assert_eq!(
            status.message.as_deref(),
            answer["error"].as_str(),
            "{name}"
        );
        let failed = status
            .conditions
            .iter()
            .find(|c| c.type_ == condition::FAILED);
        assert_eq!(failed.unwrap().reason, reason, "{name}");
    }
    assert_eq!(operator.job_count().await, 0);
}

#[tokio::test]
async fn refreshes_of_one_view_run_one_at_a_time_by_priority_then_age_then_name() {
    let mut operator = Operator::prepared().await;
    operator.append("src", 0..10).await;
    operator.view("v", "SELECT id FROM src").await;
    for (name, priority) in [("low", 0), ("high", 9), ("middle", 5)] {
        let spec = json!({"view": ["v"], "full": true, "priority": priority});
        operator.apply(name, spec).await;
    }
    operator.start().await;
    let start = Instant::now();
    let mut ended = Vec::new();
    let mut queued = String::new();
    while ended.len() < 3 {
        assert!(start.elapsed() < 3 * PATIENCE, "{ended:?} ended");
        let all = operator
            .space
            .refreshes
            .list(&Default::default())
            .await
            .unwrap();
        let phase = |phase: Phase| {
            let all = all
                .iter()
                .filter(move |r| r.status.as_ref().is_some_and(|s| s.phase == phase));
            all.map(|r| r.name_any()).collect::<Vec<_>>()
        };
        assert!(
            phase(Phase::Running).len() <= 1,
            "{:?}",
            phase(Phase::Running)
        );
        for name in phase(Phase::Succeeded) {
            if !ended.contains(&name) {
                ended.push(name);
            }
        }
        assert!(phase(Phase::Failed).is_empty(), "{all:?}");
        let low = all.iter().find(|r| r.name_any() == "low").unwrap();
        let message = low.status.as_ref().and_then(|s| s.message.clone());
        if let Some(message) = message
            && message.contains("queue")
        {
            queued = message;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ended, ["high", "middle", "low"]);
    assert!(
        queued.contains("in the queue of its view, behind mvr/"),
        "{queued}"
    );
}

#[tokio::test]
async fn a_cluster_runs_no_more_than_it_allows() {
    let mut operator = Operator::prepared().await;
    operator
        .cluster("default", json!({"maxActiveRefreshes": 1}))
        .await;
    operator.append("src", 0..10).await;
    for view in ["a", "b"] {
        operator.view(view, "SELECT id FROM src").await;
        operator.apply(view, json!({"view": [view]})).await;
    }
    operator.start().await;
    let waiting = |message: &Option<String>| {
        message
            .as_ref()
            .is_some_and(|m| m.contains("cluster default is at its limit of 1"))
    };
    let start = Instant::now();
    let mut waited = false;
    loop {
        let (a, b) = (operator.status("a").await, operator.status("b").await);
        waited |= waiting(&a.message) || waiting(&b.message);
        if a.phase == Phase::Succeeded && b.phase == Phase::Succeeded {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{a:?} {b:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(waited, "nobody waited for the cluster");
}

#[tokio::test]
async fn a_refresh_that_follows_a_change_to_its_cluster_is_launched_by_what_that_says_now() {
    let operator = Operator::running().await;
    for at in 0..8 {
        let (view, image) = (format!("v{at}"), format!("localhost/not-there:{at}"));
        operator.view(&view, "SELECT id FROM src").await;
        operator.cluster("default", json!({"image": image})).await;
        operator.apply(&view, json!({"view": [view]})).await;
        let launched = |status: &MaterializedViewRefreshStatus| {
            status.job.as_ref().is_some_and(|job| job.uid.is_some())
        };
        let status = operator.until(&view, "launched", launched).await;
        let job = status.job.expect("a Job").name;
        let job = operator.jobs.get(&job).await.expect("it is there");
        let pod = job.spec.and_then(|job| job.template.spec).expect("a pod");
        assert_eq!(pod.containers[0].image, Some(image));
    }
}

#[tokio::test]
async fn a_refresh_whose_image_is_not_there_says_so_and_can_be_held_mended_and_cancelled() {
    let operator = Operator::running().await;
    operator
        .cluster("default", json!({"image": "localhost/not-there:1"}))
        .await;
    operator.apply("held", json!({"view": ["v"]})).await;
    let stuck = |name: &'static str| {
        let operator = &operator;
        async move {
            let stuck = operator.until(name, "stuck", |status| {
                status
                    .message
                    .as_ref()
                    .is_some_and(|m| m.contains("ErrImageNeverPull"))
            });
            stuck.await
        }
    };
    stuck("held").await;
    operator.apply("ended", json!({"view": ["v"]})).await;

    // Held: the Job goes, and the next one's turn comes.
    operator.patch("held", json!({"suspend": true})).await;
    operator
        .until("held", "suspended", |s| s.phase == Phase::Suspended)
        .await;
    operator.kubectl(&[
        "wait",
        "--for=condition=Suspended",
        "mvr/held",
        "--timeout=10s",
    ]);
    stuck("ended").await;

    operator.patch("ended", json!({"cancel": true})).await;
    let status = operator.settled("ended").await;
    assert_eq!(status.phase, Phase::Cancelled);
    assert_eq!(
        operator.job_count().await,
        0,
        "cancelled with its Job still there"
    );

    // Mended and taken up again.
    operator.cluster("default", json!({})).await;
    operator.patch("held", json!({"suspend": false})).await;
    operator.succeeded("held").await;
    assert_eq!(operator.ids("v").await.len(), 8);
}

#[tokio::test]
async fn a_refresh_whose_job_went_before_its_pods_is_cancelled_once_they_are_gone() {
    let operator = Operator::running().await;
    let lasting = "trap 'sleep 5; exit 143' TERM; sleep 600 & wait; sleep 5";
    let mut template = crate::far::slow_template(&operator, 600);
    template["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", lasting]);
    template["spec"]["terminationGracePeriodSeconds"] = json!(20);
    operator
        .cluster("default", json!({"template": template}))
        .await;
    operator.apply("r", json!({"view": ["v"]})).await;
    let pods: Api<Pod> = Api::namespaced(operator.space.client.clone(), &operator.space.namespace);
    let running = async || {
        let all = pods.list(&Default::default()).await.unwrap();
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
        all.iter()
            .any(|pod| phase(pod).as_deref() == Some("Running"))
    };
    let start = Instant::now();
    while !running().await {
        assert!(start.elapsed() < PATIENCE, "no worker runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let job = operator.status("r").await.job.expect("a Job").name;
    operator.patch("r", json!({"cancel": true})).await;
    operator
        .jobs
        .delete(&job, &DeleteParams::background())
        .await
        .unwrap();

    let start = Instant::now();
    let mut outlived = false;
    loop {
        // In this order: what runs after the phase was said ran when it was.
        let phase = operator.status("r").await.phase;
        let runs = running().await;
        if phase.is_terminal() {
            assert_eq!(phase, Phase::Cancelled);
            assert!(!runs, "cancelled while a worker of it runs");
            break;
        }
        outlived |= runs && operator.jobs.get_opt(&job).await.unwrap().is_none();
        assert!(start.elapsed() < PATIENCE, "never cancelled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(outlived, "the worker did not outlive its Job");
    assert_eq!(operator.job_count().await, 0);
}

#[tokio::test]
async fn a_worker_that_no_node_takes_says_so() {
    let operator = Operator::running().await;
    let template = json!({"spec": {"nodeSelector": {"disk": "none-has-it"}}});
    operator
        .cluster("picky", json!({"template": template}))
        .await;
    let spec = json!({"view": ["v"], "cluster": "picky"});
    operator.apply("r", spec).await;
    let waits = operator
        .until("r", "unschedulable", |status| {
            let message = status.message.as_ref();
            message.is_some_and(|m| m.starts_with("Waiting for a node that takes the worker pod"))
        })
        .await;
    assert!(waits.message.unwrap().contains("0/1 nodes are available"));
}

#[tokio::test]
async fn a_quota_that_is_used_up_is_the_message_and_the_refresh_goes_on_when_it_is_lifted() {
    let operator = Operator::running().await;
    let quotas: Api<ResourceQuota> =
        Api::namespaced(operator.space.client.clone(), &operator.space.namespace);
    let quota = serde_json::from_value(json!({
        "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}},
    }));
    quotas
        .create(&PostParams::default(), &quota.unwrap())
        .await
        .unwrap();
    // A quota counts once its controller has seen it.
    let start = Instant::now();
    while quotas
        .get("none")
        .await
        .unwrap()
        .status
        .and_then(|s| s.hard)
        .is_none()
    {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    operator.apply("r", json!({"view": ["v"]})).await;
    operator
        .until("r", "held up by the quota", |status| {
            status
                .message
                .as_ref()
                .is_some_and(|m| m.contains("exceeded quota"))
        })
        .await;
    quotas
        .delete("none", &DeleteParams::default())
        .await
        .unwrap();
    operator.succeeded("r").await;
}

#[tokio::test]
async fn a_template_that_makes_no_pod_fails_the_refresh_and_shows_on_the_cluster() {
    let operator = Operator::running().await;
    let template = json!({"spec": {"containers": [{"name": "worker", "resources": {"limits": {"memory": "much"}}}]}});
    operator
        .cluster("wrong", json!({"template": template}))
        .await;
    operator.kubectl(&[
        "wait",
        "--for=condition=Ready=false",
        "refreshcluster/wrong",
        "--timeout=30s",
    ]);
    let reason = "jsonpath={.status.conditions[0].reason}";
    let shown = operator.kubectl(&["get", "refreshcluster", "wrong", "-o", reason]);
    assert_eq!(shown, reasons::INVALID_TEMPLATE);
    operator
        .apply("r", json!({"view": ["v"], "cluster": "wrong"}))
        .await;
    let status = operator.settled("r").await;
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.conditions[0].reason, reasons::JOB_REJECTED);
    // And holds nothing: the next one goes.
    operator.apply("next", json!({"view": ["v"]})).await;
    operator.succeeded("next").await;
}

#[tokio::test]
async fn one_that_waits_for_a_catalog_that_never_comes_ends_when_it_would_have_been_stopped() {
    let mut operator = Operator::prepared().await;
    operator.cluster("default", json!({})).await;
    // Nobody listens there.
    let nowhere = "http://127.0.0.1:1";
    operator.start_with(&[("RELANCE_CATALOG", nowhere)]).await;
    let spec = json!({"view": ["v"], "activeDeadlineSeconds": 5});
    operator.apply("r", spec).await;
    let waits = operator.until("r", "waiting", |s| s.unavailable_since.is_some());
    assert_eq!(waits.await.phase, Phase::Queued);
    let status = operator.settled("r").await;
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.conditions[0].reason, reasons::UNAVAILABLE);
    let message = status.message.unwrap();
    assert!(message.contains("could not begin within 5 s"), "{message}");
    assert_eq!((status.job, status.unavailable_since), (None, None));
}

#[tokio::test]
async fn a_worker_that_can_never_succeed_fails_the_refresh_with_its_own_words() {
    let mut operator = Operator::prepared().await;
    operator.append("src", 0..10).await;
    operator.view("v", "SELECT id FROM src").await;
    // The workers' catalog is another place, where there is no such view.
    let elsewhere = json!({"spec": {
        "containers": [{"name": "worker", "imagePullPolicy": "Never",
            "volumeMounts": [{"name": "empty", "mountPath": operator.tables}]}],
        "volumes": [{"name": "empty", "emptyDir": {}}],
    }});
    operator
        .cluster("default", json!({"template": elsewhere}))
        .await;
    operator.start().await;
    operator.apply("r", json!({"view": ["v"]})).await;
    let status = operator.settled("r").await;
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.conditions[0].reason, "ViewNotFound");
    let pods = operator.kubectl(&["get", "pods", "--no-headers"]);
    assert_eq!(pods.lines().count(), 1, "it was tried again: {pods}");
}

#[tokio::test]
async fn a_cluster_counts_what_runs_and_what_waits() {
    let operator = Operator::running().await;
    operator
        .cluster("default", json!({"image": "localhost/not-there:1"}))
        .await;
    for name in ["a", "b", "c"] {
        operator.apply(name, json!({"view": ["v"]})).await;
    }
    let start = Instant::now();
    loop {
        let cluster = operator.space.clusters.get("default").await.unwrap();
        let status = cluster.status.unwrap_or_default();
        let conditions: BTreeMap<_, _> = status
            .conditions
            .iter()
            .map(|c| (&c.type_, &c.status))
            .collect();
        if (status.active, status.queued) == (1, 2) {
            assert_eq!(conditions[&condition::READY.to_string()], "True");
            assert!(status.server_version.is_some());
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn many_workers_bring_a_view_to_its_end_with_one_commit() {
    let operator = Operator::prepared().await;
    for fragment in 0..6 {
        operator
            .append("src", 10 * fragment..10 * (fragment + 1))
            .await;
    }
    operator.view("v", "SELECT id FROM src WHERE id >= 5").await;
    let mut operator = operator;
    operator.start().await;
    let spec = json!({"view": ["v"], "concurrency": 3});
    let refresh = operator.apply("r", spec).await;
    operator.succeeded("r").await;
    assert_eq!(operator.ids("v").await, (5..60).collect::<Vec<_>>());
    assert_eq!(operator.commits("v", &refresh).await, 1);
    let parallelism = "jsonpath={.items[0].spec.parallelism}";
    assert_eq!(operator.kubectl(&["get", "jobs", "-o", parallelism]), "3");
}
