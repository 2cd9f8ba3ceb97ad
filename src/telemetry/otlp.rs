//! Sending spans to an OpenTelemetry collector: OTLP over HTTP, as JSON.
//!
//! Configured by OpenTelemetry's own variables: `OTEL_EXPORTER_OTLP_ENDPOINT`
//! (to which `/v1/traces` is added) or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`,
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_SDK_DISABLED`.
//! Spans are sent beside the work, by the batch. What cannot be sent is lost:
//! a trace is never worth a refresh.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Client, Url, redirect};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::trace::Ended;

/// The base endpoint's variable; workers get it too.
pub const ENDPOINT_ENV: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Spans that wait to be sent, at most; further ones are lost.
const QUEUE: usize = 4096;

/// Spans in one request, at most.
const BATCH: usize = 256;

/// How long spans wait for others to go along.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long one request may take, and a flush in all.
const TIMEOUT: Duration = Duration::from_secs(5);
const FLUSH: Duration = Duration::from_secs(3);

/// Why spans cannot be sent at all.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The endpoint is none.
    #[error(
        "{0} is no OTLP/HTTP endpoint; set {ENDPOINT_ENV} to one such as http://collector:4318, or to nothing"
    )]
    Endpoint(String),
    /// The client cannot be made.
    #[error("no client for the OTLP endpoint: {0}")]
    Client(#[from] reqwest::Error),
}

enum Message {
    Span(Box<Ended>),
    Flush(oneshot::Sender<()>),
}

/// Takes spans, and sends them from a task of its own.
#[derive(Debug)]
pub struct Exporter(mpsc::Sender<Message>);

impl Exporter {
    /// As `variable` says; None if it names no endpoint.
    pub fn configured(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TraceError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        if set("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let Some(endpoint) = endpoint(set)? else {
            return Ok(None);
        };
        let headers = set("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
        // Not kube's client, which logs each failure as an error of its own.
        let client = Client::builder()
            .default_headers(headers.split(',').filter_map(header).collect())
            .redirect(redirect::Policy::none())
            .user_agent(concat!("relance/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .build()?;
        let sink = Sink {
            client,
            endpoint,
            service: set("OTEL_SERVICE_NAME").unwrap_or_else(|| "relance".to_string()),
            instance: variable("HOSTNAME").unwrap_or_default(),
            failing: false,
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(send(sink, receiver));
        Ok(Some(Self(sender)))
    }

    /// Takes a span, if there is room for it.
    pub fn take(&self, span: Ended) {
        let _ = self.0.try_send(Message::Span(Box::new(span)));
    }

    /// Waits, a moment, until all that was taken is sent.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.0.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        let _ = tokio::time::timeout(FLUSH, flush).await;
    }
}

/// Where spans are sent, as variables that are `set` say.
fn endpoint(set: impl Fn(&str) -> Option<String>) -> Result<Option<Url>, TraceError> {
    let whole = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let is_base = whole.is_none();
    let Some(said) = whole.or_else(|| set(ENDPOINT_ENV)) else {
        return Ok(None);
    };
    let url = Url::parse(said.trim()).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
    // What follows the path may be a key.
    let part = said.split('?').next().unwrap_or_default();
    let mut url = url.ok_or_else(|| TraceError::Endpoint(part.to_string()))?;
    if is_base {
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Ok(Some(url))
}

/// A header of `OTEL_EXPORTER_OTLP_HEADERS`, whose values are percent-encoded.
fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let value: Vec<u8> = percent_decode_str(value.trim()).collect();
    let mut value = HeaderValue::from_bytes(&value).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

async fn send(mut sink: Sink, mut spans: mpsc::Receiver<Message>) {
    let mut batch: Vec<Ended> = Vec::new();
    // When the first span of the batch has waited long enough.
    let mut due = Instant::now();
    loop {
        let message = match batch.is_empty() {
            true => spans.recv().await,
            false => tokio::time::timeout_at(due, spans.recv())
                .await
                .unwrap_or_else(|_| Some(Message::Flush(oneshot::channel().0))),
        };
        match message {
            Some(Message::Span(span)) => {
                if batch.is_empty() {
                    due = Instant::now() + PATIENCE;
                }
                batch.push(*span);
            }
            Some(Message::Flush(done)) => {
                sink.send(std::mem::take(&mut batch)).await;
                let _ = done.send(());
            }
            None => {
                sink.send(batch).await;
                return;
            }
        }
        if batch.len() >= BATCH {
            sink.send(std::mem::take(&mut batch)).await;
        }
    }
}

struct Sink {
    client: Client,
    endpoint: Url,
    service: String,
    instance: String,
    failing: bool,
}

impl Sink {
    async fn send(&mut self, batch: Vec<Ended>) {
        if batch.is_empty() {
            return;
        }
        let sent = tokio::time::timeout(TIMEOUT, self.post(&batch)).await;
        let wrong = match sent {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        match &wrong {
            Some(why) if !self.failing => {
                tracing::warn!(
                    spans = batch.len(),
                    why,
                    "traces cannot be sent, and are lost"
                );
            }
            None if self.failing => tracing::info!("traces can be sent again"),
            _ => {}
        }
        self.failing = wrong.is_some();
    }

    async fn post(&self, batch: &[Ended]) -> Result<(), String> {
        let body = json!({"resourceSpans": [{
            "resource": {"attributes": attributes([
                ("service.name", self.service.clone()),
                ("service.version", env!("CARGO_PKG_VERSION").to_string()),
                ("service.instance.id", self.instance.clone()),
            ])},
            "scopeSpans": [{
                "scope": {"name": "relance"},
                "spans": batch.iter().map(span).collect::<Vec<_>>(),
            }],
        }]});
        let request = self.client.post(self.endpoint.clone());
        let request = request.header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await;
        let answer = answer.map_err(|error| told(error.without_url()))?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(format!("the collector answers {}", answer.status())),
        }
    }
}

/// An error with its causes, of which reqwest's own words tell none.
fn told(error: reqwest::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told += &format!(": {error}");
        cause = error.source();
    }
    told
}

/// A span as OTLP's JSON has it: ids in hex, times in nanoseconds as strings.
fn span(span: &Ended) -> Value {
    let mut value = json!({
        "traceId": span.context.trace_id(),
        "spanId": span.context.span_id(),
        "name": span.name,
        "kind": span.kind as i32,
        "startTimeUnixNano": nanos(span.began),
        "endTimeUnixNano": nanos(span.ended),
        "attributes": attributes(span.attributes.iter().cloned()),
        "status": {"code": if span.failed { 2 } else { 0 }},
    });
    if let Some(parent) = span.parent {
        value["parentSpanId"] = parent.span_id().into();
    }
    value
}

fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos().to_string()
}

fn attributes(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Vec<Value> {
    pairs
        .into_iter()
        .map(|(key, value)| json!({"key": key, "value": {"stringValue": value}}))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::http;

    use super::*;

    fn endpoint_of(variables: &[(&str, &str)]) -> Result<Option<String>, TraceError> {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        let url = endpoint(|name| variables.get(name).map(|value| value.to_string()))?;
        Ok(url.map(String::from))
    }

    #[test]
    fn an_endpoint_keeps_its_query_and_a_base_gets_its_path() {
        let whole = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        for (variable, said, expected) in [
            (ENDPOINT_ENV, "http://c:4318", "http://c:4318/v1/traces"),
            (ENDPOINT_ENV, "http://c/at/", "http://c/at/v1/traces"),
            (
                ENDPOINT_ENV,
                "https://c/at?key=k",
                "https://c/at/v1/traces?key=k",
            ),
            (whole, "https://c/spans?key=k", "https://c/spans?key=k"),
        ] {
            let endpoint = endpoint_of(&[(variable, said)]).unwrap();
            assert_eq!(endpoint.as_deref(), Some(expected));
        }
        assert_eq!(endpoint_of(&[]).unwrap(), None);
    }

    #[test]
    fn what_is_no_endpoint_is_said_without_its_query() {
        for wrong in [
            "collector:4318?key=secret",
            "?key=secret",
            "grpc://c?key=secret",
        ] {
            let error = endpoint_of(&[(ENDPOINT_ENV, wrong)])
                .unwrap_err()
                .to_string();
            assert!(error.contains("is no OTLP/HTTP endpoint"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn headers_are_percent_encoded() {
        let (name, value) = header(" authorization = Bearer%20a%2Cb ").unwrap();
        assert_eq!(name, "authorization");
        assert_eq!(value, "Bearer a,b");
        assert!(value.is_sensitive());
        assert!(header("x=line%0Abreak").is_none());
    }

    /// When a collector was sent what spans.
    type Received = Arc<Mutex<Vec<(Instant, usize)>>>;

    async fn collector() -> (Sink, Received) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let received = Received::default();
        let taken = received.clone();
        let router = Router::new().fallback(move |headers: http::HeaderMap, body: String| {
            assert_eq!(headers["content-type"], "application/json");
            let body: Value = serde_json::from_str(&body).unwrap();
            let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
            let spans = spans.as_array().unwrap().len();
            taken.lock().unwrap().push((Instant::now(), spans));
            async {}
        });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/v1/traces", socket.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(socket, router).await });
        let sink = Sink {
            client: Client::new(),
            endpoint: endpoint.parse().unwrap(),
            service: "relance".into(),
            instance: "i".into(),
            failing: false,
        };
        (sink, received)
    }

    fn a_span() -> Message {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let now = SystemTime::now();
        Message::Span(Box::new(Ended {
            name: "x".into(),
            kind: super::super::trace::Kind::Internal,
            context: parent.parse().unwrap(),
            parent: None,
            began: now,
            ended: now,
            attributes: Vec::new(),
            failed: false,
        }))
    }

    #[tokio::test]
    async fn a_span_waits_no_longer_because_others_come() {
        let (sink, received) = collector().await;
        let (spans, taken) = mpsc::channel(QUEUE);
        let sending = tokio::spawn(send(sink, taken));
        let began = Instant::now();
        for _ in 0..5 {
            assert!(spans.send(a_span()).await.is_ok());
            tokio::time::sleep(PATIENCE * 2 / 5).await;
        }
        drop(spans);
        sending.await.unwrap();
        let received = received.lock().unwrap().clone();
        let all: usize = received.iter().map(|(_, spans)| spans).sum();
        assert_eq!(all, 5, "{received:?}");
        assert!(received[0].0 < began + PATIENCE * 3 / 2, "{received:?}");
    }

    #[tokio::test]
    async fn a_collector_that_is_away_is_said_without_its_address() {
        let (mut sink, _) = collector().await;
        sink.endpoint = "http://127.0.0.1:1/v1/traces?key=secret".parse().unwrap();
        let Message::Span(span) = a_span() else {
            unreachable!();
        };
        let why = sink.post(&[*span]).await.unwrap_err();
        assert!(!why.contains("secret") && why.contains("refused"), "{why}");
    }
}
