//! What the controller does against an API server that a test plays.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{Request, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::client::Body;
use kube::runtime::events::Reporter;
use kube::runtime::reflector;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::context::{Context, Known};
use super::election::Leadership;
use super::metrics::ControllerMetrics;
use super::places::Places;
use super::queue::Place;
use super::reconcile::{PassError, broke_off};
use super::refresh::*;
use super::targets::{Reach, Targets};
use super::{admission, cluster, orphans, reconcile};
use crate::catalog::{SharedCatalog, Source};
use crate::launch;
use crate::launch::job::Home;
use crate::panics;
use crate::resources::{MaterializedViewRefresh, RefreshCluster, RefreshClusterSpec, names};
use crate::telemetry::Metrics;

/// What an API server answers: a code, and an object or the reason of a failure.
type Answer = (u16, Value);

/// A context whose caches of refreshes and RefreshClusters are empty, of an API
/// server that answers as `answer` does to a method and a path. Where that has
/// no answer, there is nothing; and watches stay silent.
fn context(
    answer: impl Fn(&str, &str) -> Option<Answer> + Clone + Send + Sync + 'static,
) -> Context {
    let client = client(answer);
    let source = home().catalog;
    let metrics = Metrics::default();
    let (refreshes, _) = reflector::store();
    let (clusters, _) = reflector::store();
    let (touch, _) = mpsc::unbounded_channel();
    let targets = Targets::new(client.clone(), Leadership::default(), "ns", "home", touch);
    Context::new(
        client,
        "ns",
        home(),
        SharedCatalog::new(source, &metrics),
        Known {
            refreshes,
            clusters,
        },
        Arc::new(Places::default()),
        Arc::new(targets),
        Reporter {
            controller: "relance".into(),
            instance: None,
        },
        ControllerMetrics::new(&metrics),
    )
}

fn home() -> Home {
    Home {
        id: "home".into(),
        image: "relance".into(),
        catalog: Source {
            uri: "dir:///nowhere".into(),
            ..Source::default()
        },
        environment: Vec::new(),
    }
}

fn client(answer: impl Fn(&str, &str) -> Option<Answer> + Clone + Send + Sync + 'static) -> Client {
    let answer = move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (uri, method) = (request.uri(), request.method().as_str());
            if uri
                .query()
                .is_some_and(|query| query.contains("watch=true"))
            {
                return std::future::pending().await;
            }
            let (code, body) = answer(method, uri.path()).unwrap_or_else(|| nothing(uri.path()));
            let mut response = Response::new(Body::from(body.to_string().into_bytes()));
            *response.status_mut() = code.try_into().unwrap();
            Ok::<_, Infallible>(response)
        }
    };
    Client::new(tower::service_fn(answer), "ns")
}

/// An empty list, or that there is no such object.
fn nothing(path: &str) -> Answer {
    let is_list = [
        "jobs",
        "pods",
        "refreshclusters",
        "materializedviewrefreshes",
    ]
    .iter()
    .any(|plural| path.ends_with(&format!("/{plural}")));
    match is_list {
        true => (200, list(&[])),
        false => refusal(404, "NotFound"),
    }
}

/// A list of objects.
fn list(items: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "List",
        "metadata": {"resourceVersion": "1"}, "items": items,
    })
}

/// A failure.
fn refusal(code: u16, reason: &str) -> Answer {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": reason,
    });
    (code, status)
}

/// A refresh of the view `v`, created at `second` of a minute.
fn refresh(name: &str, second: u32, status: Value) -> MaterializedViewRefresh {
    serde_json::from_value(json!({
        "apiVersion": "relance.dev/v1alpha1",
        "kind": "MaterializedViewRefresh",
        "metadata": {
            "name": name, "namespace": "ns", "uid": format!("uid-{name}"),
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        },
        "spec": {"view": ["v"]},
        "status": status,
    }))
    .unwrap()
}

fn refused(code: u16) -> PassError {
    let (_, status) = refusal(code, "Refused");
    let status = serde_json::from_value(status).unwrap();
    kube::Error::Api(Box::new(status)).into()
}

#[tokio::test]
async fn one_that_can_never_be_looked_at_holds_up_nobody_and_one_that_meets_an_outage_keeps_its_place()
 {
    let secrets = context(|_, _| None).secrets;
    let unbuildable = secrets.get_opt("my secret").await.unwrap_err();
    let panicked = panics::caught(async { panic!("a bug") }).await;
    let panicked = panicked.map(|(): ()| ()).unwrap_err();
    for (error, keeps_place) in [
        (unbuildable.into(), false),
        (refused(400), false),
        (refused(403), false),
        (PassError::Restless("a".into()), false),
        (PassError::Panicked(panicked), false),
        (refused(401), true),
        (refused(429), true),
        (refused(503), true),
    ] {
        let ctx = context(|_, _| None);
        let first = refresh("a", 1, json!(null));
        let uri = json!({"phase": "Queued", "viewUri": "mem://v"});
        let second = refresh("b", 2, uri);
        for refresh in [&first, &second] {
            ctx.places.note(refresh, false);
        }
        broke_off(&first, &error, &ctx);
        let place = Place::of(&second).unwrap();
        let asked = ctx.places.ask(place, second.spec.view.clone());
        let whom = ctx.places.asking();
        ctx.places.deal_to(&whom, &[], &BTreeMap::new());
        let is_behind = asked.answer() != Some(Turn::Now);
        assert_eq!(is_behind, keeps_place, "{error}");
    }
}

#[tokio::test]
async fn a_cluster_of_which_it_is_not_said_whether_it_takes_jobs_is_not_ready_as_before() {
    let mut cluster = RefreshCluster::new("c", RefreshClusterSpec::default());
    cluster.metadata.namespace = Some("ns".into());
    let ready = json!({"active": 7, "conditions": [{
        "type": "Ready", "status": "True", "reason": "Ready", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]});
    cluster.status = Some(serde_json::from_value(ready).unwrap());
    let writes = Arc::new(AtomicUsize::new(0));
    let ctx = context({
        let (writes, cluster) = (writes.clone(), cluster.clone());
        move |method, path| match (method, path) {
            ("GET", "/version") => Some((
                200,
                json!({
                    "major": "1", "minor": "34", "gitVersion": "v1.34.0", "gitCommit": "",
                    "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "",
                    "platform": "",
                }),
            )),
            // An admission webhook is down.
            ("POST", path) if path.ends_with("/jobs") => Some(refusal(500, "InternalError")),
            ("PATCH", path) if path.ends_with("/refreshclusters/c/status") => {
                writes.fetch_add(1, Ordering::Relaxed);
                Some((200, serde_json::to_value(&cluster).unwrap()))
            }
            _ => None,
        }
    });
    let seen = cluster::look(&ctx, &cluster).await;
    assert_eq!(seen.status, "Unknown");
    assert!(seen.message.contains("InternalError"), "{}", seen.message);
    let again = cluster::pass(Arc::new(cluster), Arc::new(ctx)).await;
    assert_eq!(
        again,
        Some(Duration::from_secs(5)),
        "it is asked again soon"
    );
    assert_eq!(writes.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_kubeconfig_in_what_no_secret_can_be_called_is_refused_and_not_asked_for() {
    let ctx = context(|_, path| panic!("{path} is asked for"));
    let spec = json!({"kubeconfigSecretRef": {"name": "../pods/x"}});
    let spec: RefreshClusterSpec = serde_json::from_value(spec).unwrap();
    let reach = ctx.targets.reach("far", Some(&spec)).await;
    let Reach::Refused(why) = reach else {
        panic!("{reach:?}");
    };
    assert!(why.contains("'../pods/x'"), "{why}");
}

#[tokio::test]
async fn a_cluster_lets_no_more_through_than_it_may_though_the_watch_does_not_show_it_yet() {
    let ctx = context(|_, path| {
        let cluster = json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "RefreshCluster",
            "metadata": {"name": "default", "namespace": "ns", "resourceVersion": "7"},
            "spec": {"maxActiveRefreshes": 1},
        });
        path.ends_with("/refreshclusters/default")
            .then_some((200, cluster))
    });
    let since = std::time::Instant::now();
    let mut turns = Vec::new();
    for (name, uri) in [("a", "mem://v"), ("b", "mem://w")] {
        let waits = json!({"phase": "Queued", "viewUri": uri});
        let waits = refresh(name, 1, waits);
        ctx.ask_for_cluster("default", since).await.unwrap();
        turns.push(admission::turn(&ctx, &waits, None).await.unwrap());
    }
    assert_eq!(turns[0].0, Turn::Now);
    let Turn::Behind(why) = &turns[1].0 else {
        panic!("two through a cluster of one");
    };
    assert!(why.contains("at its limit of 1"), "{why}");
    let gates = admission::gates(ctx.all_clusters(), &ctx.targets);
    assert_eq!(gates.len(), 1, "who is woken is to be told the same");
}

#[tokio::test]
async fn a_job_is_deleted_once_in_a_pass_though_the_watch_does_not_show_it_yet() {
    let stopped = started(json!({"view": ["v"], "suspend": true}));
    let deletes = Arc::new(AtomicUsize::new(0));
    let ctx = context({
        let (deletes, stopped) = (deletes.clone(), stopped.clone());
        move |method, path| {
            let mut job = job(&stopped, 60);
            if path.ends_with("/jobs") {
                return Some((200, list(&[job])));
            }
            if path.contains("/materializedviewrefreshes/") {
                // It takes each status.
                let mut said = serde_json::to_value(&stopped).unwrap();
                let message = format!("Job {} is being deleted", job_name(&stopped));
                said["status"]["message"] = json!(message);
                return Some((200, said));
            }
            let is_it = path.contains("/jobs/");
            if is_it && method == "DELETE" {
                deletes.fetch_add(1, Ordering::Relaxed);
            }
            job["metadata"]["deletionTimestamp"] = json!(Timestamp::now());
            is_it.then_some((200, job))
        }
    });
    let ctx = Arc::new(ctx);
    ctx.targets.home().listed().await;
    let passed = reconcile::pass(Arc::new(stopped), &ctx).await;
    assert!(passed.is_ok(), "{passed:?}");
    assert_eq!(deletes.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_outlives_a_job_that_is_gone_is_waited_for_after_the_deadline_too() {
    let mut overdue = started(json!({"view": ["v"]}));
    let deadline = Time(Timestamp::now() - SignedDuration::from_secs(600));
    overdue.status.as_mut().unwrap().deadline_time = Some(deadline);
    let ctx = context({
        let overdue = overdue.clone();
        move |_, path| {
            if path.ends_with("/pods") {
                let owner = json!({
                    "apiVersion": "batch/v1", "kind": "Job", "name": "r-0", "uid": "job",
                });
                let pod = json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": "p", "namespace": "ns", "ownerReferences": [owner]},
                    "status": {"phase": "Running"},
                });
                return Some((200, list(&[pod])));
            }
            let mut said = serde_json::to_value(&overdue).unwrap();
            let message = format!("Job {} is being deleted", job_name(&overdue));
            said["status"]["message"] = json!(message);
            path.contains("/materializedviewrefreshes/")
                .then_some((200, said))
        }
    });
    let ctx = Arc::new(ctx);
    ctx.targets.home().listed().await;
    let passed = reconcile::pass(Arc::new(overdue), &ctx).await;
    assert_eq!(passed.unwrap(), Some(Duration::from_secs(5)));
}

/// A refresh that runs in the Job `job`.
fn started(spec: Value) -> MaterializedViewRefresh {
    let status = json!({
        "phase": "Running", "viewUri": "mem://v", "startTime": Timestamp::now(),
        "job": {"name": "r-0", "namespace": "ns", "cluster": "default", "uid": "job"},
    });
    let mut started = refresh("r", 1, status);
    started.spec = serde_json::from_value(spec).unwrap();
    let (annotation, value) = names::RESTORE_STATUS;
    let annotations = started.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation.into(), value.into());
    started
}

fn job_name(of: &MaterializedViewRefresh) -> String {
    launch::job::name(of, &home())
}

/// Its Job, made so many seconds ago.
fn job(of: &MaterializedViewRefresh, ago: i64) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": job_name(of), "namespace": "ns", "uid": "job",
            "resourceVersion": "1",
            "creationTimestamp": Timestamp::now() - SignedDuration::from_secs(ago),
            "labels": {
                names::REFRESH_LABEL: of.metadata.name, names::REFRESH_UID_LABEL: of.metadata.uid,
            },
        },
    })
}

#[tokio::test]
async fn a_job_here_whose_refresh_left_it_without_an_owner_is_swept_up_unless_it_has_ended() {
    let kept = started(json!({"view": ["v"]}));
    for (is_gone, has_ended, deleted) in [
        (true, false, 1),
        (true, true, 0),
        // No watch shows it yet.
        (false, false, 0),
    ] {
        let deletes = Arc::new(AtomicUsize::new(0));
        let ctx = context({
            let (deletes, kept) = (deletes.clone(), kept.clone());
            move |method, path| {
                let mut job = job(&kept, 60);
                if has_ended {
                    let failed = json!([{"type": "Failed", "status": "True"}]);
                    job["status"] = json!({"conditions": failed});
                }
                if path.ends_with("/jobs") {
                    return Some((200, list(&[job])));
                }
                if method == "DELETE" {
                    deletes.fetch_add(1, Ordering::Relaxed);
                    return Some((200, job));
                }
                let is_asked = path.ends_with("/materializedviewrefreshes/r") && !is_gone;
                is_asked.then(|| (200, serde_json::to_value(&kept).unwrap()))
            }
        });
        ctx.targets.home().listed().await;
        orphans::sweep_all(&ctx).await;
        assert_eq!(
            deletes.load(Ordering::Relaxed),
            deleted,
            "{is_gone} {has_ended}"
        );
    }
}
