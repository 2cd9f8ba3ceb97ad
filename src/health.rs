//! `/livez`, `/readyz` and `/metrics`, on a listener of their own.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

/// How long the Kubernetes API may take to say its version.
const PATIENCE: Duration = Duration::from_secs(3);

/// The media type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the health routes look at.
#[derive(Clone)]
pub struct Health {
    /// Asked for its version.
    pub client: Client,
    /// What `/metrics` tells.
    pub metrics: Arc<Metrics>,
    /// Once cancelled, the process is not ready.
    pub shutdown: CancellationToken,
}

/// The health routes. Ready is who reaches the Kubernetes API; the catalog's
/// state is a metric, or its outage would take describe and cancel offline.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    if health.shutdown.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down".to_string());
    }
    match tokio::time::timeout(PATIENCE, health.client.apiserver_version()).await {
        Ok(Ok(_)) => (StatusCode::OK, "ok".to_string()),
        Ok(Err(error)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the Kubernetes API cannot be reached: {error}"),
        ),
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the Kubernetes API does not answer".to_string(),
        ),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    match health.metrics.text() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, OPENMETRICS)], text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("the metrics cannot be written: {error}"),
        ),
    }
}
