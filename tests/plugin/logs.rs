//! `logs`, of pods that come and go and connections that break.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::api::{Api, Asked, broken, forbidden, list, ok, refresh, watched};

const LABEL: &str = "relance.dev/refresh-uid";

/// A refresh whose Job is in namespace `jobs`.
fn launched(phase: &str) -> Value {
    let mut launched = refresh("r", phase, "it goes");
    launched["status"]["job"] =
        json!({"name": "r-1", "namespace": "jobs", "cluster": "default", "uid": "j-1"});
    launched
}

fn pod(name: &str, state: &str) -> Value {
    let state = match state {
        "terminated" => json!({"terminated": {"exitCode": 0}}),
        state => json!({state: {}}),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "jobs", "uid": name, "resourceVersion": "1",
            "labels": {LABEL: "u-1"}},
        "spec": {"containers": [{"name": "worker"}]},
        "status": {"containerStatuses": [{"name": "worker", "ready": true, "restartCount": 0,
            "image": "i", "imageID": "i", "state": state}]},
    })
}

/// Answers for a refresh that runs when it is looked at first and then ends,
/// and its pods; None for what else is asked.
fn ending(asked: &Asked, pods: &[Value]) -> Option<Response> {
    Some(match asked.what().as_str() {
        "GET materializedviewrefreshes/r" => ok(&launched("Running")),
        "GET materializedviewrefreshes" => list("MaterializedViewRefresh", &[launched("Running")]),
        "WATCH materializedviewrefreshes" => watched("MODIFIED", &[launched("Succeeded")]),
        "GET pods" => list("Pod", pods),
        "WATCH pods" => watched("MODIFIED", &[]),
        "GET refreshclusters/default" => forbidden(),
        _ => return None,
    })
}

#[tokio::test]
async fn whoever_may_not_watch_the_refresh_is_told_so() {
    let api = Api::that(|asked| match asked.what().as_str() {
        "WATCH materializedviewrefreshes" => forbidden(),
        _ => ending(asked, &[]).unwrap_or_else(forbidden),
    })
    .await;
    let said = api.says(&["logs", "r", "-f"]).await;
    assert_eq!(said.code, 6, "{said:?}");
}

#[tokio::test]
async fn whoever_may_not_read_logs_is_told_so() {
    let pods = [pod("p", "running")];
    let api = Api::that(move |asked| ending(asked, &pods).unwrap_or_else(forbidden)).await;
    for arguments in [&["logs", "r", "-f"][..], &["logs", "r"]] {
        let said = api.says(arguments).await;
        assert_eq!(said.code, 6, "{said:?}");
        assert!(said.err.contains("you-know-who"), "{said:?}");
    }
}

#[tokio::test]
async fn a_read_that_breaks_off_is_not_the_whole_log() {
    let reads = AtomicUsize::new(0);
    let pods = [pod("p", "terminated")];
    let api = Api::that(move |asked| {
        if let Some(answer) = ending(asked, &pods) {
            return answer;
        }
        assert_eq!(asked.what(), "GET pods/p/log");
        match reads.fetch_add(1, Ordering::SeqCst) {
            0 => broken(b"2026-01-01T00:00:01.7Z one\n2026-01-01T00:00:01.8Z tw"),
            1 => axum::http::StatusCode::BAD_GATEWAY.into_response(),
            _ => "2026-01-01T00:00:01.7Z one\n2026-01-01T00:00:01.8Z two\n".into_response(),
        }
    })
    .await;
    let said = api.says(&["logs", "r", "-f"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.out, "[p] one\n[p] two\n");
    // It is asked for from the second on in which the last line was written.
    let asked = api.asked();
    let since = asked.iter().filter(|asked| asked.contains("sinceTime"));
    assert!(
        since.clone().count() == 2 && since.clone().all(|a| a.contains("00%3A00%3A01Z")),
        "{asked:?}"
    );
}

/// What a worker writes between a read's end and its own.
#[tokio::test]
async fn a_log_ends_with_a_read_that_began_when_its_worker_was_over() {
    let reads = AtomicUsize::new(0);
    let looks = AtomicUsize::new(0);
    let api = Api::that(move |asked| {
        if asked
            .query
            .get("fieldSelector")
            .is_some_and(|f| f == "metadata.name=p")
        {
            looks.fetch_add(1, Ordering::SeqCst);
            return list("Pod", &[pod("p", "terminated")]);
        }
        if let Some(answer) = ending(asked, &[pod("p", "running")]) {
            return answer;
        }
        // `get` on pods is no right that is promised to do.
        assert_eq!(asked.what(), "GET pods/p/log");
        match reads.fetch_add(1, Ordering::SeqCst) {
            0 => "2026-01-01T00:00:01.7Z one\n2026-01-01T00:00:01.8Z la".into_response(),
            _ => "2026-01-01T00:00:01.7Z one\n2026-01-01T00:00:01.8Z last".into_response(),
        }
    })
    .await;
    let said = api.says(&["logs", "r", "-f"]).await;
    assert_eq!(
        (said.code, said.out.as_str()),
        (0, "[p] one\n[p] last\n"),
        "{said:?}"
    );
}

#[tokio::test]
async fn the_pods_of_a_refresh_that_waits_are_looked_for_where_its_job_comes_to_be() {
    let looked = Mutex::new(0);
    let api = Api::that(move |asked| {
        let queued = refresh("r", "Queued", "it waits");
        match asked.what().as_str() {
            "GET materializedviewrefreshes/r" => ok(&queued),
            "GET materializedviewrefreshes" => {
                let mut looked = looked.lock().unwrap();
                *looked += 1;
                match *looked {
                    1 => list("MaterializedViewRefresh", &[queued]),
                    _ => list("MaterializedViewRefresh", &[launched("Running")]),
                }
            }
            "WATCH materializedviewrefreshes" if *looked.lock().unwrap() == 1 => {
                watched("MODIFIED", &[launched("Running")])
            }
            _ if asked.path.contains("/jobs/pods/") => {
                "2026-01-01T00:00:01Z there\n".into_response()
            }
            _ => ending(asked, &[pod("p", "terminated")]).unwrap_or_else(forbidden),
        }
    })
    .await;
    let said = api
        .says(&["logs", "r", "-f", "--job-context", "the other"])
        .await;
    assert_eq!(
        (said.code, said.out.as_str()),
        (0, "[p] there\n"),
        "{said:?}"
    );
    let asked = api.asked();
    let pods = asked.iter().filter(|asked| asked.contains("/pods"));
    assert!(
        pods.clone().all(|a| a.contains("/namespaces/jobs/")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn where_no_pod_was_seen_there_are_no_logs() {
    let api = Api::that(|asked| ending(asked, &[]).unwrap_or_else(forbidden)).await;
    for arguments in [&["logs", "r", "-f"][..], &["logs", "r"]] {
        let said = api.says(arguments).await;
        assert_eq!(said.code, 5, "{said:?}");
        assert!(said.err.contains("no pod of refresh 'r'"), "{said:?}");
    }
}

#[tokio::test]
async fn what_can_be_had_of_logs_is_printed_and_the_rest_is_an_error() {
    let pods = [pod("p", "terminated"), pod("q", "terminated")];
    let api = Api::that(move |asked| match asked.what().as_str() {
        "GET pods/p/log" => broken(b"2026-01-01T00:00:02Z caf\xe9\n"),
        "GET pods/q/log" => "2026-01-01T00:00:01Z one\n2026-01-01T00:00:03Z two\n".into_response(),
        _ => ending(asked, &pods).unwrap_or_else(forbidden),
    })
    .await;
    let said = api.says(&["logs", "r"]).await;
    assert_eq!(said.out, "[q] one\n[p] caf\u{fffd}\n[q] two\n");
    assert_eq!(said.code, 7, "{said:?}");
}
