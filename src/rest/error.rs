//! Errors as the Lance Namespace spec has them: a status, a code, one sentence.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use thiserror::Error;

use crate::engine::error::EngineError;
use crate::world::WorldError;

/// What a request can fail with. Each message is one sentence that names the
/// field, or what else was wrong.
#[derive(Clone, Debug, Error)]
pub enum ApiError {
    /// The request is malformed, or asks for what cannot be.
    #[error("{0}")]
    InvalidInput(String),
    /// The table or view is not there.
    #[error("{0}")]
    TableNotFound(String),
    /// A version of a table is not there.
    #[error("{0}")]
    VersionNotFound(String),
    /// No refresh of that job_id.
    #[error("there is no job '{0}'; finished ones are kept for a while only")]
    JobNotFound(String),
    /// The request contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// Nobody knows who asks.
    #[error("{0}")]
    Unauthenticated(String),
    /// The Kubernetes API says that this may not be.
    #[error("{0}")]
    PermissionDenied(String),
    /// Too much was asked at once.
    #[error("{0}")]
    Throttled(String),
    /// This kind of view is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// This operation is not.
    #[error("{0}")]
    UnsupportedOperation(&'static str),
    /// Catalog or Kubernetes API did not answer.
    #[error("{0}")]
    Unavailable(String),
    /// A bug, or something that nobody foresaw.
    #[error("{0}")]
    Internal(String),
    /// No such path.
    #[error("there is no such path in this API; check its spelling and the id's percent-encoding")]
    NoSuchRoute,
    /// The path is there, for another method.
    #[error("this path is not there for this method; the Allow header names those it is there for")]
    MethodNotAllowed,
    /// The body took too long to arrive.
    #[error("the request's body did not arrive within {0} seconds; send it again")]
    BodyTimeout(u64),
    /// The body is too large.
    #[error("the request's body is larger than {0} bytes; make it smaller")]
    BodyTooLarge(usize),
    /// The body is compressed.
    #[error("Content-Encoding '{0}' is not understood; send the body as it is")]
    BodyEncoded(String),
}

impl ApiError {
    /// The HTTP status, and the spec's error code.
    pub fn status_and_code(&self) -> (StatusCode, u32) {
        match self {
            ApiError::InvalidInput(_) => (StatusCode::BAD_REQUEST, 13),
            ApiError::TableNotFound(_) => (StatusCode::NOT_FOUND, 4),
            ApiError::VersionNotFound(_) => (StatusCode::NOT_FOUND, 11),
            // The spec has no jobs; a transaction comes nearest.
            ApiError::JobNotFound(_) => (StatusCode::NOT_FOUND, 10),
            ApiError::Conflict(_) => (StatusCode::CONFLICT, 14),
            ApiError::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, 16),
            ApiError::PermissionDenied(_) => (StatusCode::FORBIDDEN, 15),
            ApiError::Throttled(_) => (StatusCode::TOO_MANY_REQUESTS, 21),
            // The refresh operation lists no 406, only 5XX.
            ApiError::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, 0),
            ApiError::UnsupportedOperation(_) => (StatusCode::NOT_ACCEPTABLE, 0),
            ApiError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, 17),
            ApiError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, 18),
            ApiError::NoSuchRoute => (StatusCode::NOT_FOUND, 0),
            ApiError::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, 0),
            ApiError::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, 13),
            ApiError::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, 13),
            ApiError::BodyEncoded(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, 13),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let sentence = error.to_string();
        match error {
            EngineError::ViewNotFound { .. } | EngineError::SourceNotFound { .. } => {
                ApiError::TableNotFound(sentence)
            }
            EngineError::SourceVersionGone { .. } => ApiError::VersionNotFound(sentence),
            EngineError::NotAView { .. }
            | EngineError::SourceDamaged { .. }
            | EngineError::DefinitionMismatch { .. }
            | EngineError::EvaluationFailed { .. }
            | EngineError::InvalidInput(_) => ApiError::InvalidInput(sentence),
            EngineError::CatalogDenied { .. } => ApiError::PermissionDenied(sentence),
            EngineError::Unsupported { .. } => ApiError::Unsupported(sentence),
            EngineError::IncarnationMismatch { .. } | EngineError::ViewContended { .. } => {
                ApiError::Conflict(sentence)
            }
            EngineError::Unavailable { .. } => ApiError::Unavailable(sentence),
            EngineError::Internal(_) => ApiError::Internal(sentence),
        }
    }
}

impl From<WorldError> for ApiError {
    fn from(error: WorldError) -> Self {
        match error {
            WorldError::View(error) => error.into(),
            wrong @ (WorldError::UnknownCluster { .. } | WorldError::NotForwarded { .. }) => {
                ApiError::InvalidInput(wrong.to_string())
            }
            policy @ (WorldError::ManifestNotAllowed { .. }
            | WorldError::ImageNotAllowed { .. }) => ApiError::PermissionDenied(policy.to_string()),
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            // A transport error's text may hold the URL, and nothing secret.
            return ApiError::Unavailable(format!(
                "the Kubernetes API cannot be reached: {error}; try again"
            ));
        };
        let said = &status.message;
        match status.code {
            400 | 422 => ApiError::InvalidInput(format!("the Kubernetes API refused it: {said}")),
            403 if said.contains("exceeded quota") => ApiError::Throttled(format!(
                "the namespace's quota is used up: {said}; try again when refreshes have ended"
            )),
            403 => ApiError::PermissionDenied(format!("the Kubernetes API refused it: {said}")),
            404 => ApiError::Unavailable(format!(
                "the Kubernetes API does not know what relance needs ({said}); install the output of 'relance crds'"
            )),
            429 => ApiError::Throttled(format!("the Kubernetes API is busy: {said}; try again")),
            _ => ApiError::Unavailable(format!("the Kubernetes API failed: {said}; try again")),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status_and_code().0.into_response();
        if matches!(self, ApiError::Unavailable(_) | ApiError::Throttled(_)) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if matches!(self, ApiError::Unauthenticated(_)) {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"relance\""),
            );
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The spec's `ErrorResponse`.
#[derive(Debug, Serialize)]
struct ErrorResponse<'a> {
    error: String,
    code: u32,
    detail: String,
    instance: &'a str,
}

/// Gives an error its body, with the path that was asked for as `instance`.
pub(super) fn with_body(response: Response, instance: &str) -> Response {
    if !(response.status().is_client_error() || response.status().is_server_error()) {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    let error = parts
        .extensions
        .remove::<ApiError>()
        .unwrap_or_else(|| ApiError::Internal(format!("the request failed with {}", parts.status)));
    let (status, code) = error.status_and_code();
    let mut answer = (
        status,
        Json(ErrorResponse {
            error: error.to_string(),
            code,
            detail: String::new(),
            instance,
        }),
    )
        .into_response();
    for name in [header::ALLOW, header::RETRY_AFTER, header::WWW_AUTHENTICATE] {
        if let Some(value) = parts.headers.remove(&name) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}
