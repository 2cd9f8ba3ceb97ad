//! The REST API: the Lance Namespace's refresh endpoint, and the least of what
//! stock LanceDB clients ask around it. [`routes`] lists it all.
//!
//! # The life of a refresh request
//!
//! 1. The path's id is split, the body is read (empty is fine) and becomes a
//!    spec. What is wrong with its *shape* the CRD's own rules say ([`fields`]).
//! 2. An `Idempotency-Key` fixes the refresh's name ([`idempotency`]); if that
//!    refresh exists, the request is answered from it.
//! 3. What is wrong with the *world* (view, cluster) [`crate::world`] says.
//! 4. The resource is stored, then the Secrets with an inline Geneva manifest
//!    and with the caller's credential, where that is forwarded; the resource
//!    owns them ([`store`]). 202 is said only after all of them.
//!
//! A request that has been read runs on even if its client goes away, until it
//! has taken too long, and a shutdown waits for it. What has begun to be stored is
//! stored whole. Every error has the spec's body ([`error`]).
//! Who asks and whether they may comes before all of this ([`auth`]).

pub mod auth;
pub mod body;
pub mod describe;
pub mod error;
pub mod fields;
pub mod id;
pub mod idempotency;
pub mod jobs;
pub mod manifest;
mod observe;
pub mod openapi;
pub mod refresh;
pub mod routes;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use kube::Client;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::catalog::SharedCatalog;
use crate::engine::catalog::Catalog;
use crate::engine::view::KnownViews;
use crate::telemetry::Metrics;
use auth::Access;
use auth::credential::{Caller, Credential};
use error::ApiError;

/// What the handlers share.
#[derive(Debug)]
pub struct Api {
    /// Who is let in.
    pub access: Access,
    /// Where refreshes are stored.
    pub store: store::Store,
    /// Where views are found.
    pub catalog: SharedCatalog,
    /// What they are.
    views: KnownViews,
    /// Whether callers' credentials are shown to the catalog, which is then a REST catalog.
    pub forwards: bool,
    /// Requests that run; a shutdown waits for them.
    pub tasks: TaskTracker,
    requests: observe::Requests,
    turns: jobs::Turns,
}

impl Api {
    /// An API over `catalog` whose refreshes are made in `namespace`, and which
    /// `forwards` its callers' credentials to a REST catalog, or does not.
    pub fn new(
        client: Client,
        namespace: &str,
        catalog: SharedCatalog,
        access: Access,
        forwards: bool,
        metrics: &Metrics,
    ) -> Self {
        Self {
            access,
            forwards,
            store: store::Store::new(client, namespace),
            catalog,
            views: KnownViews::default(),
            tasks: TaskTracker::new(),
            requests: observe::Requests::register(metrics),
            turns: jobs::Turns::default(),
        }
    }

    /// Carries out what stores a refresh and its Secrets to its end, whatever
    /// becomes of the request: the one without the others would end badly.
    async fn store_whole<T: Send + 'static>(
        &self,
        storing: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let stored = self.tasks.spawn(storing.in_current_span()).await;
        stored.unwrap_or_else(|error| {
            tracing::error!(%error, "a refresh could not be stored");
            Err(ApiError::Internal(
                "the refresh could not be stored because of a bug; see the operator's log".into(),
            ))
        })
    }

    /// The catalog as `caller` may see it.
    async fn catalog_of(&self, caller: &Caller) -> Result<Catalog, ApiError> {
        Ok(self.catalog.seen_by(self.forwarded(caller)?).await?)
    }

    /// The caller's credential, if it is to be forwarded. Who then has none must
    /// not get at the catalog by relance's own.
    fn forwarded<'a>(&self, caller: &'a Caller) -> Result<Option<&'a Credential>, ApiError> {
        match (self.forwards, caller.credential()) {
            (false, _) => Ok(None),
            (true, Some(credential)) => Ok(Some(credential)),
            (true, None) => Err(ApiError::Unauthenticated(
                "the catalog is shown the caller's own credential, and the request has none; send it once, as 'Authorization: Bearer' or as 'x-api-key'"
                    .into(),
            )),
        }
    }
}

/// What [`routes`] lists, and the same errors for all else.
pub fn router(api: Arc<Api>) -> Router {
    routes::router()
        .fallback(|| async { ApiError::NoSuchRoute })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(api.clone(), answer))
        .with_state(api)
}

/// How long a request may take. Each of its steps has less.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is around every handler: it is observed, its errors get their bodies, it
/// runs to its end, and it is guarded. One layer for all, since axum takes each
/// request through boxes of its own for every layer.
async fn answer(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    observe::observed(&api, request, |request: Request| async {
        let instance = request.uri().path().to_string();
        let response = run_to_end(&api, request, next).await;
        error::with_body(response, &instance)
    })
    .await
}

/// Runs the request in a task of its own: a client that hangs up does not
/// leave a resource without its Secret, and a panic is one request's 500. What has
/// taken too long is broken off, but for the storing of a refresh ([`Api::store_whole`]).
async fn run_to_end(api: &Arc<Api>, request: Request, next: Next) -> Response {
    // Also where nobody waits for its answer.
    let guarded = tokio::time::timeout(PATIENCE, auth::guarded(api.clone(), request, next));
    match api.tasks.spawn(guarded.in_current_span()).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => ApiError::Unavailable(format!(
            "the request was not answered within {} seconds, and may still take effect; try again, with an Idempotency-Key",
            PATIENCE.as_secs()
        ))
        .into_response(),
        Err(error) => {
            tracing::error!(%error, "a request handler panicked");
            ApiError::Internal(
                "the request could not be handled because of a bug; see the operator's log".into(),
            )
            .into_response()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use axum::http::StatusCode;
    use serde_json::json;
    use tower::ServiceExt;

    use super::*;
    use crate::catalog::Source;

    /// An API that lets everybody in, over an API server that has no refresh and
    /// a catalog that is away.
    pub(crate) fn open(forwards: bool) -> Router {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let answer = |request: axum::http::Request<kube::client::Body>| {
            let listed = request.uri().path().ends_with("/materializedviewrefreshes");
            let (status, answer) = match listed {
                true => (200, json!({"metadata": {}, "items": []})),
                false => (
                    404,
                    json!({"reason": "NotFound", "message": "", "code": 404}),
                ),
            };
            let answer = kube::client::Body::from(answer.to_string().into_bytes());
            let answer = Response::builder().status(status).body(answer);
            std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
        };
        let client = Client::new(tower::service_fn(answer), "ns");
        let source = Source {
            // Nobody listens there.
            uri: "http://127.0.0.1:1".into(),
            ..Source::default()
        };
        let metrics = Metrics::default();
        let catalog = SharedCatalog::new(source, &metrics);
        let api = Api::new(client, "ns", catalog, Access::open(), forwards, &metrics);
        router(Arc::new(api))
    }

    #[tokio::test]
    async fn an_operation_that_is_known_and_not_done_is_406_with_the_specs_body() {
        let asked = async |path: &str| {
            let request = Request::post(path).body(Body::empty()).unwrap();
            let answer = open(false).oneshot(request).await.unwrap();
            let status = answer.status();
            let bytes = axum::body::to_bytes(answer.into_body(), 10_000).await;
            let body: serde_json::Value = serde_json::from_slice(&bytes.unwrap()).unwrap();
            assert_eq!(
                (&body["code"], &body["instance"]),
                (&json!(0), &json!(path))
            );
            (status, body["error"].as_str().unwrap().to_string())
        };
        let (status, told) = asked("/v1/materialized_view/v/create").await;
        assert_eq!(status, StatusCode::NOT_ACCEPTABLE);
        assert!(told.contains("creates none"), "{told}");
        let (status, told) = asked("/v1/materialized_view/v/creat").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(told.contains("spelling"), "{told}");
    }

    #[tokio::test]
    async fn where_credentials_are_forwarded_nobody_goes_by_relances_own() {
        let asked = async |path: &str, keys: &[&str]| {
            let request = keys
                .iter()
                .fold(Request::post(path), |r, key| r.header("x-api-key", *key));
            let body = Body::from(r#"{"job_id": "gone"}"#);
            let answer = open(true).oneshot(request.body(body).unwrap()).await;
            answer.unwrap().status()
        };
        for path in [
            "/v1/materialized_view/v/refresh",
            "/v1/materialized_view/v/describe",
            "/v1/table/v/describe",
            "/v1/jobs/describe",
            "/v1/jobs/query_events",
            "/v1/jobs/cancel",
        ] {
            for keys in [&[][..], &["a", "b"]] {
                let status = asked(path, keys).await;
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} {keys:?}");
            }
        }
        // Whose own is forwarded hears of the catalog.
        let status = asked("/v1/table/v/describe", &["a"]).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
