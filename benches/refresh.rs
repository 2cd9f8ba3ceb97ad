//! What a refresh costs beside what Kubernetes itself costs.
//!
//! Needs a whole cluster, as the end-to-end tests do. Each figure is taken in
//! pairs, one of each kind after the other, so that a machine that is slow for
//! a while is slow for both. Prints medians, and fails beyond the bounds:
//!
//! - POST to Succeeded, for a small append and a pod that starts cold: at most
//!   1.3 times a bare Job of the same image, create to condition Complete.
//! - POST to Succeeded, for a view that is current: at most 3 times a bare
//!   create → watch → status update → watch. All of that is a few milliseconds
//!   of work, so this bound is for an optimised build alone.
//!
//! `cargo bench --bench refresh`, or with the tests' own build:
//! `cargo test --bench refresh`.

#[path = "../tests/it/operator.rs"]
#[allow(dead_code)]
mod operator;
#[path = "../tests/it/support.rs"]
#[allow(dead_code)]
mod support;

use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{Config, watcher};
use relance::resources::{MaterializedViewRefresh, MaterializedViewRefreshSpec, Mode, Phase};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use operator::{Operator, needed};
use support::Space;

const PAIRS: usize = 20;

#[tokio::main]
async fn main() {
    let operator = Operator::running().await;
    let mut jobs = Ends::watch(operator.jobs.clone(), |job: &Job| {
        let conditions = job.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|c| {
            c.iter()
                .any(|c| c.type_ == "Complete" && c.status == "True")
        })
    });
    let ended = |refresh: &MaterializedViewRefresh| {
        let phase = refresh.status.as_ref().map(|s| s.phase);
        phase.is_some_and(Phase::is_terminal)
    };
    let mut refreshes = Ends::watch(operator.space.refreshes.clone(), ended);
    // The first of each pays for caches and connections.
    bare_job(&operator, &mut jobs, 0).await;
    refresh(&operator, &mut refreshes).await;

    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    for pair in 1..=PAIRS {
        let from = 100 * pair as i64;
        operator.append("src", from..from + 10).await;
        if pair % 2 == 0 {
            bare.push(bare_job(&operator, &mut jobs, pair).await);
        }
        let (time, mode) = refresh(&operator, &mut refreshes).await;
        assert_eq!(mode, Mode::Incremental);
        whole.push(time);
        if pair % 2 == 1 {
            bare.push(bare_job(&operator, &mut jobs, pair).await);
        }
    }
    let append = told(
        "a small append, POST to Succeeded",
        whole,
        "a bare Job",
        bare,
    );

    // A namespace without an operator, and the least of a controller in it.
    let space = Space::new().await;
    tokio::spawn(answer(space.refreshes.clone()));
    let mut answers = Ends::watch(space.refreshes.clone(), ended);
    bare_round(&space, &mut answers, 0).await;
    refresh(&operator, &mut refreshes).await;
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    for pair in 1..=PAIRS {
        bare.push(bare_round(&space, &mut answers, pair).await);
        let (time, mode) = refresh(&operator, &mut refreshes).await;
        assert_eq!(mode, Mode::NoOp);
        whole.push(time);
    }
    let no_op = told("a NoOp, POST to Succeeded", whole, "a bare round", bare);
    assert!(append <= 1.3, "a small append takes {append:.2} bare Jobs");
    assert!(
        no_op <= 3.0 || cfg!(debug_assertions),
        "a NoOp takes {no_op:.2} bare rounds"
    );
}

/// Prints two medians and returns their ratio.
fn told(what: &str, mut times: Vec<Duration>, peer: &str, mut peers: Vec<Duration>) -> f64 {
    times.sort();
    peers.sort();
    let (time, other) = (times[times.len() / 2], peers[peers.len() / 2]);
    let ratio = time.as_secs_f64() / other.as_secs_f64();
    println!(
        "{what}: median {time:.3?} ({:.3?} to {:.3?}); {peer}: {other:.3?} ({:.3?} to {:.3?}); ratio {ratio:.2}",
        times[0],
        times[times.len() - 1],
        peers[0],
        peers[peers.len() - 1],
    );
    ratio
}

/// When objects reached their end, as a watch saw it.
struct Ends(UnboundedReceiver<(String, Instant)>);

impl Ends {
    fn watch<K>(api: Api<K>, ended: impl Fn(&K) -> bool + Send + Sync + 'static) -> Ends
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let (sender, receiver) = unbounded_channel();
        tokio::spawn(async move {
            let objects = watcher(api, Config::default()).default_backoff();
            let seen = objects.applied_objects().try_for_each(|object| {
                if ended(&object) {
                    let _ = sender.send((object.name_any(), Instant::now()));
                }
                std::future::ready(Ok(()))
            });
            seen.await.expect("a watch");
        });
        Ends(receiver)
    }

    async fn of(&mut self, name: &str) -> Instant {
        let end = async {
            loop {
                let (ended, at) = self.0.recv().await.expect("a watch");
                if ended == name {
                    return at;
                }
            }
        };
        let end = tokio::time::timeout(operator::PATIENCE, end).await;
        end.unwrap_or_else(|_| panic!("{name} does not end"))
    }
}

/// Asks for a refresh over REST; how long it takes to its success.
async fn refresh(operator: &Operator, ends: &mut Ends) -> (Duration, Mode) {
    static HTTP: std::sync::LazyLock<reqwest::Client> =
        std::sync::LazyLock::new(reqwest::Client::new);
    let url = format!("{}/v1/materialized_view/v/refresh", operator.url);
    let start = Instant::now();
    let answer = HTTP.post(url).send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 202);
    let text = answer.text().await.expect("a body");
    let body: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let name = body["job_id"].as_str().expect("a job_id");
    let time = ends.of(name).await - start;
    let status = operator.succeeded(name).await;
    (time, status.mode.expect("a mode"))
}

/// Creates a Job of the same image that does nothing; how long it takes to Complete.
async fn bare_job(operator: &Operator, ends: &mut Ends, at: usize) -> Duration {
    let job = json!({
        "metadata": {"name": format!("bare-{at}")},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "bare",
                "image": needed("RELANCE_TEST_IMAGE"),
                "imagePullPolicy": "Never",
                "args": ["--version"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        }}},
    });
    let job: Job = serde_json::from_value(job).expect("a Job");
    let start = Instant::now();
    let created = operator.jobs.create(&PostParams::default(), &job).await;
    ends.of(&created.expect("created").name_any()).await - start
}

/// Creates a refresh that the least of a controller answers; how long that takes.
async fn bare_round(space: &Space, ends: &mut Ends, at: usize) -> Duration {
    let spec = MaterializedViewRefreshSpec::of(["v"]);
    let refresh = MaterializedViewRefresh::new(&format!("bare-{at}"), spec);
    let start = Instant::now();
    let created = space
        .refreshes
        .create(&PostParams::default(), &refresh)
        .await;
    ends.of(&created.expect("created").name_any()).await - start
}

/// The least of a controller: says Succeeded of whatever comes.
async fn answer(refreshes: Api<MaterializedViewRefresh>) {
    let mut seen = watcher(refreshes.clone(), Config::default())
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(refresh) = seen.try_next().await.expect("a watch") {
        if refresh.status.is_some_and(|s| s.phase == Phase::Queued) {
            let name = refresh.metadata.name.expect("a name");
            let status = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
            let params = PatchParams::default();
            let written = refreshes.patch_status(&name, &params, &status).await;
            written.expect("written");
        }
    }
}
