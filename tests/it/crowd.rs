//! Many clients at once, of all kinds: none of what was accepted is lost.
//!
//! `RELANCE_CROWD_SECONDS=60` is the full length.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use rand::Rng;
use serde_json::json;

use crate::callers::{AUDIENCE, Callers, tokens_and_keys};
use crate::rest_rbac::guarded;
use crate::support::{Server, World};

/// Clients at once.
const CLIENTS: usize = 500;

/// What one client has seen.
#[derive(Default)]
struct Seen {
    accepted: Vec<String>,
    answers: BTreeMap<(&'static str, u16), usize>,
}

/// A credential, and whether it is somebody's who may all.
type Shown = (&'static str, String, bool);

async fn client(server: &Server, shown: Shown, until: Instant) -> Seen {
    let mut seen = Seen::default();
    let (name, credential, good) = &shown;
    loop {
        let what = rand::rng().random_range(0..10);
        let latest = seen.accepted.last().cloned().unwrap_or("none".into());
        let (what, path, body) = match what {
            0..4 => ("refresh", "/v1/materialized_view/v/refresh", json!({})),
            4..7 => ("describe", "/v1/jobs/describe", json!({"job_id": latest})),
            7 => ("list", "/v1/jobs/list", json!({"limit": 10})),
            8 => ("unknown view", "/v1/materialized_view/w/refresh", json!({})),
            _ => ("view", "/v1/materialized_view/v/describe", json!({})),
        };
        // Requests at a time have a connection each.
        let request = server
            .request(reqwest::Method::POST, path)
            .header(*name, credential)
            .timeout(Duration::from_secs(120))
            .body(body.to_string());
        let answer = request.send().await.expect("an answer");
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("a body");
        *seen.answers.entry((what, status)).or_default() += 1;
        if status == 202 {
            let body: serde_json::Value = serde_json::from_str(&text).unwrap();
            seen.accepted
                .push(body["job_id"].as_str().unwrap().to_string());
        }
        // A list's route may not be there yet, and what is not there is nobody's.
        let refused = [401, 429, 503];
        assert!(
            *good || refused.contains(&status) || (what == "list" && status == 404),
            "a stranger was told {status}: {text}"
        );
        assert!(status < 500 || status == 503, "{status}: {text}");
        if [429, 503].contains(&status) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if Instant::now() >= until {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_hundreds_of_clients_were_promised_nothing_is_lost() {
    let seconds = std::env::var("RELANCE_CROWD_SECONDS");
    let seconds: u64 = seconds.map_or(4, |text| text.parse().expect("a number of seconds"));
    let world = World::new().await;
    let here = Callers::of(&world.space);
    let server = guarded(&world, tokens_and_keys()).await;
    let mut shown: Vec<Shown> = Vec::new();
    for at in 0..8 {
        let account = format!("client-{at}");
        let user = here.account(&account);
        here.allow(&user, &["create", "get", "list"], &["default"])
            .await;
        let token = here.token(&account, Some(AUDIENCE)).await;
        shown.push(("authorization", format!("Bearer {token}"), true));
        shown.push(("x-api-key", here.key(&user).await, true));
    }
    shown.push(("authorization", "Bearer made-up".into(), false));
    shown.push(("x-api-key", "made-up".into(), false));
    // The keys and Roles made last are known within seconds.
    for (name, credential, good) in &shown {
        let headers = [(*name, credential.as_str())];
        let start = Instant::now();
        let wished = if *good { 404 } else { 401 };
        loop {
            let body = json!({"job_id": "none"}).to_string();
            let answer = server.post_with("/v1/jobs/describe", &headers, body).await;
            if answer.status == wished {
                break;
            }
            assert!(start.elapsed() < crate::operator::PATIENCE, "{answer:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let clients = (0..CLIENTS).map(|at| client(&server, shown[at % shown.len()].clone(), until));
    let all = futures::future::join_all(clients).await;
    let took = start.elapsed().as_secs_f64();
    let mut answers: BTreeMap<(&str, u16), usize> = BTreeMap::new();
    let mut accepted = BTreeSet::new();
    let mut promised = 0;
    for seen in all {
        promised += seen.accepted.len();
        accepted.extend(seen.accepted);
        for (what, count) in seen.answers {
            *answers.entry(what).or_default() += count;
        }
    }
    let stored = world
        .space
        .refreshes
        .list(&Default::default())
        .await
        .unwrap();
    let stored: BTreeSet<String> = stored.iter().map(ResourceExt::name_any).collect();
    let lost: Vec<_> = accepted.difference(&stored).collect();
    println!(
        "{CLIENTS} clients, {took:.1} s: {promised} accepted, {} lost; {answers:?}",
        lost.len()
    );
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(promised, accepted.len(), "a job_id was given twice");
    assert!(promised > 0);
    assert!(answers[&("refresh", 401)] > 0, "{answers:?}");
}
