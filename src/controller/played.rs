//! What the controller does against an API server that a test plays.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::http::{Request, Response};
use kube::Client;
use kube::client::Body;
use kube::runtime::events::Reporter;
use kube::runtime::reflector;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::admission;
use super::context::{Context, Known};
use super::election::Leadership;
use super::metrics::ControllerMetrics;
use super::places::Places;
use super::queue::Place;
use super::reconcile::{PassError, broke_off};
use super::refresh::*;
use super::targets::Targets;
use crate::catalog::{SharedCatalog, Source};
use crate::launch::job::Home;
use crate::resources::MaterializedViewRefresh;
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
    let source = Source {
        uri: "dir:///nowhere".into(),
        ..Source::default()
    };
    let metrics = Metrics::default();
    let (refreshes, _) = reflector::store();
    let (clusters, _) = reflector::store();
    let (touch, _) = mpsc::unbounded_channel();
    let targets = Targets::new(client.clone(), Leadership::default(), "ns", "home", touch);
    let home = Home {
        id: "home".into(),
        image: "relance".into(),
        catalog: source.clone(),
        environment: Vec::new(),
    };
    Context::new(
        client,
        "ns",
        home,
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
    for (error, keeps_place) in [
        (unbuildable.into(), false),
        (refused(400), false),
        (refused(403), false),
        (PassError::Restless("a".into()), false),
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
