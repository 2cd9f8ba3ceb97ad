//! Refreshes whose Jobs run in another real cluster: where they are sent, what
//! they are held by, and what is refused.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use relance::resources::{Phase, names, reasons};
use serde_json::json;
use sha2::Digest;

use crate::far::{Far, give, is_held, slow_template, until_ready};
use crate::operator::{Operator, PATIENCE};

#[tokio::test]
async fn refreshes_named_to_each_cluster_and_to_both_at_once_run_where_they_were_sent() {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    let cluster = until_ready(&operator, "True", reasons::CLUSTER_READY).await;
    let status = cluster.status.unwrap();
    assert!(status.server_version.unwrap().starts_with("v1."));
    assert!(status.last_contact_time.is_some());
    for view in ["a", "b", "c", "d"] {
        operator.view(view, "SELECT id FROM src WHERE id > 1").await;
    }
    let mut refreshes = Vec::new();
    for (view, cluster) in [
        ("a", "default"),
        ("b", "far"),
        ("c", "default"),
        ("d", "far"),
    ] {
        let spec = json!({"view": [view], "cluster": cluster, "concurrency": 2});
        refreshes.push((view, cluster, operator.apply(view, spec).await));
    }
    for (view, cluster, refresh) in &refreshes {
        let status = operator.succeeded(view).await;
        let job = status.job.unwrap();
        assert_eq!(job.cluster, *cluster);
        let namespace = match *cluster {
            "far" => &far.namespace,
            _ => &operator.space.namespace,
        };
        assert_eq!(job.namespace, *namespace);
        assert_eq!(operator.commits(view, refresh).await, 1);
        assert_eq!(operator.ids(view).await, (2..10).collect::<Vec<_>>());
    }
    assert_eq!(operator.job_count().await, 2);
    assert_eq!(far.job_count().await, 2);
    // Nothing holds them once their Jobs are done.
    let start = Instant::now();
    for view in ["b", "d"] {
        while is_held(&operator, view).await {
            assert!(start.elapsed() < PATIENCE, "{view} is held");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // And their Jobs there go after them.
    operator.kubectl(&["delete", "mvr", "b", "d", "--timeout=20s"]);
    far.until_no_job().await;
}

#[tokio::test]
async fn a_refresh_that_is_deleted_takes_its_job_in_the_other_cluster_along() {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    far.slow(&operator, 600).await;
    operator
        .apply("r", json!({"view": ["v"], "cluster": "far"}))
        .await;
    operator
        .until("r", "launched", |s| {
            s.job.as_ref().is_some_and(|j| j.uid.is_some())
        })
        .await;
    assert!(is_held(&operator, "r").await);
    assert_eq!(far.job_count().await, 1);
    operator.kubectl(&["delete", "mvr", "r", "--timeout=20s"]);
    far.until_no_job().await;
    // The view is free.
    operator.apply("next", json!({"view": ["v"]})).await;
    operator.succeeded("next").await;
}

#[tokio::test]
async fn a_job_whose_refresh_is_gone_is_swept_up_and_another_homes_is_left_alone() {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    far.slow(&operator, 600).await;
    let spec = json!({"view": ["v"], "cluster": "far"});
    operator.apply("r", spec.clone()).await;
    let launched = operator.until("r", "launched", |s| {
        s.job.as_ref().is_some_and(|j| j.uid.is_some())
    });
    let name = launched.await.job.unwrap().name;
    // A home of the same refresh, as two clusters that were cloned may have it.
    let mut other = far.jobs.get(&name).await.unwrap();
    other.metadata = kube::core::ObjectMeta {
        name: Some("other".into()),
        labels: other.metadata.labels.clone(),
        ..Default::default()
    };
    let labels = other.metadata.labels.as_mut().unwrap();
    labels.insert(names::HOME_LABEL.into(), "another-home".into());
    let job = other.spec.as_mut().unwrap();
    job.selector = None;
    job.template.metadata = None;
    other.status = None;
    far.jobs
        .create(&PostParams::default(), &other)
        .await
        .unwrap();
    // Somebody takes the finalizer away, and the refresh with it.
    let patch = Patch::Merge(json!({"metadata": {"finalizers": []}}));
    let none = PatchParams::default();
    let refreshes = &operator.space.refreshes;
    refreshes
        .delete("r", &DeleteParams::default())
        .await
        .unwrap();
    let _ = refreshes.patch("r", &none, &patch).await;
    let start = Instant::now();
    while far.jobs.get_opt(&name).await.unwrap().is_some() {
        assert!(start.elapsed() < PATIENCE, "it is not swept up");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let left = far.jobs.list(&Default::default()).await.unwrap();
    let left: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["other"]);
}

#[tokio::test]
async fn two_operators_of_two_homes_share_a_target_and_touch_each_others_jobs_not_at_all() {
    let one = Operator::running().await;
    let far = Far::of(&one).await;
    let mut two = Operator::prepared().await;
    two.append("src", 0..10).await;
    two.view("v", "SELECT id FROM src WHERE id > 5").await;
    // The other home's workers reach their own tables through the same claim's volume only here:
    // what is shared is the namespace of the Jobs.
    give(&two, &far.kubeconfig_of("relance").await).await;
    let elsewhere = json!({"spec": {
        "containers": [{
            "name": "worker", "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", "trap 'exit 143' TERM; sleep 600 & wait"],
        }],
    }});
    let spec = json!({"kubeconfigSecretRef": {"name": "far"}, "template": elsewhere});
    two.cluster("far", spec).await;
    two.start().await;
    far.slow(&one, 600).await;
    let spec = json!({"view": ["v"], "cluster": "far"});
    let mut jobs = Vec::new();
    for operator in [&one, &two] {
        operator.apply("same", spec.clone()).await;
        let launched = operator.until("same", "launched", |s| {
            s.job.as_ref().is_some_and(|j| j.uid.is_some())
        });
        jobs.push(launched.await.job.unwrap());
    }
    assert_ne!(jobs[0].name, jobs[1].name);
    assert_eq!(jobs[0].namespace, jobs[1].namespace);
    // One sweep of each finds nothing to do.
    tokio::time::sleep(Duration::from_secs(32)).await;
    assert_eq!(far.job_count().await, 2);
    one.kubectl(&["delete", "mvr", "same", "--timeout=20s"]);
    let start = Instant::now();
    while far.jobs.get_opt(&jobs[0].name).await.unwrap().is_some() {
        assert!(start.elapsed() < PATIENCE, "its Job is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left = far.jobs.get(&jobs[1].name).await.unwrap();
    assert_eq!(left.metadata.deletion_timestamp, None);
    assert_eq!(two.status("same").await.phase, Phase::Running);
    two.patch("same", json!({"cancel": true})).await;
    assert_eq!(two.settled("same").await.phase, Phase::Cancelled);
    far.until_no_job().await;
}

#[tokio::test]
async fn a_kubeconfig_that_is_refused_shows_on_the_cluster_and_fails_its_refreshes_with_one_sentence()
 {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    until_ready(&operator, "True", reasons::CLUSTER_READY).await;
    let mut kubeconfig = far.kubeconfig_of("relance").await;
    let own = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    kubeconfig["users"][0]["user"] = json!({"tokenFile": own});
    give(&operator, &kubeconfig).await;
    let cluster = until_ready(&operator, "False", reasons::KUBECONFIG_REFUSED).await;
    let said = cluster.status.unwrap().conditions[0].message.clone();
    assert!(said.contains("user.tokenFile"), "{said}");
    operator
        .apply("r", json!({"view": ["v"], "cluster": "far"}))
        .await;
    let status = operator.settled("r").await;
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.conditions[0].reason, reasons::KUBECONFIG_REFUSED);
    assert!(status.message.unwrap().contains(&said));
    // And holds nothing: its view is free.
    operator.apply("next", json!({"view": ["v"]})).await;
    operator.succeeded("next").await;
    // Mended, without a restart.
    far.give_kubeconfig(&operator, "relance").await;
    until_ready(&operator, "True", reasons::CLUSTER_READY).await;
    let spec = json!({"view": ["v"], "cluster": "far", "full": true});
    operator.apply("again", spec).await;
    operator.succeeded("again").await;
}

#[tokio::test]
async fn a_cluster_says_what_is_missing_there() {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    far.cluster(&operator, json!({"namespace": "nobody-made-it"}))
        .await;
    // The user may do nothing there.
    until_ready(&operator, "False", reasons::CLUSTER_FORBIDDEN).await;
    operator
        .space
        .secrets
        .delete("far", &DeleteParams::default())
        .await
        .unwrap();
    operator
        .space
        .clusters
        .delete("far", &DeleteParams::default())
        .await
        .unwrap();
    far.cluster(&operator, json!({})).await;
    until_ready(&operator, "False", reasons::KUBECONFIG_NOT_FOUND).await;
}

#[tokio::test]
async fn a_job_that_a_queue_suspends_is_left_to_it_and_says_so() {
    let operator = Operator::running().await;
    let mut template = slow_template(&operator, 600);
    template["metadata"] = json!({"labels": {"kueue.x-k8s.io/queue-name": "team-a"}});
    operator
        .cluster("default", json!({"template": template}))
        .await;
    operator.apply("r", json!({"view": ["v"]})).await;
    let launched = operator.until("r", "launched", |s| {
        s.job.as_ref().is_some_and(|j| j.uid.is_some())
    });
    let name = launched.await.job.unwrap().name;
    let job = operator.jobs.get(&name).await.unwrap();
    assert_eq!(job.labels()["kueue.x-k8s.io/queue-name"], "team-a");
    // As Kueue does it.
    let suspend = |on: bool| {
        let patch = Patch::Merge(json!({"spec": {"suspend": on}}));
        let jobs: Api<_> = operator.jobs.clone();
        let name = name.clone();
        async move {
            let none = PatchParams::default();
            jobs.patch(&name, &none, &patch).await.unwrap();
        }
    };
    suspend(true).await;
    operator
        .until("r", "held by its queue", |s| {
            let message = s.message.as_ref();
            message.is_some_and(|m| m.contains("until its queue admits it"))
        })
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let job = operator.jobs.get(&name).await.unwrap();
    assert_eq!(job.spec.unwrap().suspend, Some(true), "it was touched");
    suspend(false).await;
    operator
        .until("r", "running again", |s| {
            s.message.as_deref() == Some(&format!("Running in Job {name}"))
        })
        .await;
    operator.patch("r", json!({"cancel": true})).await;
    assert_eq!(operator.settled("r").await.phase, Phase::Cancelled);
}

#[tokio::test]
async fn a_job_that_its_queue_never_admits_is_given_up_after_the_deadline_and_holds_nothing() {
    let operator = Operator::running().await;
    let template = slow_template(&operator, 600);
    let cluster = json!({"template": template, "maxActiveRefreshes": 1});
    operator.cluster("default", cluster).await;
    let spec = json!({"view": ["v"], "activeDeadlineSeconds": 3});
    operator.apply("r", spec).await;
    let launched = operator.until("r", "launched", |s| {
        s.job.as_ref().is_some_and(|j| j.uid.is_some())
    });
    let name = launched.await.job.unwrap().name;
    let patch = Patch::Merge(json!({"spec": {"suspend": true}}));
    let none = PatchParams::default();
    operator.jobs.patch(&name, &none, &patch).await.unwrap();
    let status = operator.settled("r").await;
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.conditions[0].reason, reasons::DEADLINE_EXCEEDED);
    operator.cluster("default", json!({})).await;
    operator.apply("next", json!({"view": ["v"]})).await;
    operator.succeeded("next").await;
}

#[tokio::test]
async fn a_policy_keeps_manifests_and_images_out_and_rest_says_the_same_sentence() {
    let operator = Operator::running().await;
    let http = reqwest::Client::new();
    let post = async |manifest: serde_json::Value| {
        let body = json!({"manifest": manifest.to_string()}).to_string();
        let url = format!("{}/v1/materialized_view/v/refresh", operator.url);
        let answer = http.post(url).body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        (
            status,
            body["error"].as_str().unwrap_or_default().to_string(),
        )
    };
    let manifest = json!({"name": "m", "worker_image": "elsewhere.example.com/i:1"});
    let digest = sha2::Sha256::digest(manifest.to_string());
    let secret = json!({
        "metadata": {"name": "manifest"},
        "stringData": {"manifest": manifest.to_string()},
    });
    let secret = serde_json::from_value(secret).unwrap();
    let secrets = &operator.space.secrets;
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let image = crate::operator::needed("RELANCE_TEST_IMAGE");
    for (name, policy, reason) in [
        (
            "none",
            json!({"inlineManifests": false}),
            reasons::MANIFEST_NOT_ALLOWED,
        ),
        (
            "listed",
            json!({"images": [image]}),
            reasons::IMAGE_NOT_ALLOWED,
        ),
    ] {
        operator.cluster("default", json!({"policy": policy})).await;
        let (status, sentence) = post(manifest.clone()).await;
        assert_eq!(status, 403, "{sentence}");
        let spec = json!({
            "view": ["v"],
            "manifestSecretRef": {"name": "manifest"},
            "manifestChecksum": hex::encode(digest),
        });
        // The operator's watch may be a moment behind REST, which asks by name.
        tokio::time::sleep(Duration::from_secs(1)).await;
        operator.apply(name, spec).await;
        let status = operator.settled(name).await;
        assert_eq!(status.phase, Phase::Failed);
        assert_eq!(status.conditions[0].reason, reason);
        assert_eq!(status.message, Some(sentence));
    }
    // A pod whose image is not listed is not run, whoever named it.
    let policy = json!({"images": ["only/this:1"]});
    operator.cluster("default", json!({"policy": policy})).await;
    operator.kubectl(&[
        "wait",
        "--for=condition=Ready=false",
        "refreshcluster/default",
        "--timeout=30s",
    ]);
    operator.apply("pod", json!({"view": ["v"]})).await;
    let status = operator.settled("pod").await;
    assert_eq!(status.conditions[0].reason, reasons::JOB_REJECTED);
    assert!(status.message.unwrap().contains("spec.policy.images"));
}
