//! `release`, while others still write what it lets go of.

use std::sync::Mutex;

use axum::http::Method;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::{Api, Asked, list, ok, refresh, refused};

/// The refresh, the Lease, and what is done to them beside the plug-in.
struct World {
    refresh: Value,
    lease: Value,
    looks: u32,
}

impl World {
    fn with(lease: Value) -> World {
        let mut refresh = refresh("r", "Running", "it goes");
        refresh["metadata"]["finalizers"] = json!(["other.dev/mine", "relance.dev/remote-job"]);
        World {
            refresh,
            lease: json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": "relance-controller"},
                "spec": lease,
            }),
            looks: 0,
        }
    }

    /// As an API server: a patch of what has changed since is a conflict, and a
    /// phase that is final stays.
    fn patched(&mut self, asked: &Asked) -> Response {
        let known = &asked.body["metadata"]["resourceVersion"];
        if !known.is_null() && *known != self.refresh["metadata"]["resourceVersion"] {
            return refused(409, "Conflict", "it has changed");
        }
        if let Some(phase) = asked.body["status"].get("phase") {
            if self.refresh["status"]["phase"] == "Succeeded" {
                return refused(422, "Invalid", "status.phase is final");
            }
            self.refresh["status"]["phase"] = phase.clone();
        }
        if let Some(finalizers) = asked.body["metadata"].get("finalizers") {
            self.refresh["metadata"]["finalizers"] = finalizers.clone();
        }
        self.change();
        ok(&self.refresh)
    }

    fn change(&mut self) {
        let version = self.refresh["metadata"]["resourceVersion"].as_str();
        let version: u32 = version.unwrap().parse().unwrap();
        self.refresh["metadata"]["resourceVersion"] = json!((version + 1).to_string());
    }
}

/// An API server of that world, in which `beside` happens before each answer.
async fn of(
    world: World,
    beside: impl Fn(&mut World, &Asked) + Send + Sync + 'static,
) -> (Api, std::sync::Arc<Mutex<World>>) {
    let world = std::sync::Arc::new(Mutex::new(world));
    let inner = world.clone();
    let api = Api::that(move |asked| {
        let mut world = inner.lock().unwrap();
        beside(&mut world, asked);
        if asked.method == Method::PATCH {
            return world.patched(asked);
        }
        match asked.what().as_str() {
            "GET leases/relance-controller" => {
                world.looks += 1;
                ok(&world.lease)
            }
            "GET materializedviewrefreshes" => list(
                "MaterializedViewRefresh",
                std::slice::from_ref(&world.refresh),
            ),
            // No other right is given to the chart's Job.
            _ => refused(403, "Forbidden", "not that"),
        }
    })
    .await;
    (api, world)
}

fn released(world: &World) -> bool {
    world.refresh["metadata"]["finalizers"] == json!(["other.dev/mine"])
}

#[tokio::test]
async fn what_ends_meanwhile_is_let_go_of_as_it_ended() {
    let (api, world) = of(World::with(json!({})), |world, asked| {
        if asked.method == Method::PATCH && world.refresh["status"]["phase"] == "Running" {
            world.refresh["status"]["phase"] = json!("Succeeded");
            world.change();
        }
    })
    .await;
    let said = api.says(&["release"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let world = world.lock().unwrap();
    assert!(released(&world), "{}", world.refresh);
    assert_eq!(world.refresh["status"]["phase"], "Succeeded");
}

#[tokio::test]
async fn a_finalizer_that_comes_in_between_stays() {
    let (api, world) = of(World::with(json!({})), |world, asked| {
        let finalizers = asked.body["metadata"].get("finalizers").is_some();
        let held = world.refresh["metadata"]["finalizers"]
            .as_array_mut()
            .unwrap();
        if finalizers && held.len() == 2 {
            held.push(json!("third.dev/mine"));
            world.change();
        }
    })
    .await;
    let said = api.says(&["release"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let left = json!(["other.dev/mine", "third.dev/mine"]);
    assert_eq!(
        world.lock().unwrap().refresh["metadata"]["finalizers"],
        left
    );
}

#[tokio::test]
async fn what_an_operator_still_takes_hold_of_as_it_ends_is_let_go_of_too() {
    let mut world = World::with(json!({"holderIdentity": "op", "leaseDurationSeconds": 60}));
    let held = world.refresh["metadata"]["finalizers"].take();
    world.refresh["metadata"]["finalizers"] = json!(["other.dev/mine"]);
    let (api, world) = of(world, move |world, _| {
        if world.looks == 2 {
            world.refresh["metadata"]["finalizers"] = held.clone();
            world.change();
            world.lease["spec"]["holderIdentity"] = json!("");
            world.looks += 1;
        }
    })
    .await;
    let said = api.says(&["release"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("refresh r is let go"), "{said:?}");
    assert!(released(&world.lock().unwrap()));
}

#[tokio::test]
async fn whose_clock_is_wrong_still_acts_as_long_as_it_renews() {
    let lease = json!({
        "holderIdentity": "op",
        "leaseDurationSeconds": 1,
        "renewTime": "2001-01-01T00:00:00.000000Z",
    });
    let (api, world) = of(World::with(lease.clone()), |world, _| {
        let second = world.looks % 60;
        let renewed = format!("2001-01-01T00:00:{second:02}.000000Z");
        world.lease["spec"]["renewTime"] = json!(renewed);
    })
    .await;
    let said = api.says(&["release", "--timeout", "3s"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("an operator acts by Lease"), "{said:?}");
    assert!(!released(&world.lock().unwrap()));
    // Who renews no more is gone, however far ahead the clock was.
    let mut ahead = lease;
    ahead["renewTime"] = json!("2101-01-01T00:00:00.000000Z");
    let (api, world) = of(World::with(ahead), |_, _| {}).await;
    let said = api.says(&["release"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(released(&world.lock().unwrap()));
}
