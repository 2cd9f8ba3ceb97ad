//! For each CEL rule what it refuses, and that relance says it in the same words.

use std::collections::BTreeSet;

use kube::api::{Patch, PatchParams};
use relance::resources::{MaterializedViewRefresh, RefreshCluster, refresh, schema, validate};
use serde_json::{Value, json};

use crate::objects::{api, created, object, patched, refused};
use crate::support::{Space, World};

/// The messages of all CEL rules in a schema.
fn messages(node: &Value, found: &mut BTreeSet<String>) {
    match node {
        Value::Object(fields) => {
            for rule in fields
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                found.insert(
                    rule["message"]
                        .as_str()
                        .expect("every rule has a message")
                        .to_string(),
                );
            }
            fields.values().for_each(|child| messages(child, found));
        }
        Value::Array(items) => items.iter().for_each(|child| messages(child, found)),
        _ => {}
    }
}

/// The message of the rule whose message begins so; there must be one.
fn message(begins: &str) -> String {
    let mut all = BTreeSet::new();
    messages(&schema::of::<MaterializedViewRefresh>(), &mut all);
    messages(&schema::of::<RefreshCluster>(), &mut all);
    let mut found = all
        .into_iter()
        .filter(|message| message.starts_with(begins));
    found
        .next()
        .unwrap_or_else(|| panic!("no rule's message begins with '{begins}'"))
}

const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// For each CEL rule that judges a new object: one that it refuses.
#[tokio::test]
async fn the_api_server_and_the_validator_refuse_with_the_same_sentence() {
    let space = Space::new().await;
    let long = "r".repeat(41);
    let refreshes = [
        (
            "metadata.name must have at most 40",
            long.as_str(),
            json!({"view": ["v"]}),
        ),
        (
            "metadata.name must have at most 40",
            "dotted.name",
            json!({"view": ["v"]}),
        ),
        ("spec.view: a part", "r", json!({"view": ["ns", "a/b"]})),
        ("spec.view: a part", "r", json!({"view": ["a\\b"]})),
        ("spec.view: a part", "r", json!({"view": ["a\nb"]})),
        (
            "spec.cluster must be",
            "r",
            json!({"view": ["v"], "cluster": "Not a name"}),
        ),
        (
            "spec.manifestSecretRef and",
            "r",
            json!({"view": ["v"], "manifestChecksum": HASH}),
        ),
        (
            "spec.manifestSecretRef and",
            "r",
            json!({"view": ["v"], "manifestSecretRef": {"name": "s"}}),
        ),
        (
            "spec.manifestSecretRef.name must be",
            "r",
            json!({"view": ["v"], "manifestSecretRef": {"name": "my secret"}, "manifestChecksum": HASH}),
        ),
        (
            "spec.manifestChecksum must be",
            "r",
            json!({"view": ["v"], "manifestSecretRef": {"name": "s"}, "manifestChecksum": HASH.to_uppercase()}),
        ),
    ];
    for (begins, name, spec) in refreshes {
        let object = object::<MaterializedViewRefresh>(name, spec);
        let sentence = message(begins);
        let said = refused::<MaterializedViewRefresh>(&space, &object).await;
        assert!(said.contains(&sentence), "{object}: {said}");
        let ours: Vec<String> = validate::refresh(&object)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ours, [sentence], "{object}");
    }
    let longer = "c".repeat(64);
    let clusters = [
        (
            "metadata.name must have at most 63",
            longer.as_str(),
            json!({}),
        ),
        (
            "spec.defaultConcurrency must not",
            "c",
            json!({"defaultConcurrency": 9, "maxConcurrency": 8}),
        ),
        (
            "spec.defaultConcurrency must not",
            "c",
            json!({"defaultConcurrency": 65}),
        ),
        (
            "spec.activeDeadlineSeconds must not",
            "c",
            json!({"activeDeadlineSeconds": 9, "maxActiveDeadlineSeconds": 8}),
        ),
        (
            "spec.backoffLimit must not",
            "c",
            json!({"backoffLimit": 2, "maxBackoffLimit": 1}),
        ),
        (
            "spec.namespace is for",
            "c",
            json!({"namespace": "elsewhere"}),
        ),
        (
            "spec.namespace must be",
            "c",
            json!({"namespace": "Else.where", "kubeconfigSecretRef": {"name": "k"}}),
        ),
        (
            "spec.kubeconfigSecretRef.name must be",
            "c",
            json!({"kubeconfigSecretRef": {"name": "my secret"}}),
        ),
        (
            "spec.storageSecretRef.name must be",
            "c",
            json!({"storageSecretRef": {"name": "../tables"}}),
        ),
    ];
    for (begins, name, spec) in clusters {
        let object = object::<RefreshCluster>(name, spec);
        let sentence = message(begins);
        let said = refused::<RefreshCluster>(&space, &object).await;
        assert!(said.contains(&sentence), "{object}: {said}");
        let ours: Vec<String> = validate::cluster(&object)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ours, [sentence], "{object}");
    }
}

#[test]
fn every_cel_rule_is_known_to_these_tests() {
    let mut all = BTreeSet::new();
    messages(&schema::of::<MaterializedViewRefresh>(), &mut all);
    messages(&schema::of::<RefreshCluster>(), &mut all);
    let known: BTreeSet<String> = [
        // Judged when an object is created.
        "metadata.name must have at most 40",
        "metadata.name must have at most 63",
        "spec.view: a part",
        "spec.cluster must be",
        "spec.manifestSecretRef and",
        "spec.manifestSecretRef.name must be",
        "spec.manifestChecksum must be",
        "spec.defaultConcurrency must not",
        "spec.activeDeadlineSeconds must not",
        "spec.backoffLimit must not",
        "spec.namespace is for",
        "spec.namespace must be",
        "spec.kubeconfigSecretRef.name must be",
        "spec.storageSecretRef.name must be",
        // Judged when it changes.
        "spec may not change",
        "spec.cancel cannot",
        "status.phase is final",
    ]
    .into_iter()
    .map(message)
    .collect();
    assert_eq!(all, known);
}

/// The sentences that a REST client gets are those of the CRD.
#[tokio::test]
async fn rest_says_the_rules_sentence() {
    let world = World::new().await;
    let post = async |id: &str, body: &str| {
        let path = format!("/v1/materialized_view/{id}/refresh");
        world.server.post(&path, body.to_string()).await
    };
    for id in ["a%2Fb", "a%5Cb", "a%0Ab"] {
        assert_eq!(
            post(id, "").await.error(400, 13),
            message("spec.view: a part")
        );
    }
    let answer = post("v", r#"{"cluster": "Not a name"}"#).await;
    assert_eq!(answer.error(400, 13), message("spec.cluster must be"));
    assert_eq!(world.stored().await, 0);
}

#[tokio::test]
async fn what_was_asked_for_can_be_neither_changed_nor_added_to_nor_taken_from() {
    let space = Space::new().await;
    let sentence = message("spec may not change");
    let values = |field: &str| match field {
        "view" => (json!(["v"]), json!(["w"])),
        "cluster" => (json!("default"), json!("other")),
        "full" | "optimizeIndices" => (json!(false), json!(true)),
        "forwardedCredential" => (json!(true), json!(false)),
        "expectedIncarnation" => (json!("a"), json!("b")),
        "manifestSecretRef" => (json!({"name": "a"}), json!({"name": "b"})),
        "manifestChecksum" => (json!(HASH), json!(HASH.replace('b', "c"))),
        _ => (json!(1), json!(2)),
    };
    let mut full = serde_json::Map::new();
    for field in refresh::IMMUTABLE {
        full.insert(field.to_string(), values(field).0);
    }
    created(&space, "full", Value::Object(full)).await;
    created(&space, "bare", json!({"view": ["v"]})).await;
    for field in refresh::IMMUTABLE {
        let (value, other) = values(field);
        let changed = patched(&space, "full", json!({"spec": {field: other}})).await;
        assert!(
            changed.is_err_and(|said| said.contains(&sentence)),
            "{field} changed"
        );
        // Those with a default, or required, are never absent.
        if !["view", "cluster", "full", "optimizeIndices"].contains(&field) {
            let removed = patched(&space, "full", json!({"spec": {field: null}})).await;
            assert!(
                removed.is_err_and(|said| said.contains(&sentence)),
                "{field} removed"
            );
            let mut patch = json!({"spec": {field: value}});
            if field.starts_with("manifest") {
                patch = json!({"spec": {
                    "manifestSecretRef": values("manifestSecretRef").0,
                    "manifestChecksum": HASH,
                }});
            }
            let added = patched(&space, "bare", patch).await;
            assert!(
                added.is_err_and(|said| said.contains(&sentence)),
                "{field} added"
            );
        }
    }
    for (field, value) in [
        ("suspend", json!(true)),
        ("priority", json!(5)),
        ("ttlSecondsAfterFinished", json!(60)),
    ] {
        patched(&space, "bare", json!({"spec": {field: value}}))
            .await
            .unwrap_or_else(|said| panic!("{field} may change: {said}"));
    }
}

#[tokio::test]
async fn a_cancelled_refresh_stays_cancelled() {
    let space = Space::new().await;
    created(&space, "r", json!({"view": ["v"]})).await;
    patched(&space, "r", json!({"spec": {"cancel": true}}))
        .await
        .expect("may be cancelled");
    for taken_back in [json!(false), json!(null)] {
        let said = patched(&space, "r", json!({"spec": {"cancel": taken_back}})).await;
        assert!(said.is_err_and(|said| said.contains(&message("spec.cancel cannot"))));
    }
}

#[tokio::test]
async fn a_final_phase_is_final() {
    let space = Space::new().await;
    let sentence = message("status.phase is final");
    let status = async |name: &str, status: Value| {
        let patch = Patch::Merge(json!({"status": status}));
        let api = api::<MaterializedViewRefresh>(&space);
        api.patch_status(name, &PatchParams::default(), &patch)
            .await
            .map_err(|error| error.to_string())
    };
    for (index, last) in ["Succeeded", "Failed", "Cancelled"].into_iter().enumerate() {
        let name = format!("r{index}");
        created(&space, &name, json!({"view": ["v"]})).await;
        for phase in ["Queued", "Running", "Suspended", "Running", last] {
            status(&name, json!({"phase": phase}))
                .await
                .expect("not final yet");
        }
        status(&name, json!({"phase": last, "message": "told later"}))
            .await
            .expect("the same phase");
        for phase in [
            "Queued",
            "Running",
            "Suspended",
            "Succeeded",
            "Failed",
            "Cancelled",
        ] {
            if phase != last {
                let said = status(&name, json!({"phase": phase})).await;
                assert!(
                    said.is_err_and(|said| said.contains(&sentence)),
                    "{last} to {phase}"
                );
            }
        }
        let gone = status(&name, json!(null)).await;
        assert!(
            gone.is_err_and(|said| said.contains(&sentence)),
            "{last} to none"
        );
    }
    created(&space, "r", json!({"view": ["v"]})).await;
    let said = status("r", json!({"phase": "Done"})).await;
    assert!(said.is_err_and(|said| said.contains("status.phase: Unsupported value")));
}
