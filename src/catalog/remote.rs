//! A catalog that is reached over HTTP: the Lance Namespace's REST protocol, as
//! far as a refresh needs it.
//!
//! Three operations are asked for: where a table is (`describe`, with the
//! storage options and credentials that the catalog vends for it), and what
//! tables and namespaces there are. No redirect is followed, since it could
//! take the credential to another host; and what the catalog says reaches an
//! error without the credential, should the catalog repeat it.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lance_namespace::models::{
    DescribeTableRequest, DescribeTableResponse, ErrorResponse, ListNamespacesRequest,
    ListNamespacesResponse, ListTablesRequest, ListTablesResponse,
};
use lance_namespace::{ErrorCode, LanceNamespace, NamespaceError};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode, redirect};
use serde::de::DeserializeOwned;
use url::Url;

use super::credential::Credential;
use crate::engine::error::EngineError;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a question is asked that a busy catalog, or none, has answered.
const ATTEMPTS: u32 = 3;

/// The pause before the second time; it doubles.
const PAUSE: Duration = Duration::from_millis(200);

/// Most of what a catalog says that is repeated, in characters.
const REPEATED: usize = 300;

/// Delimiters of identifiers, from which the first is taken that is in no part.
const DELIMITERS: [&str; 4] = ["$", "|", "~", "\u{1f}"];

/// What stands for itself in a path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// See the module.
pub struct RemoteNamespace {
    http: reqwest::Client,
    base: String,
    headers: HeaderMap,
    /// What must not be repeated.
    secret: Option<String>,
}

impl std::fmt::Debug for RemoteNamespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteNamespace({})", self.base)
    }
}

/// Whether a catalog's URI is that of a REST catalog.
pub fn is_remote(uri: &str) -> bool {
    let scheme = uri.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|s| s.eq_ignore_ascii_case("http") || s.eq_ignore_ascii_case("https"))
}

/// A REST catalog's URL without the slash at its end. A URL with a user, a
/// query or a fragment is refused without being repeated: credentials do not
/// belong in it, since it is told to workers and in logs.
pub fn base(uri: &str) -> Result<String, EngineError> {
    let refused = |why: &str| {
        Err(EngineError::InvalidInput(format!(
            "the REST catalog's URL {why}; give https://HOST[:PORT][/PREFIX], and a credential by the environment variable RELANCE_CATALOG_TOKEN or RELANCE_CATALOG_API_KEY"
        )))
    };
    let Ok(url) = Url::parse(uri) else {
        return refused("is none");
    };
    if !url.username().is_empty() || url.password().is_some() {
        return refused("holds a user");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refused("holds a query or a fragment");
    }
    Ok(url.as_str().trim_end_matches('/').to_string())
}

/// A client for REST catalogs. Its connections are shared by what is made of it.
pub fn client() -> Result<reqwest::Client, EngineError> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .timeout(PATIENCE)
        .redirect(redirect::Policy::none())
        .user_agent(concat!("relance/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| EngineError::Internal(format!("no HTTP client can be made: {error}")))
}

impl RemoteNamespace {
    /// The catalog at `uri`, to which `headers` and the credential are sent
    /// with each request. Errors: `InvalidInput`.
    pub fn new(
        http: reqwest::Client,
        uri: &str,
        headers: &BTreeMap<String, String>,
        credential: Option<&Credential>,
    ) -> Result<Self, EngineError> {
        let mut sent = HeaderMap::new();
        for (name, value) in headers {
            let pair = HeaderName::try_from(name).ok();
            let pair = pair.zip(HeaderValue::try_from(value).ok());
            let (name, value) = pair.ok_or_else(|| {
                EngineError::InvalidInput(format!(
                    "the catalog header '{name}' is no HTTP header; give NAME=VALUE in printable ASCII"
                ))
            })?;
            sent.insert(name, value);
        }
        if let Some(credential) = credential {
            let (name, value) = match credential {
                Credential::Key(key) => (HeaderName::from_static("x-api-key"), key.clone()),
                Credential::Token(token) => (AUTHORIZATION, format!("Bearer {token}")),
            };
            let mut value = HeaderValue::try_from(value).map_err(|_| {
                EngineError::InvalidInput(format!(
                    "the {} for the catalog cannot be sent as an HTTP header; give it in printable ASCII, without a line break",
                    credential.way()
                ))
            })?;
            value.set_sensitive(true);
            sent.insert(name, value);
        }
        Ok(Self {
            http,
            base: base(uri)?,
            headers: sent,
            secret: credential.map(|credential| credential.secret().to_string()),
        })
    }

    fn request(&self, method: Method, path: &str, query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = format!("{}{path}", self.base);
        for (n, (name, value)) in query.iter().enumerate() {
            let mark = if n == 0 { '?' } else { '&' };
            let value = utf8_percent_encode(value, PATH);
            url.push_str(&format!("{mark}{name}={value}"));
        }
        self.http.request(method, url).headers(self.headers.clone())
    }

    /// What the catalog answers. No question here changes anything, so each may
    /// be asked again.
    async fn answer<T: DeserializeOwned>(&self, mut request: RequestBuilder) -> lance::Result<T> {
        let mut pause = PAUSE;
        let mut attempt = 1;
        let body = loop {
            let again = request.try_clone();
            match (self.asked(request).await, again) {
                (Err(NamespaceError::ServiceUnavailable { .. }), Some(again))
                    if attempt < ATTEMPTS =>
                {
                    request = again;
                }
                (answer, _) => break answer?,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            attempt += 1;
        };
        serde_json::from_slice(&body).map_err(|error| {
            let message = format!(
                "its answer is none of the Lance Namespace's (line {}, column {}); check the URL",
                error.line(),
                error.column()
            );
            NamespaceError::ServiceUnavailable { message }.into()
        })
    }

    async fn asked(&self, request: RequestBuilder) -> Result<Bytes, NamespaceError> {
        let away = |error: reqwest::Error| NamespaceError::ServiceUnavailable {
            message: innermost(&error.without_url()),
        };
        let answer = request.send().await.map_err(away)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(away)?;
        match status.is_success() {
            true => Ok(body),
            false => Err(self.refusal(status, &body)),
        }
    }

    /// What an answer that is none means.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> NamespaceError {
        let told: Option<ErrorResponse> = serde_json::from_slice(body).ok();
        let code = told.as_ref().and_then(|told| u32::try_from(told.code).ok());
        let code = code.and_then(ErrorCode::from_u32);
        let said = told.and_then(|told| told.error.or(told.detail));
        let message = match &said {
            Some(said) => self.harmless(said),
            None => format!("it answers {status}"),
        };
        match (status, code) {
            (StatusCode::UNAUTHORIZED, _) | (_, Some(ErrorCode::Unauthenticated)) => {
                NamespaceError::Unauthenticated { message }
            }
            (StatusCode::FORBIDDEN, _) | (_, Some(ErrorCode::PermissionDenied)) => {
                NamespaceError::PermissionDenied { message }
            }
            (_, Some(ErrorCode::TableNotFound)) => NamespaceError::TableNotFound { message },
            (_, Some(ErrorCode::NamespaceNotFound)) => {
                NamespaceError::NamespaceNotFound { message }
            }
            (StatusCode::BAD_REQUEST, Some(_)) | (_, Some(ErrorCode::InvalidInput)) => {
                NamespaceError::InvalidInput { message }
            }
            (StatusCode::NOT_ACCEPTABLE | StatusCode::NOT_IMPLEMENTED, _) => {
                NamespaceError::Unsupported { message }
            }
            (StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND, None) => {
                NamespaceError::ServiceUnavailable {
                    message: format!(
                        "it answers {status}, and not as a Lance Namespace would; check the URL's path"
                    ),
                }
            }
            _ => NamespaceError::ServiceUnavailable {
                message: format!("it answers {status}: {message}"),
            },
        }
    }

    /// What the catalog said, on one line, cut, and without the credential.
    fn harmless(&self, said: &str) -> String {
        let said = match &self.secret {
            Some(secret) if !secret.is_empty() => said.replace(secret.as_str(), "***"),
            _ => said.to_string(),
        };
        let line = said.lines().next().unwrap_or_default();
        line.chars().take(REPEATED).collect()
    }
}

/// An identifier path as it stands in a URL, and its delimiter. None: URLs take
/// it for a step to another place, however it is encoded, and there the
/// credential is not to be shown.
fn object(id: Option<&[String]>) -> lance::Result<Option<(String, &'static str)>> {
    let id = id.unwrap_or_default();
    let fits = |delimiter: &&&str| id.iter().all(|part| !part.contains(**delimiter));
    let delimiter = DELIMITERS.iter().find(fits).copied().ok_or_else(|| {
        NamespaceError::InvalidInput {
            message: "the identifier holds every delimiter that it could be sent with; name the table otherwise".into(),
        }
    })?;
    // The root is written as the delimiter itself.
    let joined = match id.is_empty() {
        true => delimiter.to_string(),
        false => id.join(delimiter),
    };
    let is_step = matches!(joined.as_str(), "." | "..");
    let encoded = utf8_percent_encode(&joined, PATH).to_string();
    Ok((!is_step).then_some((encoded, delimiter)))
}

/// What an error comes from: the words around it only say that a request failed.
fn innermost(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    if error.is_timeout() {
        return format!("no answer within {} seconds", PATIENCE.as_secs());
    }
    match error.source() {
        None => error.to_string(),
        Some(_) => innermost.to_string(),
    }
}

#[async_trait]
impl LanceNamespace for RemoteNamespace {
    fn namespace_id(&self) -> String {
        self.base.clone()
    }

    async fn describe_table(
        &self,
        request: DescribeTableRequest,
    ) -> lance::Result<DescribeTableResponse> {
        let (id, delimiter) =
            object(request.id.as_deref())?.ok_or_else(|| NamespaceError::TableNotFound {
                message: "no table has such a name in a REST catalog".into(),
            })?;
        let path = format!("/v1/table/{id}/describe");
        let query = [("delimiter", delimiter), ("with_table_uri", "true")];
        let asked = self.request(Method::POST, &path, &query);
        let body = serde_json::to_vec(&request).map_err(|error| NamespaceError::Internal {
            message: error.to_string(),
        })?;
        let asked = asked.header(reqwest::header::CONTENT_TYPE, "application/json");
        self.answer(asked.body(body)).await
    }

    async fn list_tables(&self, request: ListTablesRequest) -> lance::Result<ListTablesResponse> {
        let path = |id| format!("/v1/namespace/{id}/table/list");
        let limit = request.limit;
        self.list(path, request.id.as_deref(), request.page_token, limit)
            .await
    }

    async fn list_namespaces(
        &self,
        request: ListNamespacesRequest,
    ) -> lance::Result<ListNamespacesResponse> {
        let path = |id| format!("/v1/namespace/{id}/list");
        let limit = request.limit;
        self.list(path, request.id.as_deref(), request.page_token, limit)
            .await
    }
}

impl RemoteNamespace {
    async fn list<T: DeserializeOwned>(
        &self,
        path: impl Fn(String) -> String,
        id: Option<&[String]>,
        token: Option<String>,
        limit: Option<i32>,
    ) -> lance::Result<T> {
        let (id, delimiter) = object(id)?.ok_or_else(|| NamespaceError::NamespaceNotFound {
            message: "no namespace has such a name in a REST catalog".into(),
        })?;
        let limit = limit.map(|limit| limit.to_string());
        let mut query = vec![("delimiter", delimiter)];
        query.extend(token.as_deref().map(|token| ("page_token", token)));
        query.extend(limit.as_deref().map(|limit| ("limit", limit)));
        self.answer(self.request(Method::GET, &path(id), &query))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(credential: Option<Credential>) -> RemoteNamespace {
        RemoteNamespace::new(
            reqwest::Client::new(),
            "https://h/p/",
            &BTreeMap::new(),
            credential.as_ref(),
        )
        .unwrap()
    }

    #[test]
    fn a_url_is_a_server_and_a_prefix_and_holds_no_secret() {
        assert_eq!(base("https://h:1/a/b/").unwrap(), "https://h:1/a/b");
        assert_eq!(base("http://h").unwrap(), "http://h");
        for wrong in [
            "https://u:hush@h",
            "https://h?key=hush",
            "https://h/#hush",
            "https://",
        ] {
            let error = base(wrong).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
        assert!(is_remote("https://h") && is_remote("HTTP://h"));
        assert!(!is_remote("dir:///t") && !is_remote("s3://b") && !is_remote("/t"));
    }

    #[test]
    fn an_identifier_is_joined_by_what_is_in_none_of_its_parts() {
        let sent = |id: &[&str]| {
            let id: Vec<String> = id.iter().map(|part| part.to_string()).collect();
            object(Some(&id)).unwrap().unwrap()
        };
        assert_eq!(sent(&["v"]), ("v".into(), "$"));
        assert_eq!(sent(&["a", "b c"]), ("a%24b%20c".into(), "$"));
        assert_eq!(sent(&["a$b", "c"]), ("a%24b%7Cc".into(), "|"));
        assert_eq!(sent(&["ä/?+"]), ("%C3%A4%2F%3F%2B".into(), "$"));
        assert_eq!(sent(&[]), ("%24".into(), "$"));
        assert_eq!(sent(&["..", "."]), ("..%24.".into(), "$"));
        assert_eq!(sent(&["..."]), ("...".into(), "$"));
    }

    #[test]
    fn an_identifier_that_a_url_takes_for_a_step_is_in_none() {
        for step in [".", ".."] {
            assert_eq!(object(Some(&[step.to_string()])).unwrap(), None);
        }
    }

    #[test]
    fn what_a_catalog_says_is_repeated_without_the_credential() {
        let namespace = namespace(Some(Credential::Token("hush".into())));
        let refusal = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            namespace.refusal(status, body.as_bytes())
        };
        let said = r#"{"code": 16, "error": "token hush has expired\nmore"}"#;
        let refused = refusal(401, said);
        assert_eq!(refused.code(), ErrorCode::Unauthenticated);
        assert!(refused.to_string().contains("token *** has expired"));
        assert!(!refused.to_string().contains("more"));
        let missing = refusal(404, r#"{"code": 4, "error": "no table"}"#);
        assert_eq!(missing.code(), ErrorCode::TableNotFound);
        // A proxy's page is no word of the catalog's that the table is gone.
        for (status, body) in [(404, "<html>"), (503, ""), (500, "{}"), (302, "")] {
            let code = refusal(status, body).code();
            assert_eq!(code, ErrorCode::ServiceUnavailable, "{status}");
        }
        assert_eq!(refusal(403, "").code(), ErrorCode::PermissionDenied);
    }
}
