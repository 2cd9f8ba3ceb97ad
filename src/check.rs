//! `relance check`: whether a REST API answers, and reaches its Kubernetes API.

use std::time::Duration;

use axum::http::{Method, Request, StatusCode, Uri};
use kube::{Client, Config};
use serde_json::{Value, json};
use thiserror::Error;

/// A credential that nobody has.
const NOBODY: &str = "relance-check";

/// How long the answers may take, all in all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the check failed.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The URL is none.
    #[error("'{0}' is no URL of an HTTP server; give one such as http://relance:2333")]
    Url(String),
    /// No answer came.
    #[error("{url} does not answer: {why}; look at the Service and at the pods behind it")]
    NoAnswer {
        /// Where it was asked.
        url: String,
        /// The client's words.
        why: String,
    },
    /// Something else answered, or the API could not do its work.
    #[error(
        "{url} answers {status} where it should list refreshes, or be 401 to a stranger: {said}"
    )]
    Wrong {
        /// Where it was asked.
        url: String,
        /// The status.
        status: StatusCode,
        /// What it said.
        said: String,
    },
}

/// Asks for a list of refreshes, as nobody whom it knows. To give it, or to say
/// that it does not know who asks, REST must have asked the Kubernetes API, with
/// the rights that it has; and nothing else, such as the catalog. `insecure` takes any certificate: nothing secret is sent.
pub async fn check(url: &str, insecure: bool) -> Result<(), CheckError> {
    within(PATIENCE, url, insecure).await
}

async fn within(patience: Duration, url: &str, insecure: bool) -> Result<(), CheckError> {
    let answers = tokio::time::timeout(patience, asked(url, insecure)).await;
    answers.unwrap_or_else(|_| {
        Err(CheckError::NoAnswer {
            url: url.to_string(),
            why: format!("nothing has come within {} s", patience.as_secs()),
        })
    })
}

async fn asked(url: &str, insecure: bool) -> Result<(), CheckError> {
    let not_a_url = || CheckError::Url(url.to_string());
    let uri: Uri = url.parse().map_err(|_| not_a_url())?;
    if uri.scheme().is_none() || uri.host().is_none() {
        return Err(not_a_url());
    }
    let no_answer = |why: kube::Error| CheckError::NoAnswer {
        url: url.to_string(),
        why: why.to_string(),
    };
    let mut config = Config::new(uri);
    config.default_retry = false;
    config.accept_invalid_certs = insecure;
    let client = Client::try_from(config).map_err(no_answer)?;
    // Either way of knowing a caller asks the Kubernetes API; one that is off does not.
    for (header, value) in [
        ("authorization", format!("Bearer {NOBODY}")),
        ("x-api-key", NOBODY.to_string()),
    ] {
        let body = json!({ "limit": 1 }).to_string();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/v1/jobs/list")
            .header("content-type", "application/json")
            .header(header, value)
            .body(body.into_bytes().into())
            .map_err(|_| not_a_url())?;
        let answer = client.send(request).await.map_err(no_answer)?;
        let status = answer.status();
        let said = answer
            .into_body()
            .collect_bytes()
            .await
            .map_err(no_answer)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let told: Value = serde_json::from_str(&said).unwrap_or_default();
        let expected = match status {
            StatusCode::OK => told["jobs"].is_array(),
            StatusCode::UNAUTHORIZED => told["code"].is_u64(),
            _ => false,
        };
        if !expected {
            return Err(CheckError::Wrong {
                url: url.to_string(),
                status,
                said,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::Router;

    use super::*;
    use crate::rest::tests::open;

    async fn checked(router: Router) -> Result<(), CheckError> {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(socket, router).await });
        check(&url, false).await
    }

    #[tokio::test]
    async fn an_api_is_well_while_its_catalog_is_away() {
        checked(open(false)).await.unwrap();
    }

    #[tokio::test]
    async fn another_server_is_not_well_whatever_it_answers() {
        for status in [StatusCode::OK, StatusCode::UNAUTHORIZED] {
            let other = Router::new().fallback(move || async move { (status, "{}") });
            let said = checked(other).await.unwrap_err().to_string();
            assert!(said.contains("where it should list refreshes"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_port_at_which_nobody_speaks_is_no_answer() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The kernel takes the connection, and nobody answers.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let said = within(Duration::from_millis(200), &url, false).await;
        let said = said.unwrap_err().to_string();
        assert!(said.contains("does not answer: nothing has come"), "{said}");
    }
}
