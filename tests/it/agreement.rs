//! On any spec, the API server and relance's own validator agree whether it may be.

use futures::StreamExt;
use kube::CustomResourceExt;
use kube::api::{Api, DynamicObject, PostParams};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use relance::resources::{MaterializedViewRefresh, RefreshCluster, schema, validate};
use serde_json::{Map, Value, json};

use crate::support::Space;

/// Specs of each kind.
const SPECS: u64 = 400;

/// Values at and around what bounds and rules look at.
fn value(random: &mut StdRng, schema: &Value) -> Value {
    let numbers = [
        -1,
        0,
        1,
        2,
        255,
        256,
        257,
        1000,
        1001,
        10_000,
        10_001,
        4_294_967_295,
        4_294_967_296,
        i64::MAX,
    ];
    let texts = [
        "",
        "a",
        "default",
        "a-b.c",
        "-a",
        "A",
        "a/b",
        "a\\b",
        "a b",
        "a\u{7f}",
        "é",
        "\u{1f600}",
        "$",
    ];
    let text = |random: &mut StdRng| match random.random_range(0..4) {
        0 => json!(
            "x".repeat(
                *[63, 64, 253, 254, 255, 256, 257]
                    .choose(random)
                    .expect("one")
            )
        ),
        1 => json!("é".repeat(*[63, 64, 255, 256].choose(random).expect("one"))),
        _ => json!(texts.choose(random).expect("one")),
    };
    // Now and then a value of any type.
    if random.random_bool(0.05) {
        return [
            json!(null),
            json!(true),
            json!("x"),
            json!(1),
            json!([]),
            json!({}),
        ]
        .choose(random)
        .cloned()
        .unwrap_or_default();
    }
    match schema["type"].as_str() {
        Some("integer") => json!(numbers.choose(random).expect("one")),
        Some("boolean") => json!(random.random_bool(0.5)),
        Some("array") => {
            let size = *[0, 1, 2, 3, 16, 17].choose(random).expect("one");
            (0..size).map(|_| text(random)).collect()
        }
        Some("object") => {
            let fields = schema["properties"]
                .as_object()
                .cloned()
                .unwrap_or_default();
            let mut object = Map::new();
            for (name, child) in fields {
                if random.random_bool(0.8) {
                    object.insert(name, value(random, &child));
                }
            }
            Value::Object(object)
        }
        _ if random.random_bool(0.5) => json!("ab".repeat(32)),
        _ => text(random),
    }
}

fn spec(random: &mut StdRng, schema: &Value) -> Value {
    let mut spec = Map::new();
    for (name, child) in schema["properties"]["spec"]["properties"]
        .as_object()
        .expect("fields")
    {
        let there = if name == "view" { 0.97 } else { 0.15 };
        if random.random_bool(there) {
            spec.insert(name.clone(), value(random, child));
        }
    }
    Value::Object(spec)
}

async fn agree<K: CustomResourceExt>(check: fn(&Value) -> Vec<validate::Violation>) {
    let space = Space::new().await;
    let resource = K::api_resource();
    let api: Api<DynamicObject> =
        Api::namespaced_with(space.client.clone(), &space.namespace, &resource);
    let schema = schema::of::<K>();
    let dry_run = PostParams {
        dry_run: true,
        ..Default::default()
    };
    let first: u64 = std::env::var("RELANCE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    let verdicts: Vec<bool> = futures::stream::iter(first..first + SPECS)
        .map(async |seed| {
            let object = json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"name": "r"},
                "spec": spec(&mut StdRng::seed_from_u64(seed), &schema),
            });
            let typed: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
            let theirs = match api.create(&dry_run, &typed).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => Err(status.message),
                Err(error) => panic!("RELANCE_SEED={seed}: {error}"),
            };
            let ours = check(&object);
            assert_eq!(
                theirs.is_ok(),
                ours.is_empty(),
                "RELANCE_SEED={seed}: {object}: the API server says {theirs:?}, and the validator {ours:?}"
            );
            theirs.is_ok()
        })
        .buffer_unordered(16)
        .collect()
        .await;
    let taken = verdicts.iter().filter(|taken| **taken).count();
    assert!(
        taken > 20 && taken < verdicts.len() - 20,
        "{taken} of {} were taken: no test of both",
        verdicts.len()
    );
}

#[tokio::test]
async fn the_api_server_and_the_validator_agree_on_any_refresh() {
    agree::<MaterializedViewRefresh>(validate::refresh).await;
}

#[tokio::test]
async fn the_api_server_and_the_validator_agree_on_any_cluster() {
    agree::<RefreshCluster>(validate::cluster).await;
}
