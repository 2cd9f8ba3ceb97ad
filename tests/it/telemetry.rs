//! What an operator tells of itself: metrics, as dashboard and alerts ask for
//! them; log lines; traces.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, Uri};
use axum::routing::post;
use relance::resources::Phase;
use serde_json::{Value, json};

use crate::operator::{Operator, PATIENCE, needed};
use crate::support::repo;

fn file(path: &str) -> String {
    let path = repo(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An operator whose view `v` was refreshed once by REST, and a refresh that failed.
async fn used(environment: &[(&str, &str)]) -> (Operator, String) {
    let mut operator = Operator::prepared().await;
    operator.append("src", 0..10).await;
    operator.view("v", "SELECT id FROM src WHERE id > 1").await;
    operator.start_with(environment).await;
    let job_id = refreshed(
        &operator,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    .await;
    operator.apply("fails", json!({"view": ["nowhere"]})).await;
    assert_eq!(operator.settled("fails").await.phase, Phase::Failed);
    (operator, job_id)
}

/// Has REST refresh the view `v` within a caller's trace; the job's id.
async fn refreshed(operator: &Operator, traceparent: &str) -> String {
    let url = format!("{}/v1/materialized_view/v/refresh", operator.url);
    let request = reqwest::Client::new().post(url);
    let request = request.header("traceparent", traceparent);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 202);
    let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let job_id = body["job_id"].as_str().unwrap().to_string();
    operator.succeeded(&job_id).await;
    job_id
}

/// The names of metrics in a text of expressions.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let part = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    text.split(part)
        .filter(|word| word.starts_with("relance_"))
        .map(String::from)
        .collect()
}

#[tokio::test]
async fn every_metric_of_the_dashboard_and_of_the_alerts_is_exported_by_a_running_operator() {
    let (operator, _) = used(&[]).await;
    // One that waits is there to be counted.
    operator
        .apply("held", json!({"view": ["v"], "suspend": true}))
        .await;
    operator
        .until("held", "suspended", |s| s.phase == Phase::Suspended)
        .await;
    let exported = operator.metrics().await;
    let samples: BTreeSet<&str> = exported
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();

    let dashboard: Value = serde_json::from_str(&file("deploy/monitoring/dashboard.json")).unwrap();
    let expressions: Vec<&str> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(expressions.len() > 15, "{expressions:?}");
    let alerts: serde_yaml::Value =
        serde_yaml::from_str(&file("deploy/monitoring/alerts.yaml")).unwrap();
    let rules = alerts["groups"][0]["rules"].as_sequence().unwrap();
    let alerts: Vec<&str> = rules
        .iter()
        .map(|rule| rule["expr"].as_str().unwrap())
        .collect();
    assert!(alerts.len() > 5);
    for expression in expressions.into_iter().chain(alerts) {
        let named = metrics_in(expression);
        assert!(!named.is_empty(), "{expression}");
        for metric in named {
            assert!(
                samples.contains(metric.as_str()),
                "{metric} of '{expression}' is not exported:\n{exported}"
            );
        }
    }
    // And the labels by which they are told apart.
    for line in [
        r#"relance_refreshes{phase="Suspended",cluster="default"} 1"#,
        r#"relance_refreshes_ended_total{phase="Succeeded",reason="Refreshed",cluster="default"} 1"#,
        r#"relance_refreshes_ended_total{phase="Failed",reason="ViewNotFound",cluster="default"} 1"#,
        r#"relance_refresh_queue_seconds_count{cluster="default"} 1"#,
        r#"relance_rows_written_total{cluster="default"} 8"#,
        r#"relance_rest_request_seconds_count{route="/v1/materialized_view/{id}/refresh"} 1"#,
        "relance_controller_leader 1",
        "relance_catalog_up 1",
    ] {
        assert!(exported.contains(line), "{line} is not in\n{exported}");
    }
}

#[tokio::test]
async fn json_logs_carry_the_job_id_in_the_operator_and_in_its_workers() {
    let (operator, job_id) = used(&[("RELANCE_LOG_FORMAT", "json")]).await;
    let mut about: BTreeMap<String, usize> = BTreeMap::new();
    for line in operator.log_lines() {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(
            line["message"].is_string() && line["level"].is_string(),
            "{line}"
        );
        if let Some(id) = line["job_id"].as_str() {
            *about.entry(id.to_string()).or_default() += 1;
        } else {
            // What is about a refresh says which.
            let text = line.to_string();
            assert!(!text.contains(&job_id) && !text.contains("fails"), "{line}");
        }
    }
    // Accepted, answered, queued, launched, …
    assert!(about[&job_id] >= 4, "{about:?}");
    assert!(about["fails"] >= 1, "{about:?}");

    let selector = format!("relance.dev/refresh={job_id}");
    let log = operator.kubectl(&["logs", "-l", &selector, "--tail=-1"]);
    assert!(!log.is_empty());
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(line["job_id"], job_id.as_str(), "{line}");
    }
}

/// What a collector was sent.
type Received = Arc<Mutex<Vec<(Uri, HeaderMap, Value)>>>;

/// The least of an OpenTelemetry collector, on an address that pods reach.
async fn collector() -> (String, Received) {
    let received = Received::default();
    let taken = received.clone();
    let router = Router::new().route(
        "/v1/traces",
        post(
            move |uri: Uri, headers: HeaderMap, body: String| async move {
                let body = serde_json::from_str(&body).expect("JSON");
                taken.lock().unwrap().push((uri, headers, body));
                "{}"
            },
        ),
    );
    let address = format!("{}:0", needed("RELANCE_TEST_HOST_IP"));
    let socket = tokio::net::TcpListener::bind(address).await.unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(socket, router).await });
    (endpoint, received)
}

fn spans(received: &Received) -> Vec<(String, Value)> {
    let received = received.lock().unwrap();
    let mut all = Vec::new();
    for (_, _, body) in received.iter() {
        for resource in body["resourceSpans"].as_array().unwrap() {
            assert_eq!(
                resource["resource"]["attributes"][0]["value"]["stringValue"],
                "relance"
            );
            for scope in resource["scopeSpans"].as_array().unwrap() {
                for span in scope["spans"].as_array().unwrap() {
                    let begin: u128 = span["startTimeUnixNano"].as_str().unwrap().parse().unwrap();
                    let end: u128 = span["endTimeUnixNano"].as_str().unwrap().parse().unwrap();
                    assert!(begin > 1_600_000_000_000_000_000 && begin <= end, "{span}");
                    all.push((span["name"].as_str().unwrap().to_string(), span.clone()));
                }
            }
        }
    }
    all
}

#[tokio::test]
async fn a_trace_goes_from_the_rest_call_through_the_controller_to_the_worker() {
    let (endpoint, received) = collector().await;
    let (operator, job_id) = used(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=k"),
    ])
    .await;
    let of_the_call = || -> Vec<(String, Value)> {
        let all = spans(&received).into_iter();
        all.filter(|(_, span)| span["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736")
            .collect()
    };
    let start = Instant::now();
    let ends = |spans: &[(String, Value)]| spans.iter().any(|(name, _)| name == "work");
    let of_the_failed = || {
        spans(&received)
            .into_iter()
            .find(|(_, span)| span["attributes"].to_string().contains("ViewNotFound"))
    };
    // The last spans of the controller are sent a moment after a refresh has ended, and spans of the two refreshes
    // in no order: the one that fails may have been observed last.
    while !ends(&of_the_call()) || of_the_call().len() < 5 || of_the_failed().is_none() {
        assert!(start.elapsed() < PATIENCE, "{:#?}", spans(&received));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let all = of_the_call();
    let one = |name: &str| -> &Value {
        let of: Vec<_> = all.iter().filter(|(n, _)| n == name).collect();
        assert_eq!(of.len(), 1, "{name} in {all:#?}");
        &of[0].1
    };
    let request = one("POST /v1/materialized_view/{id}/refresh");
    assert_eq!(request["parentSpanId"], "00f067aa0ba902b7");
    let launch = one("launch");
    assert_eq!(launch["parentSpanId"], request["spanId"]);
    let work = one("work");
    assert_eq!(work["parentSpanId"], launch["spanId"]);
    let steps = all.iter().filter(|(name, _)| name == "reconcile");
    let steps: Vec<String> = steps
        .map(|(_, span)| {
            assert_eq!(span["parentSpanId"], request["spanId"]);
            span["attributes"].to_string()
        })
        .collect();
    assert!(steps.iter().any(|s| s.contains("Launching")), "{steps:?}");
    assert!(steps.iter().any(|s| s.contains("Refreshed")), "{steps:?}");
    for span in [launch, work] {
        assert!(span["attributes"].to_string().contains(&job_id), "{span}");
    }
    // An applied refresh has a trace of its own.
    let failed = of_the_failed().expect("waited for above").1;
    assert_eq!(failed["status"]["code"], 2);
    assert!(failed["parentSpanId"].is_null());
    // The key goes along from the operator, and is in no resource.
    let keys = |(_, headers, _): &(Uri, HeaderMap, Value)| headers.get("x-key").is_some();
    assert!(received.lock().unwrap().iter().any(keys));
    // A trace that its caller does not have sampled is sampled nowhere.
    let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let quiet = refreshed(&operator, unsampled).await;
    let refresh = operator.space.refreshes.get(&quiet).await.unwrap();
    let annotations = refresh.metadata.annotations.unwrap_or_default();
    assert_eq!(annotations["relance.dev/traceparent"], unsampled);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = spans(&received).into_iter();
    let told: Vec<_> = told
        .filter(|(_, span)| span.to_string().contains(&quiet))
        .collect();
    assert!(told.is_empty(), "{told:#?}");
}

#[tokio::test]
async fn without_an_endpoint_there_are_no_traces_and_no_trace_of_them() {
    let (operator, job_id) = used(&[]).await;
    let refresh = operator.space.refreshes.get(&job_id).await.unwrap();
    let text = serde_json::to_string(&refresh).unwrap();
    assert!(!text.contains("traceparent"), "{text}");
    let jobs = operator.jobs.list(&Default::default()).await.unwrap();
    let text = serde_json::to_string(&jobs.items).unwrap();
    assert!(
        !text.contains("TRACEPARENT") && !text.contains("OTEL"),
        "{text}"
    );
}
