//! One log line and two metrics a request.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tracing::Instrument;

use super::Api;
use super::auth::Access;
use super::auth::audit::{Answered, Note};
use super::routes;
use crate::listener::Peer;
use crate::telemetry::{self, Metrics, trace};

/// Counts and times requests.
#[derive(Debug)]
pub struct Requests {
    count: Family<Labels, Counter>,
    seconds: Family<Route, Histogram>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    route: String,
    status: u16,
}

impl Requests {
    /// Registers the metrics.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self {
            count: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new([
                    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                ])
            }),
        };
        let mut registry = metrics.registry();
        registry.register(
            "rest_requests",
            "REST requests by route and status",
            this.count.clone(),
        );
        registry.register(
            "rest_request_seconds",
            "Time from a REST request to its answer, by route",
            this.seconds.clone(),
        );
        this
    }
}

/// Logs and counts a request that `handle` handles: its route and not its query
/// or headers, which may hold credentials.
pub(super) async fn observed<H>(
    api: &Api,
    mut request: Request,
    handle: impl FnOnce(Request) -> H,
) -> Response
where
    H: Future<Output = Response>,
{
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_string();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .trim_end_matches('/')
        .to_string();
    let operation = routes::operation(&request).map_or("", |operation| operation.id);
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let note = Note::default();
    request.extensions_mut().insert(note.clone());
    let caller = request.headers().get(trace::TRACEPARENT);
    let caller = caller.and_then(|v| v.to_str().ok()?.parse::<trace::Context>().ok());
    // Polls make no traces of their own.
    let traced = match caller.is_some() || route.ends_with("/refresh") {
        true => trace::begin(&format!("{method} {route}"), trace::Kind::Server, caller),
        false => None,
    };
    let traced_as = traced.as_ref().map(trace::Span::context);
    if let Some(context) = trace::passed_on(trace::is_on(), traced_as, caller) {
        request.extensions_mut().insert(context);
    }
    // The handler says which refresh it is about, once it knows.
    let span = telemetry::request_span();
    let response = handle(request).instrument(span.clone()).await;
    let _logged_with = span.entered();
    let status = response.status().as_u16();
    if let Some(traced) = traced {
        traced
            .with("http.route", &route)
            .with("http.response.status_code", status)
            .end(status >= 500);
    }
    let took = started.elapsed();
    api.requests
        .seconds
        .get_or_create(&Route {
            route: route.clone(),
        })
        .observe(took.as_secs_f64());
    api.requests
        .count
        .get_or_create(&Labels { route, status })
        .inc();
    Answered {
        operation,
        method: &method,
        path: &path,
        peer,
        open: matches!(api.access, Access::Open(_)),
        status,
        took,
    }
    .write(&note);
    response
}
