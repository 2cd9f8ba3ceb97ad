//! A watch that is behind the others.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use futures::{StreamExt, stream};
use relance::resources::Phase;
use serde_json::json;
use tokio::sync::mpsc;

use crate::operator::{Operator, PATIENCE};
use crate::proxy;

/// How far behind it is.
const BEHIND: Duration = Duration::from_secs(4);

/// Hands on what is asked. What the watch of refreshes that have not ended shows
/// comes later than all else.
async fn forward(
    State(client): State<kube::Client>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let query = uri.query().unwrap_or_default();
    let held_back = uri.path().ends_with("/materializedviewrefreshes")
        && query.contains("watch=true")
        && query.contains("Succeeded");
    let answer = proxy::forward(&client, method, &uri, &headers, body).await;
    match held_back {
        true => answer.map(later),
        false => answer,
    }
}

/// Each part of `body` [`BEHIND`] its time.
fn later(body: Body) -> Body {
    let (came, coming) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut parts = body.into_data_stream();
        while let Some(part) = parts.next().await {
            if came.send((Instant::now(), part)).is_err() {
                return;
            }
        }
    });
    Body::from_stream(stream::unfold(coming, async |mut coming| {
        let (at, part) = coming.recv().await?;
        tokio::time::sleep(BEHIND.saturating_sub(at.elapsed())).await;
        Some((part, coming))
    }))
}

/// A kubeconfig of the API server at `url`, to which anybody may do all.
fn kubeconfig(url: &str) -> String {
    let name = "held-back";
    json!({
        "clusters": [{"name": name, "cluster": {"server": url}}],
        "contexts": [{"name": name, "context": {"cluster": name}}],
        "current-context": name,
    })
    .to_string()
}

#[tokio::test]
async fn what_is_asked_of_an_ended_refresh_that_a_watch_still_shows_as_active_is_done() {
    let mut operator = Operator::prepared().await;
    let router = Router::new().fallback(forward);
    let url = proxy::serve(router.with_state(operator.space.client.clone())).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig(&url)).expect("a file");
    let path = path.to_str().expect("a path");
    operator.start_with(&[("KUBECONFIG", path)]).await;

    // Nobody has made this view, so that the refresh ends at once.
    operator.apply("r", json!({"view": ["none"]})).await;
    let ended = operator.settled("r").await;
    assert_eq!(ended.phase, Phase::Failed, "{ended:?}");
    // Only the watch of ended refreshes will show this.
    let at_once = json!({"ttlSecondsAfterFinished": 0});
    operator.patch("r", at_once).await;
    let asked = Instant::now();
    let refreshes = &operator.space.refreshes;
    while refreshes.get_opt("r").await.expect("an answer").is_some() {
        assert!(asked.elapsed() < PATIENCE, "it is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
