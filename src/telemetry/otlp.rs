//! Sending spans to an OpenTelemetry collector: OTLP over HTTP, as JSON.
//!
//! Configured by OpenTelemetry's own variables: `OTEL_EXPORTER_OTLP_ENDPOINT`
//! (to which `/v1/traces` is added) or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`,
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_SDK_DISABLED`.
//! Spans are sent beside the work, by the batch. What cannot be sent is lost:
//! a trace is never worth a refresh.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use kube::{Client, Config};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

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
    Client(#[from] kube::Error),
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
        let base = |base: String| format!("{}/v1/traces", base.trim_end_matches('/'));
        let Some(endpoint) =
            set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| set(ENDPOINT_ENV).map(base))
        else {
            return Ok(None);
        };
        let uri: Uri = endpoint
            .parse()
            .map_err(|_| TraceError::Endpoint(endpoint.clone()))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(TraceError::Endpoint(endpoint));
        };
        let server = format!("{scheme}://{authority}")
            .parse()
            .map_err(|_| TraceError::Endpoint(endpoint.clone()))?;
        // kube's client does HTTP and TLS as the rest of the operator does.
        let mut config = Config::new(server);
        config.default_retry = false;
        let headers = set("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
        config.headers = headers.split(',').filter_map(header).collect();
        let sink = Sink {
            client: Client::try_from(config)?,
            path: uri.path().to_string(),
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

fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

async fn send(mut sink: Sink, mut spans: mpsc::Receiver<Message>) {
    let mut batch: Vec<Ended> = Vec::new();
    loop {
        let message = match batch.is_empty() {
            true => spans.recv().await,
            false => tokio::time::timeout(PATIENCE, spans.recv())
                .await
                .unwrap_or_else(|_| Some(Message::Flush(oneshot::channel().0))),
        };
        match message {
            Some(Message::Span(span)) => batch.push(*span),
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
    path: String,
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
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes().into())
            .map_err(|error| error.to_string())?;
        let answer = self.client.send(request).await;
        let answer = answer.map_err(|error| error.to_string())?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(format!("the collector answers {}", answer.status())),
        }
    }
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
