//! Who is let in to the REST API: every route for every kind of caller, by real
//! tokens and keys, asked of a real API server.

use std::time::{Duration, Instant};

use relance::rest::auth::cache::KEEP;
use relance::rest::auth::limits::CallerLimits;
use relance::rest::auth::{Access, Settings};
use relance::rest::routes::{OPERATIONS, Operation};
use serde_json::json;

use crate::callers::{AUDIENCE, Callers, tokens_and_keys};
use crate::forged::signed_again;
use crate::operator::PATIENCE;
use crate::rest_rbac::{guarded, installed_rules, limited};
use crate::support::{Answer, Server, Space, World};

const ALL: &[&str] = &["create", "get", "list", "patch"];

/// A caller, and what it may do.
struct Caller {
    who: &'static str,
    headers: Vec<(&'static str, String)>,
    /// Fields of the body's `identity`.
    identity: Option<(&'static str, String)>,
    known: bool,
    verbs: &'static [&'static str],
    uses_default: bool,
}

fn stranger(who: &'static str, headers: Vec<(&'static str, String)>) -> Caller {
    Caller {
        who,
        headers,
        identity: None,
        known: false,
        verbs: &[],
        uses_default: false,
    }
}

fn known(
    who: &'static str,
    header: (&'static str, String),
    verbs: &'static [&'static str],
    uses_default: bool,
) -> Caller {
    Caller {
        who,
        headers: vec![header],
        identity: None,
        known: true,
        verbs,
        uses_default,
    }
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

/// Every way to be nobody, or somebody who may some or all.
async fn callers(world: &World) -> Vec<Caller> {
    let here = Callers::of(&world.space);
    let token = |account: &'static str| here.token(account, Some(AUDIENCE));
    let whole = token("whole").await;
    here.allow(&here.account("whole"), ALL, &["default"]).await;
    let nobodys_key = ("x-api-key", "relance_made-up".to_string());

    let deleted = token("deleted").await;
    here.allow(&here.account("deleted"), ALL, &["default"])
        .await;
    here.delete_account("deleted").await;
    let revoked = here.key("revoked").await;
    here.allow("revoked", ALL, &["default"]).await;
    here.revoke_key("revoked").await;
    let other_audience = here.token("whole", Some("vault")).await;
    let of_api_server = here.token("whole", None).await;
    let expired = signed_again(&whole, |claims| {
        let now = claims["iat"].as_i64().unwrap();
        for (claim, at) in [("iat", -7200), ("nbf", -7200), ("exp", -3600)] {
            claims[claim] = json!(now + at);
        }
    });
    let other_subject = {
        let mut parts: Vec<&str> = whole.split('.').collect();
        let signature = of_api_server.split('.').next_back().unwrap();
        parts[2] = signature;
        parts.join(".")
    };

    let elsewhere = Space::new().await;
    let there = Callers::of(&elsewhere);
    let abroad = token("abroad").await;
    there
        .allow(&here.account("abroad"), ALL, &["default"])
        .await;

    let key = here.key_in("by-group", &["etl".to_string()]).await;
    let post = json!({
        "metadata": {"name": "group"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "group"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "etl"}],
    });
    let role = json!({"metadata": {"name": "group"}, "rules": [
        {"apiGroups": ["relance.dev"], "resources": ["materializedviewrefreshes"], "verbs": ALL},
        {"apiGroups": ["relance.dev"], "resources": ["refreshclusters"], "verbs": ["use"]},
    ]});
    let client = &world.space.client;
    let roles = kube::Api::<k8s_openapi::api::rbac::v1::Role>::namespaced(
        client.clone(),
        &world.space.namespace,
    );
    let bindings = kube::Api::<k8s_openapi::api::rbac::v1::RoleBinding>::namespaced(
        client.clone(),
        &world.space.namespace,
    );
    let params = Default::default();
    let role = serde_json::from_value(role).unwrap();
    roles.create(&params, &role).await.unwrap();
    let binding = serde_json::from_value(post).unwrap();
    bindings.create(&params, &binding).await.unwrap();

    let mut some = Vec::new();
    let limited: [(&str, &str, &'static [&'static str], &[&str]); 7] = [
        ("who has no Role", "none", &[], &[]),
        ("who may get and not create", "gets", &["get"], &["default"]),
        ("who may list and not get", "lists", &["list"], &["default"]),
        (
            "who may create and not get",
            "creates",
            &["create"],
            &["default"],
        ),
        ("who may patch alone", "patches", &["patch"], &["default"]),
        ("who may use no cluster", "clusterless", ALL, &[]),
        ("who may use another cluster", "other", ALL, &["gpu"]),
    ];
    for (who, account, verbs, clusters) in limited {
        let token = token(account).await;
        here.allow(&here.account(account), verbs, clusters).await;
        let uses = clusters.contains(&"default");
        some.push(known(who, bearer(&token), verbs, uses));
    }
    some.extend([
        stranger("without a credential", vec![]),
        stranger("with a token that is none", vec![bearer("nonsense")]),
        stranger("with an empty token", vec![bearer("")]),
        stranger(
            "with a password",
            vec![("authorization", "Basic YTpi".into())],
        ),
        stranger("with a made-up key", vec![nobodys_key.clone()]),
        stranger("with an expired token", vec![bearer(&expired)]),
        stranger(
            "with another token's signature",
            vec![bearer(&other_subject)],
        ),
        stranger(
            "with a token for another audience",
            vec![bearer(&other_audience)],
        ),
        stranger(
            "with a token for the API server",
            vec![bearer(&of_api_server)],
        ),
        stranger("with a deleted account's token", vec![bearer(&deleted)]),
        stranger("with a revoked key", vec![("x-api-key", revoked)]),
        stranger("with two tokens", vec![bearer(&whole), bearer(&whole)]),
        Caller {
            identity: Some(("auth_token", whole.clone())),
            ..stranger(
                "with a made-up key in the header and a token in the body",
                vec![nobodys_key],
            )
        },
        known("who may all, elsewhere", bearer(&abroad), &[], false),
        known("who may all", bearer(&whole), ALL, true),
        known(
            "who may all, by a token that was signed again",
            bearer(&signed_again(&whole, |_| ())),
            ALL,
            true,
        ),
        known(
            "who may all by its group",
            ("x-api-key", key.clone()),
            ALL,
            true,
        ),
        Caller {
            headers: vec![],
            identity: Some(("auth_token", whole)),
            ..known("who may all, by the body's token", bearer(""), ALL, true)
        },
        Caller {
            headers: vec![],
            identity: Some(("api_key", key)),
            ..known("who may all, by the body's key", bearer(""), ALL, true)
        },
    ]);
    some
}

/// Sends what the operation takes, about something that is there or not.
async fn ask(server: &Server, operation: &Operation, caller: &Caller, job: Option<&str>) -> Answer {
    // Both forms of a path lead to the same.
    let (view, slash) = match job {
        Some(_) => ("v", ""),
        None => ("nowhere", "/"),
    };
    let path = operation.path.replace("{id}", view) + slash;
    let mut body = json!({"job_id": job.unwrap_or("nobody-knows")});
    if let Some((field, secret)) = &caller.identity {
        body["identity"] = json!({*field: secret});
    }
    let mut request = server.request(operation.method.as_str().parse().unwrap(), &path);
    for (name, value) in &caller.headers {
        request = request.header(*name, value);
    }
    // Answers may be no JSON where a caller is let in.
    let answer = request.body(body.to_string()).send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap_or_default();
    Answer {
        status,
        body: serde_json::from_str(&text).unwrap_or_default(),
        allow: None,
        retry_after: None,
    }
}

fn let_in(answer: &Answer) -> bool {
    // 501: what is asked for is not supported, which is for those to know who may ask.
    ![401, 403, 429].contains(&answer.status) && (answer.status < 500 || answer.status == 501)
}

#[tokio::test]
async fn every_route_lets_in_whom_kubernetes_allows_and_tells_nobody_else_what_is_there() {
    let world = World::new().await;
    let server = guarded(&world, tokens_and_keys()).await;
    let job = world.refresh("").await;
    assert_eq!(job.status, 202, "the world's own server lets everybody in");
    let job = job.job_id();
    let all = callers(&world).await;
    // What was revoked while it was made is in no cache: nobody showed it. But
    // the API server itself keeps what it knows of tokens and Roles for a while.
    let mut wrong = Vec::new();
    let mut asked = 0;
    for caller in &all {
        for operation in OPERATIONS {
            let expected = match operation.asks {
                None => 0,
                Some(_) if !caller.known => 401,
                Some(asks) if !caller.verbs.contains(&asks.verb.as_str()) => 403,
                Some(asks) if asks.uses_cluster && !caller.uses_default => 403,
                Some(_) => 0,
            };
            let before = world.stored().await;
            let start = Instant::now();
            let (there, absent) = loop {
                let there = ask(&server, operation, caller, Some(&job)).await;
                let absent = ask(&server, operation, caller, None).await;
                let as_expected = |answer: &Answer| match expected {
                    0 => let_in(answer),
                    _ => answer.status == expected,
                };
                let settled = as_expected(&there) && as_expected(&absent);
                if settled || start.elapsed() > Duration::from_secs(20) {
                    break (there, absent);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            };
            asked += 2;
            let mut say = |what: String| {
                wrong.push(format!("{} at {}: {what}", caller.who, operation.id));
            };
            for answer in [&there, &absent] {
                let code = match expected {
                    0 if !let_in(answer) => {
                        say(format!("should be let in: {answer:?}"));
                        continue;
                    }
                    0 => continue,
                    401 => 16,
                    _ => 15,
                };
                if answer.status != expected || answer.body["code"] != code {
                    say(format!("should be {expected}: {answer:?}"));
                }
            }
            if expected != 0 {
                if there.body["error"] != absent.body["error"] {
                    say(format!("told what is there: {there:?} {absent:?}"));
                }
                if world.stored().await != before {
                    say("made a refresh".to_string());
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "{asked} questions: {} callers, {} operations",
        all.len(),
        OPERATIONS.len()
    );
}

/// Asks until the answer has this status; how long that took.
async fn until(server: &Server, header: &(&'static str, String), status: u16) -> Duration {
    let start = Instant::now();
    loop {
        let header = [(header.0, header.1.as_str())];
        let answer = server
            .post_with("/v1/jobs/describe", &header, r#"{"job_id": "x"}"#)
            .await;
        if answer.status == status {
            return start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "not {status}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn what_is_revoked_is_of_no_use_seconds_later() {
    let world = World::new().await;
    let here = Callers::of(&world.space);
    let server = guarded(&world, tokens_and_keys()).await;
    let key = ("x-api-key", here.key("keyed").await);
    let token = bearer(&here.token("account", Some(AUDIENCE)).await);
    let bound = bearer(&here.token("bound", Some(AUDIENCE)).await);
    for user in ["keyed", &here.account("account"), &here.account("bound")] {
        here.allow(user, ALL, &[]).await;
    }
    for credential in [&key, &token, &bound] {
        until(&server, credential, 404).await;
    }
    here.revoke_key("keyed").await;
    let by_key = until(&server, &key, 401).await;
    here.forbid(&here.account("bound")).await;
    let by_role = until(&server, &bound, 403).await;
    here.delete_account("account").await;
    let by_account = until(&server, &token, 401).await;
    println!(
        "a revoked key is taken for {by_key:.1?}, a RoleBinding for {by_role:.1?}, a token for {by_account:.1?}; {KEEP:?} of it kept here"
    );
    // Nothing but relance keeps keys; a slow machine has its margin.
    assert!(by_key < 4 * KEEP, "{by_key:?}");
}

#[tokio::test]
async fn a_user_retries_the_same_refresh_whatever_it_shows_and_is_named_on_it() {
    let world = World::new().await;
    let here = Callers::of(&world.space);
    let server = guarded(&world, tokens_and_keys()).await;
    let user = here.account("airflow");
    here.allow(&user, &["create", "get"], &["default"]).await;
    let shown = [
        bearer(&here.token("airflow", Some(AUDIENCE)).await),
        bearer(&here.token("airflow", Some(AUDIENCE)).await),
        ("x-api-key", here.key(&user).await),
    ];
    let mut jobs = Vec::new();
    for (name, value) in &shown {
        until(&server, &(name, value.clone()), 404).await;
        let headers = [(*name, value.as_str()), ("idempotency-key", "daily")];
        let answer = server
            .post_with("/v1/materialized_view/v/refresh", &headers, "")
            .await;
        jobs.push(answer.job_id());
    }
    assert!(jobs.iter().all(|job| *job == jobs[0]), "{jobs:?}");
    let stored = world.space.refreshes.get(&jobs[0]).await.unwrap();
    let annotations = stored.metadata.annotations.unwrap();
    assert_eq!(annotations["relance.dev/requested-by"], user);
}

#[tokio::test]
async fn a_caller_that_asks_too_much_is_told_to_wait_and_others_are_not() {
    let world = World::new().await;
    let here = Callers::of(&world.space);
    let settings = Settings {
        limits: CallerLimits {
            per_second: 5,
            at_a_time: 100,
        },
        ..tokens_and_keys()
    };
    let server = guarded(&world, settings).await;
    let (busy, calm) = (here.key("busy").await, here.key("calm").await);
    for user in ["busy", "calm"] {
        here.allow(user, ALL, &["default"]).await;
    }
    let ask = async |key: &str| {
        let headers = [("x-api-key", key)];
        server
            .post_with("/v1/jobs/describe", &headers, r#"{"job_id": "x"}"#)
            .await
    };
    until(&server, &("x-api-key", busy.clone()), 404).await;
    let start = Instant::now();
    let answers = futures::future::join_all((0..100).map(|_| ask(&busy))).await;
    let seconds = start.elapsed().as_secs_f64();
    let limited: Vec<_> = answers.iter().filter(|a| a.status == 429).collect();
    let served = answers.len() - limited.len();
    assert!(
        served as f64 <= 5.0 * (seconds + 1.0) + 1.0,
        "{served} in {seconds}"
    );
    assert!(!limited.is_empty(), "no limit was met in {seconds} seconds");
    for answer in &limited {
        assert!(answer.error(429, 21).contains("5 requests a second"));
        assert_eq!(answer.retry_after.as_deref(), Some("1"));
    }
    assert_eq!(ask(&calm).await.status, 404);
    until(&server, &("x-api-key", busy), 404).await;
}

#[tokio::test]
async fn a_way_that_is_not_taken_or_not_granted_does_not_stand_in_the_others_way() {
    let world = World::new().await;
    let here = Callers::of(&world.space);
    let user = here.account("a");
    here.allow(&user, ALL, &["default"]).await;
    let (name, token) = bearer(&here.token("a", Some(AUDIENCE)).await);
    let key = ("x-api-key", here.key(&user).await);
    let keys_alone = Settings {
        audience: None,
        ..tokens_and_keys()
    };
    let server = guarded(&world, keys_alone).await;
    until(&server, &key, 404).await;
    let refused = server
        .post_with("/v1/jobs/describe", &[(name, &token)], "")
        .await;
    assert!(refused.error(401, 16).contains("takes none"), "{refused:?}");

    // A Role of the namespace is enough for keys; tokens need more.
    let client = limited(&world, "rest-in-its-namespace", installed_rules()).await;
    let access = Access::guarded(client.clone(), &here.namespace, tokens_and_keys());
    let uri = format!("dir://{}", world.folder.path().display());
    let server = Server::with_access(client, &here.namespace, &uri, &[], access).await;
    until(&server, &key, 404).await;
    let put_off = server
        .post_with("/v1/jobs/describe", &[(name, &token)], "")
        .await;
    put_off.error(503, 17);
    assert_eq!(put_off.retry_after.as_deref(), Some("1"));
    until(&server, &key, 404).await;
}
