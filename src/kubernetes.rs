//! The client of the Kubernetes API that everything here uses: it counts and
//! times requests, and repeats for a moment what the API server puts off.
//!
//! Only for a moment: who waits longer should be whoever asked, with a back-off
//! that is seen in a status or an answer. (kube's own retries, which may sleep
//! for minutes, are switched off.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use kube::client::Body;
use kube::{Client, Config};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use rand::Rng;
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::telemetry::Metrics;

/// How many requests are under way at a time (a watch is one until it is
/// answered). Each has a connection of its own, and a burst of hundreds would
/// spend more on handshakes than on what it asks.
const AT_A_TIME: usize = 32;

/// How often a request is repeated that was answered 429, 503 or 504.
const REPEATS: u32 = 3;

/// The first pause before a repeat; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause that is waited out because the API server names it.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long an answer may be waited for: an API server itself gives up a request
/// after 60 seconds. A connection whose other end vanished would be waited for
/// for ever.
const PATIENCE: Duration = Duration::from_secs(75);

/// How long a connection may be silent: longer than a watch, which ends, if
/// nothing else happens, after 290 seconds.
const SILENCE: Duration = Duration::from_secs(330);

/// No answer has come.
#[derive(Debug, Error)]
#[error("the API server has not answered within {} s", .0.as_secs())]
struct Silent(Duration);

/// Has the connections by `config` end when they have been silent for longer
/// than a watch is.
pub fn end_silent_connections(config: &mut Config) {
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
}

/// Requests to Kubernetes APIs.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    count: Family<Labels, Counter>,
    seconds: Histogram,
}

/// `code` is `none` where no answer came.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    method: String,
    code: String,
}

impl ApiMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self {
            count: Family::default(),
            seconds: Histogram::new([
                0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0,
            ]),
        };
        let mut registry = metrics.registry();
        registry.register(
            "kubernetes_requests",
            "Requests to the Kubernetes API by method and status code",
            this.count.clone(),
        );
        registry.register(
            "kubernetes_request_seconds",
            "Time from a request to the Kubernetes API to the head of its answer",
            this.seconds.clone(),
        );
        drop(registry);
        this
    }

    fn note(&self, method: &Method, started: Instant, status: Option<StatusCode>) {
        self.seconds.observe(started.elapsed().as_secs_f64());
        let labels = Labels {
            method: method.to_string(),
            code: status.map_or("none".to_string(), |s| s.as_u16().to_string()),
        };
        self.count.get_or_create(&labels).inc();
    }
}

/// A client for `config`, which audit logs know by the name of the `half` of
/// the operator that it serves.
pub fn client(
    mut config: Config,
    half: &'static str,
    metrics: &ApiMetrics,
) -> Result<Client, kube::Error> {
    config.default_retry = false;
    let agent = HeaderValue::from_str(&format!("{half}/{}", env!("CARGO_PKG_VERSION")));
    config
        .headers
        .extend(agent.ok().map(|agent| (header::USER_AGENT, agent)));
    let inner = Client::try_from(config)?;
    let namespace = inner.default_namespace().to_string();
    let sender = Arc::new(Sender {
        client: inner,
        metrics: metrics.clone(),
        permits: Semaphore::new(AT_A_TIME),
        patience: PATIENCE,
    });
    let service = tower::service_fn(move |request: Request<Body>| {
        let sender = sender.clone();
        async move { sender.send(request).await }
    });
    Ok(Client::new(service, namespace))
}

struct Sender {
    client: Client,
    metrics: ApiMetrics,
    permits: Semaphore,
    patience: Duration,
}

impl Sender {
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let mut pause = FIRST_PAUSE;
        let mut repeats = 0..REPEATS;
        loop {
            let again = repeats.next().and_then(|_| again(&request));
            // It is never closed.
            let permit = self.permits.acquire().await;
            let (method, started) = (request.method().clone(), Instant::now());
            let answer = self.answer(request).await;
            drop(permit);
            let status = answer.as_ref().ok().map(Response::status);
            self.metrics.note(&method, started, status);
            let (answer, again) = match (answer, again) {
                (Ok(answer), Some(again)) if is_put_off(answer.status()) => (answer, again),
                (answer, _) => return answer,
            };
            let asked = retry_after(&answer).unwrap_or_default();
            if asked > LONGEST_PAUSE {
                return Ok(answer);
            }
            drop(answer);
            let jitter = rand::rng().random_range(0.8..1.2);
            tokio::time::sleep(pause.max(asked).mul_f64(jitter)).await;
            pause *= 2;
            request = again;
        }
    }

    /// The answer as far as its head.
    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let query = request.uri().query().unwrap_or_default();
        if query.split('&').any(|part| part == "follow=true") {
            // Of a log that is followed, the head comes with its first line.
            return self.client.send(request).await;
        }
        match tokio::time::timeout(self.patience, self.client.send(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(kube::Error::Service(Silent(self.patience).into())),
        }
    }
}

/// The same request once more; None if its body can be sent but once.
fn again(request: &Request<Body>) -> Option<Request<Body>> {
    let body = request.body().try_clone()?;
    let mut again = Request::new(body);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

fn is_put_off(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn retry_after(answer: &Response<Body>) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::response::IntoResponse;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;

    use super::*;

    /// A server that answers the codes one after the other, and then 200.
    async fn server(codes: &'static [(u16, &'static str)]) -> (Config, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        let router = Router::new().fallback(move || {
            let at = counter.fetch_add(1, Ordering::SeqCst) as usize;
            async move {
                match codes.get(at) {
                    Some((code, after)) => {
                        let code = StatusCode::from_u16(*code).unwrap();
                        (code, [(header::RETRY_AFTER, *after)], "").into_response()
                    }
                    None => r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#
                        .into_response(),
                }
            }
        });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(socket, router).await });
        (Config::new(url.parse().unwrap()), asked)
    }

    async fn asked(codes: &'static [(u16, &'static str)]) -> (bool, u32, String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (config, asked) = server(codes).await;
        let metrics = Metrics::default();
        let client = client(config, "relance-test", &ApiMetrics::register(&metrics)).unwrap();
        let got = Api::<ConfigMap>::namespaced(client, "n").get("x").await;
        (
            got.is_ok(),
            asked.load(Ordering::SeqCst),
            metrics.text().unwrap(),
        )
    }

    #[tokio::test]
    async fn what_the_api_server_puts_off_is_asked_again_and_each_time_counted() {
        let (ok, times, metrics) = asked(&[(429, "0"), (503, "1")]).await;
        assert!(ok);
        assert_eq!(times, 3);
        for code in ["429", "503", "200"] {
            let line =
                format!("relance_kubernetes_requests_total{{method=\"GET\",code=\"{code}\"}} 1");
            assert!(metrics.contains(&line), "{metrics}");
        }
    }

    #[tokio::test]
    async fn it_is_not_asked_for_ever_nor_after_a_long_pause() {
        let (ok, times, _) = asked(&[(503, "0"); 9]).await;
        assert!(!ok);
        assert_eq!(times, REPEATS + 1);
        let (ok, times, _) = asked(&[(429, "3600"); 9]).await;
        assert!(!ok);
        assert_eq!(times, 1);
    }

    #[tokio::test]
    async fn an_api_server_that_says_nothing_is_not_waited_for_for_ever() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        // The kernel takes the connection, and nobody answers.
        let sender = Sender {
            client: Client::try_from(Config::new(url.parse().unwrap())).unwrap(),
            metrics: ApiMetrics::register(&Metrics::default()),
            permits: Semaphore::new(1),
            patience: Duration::from_millis(200),
        };
        let asked = |path: &'static str| Request::get(path).body(Body::empty()).unwrap();
        let error = sender.send(asked("/api")).await.unwrap_err().to_string();
        assert!(error.contains("has not answered within 0 s"), "{error}");
        let followed = sender.send(asked("/log?follow=true"));
        let followed = tokio::time::timeout(Duration::from_secs(1), followed).await;
        assert!(
            followed.is_err(),
            "a silent log was taken for a silent server"
        );
        drop(socket);
    }

    #[tokio::test]
    async fn an_answer_is_an_answer() {
        let (ok, times, _) = asked(&[(500, "0")]).await;
        assert!(!ok);
        assert_eq!(times, 1);
    }
}
