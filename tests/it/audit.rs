//! What the audit lines say, and what they do not.

use std::time::Duration;

use serde_json::{Value, json};

use crate::callers::{AUDIENCE, Callers};
use crate::operator::{Operator, PATIENCE};

/// Requests a second that a caller may send here.
const RATE: usize = 5;

struct Asker {
    http: reqwest::Client,
    url: String,
}

impl Asker {
    async fn ask(&self, path: &str, header: (&str, &str), body: &Value) -> u16 {
        let request = self.http.post(format!("{}{path}", self.url));
        let request = request.header(header.0, header.1).body(body.to_string());
        request.send().await.unwrap().status().as_u16()
    }

    /// Asks until the answer is none that only haste or a late authorizer gives.
    async fn patiently(&self, path: &str, header: (&str, &str), body: &Value, wished: u16) {
        let start = std::time::Instant::now();
        loop {
            let status = self.ask(path, header, body).await;
            if status == wished {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{status} at {path}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// The audit lines so far, once there are `count` of them.
async fn lines(operator: &Operator, count: usize) -> Vec<Value> {
    let start = std::time::Instant::now();
    loop {
        let lines = operator.log_lines();
        let lines = lines.iter().filter(|line| line.contains("relance::audit"));
        let lines: Vec<Value> = lines.map(|l| serde_json::from_str(l).unwrap()).collect();
        if lines.len() >= count || start.elapsed() > PATIENCE {
            return lines;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn every_kind_of_answer_leaves_one_line_that_says_who_asked_for_what_and_no_secret() {
    let mut operator = Operator::prepared().await;
    operator.append("src", 0..10).await;
    operator.view("v", "SELECT id FROM src WHERE id > 1").await;
    let callers = Callers::of(&operator.space);
    let analyst = callers.account("analyst");
    let looker = callers.account("looker");
    callers
        .allow(&analyst, &["create", "get"], &["default"])
        .await;
    callers.allow(&looker, &["get"], &[]).await;
    callers.allow("flood", &["get"], &[]).await;
    let token = callers.token("analyst", Some(AUDIENCE)).await;
    let looking = callers.token("looker", Some(AUDIENCE)).await;
    let flood = callers.key("flood").await;
    operator
        .start_with(&[
            ("RELANCE_AUTH", "tokens,keys"),
            ("RELANCE_CALLER_RATE", &RATE.to_string()),
            ("RELANCE_LOG_FORMAT", "json"),
        ])
        .await;

    let asker = Asker {
        http: reqwest::Client::new(),
        url: operator.url.clone(),
    };
    let by_token = format!("Bearer {token}");
    let by_looker = format!("Bearer {looking}");
    let made_up = "Bearer made-up-token";
    let planted = "planted-in-the-body";
    let body = json!({
        "job_id": "nobody-knows",
        "identity": {"auth_token": planted, "api_key": planted},
        "context": {"header.authorization": planted},
        "manifest": json!({"name": "m", "env_vars": {"TOKEN": planted}}).to_string(),
    });
    let wrong = json!({"concurrency": "many", "identity": {"auth_token": planted}});
    let view = "/v1/materialized_view/v/refresh?api_key=planted-in-the-query";
    // Each as often as it takes, so the last line of each kind is the one that counts.
    let analysts = ("authorization", by_token.as_str());
    asker.patiently(view, analysts, &body, 202).await;
    asker.patiently(view, analysts, &wrong, 400).await;
    asker
        .patiently("/v1/jobs/describe", analysts, &body, 404)
        .await;
    asker.patiently("/v1/nothing", analysts, &body, 404).await;
    asker
        .patiently(view, ("authorization", made_up), &body, 401)
        .await;
    asker
        .patiently(view, ("authorization", &by_looker), &body, 403)
        .await;
    let keyed = ("x-api-key", flood.as_str());
    asker
        .patiently("/v1/jobs/describe", keyed, &body, 404)
        .await;
    let before = lines(&operator, 7).await.len();
    let flooding = (0..20 * RATE).map(|_| asker.ask("/v1/jobs/describe", keyed, &body));
    let answers = futures::future::join_all(flooding).await;
    let limited = answers.iter().filter(|status| **status == 429).count();
    assert!(limited > 0, "{answers:?}");

    let lines = lines(&operator, before + answers.len()).await;
    assert_eq!(
        lines.len(),
        before + answers.len(),
        "not one line a request"
    );
    let of = |status: u16, operation: &str| -> Vec<&Value> {
        let of = |line: &&Value| line["status"] == status && line["operation"] == operation;
        lines.iter().filter(of).collect()
    };
    let refresh = "RefreshMaterializedView";
    for (status, operation, user, way, decision, path) in [
        (202, refresh, analyst.as_str(), "token", "allowed", view),
        (400, refresh, &analyst, "token", "allowed", view),
        (404, "DescribeJob", &analyst, "token", "allowed", ""),
        (404, "", "", "none", "public", "/v1/nothing"),
        (401, refresh, "", "none", "unauthenticated", view),
        (403, refresh, &looker, "token", "denied", view),
        (429, "DescribeJob", "flood", "key", "limited", ""),
    ] {
        let found = of(status, operation);
        let found = found.iter().rfind(|line| line["user"] == user);
        let line = found.unwrap_or_else(|| panic!("{status} {operation} of '{user}': {lines:#?}"));
        assert_eq!(line["way"], way, "{line}");
        assert_eq!(line["decision"], decision, "{line}");
        assert_eq!(line["method"], "POST", "{line}");
        assert_eq!(line["peer"], "127.0.0.1", "{line}");
        let path = path.split('?').next().unwrap_or_default();
        assert!(path.is_empty() || line["path"] == path, "{line}");
    }
    assert_eq!(of(429, "DescribeJob").len(), limited);
    assert_eq!(of(202, refresh).len(), 1);
    let job = of(202, refresh)[0]["job_id"].as_str().unwrap();
    let stored = operator.space.refreshes.get(job).await.unwrap();
    assert_eq!(stored.spec.view, ["v"]);
    let asked = of(404, "DescribeJob");
    assert!(asked.iter().all(|line| line["job_id"] == "nobody-knows"));

    // Nowhere else in the log either.
    let log = operator.log_lines().join("\n");
    for secret in [&token, &looking, &flood, "made-up-token", "planted-in-the"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
