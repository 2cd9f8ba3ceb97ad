//! Secrets that are planted wherever a caller or an administrator can put one,
//! and looked for wherever something of relance's can be read.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};

use relance::resources::names;

use crate::callers::{AUDIENCE, Callers};
use crate::operator::Operator;

/// What was planted, and where.
#[derive(Default)]
pub struct Plants(Vec<(String, String)>);

impl Plants {
    /// A marker that is nowhere else.
    fn plant(&mut self, place: &str) -> String {
        let marker = format!("plant{}", uuid::Uuid::new_v4().simple());
        self.add(place, &marker);
        marker
    }

    pub fn add(&mut self, place: &str, secret: &str) {
        self.0.push((place.to_string(), secret.to_string()));
    }

    /// The places whose secrets are in a text: as they are, in hexadecimal
    /// digits, or within something that is in base64.
    pub fn found_in(&self, text: &[u8]) -> Vec<&str> {
        let text = String::from_utf8_lossy(text);
        let found = |secret: &str| {
            let mut forms = vec![secret.to_string(), hex::encode(secret)];
            for (before, cut) in [(0, 0), (1, 2), (2, 3)] {
                let padded = [&b"???"[..before], secret.as_bytes()].concat();
                let coded = STANDARD_NO_PAD.encode(padded);
                forms.push(coded[cut..coded.len() - 3].to_string());
            }
            forms.iter().any(|form| text.contains(form))
        };
        let places = self.0.iter().filter(|(_, secret)| found(secret));
        places.map(|(place, _)| place.as_str()).collect()
    }

    fn places(&self) -> Vec<&str> {
        self.0.iter().map(|(place, _)| place.as_str()).collect()
    }
}

/// All that can be read without the right to read Secrets, as YAML.
pub fn resources(operator: &Operator) -> String {
    let all = operator.kubectl(&[
        "api-resources",
        "--verbs=list",
        "--namespaced",
        "-o",
        "name",
    ]);
    let readable: Vec<&str> = all.lines().filter(|name| *name != "secrets").collect();
    assert!(readable.len() > 20, "{readable:?}");
    operator.kubectl(&[
        "get",
        &readable.join(","),
        "-o",
        "yaml",
        "--show-managed-fields",
    ])
}

/// All that anybody may read without a credential of his own for it, and what
/// it is: what was answered first, and the operator's log then.
pub async fn readable(operator: &Operator, answers: String) -> Vec<(&'static str, Vec<u8>)> {
    let mut stored = Vec::new();
    bytes_below(&operator.tables, &mut stored);
    let worker_logs = [
        "logs",
        "--all-containers",
        "--prefix",
        "--tail=-1",
        "-l",
        names::REFRESH_LABEL,
    ];
    vec![
        ("answers", answers.into_bytes()),
        (
            "the operator's log",
            operator.log_lines().join("\n").into_bytes(),
        ),
        (
            "the workers' logs",
            operator.kubectl(&worker_logs).into_bytes(),
        ),
        ("resources", resources(operator).into_bytes()),
        ("storage", stored),
        ("metrics", operator.metrics().await.into_bytes()),
    ]
}

/// Every byte of every file below a folder, and their names.
pub fn bytes_below(folder: &Path, into: &mut Vec<u8>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        into.extend_from_slice(path.to_string_lossy().as_bytes());
        match path.is_dir() {
            true => bytes_below(&path, into),
            false => into.extend(std::fs::read(&path).unwrap()),
        }
    }
}

async fn secret(operator: &Operator, name: &str, data: Value) {
    let secret = json!({"metadata": {"name": name}, "stringData": data});
    let secret = serde_json::from_value(secret).unwrap();
    let params = Default::default();
    let created = operator.space.secrets.create(&params, &secret).await;
    created.unwrap();
}

/// RefreshClusters whose kubeconfigs hold secrets: one that is taken and whose
/// server is not there, one that is refused, one that is no kubeconfig.
async fn kubeconfigs(operator: &Operator, plants: &mut Plants) {
    let user = |user: Value| {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        })
        .to_string()
    };
    let good = user(json!({"token": plants.plant("a kubeconfig's token")}));
    let arguments = [plants.plant("a refused kubeconfig's arguments")];
    let refused = user(json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "get-token", "args": arguments,
    }}));
    let none = format!("{{users: [{}", plants.plant("what is no kubeconfig"));
    for (name, text) in [("far", good), ("refused", refused), ("none", none)] {
        secret(operator, name, json!({"kubeconfig": text})).await;
        let cluster = json!({"kubeconfigSecretRef": {"name": name}});
        operator.cluster(name, cluster).await;
    }
}

/// One request.
struct Sent {
    headers: Vec<(&'static str, String)>,
    query: String,
    body: String,
}

fn sent(headers: &[(&'static str, &str)], body: Value) -> Sent {
    Sent {
        headers: headers
            .iter()
            .map(|(name, value)| (*name, value.to_string()))
            .collect(),
        query: String::new(),
        body: body.to_string(),
    }
}

/// Requests with a secret in each place of each, all refused.
fn refused(plants: &mut Plants, good: (&'static str, &str)) -> Vec<Sent> {
    let mut all = Vec::new();
    for (name, scheme) in [
        ("authorization", "Bearer "),
        ("authorization", "Basic "),
        ("x-api-key", ""),
        ("proxy-authorization", "Bearer "),
        ("cookie", "session="),
    ] {
        let value = format!(
            "{scheme}{}",
            plants.plant(&format!("a stranger's {name}: {scheme}"))
        );
        all.push(sent(&[(name, &value)], json!({})));
    }
    for field in ["api_key", "auth_token"] {
        let secret = plants.plant(&format!("a stranger's identity.{field}"));
        all.push(sent(&[], json!({"identity": {field: secret}})));
        let secret = plants.plant(&format!("a list in identity.{field}"));
        all.push(sent(&[good], json!({"identity": {field: [secret]}})));
    }
    for field in [
        "identity",
        "context",
        "manifest",
        "full",
        "concurrency",
        "intra_applier_concurrency",
        "src_version",
        "source_version",
        "max_rows_per_fragment",
        "source_task_size",
        "output_limit",
        "optimize_indices",
    ] {
        let secret = plants.plant(&format!("a text in {field}"));
        all.push(sent(&[good], json!({field: secret})));
        let secret = plants.plant(&format!("a list in {field}"));
        all.push(sent(&[good], json!({field: [secret]})));
    }
    for manifest in [
        json!({"pip": plants.plant("a manifest's pip")}),
        json!({"env_vars": {"A": [plants.plant("a list in a manifest's env_vars")]}}),
        json!({"token": plants.plant("a manifest's unknown field")}),
    ] {
        all.push(sent(&[good], json!({"manifest": manifest.to_string()})));
    }
    let secret = plants.plant("a value of context");
    all.push(sent(
        &[good],
        json!({"context": {"header.authorization": [secret]}}),
    ));
    for (place, before, after) in [
        ("a body that is no JSON", "{\"identity\": ", ""),
        ("a body that is a text", "\"", "\""),
        (
            "a body that ends early",
            "{\"identity\": {\"api_key\": \"",
            "",
        ),
    ] {
        let body = format!("{before}{}{after}", plants.plant(place));
        all.push(Sent {
            body,
            ..sent(&[good], json!({}))
        });
    }
    let key = "k".repeat(300);
    let long = format!("{}{key}", plants.plant("a long Idempotency-Key"));
    all.push(sent(&[good, ("idempotency-key", &long)], json!({})));
    let secret = plants.plant("a Content-Encoding's neighbour");
    let coded = [good, ("content-encoding", "gzip"), ("x-token", &secret)];
    all.push(sent(&coded, json!({})));
    all
}

/// A request that is accepted, with secrets all over it.
fn accepted(plants: &mut Plants, of: &str, good: (&'static str, &str)) -> Sent {
    let mut plant = |place: &str| plants.plant(&format!("{place} of {of}"));
    let manifest = json!({
        "name": "m",
        "env_vars": {"TOKEN": plant("the manifest")},
        "pip_extra_index_urls": [format!("https://user:{}@host/", plant("the manifest's index"))],
    });
    let body = json!({
        "identity": {"api_key": plant("identity.api_key"), "auth_token": plant("identity.auth_token")},
        "context": {"header.authorization": plant("context"), "x": plant("more context")},
        "manifest": manifest.to_string(),
        "an_unknown_field": plant("an unknown field"),
        "another": {"deep": [plant("a deep unknown field")]},
    });
    let mut request = sent(&[good], body);
    for name in [
        "cookie",
        "x-token",
        "x-lancedb-database",
        "x-lancedb-database-prefix",
        "user-agent",
        "referer",
        "origin",
        "proxy-authorization",
        "x-forwarded-for",
        "forwarded",
        "tracestate",
        "baggage",
        "x-request-id",
        "idempotency-key",
        "if-match",
    ] {
        request.headers.push((name, plant(name)));
    }
    request.query = format!("?api_key={}&token={}", plant("api_key"), plant("token"));
    request
}

async fn send(operator: &Operator, view: &str, request: &Sent) -> (u16, String) {
    let Sent {
        headers,
        query,
        body,
    } = request;
    let url = format!(
        "{}/v1/materialized_view/{view}/refresh{query}",
        operator.url
    );
    let mut request = reqwest::Client::new().post(url).body(body.clone());
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let answer = request.send().await.unwrap();
    let head = format!("{:?}", answer.headers());
    let status = answer.status().as_u16();
    (status, format!("{head}{}", answer.text().await.unwrap()))
}

#[tokio::test]
async fn no_secret_that_is_planted_anywhere_comes_to_light_anywhere() {
    let mut plants = Plants::default();
    let mut operator = Operator::prepared().await;
    operator.append("src", 0..10).await;
    operator.view("v", "SELECT id FROM src WHERE id > 1").await;
    let credentials = json!({
        "AWS_SECRET_ACCESS_KEY": plants.plant("the store's key"),
        "AWS_SESSION_TOKEN": plants.plant("the store's token"),
    });
    secret(&operator, "store", credentials).await;
    let with_store = json!({"storageSecretRef": {"name": "store"}});
    operator.cluster("default", with_store).await;
    kubeconfigs(&operator, &mut plants).await;
    let callers = Callers::of(&operator.space);
    let user = callers.account("someone");
    callers
        .allow(
            &user,
            &["create", "get"],
            &["default", "far", "refused", "none"],
        )
        .await;
    let token = callers.token("someone", Some(AUDIENCE)).await;
    let key = callers.key(&user).await;
    let signature = token.rsplit('.').next().unwrap();
    plants.add("a token that is taken", signature);
    plants.add("a key that is taken", key.trim_start_matches("relance_"));
    operator
        .start_with(&[
            ("RELANCE_AUTH", "tokens,keys"),
            ("RUST_LOG", "debug"),
            (
                "AWS_SECRET_ACCESS_KEY",
                &plants.plant("the operator's environment"),
            ),
        ])
        .await;

    let by_token = ("authorization", format!("Bearer {token}"));
    let by_token = (by_token.0, by_token.1.as_str());
    let by_key = ("x-api-key", key.as_str());
    let mut answers = String::new();
    let mut jobs = Vec::new();
    for (of, good) in [("one by token", by_token), ("one by key", by_key)] {
        let request = accepted(&mut plants, of, good);
        let (status, said) = send(&operator, "v", &request).await;
        assert_eq!(status, 202, "{said}");
        let body = &said[said.find("{\"job_id\"").unwrap()..];
        let body: Value = serde_json::from_str(body).unwrap();
        jobs.push(body["job_id"].as_str().unwrap().to_string());
        answers += &said;
    }
    for good in [by_token, by_key] {
        for request in refused(&mut plants, good) {
            let (status, said) = send(&operator, "v", &request).await;
            assert!(
                (400..500).contains(&status),
                "{status} {said} for {}",
                request.body
            );
            answers += &said;
        }
    }
    let (status, said) = send(
        &operator,
        "nowhere",
        &accepted(&mut plants, "one of no view", by_key),
    )
    .await;
    assert_eq!(status, 404, "{said}");
    answers += &said;
    for job in &jobs {
        operator.succeeded(job).await;
    }
    for name in ["refused", "none"] {
        let spec = json!({"view": ["v"], "cluster": name});
        operator.apply(&format!("to-{name}"), spec).await;
        operator.settled(&format!("to-{name}")).await;
    }
    operator
        .apply("to-far", json!({"view": ["v"], "cluster": "far"}))
        .await;
    operator
        .until("to-far", "told about", |status| status.message.is_some())
        .await;

    let mut readable = readable(&operator, answers).await;
    let mut leaks = Vec::new();
    for (what, text) in &readable {
        assert!(text.len() > 500, "{what} is too little to be all");
        leaks.extend(
            plants
                .found_in(text)
                .iter()
                .map(|of| format!("{of}, in {what}")),
        );
    }
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
    let log = String::from_utf8_lossy(&readable[1].1).into_owned();
    assert!(
        log.contains("DEBUG"),
        "the log was not at its most talkative"
    );

    // What is meant to hold a secret does, so the looking is right; and where
    // all of them are spilled, all are found.
    let secrets = operator.kubectl(&["get", "secrets", "-o", "yaml"]);
    let kept = plants.found_in(secrets.as_bytes());
    for place in [
        "the manifest of one by token",
        "the manifest of one by key",
        "the store's key",
        "a kubeconfig's token",
    ] {
        assert!(
            kept.contains(&place),
            "{place} is not in its Secret: {kept:?}"
        );
    }
    assert!(!kept.contains(&"a key that is taken") && !kept.contains(&"a token that is taken"));
    assert!(
        !kept
            .iter()
            .any(|place| place.starts_with("identity") || place.starts_with("context")),
        "{kept:?}"
    );
    let spilled: Vec<&str> = plants.0.iter().map(|(_, secret)| secret.as_str()).collect();
    let spilled = spilled.join(" ");
    let map = json!({"metadata": {"name": "spilled"}, "binaryData": {"all": base64::engine::general_purpose::STANDARD.encode(&spilled)}});
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
        kube::Api::namespaced(operator.space.client.clone(), &operator.space.namespace);
    let map = serde_json::from_value(map).unwrap();
    maps.create(&Default::default(), &map).await.unwrap();
    std::fs::write(operator.tables.join("spilled"), &spilled).unwrap();
    readable[3].1 = resources(&operator).into_bytes();
    bytes_below(&operator.tables, &mut readable[4].1);
    for (what, text) in &readable[3..5] {
        assert_eq!(plants.found_in(text), plants.places(), "in {what}");
    }
    println!("{} secrets planted, 0 found", plants.0.len());
}
