//! Nodes that are none, and the least of a kubelet for them: pods that the
//! scheduler puts there run, and end well when they are told to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{Config, watcher};
use relance::engine::outcome::{Mode, Outcome};
use relance::protocol::Ending;
use serde_json::{Value, json};

/// Pods that one node takes.
const PODS: usize = 500;

/// The nodes' label and taint, which only this bench's pods tolerate.
pub const FAKE: &str = "relance.dev/fake";

/// Nodes and their kubelet.
pub struct Fakes {
    client: Client,
    pods: Api<Pod>,
    end: Arc<AtomicBool>,
}

impl Fakes {
    /// Makes nodes for so many pods, and runs the pods of `namespace` on them.
    pub async fn start(client: Client, namespace: &str, pods: usize) -> Fakes {
        let nodes: Vec<String> = (0..=pods / PODS).map(|at| format!("fake-{at}")).collect();
        for name in &nodes {
            node(&client, name).await;
        }
        let fakes = Fakes {
            pods: Api::namespaced(client.clone(), namespace),
            client,
            end: Arc::default(),
        };
        tokio::spawn(beat(fakes.client.clone(), nodes));
        tokio::spawn(run(fakes.pods.clone(), fakes.end.clone()));
        fakes
    }

    /// Ends all pods well, those that run and those to come.
    pub async fn finish(&self) {
        self.end.store(true, Ordering::SeqCst);
        let running = self.pods.list(&Default::default()).await.expect("pods");
        futures::stream::iter(running)
            .for_each_concurrent(16, |pod| async move {
                if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
                    set(&self.pods, &pod, true).await;
                }
            })
            .await;
    }

    /// Takes the nodes away.
    pub async fn stop(self) {
        let nodes: Api<Node> = Api::all(self.client);
        let ours = nodes
            .list(&kube::api::ListParams::default().labels(FAKE))
            .await;
        for node in ours.expect("nodes") {
            let _ = nodes.delete(&node.name_any(), &Default::default()).await;
        }
    }
}

async fn node(client: &Client, name: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let resources = json!({"cpu": "1000", "memory": "1000Gi", "pods": PODS.to_string()});
    let node = json!({
        "metadata": {"name": name, "labels": {FAKE: "true", "kubernetes.io/hostname": name}},
        "spec": {"taints": [{"key": FAKE, "effect": "NoSchedule"}]},
    });
    let node: Node = serde_json::from_value(node).expect("a node");
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("{error}"),
    }
    let status = json!({"status": {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Fake", "message": "",
            "lastHeartbeatTime": now(), "lastTransitionTime": now(),
        }],
    }});
    let params = PatchParams::default();
    let patched = nodes
        .patch_status(name, &params, &Patch::Merge(status))
        .await;
    patched.expect("a node's status");
}

/// The time in microseconds, which is all that a Lease takes.
fn now() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Keeps the nodes alive: the node controller asks for their Leases.
async fn beat(client: Client, nodes: Vec<String>) {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    loop {
        for name in &nodes {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now()},
            });
            let force = PatchParams::apply("relance-bench").force();
            let beaten = leases.patch(name, &force, &Patch::Apply(lease)).await;
            if let Err(error) = beaten {
                println!("node {name} misses a beat: {error}");
            }
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

async fn run(pods: Api<Pod>, end: Arc<AtomicBool>) {
    watcher(pods.clone(), Config::default())
        .default_backoff()
        .touched_objects()
        .try_for_each_concurrent(16, |pod| {
            let (pods, end) = (&pods, end.load(Ordering::SeqCst));
            async move {
                let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
                let placed = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
                if pod.metadata.deletion_timestamp.is_some() {
                    // What a kubelet says when the containers are gone.
                    let now = DeleteParams::default().grace_period(0);
                    let _ = pods.delete(&pod.name_any(), &now).await;
                } else if placed && phase == Some("Pending") {
                    set(pods, &pod, end).await;
                }
                Ok(())
            }
        })
        .await
        .expect("a watch");
}

/// Says that a pod runs, or that it has ended well.
async fn set(pods: &Api<Pod>, pod: &Pod, ended: bool) {
    let state: Value = match ended {
        false => json!({"running": {"startedAt": now()}}),
        true => json!({"terminated": {
            "exitCode": 0, "reason": "Completed",
            "startedAt": now(), "finishedAt": now(), "message": ending(),
        }}),
    };
    let ready = if ended { "False" } else { "True" };
    let status = json!({"status": {
        "phase": if ended { "Succeeded" } else { "Running" },
        "startTime": now(),
        "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": now()},
            {"type": "ContainersReady", "status": ready, "lastTransitionTime": now()},
        ],
        "containerStatuses": [{
            "name": "worker", "image": "fake", "imageID": "fake",
            "ready": !ended, "restartCount": 0, "state": state,
        }],
    }});
    let params = PatchParams::default();
    // One that is gone by now needs no status.
    let _ = pods
        .patch_status(&pod.name_any(), &params, &Patch::Merge(status))
        .await;
}

/// What a worker says at its end.
fn ending() -> String {
    let outcome = Outcome {
        mode: Mode::Rebuild,
        source_version: 1,
        source_versions: BTreeMap::new(),
        view_version: 2,
        rows_written: 10,
        bytes_written: 1_000,
        units_total: 1,
        units_kept: 0,
        unindexed_rows: None,
    };
    serde_json::to_string(&Ending::Done(outcome)).expect("JSON")
}
