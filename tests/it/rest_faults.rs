//! A Kubernetes API that does what it was asked and fails to say so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::proxy;
use crate::support::{Server, World};

/// How an answer is lost.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The connection breaks.
    Break,
    /// Something in between says 504.
    Timeout,
}

#[derive(Clone)]
struct Proxy {
    client: kube::Client,
    fault: Fault,
    /// How many answers to creates are still to be lost.
    left: Arc<AtomicUsize>,
}

async fn forward(
    State(proxy): State<Proxy>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let creates = method == Method::POST;
    let answer = proxy::forward(&proxy.client, method, &uri, &headers, body).await;
    let lose = |left: usize| left.checked_sub(1);
    if creates
        && proxy
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose)
            .is_ok()
    {
        return match proxy.fault {
            Fault::Break => panic!("the connection breaks, as this test wants"),
            Fault::Timeout => StatusCode::GATEWAY_TIMEOUT.into_response(),
        };
    }
    answer
}

/// A REST API whose first `lost` creates are done and never answered.
async fn through_faults(world: &World, fault: Fault, lost: usize) -> Server {
    let proxy = Proxy {
        client: world.space.client.clone(),
        fault,
        left: Arc::new(AtomicUsize::new(lost)),
    };
    let router = axum::Router::new().fallback(forward).with_state(proxy);
    let url = proxy::serve(router).await;
    let config = kube::Config::new(url.parse().expect("a URL"));
    let uri = format!("dir://{}", world.folder.path().display());
    let client = kube::Client::try_from(config).expect("a client");
    Server::start(client, &world.space.namespace, &uri).await
}

const REFRESH: &str = "/v1/materialized_view/v/refresh";

#[tokio::test]
async fn a_create_whose_answer_is_lost_makes_one_refresh_and_is_accepted() {
    for fault in [Fault::Break, Fault::Timeout] {
        let world = World::new().await;
        let server = through_faults(&world, fault, 2).await;
        let job_id = server.post(REFRESH, "").await.job_id();
        assert_eq!(world.stored().await, 1, "{fault:?}");
        world
            .space
            .refreshes
            .get(&job_id)
            .await
            .expect("under its job_id");
    }
}

#[tokio::test]
async fn a_manifest_whose_answer_is_lost_leaves_a_whole_refresh_or_none() {
    for fault in [Fault::Break, Fault::Timeout] {
        for lost in 1..=4 {
            let world = World::new().await;
            let server = through_faults(&world, fault, lost).await;
            let body = json!({"manifest": r#"{"name": "m"}"#}).to_string();
            let answer = server.post(REFRESH, body).await;
            let secrets = world
                .space
                .secrets
                .list(&Default::default())
                .await
                .expect("a list");
            let stored = world.stored().await;
            match answer.status {
                202 => assert_eq!((stored, secrets.items.len()), (1, 1), "{fault:?} {lost}"),
                503 => assert_eq!(stored, 0, "{fault:?} {lost}"),
                _ => panic!("{fault:?} {lost}: {answer:?}"),
            }
        }
    }
}
