//! Several replicas: one acts, and another one when it cannot.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use relance::resources::{MaterializedViewRefresh, Phase};
use serde_json::{Value, json};

use crate::operator::{Operator, PATIENCE, Second};

/// Seconds of the lease in these tests, and its argument.
const LEASE: u64 = 6;
const ARGUMENTS: &[&str] = &["--lease-seconds", "6"];

/// What a replica may take beyond the lease until it acts.
const BEYOND: Duration = Duration::from_secs(5);

/// The source `src` and three views of it, and no process.
async fn prepared() -> Operator {
    let operator = Operator::prepared().await;
    operator.append("src", 0..20).await;
    for view in 0..3 {
        let sql = format!("SELECT id FROM src WHERE id >= {view}");
        operator.view(&format!("v{view}"), &sql).await;
    }
    operator
}

/// Applies refreshes that each have something to commit.
async fn apply(operator: &Operator, from: usize, count: usize) -> Vec<MaterializedViewRefresh> {
    let applied = (from..from + count).map(|at| async move {
        let spec = json!({"view": [format!("v{}", at % 3)], "full": true});
        operator.apply(&format!("r{at}"), spec).await
    });
    join_all(applied).await
}

/// Every one of them succeeded, by one commit and one Job.
async fn each_ran_once(operator: &Operator, refreshes: &[MaterializedViewRefresh]) {
    let mut jobs = BTreeSet::new();
    for refresh in refreshes {
        let name = refresh.metadata.name.as_ref().unwrap();
        let status = operator.succeeded(name).await;
        let view = &refresh.spec.view[0];
        assert_eq!(operator.commits(view, refresh).await, 1, "{name}");
        jobs.insert(status.job.unwrap().name);
    }
    assert_eq!(jobs.len(), refreshes.len());
    assert_eq!(operator.job_names().await, jobs);
    for view in 0..3 {
        let expected: Vec<i64> = (view..20).collect();
        assert_eq!(operator.ids(&format!("v{view}")).await, expected);
    }
}

/// How long after now the refresh is first spoken of by a controller.
async fn until_seen(operator: &Operator, name: &str) -> Duration {
    let start = Instant::now();
    operator
        .until(name, "seen", |status| {
            status.observed_generation.is_some_and(|g| g > 0)
        })
        .await;
    start.elapsed()
}

#[tokio::test]
async fn another_replica_acts_within_five_seconds_of_the_end_of_a_dead_ones_lease() {
    let operator = prepared().await;
    let first = operator.replica(ARGUMENTS);
    first.elected().await;
    let second = operator.replica(ARGUMENTS);
    // What is under way when the first one dies goes on with the second.
    let mut refreshes = apply(&operator, 0, 3).await;
    operator
        .until("r0", "running", |s| s.phase != Phase::Queued)
        .await;
    assert!(first.leads().await && !second.leads().await);
    first.signal("KILL");
    refreshes.extend(apply(&operator, 3, 1).await);
    let took = until_seen(&operator, "r3").await;
    println!("fail-over after a death: {took:?} with a lease of {LEASE} s");
    assert!(took <= Duration::from_secs(LEASE) + BEYOND, "{took:?}");
    assert!(second.leads().await);
    each_ran_once(&operator, &refreshes).await;
}

#[tokio::test]
async fn a_replica_that_ends_hands_over_without_waiting_for_the_lease_to_end() {
    let operator = prepared().await;
    // A lease that the test would not outlast.
    let arguments = ["--lease-seconds", "15"];
    let first = operator.replica(&arguments);
    first.elected().await;
    let second = operator.replica(&arguments);
    // It has seen that another one acts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.end().await;
    let took = second.elected().await;
    println!("hand-over: {took:?}");
    assert!(took <= Duration::from_secs(5), "{took:?}");
    let refreshes = apply(&operator, 0, 3).await;
    each_ran_once(&operator, &refreshes).await;
}

#[tokio::test]
async fn a_replica_that_was_stopped_past_its_lease_changes_nothing_when_it_goes_on() {
    let operator = prepared().await;
    let first = operator.replica(ARGUMENTS);
    first.elected().await;
    let second = operator.replica(ARGUMENTS);
    let mut refreshes = apply(&operator, 0, 6).await;
    operator
        .until("r0", "running", |s| s.phase != Phase::Queued)
        .await;
    // In the middle of whatever it is doing.
    first.signal("STOP");
    second.elected().await;
    refreshes.extend(apply(&operator, 6, 6).await);
    first.signal("CONT");
    let start = Instant::now();
    while first.leads().await {
        assert!(start.elapsed() < Duration::from_secs(1), "it still acts");
    }
    each_ran_once(&operator, &refreshes).await;
    assert!(!first.leads().await && second.leads().await);
}

#[tokio::test]
async fn a_replica_that_is_ended_while_it_starts_ends() {
    let operator = prepared().await;
    for round in 0..15 {
        let replica = operator.replica(ARGUMENTS);
        serves(&replica).await;
        // Before it is elected, while its watches begin, and soon after.
        tokio::time::sleep(Duration::from_millis(10 * round)).await;
        replica.end().await;
    }
}

#[tokio::test]
async fn replicas_are_replaced_one_by_one_while_refreshes_come_in_and_none_is_lost_or_doubled() {
    let operator = prepared().await;
    let mut replicas = vec![operator.replica(ARGUMENTS), operator.replica(ARGUMENTS)];
    for replica in &replicas {
        serves(replica).await;
    }
    let http = reqwest::Client::new();
    let mut accepted: Vec<String> = Vec::new();
    for round in 0..3 {
        for at in 0..4 {
            // A client of the Service: whichever replica answers.
            let url = &replicas[at % replicas.len()].url;
            let url = format!("{url}/v1/materialized_view/v{}/refresh", at % 3);
            let body = json!({"full": true}).to_string();
            let answer = http.post(url).body(body).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 202, "round {round}");
            let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            accepted.push(body["job_id"].as_str().unwrap().to_string());
        }
        // As a Deployment does: the new one is ready before an old one ends.
        let new = operator.replica(ARGUMENTS);
        serves(&new).await;
        let old = replicas.remove(0);
        replicas.push(new);
        old.end().await;
    }
    let mut refreshes = Vec::new();
    for name in &accepted {
        refreshes.push(operator.space.refreshes.get(name).await.unwrap());
    }
    each_ran_once(&operator, &refreshes).await;
}

async fn serves(replica: &Second) {
    let start = Instant::now();
    while reqwest::get(&replica.url).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "it does not serve");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
