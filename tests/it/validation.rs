//! What the API server refuses, and that relance's own validator says the same.

use std::collections::BTreeSet;

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{CustomResourceExt, ResourceExt};
use relance::resources::{MaterializedViewRefresh, RefreshCluster, refresh, schema, validate};
use serde_json::{Value, json};

use crate::support::{Server, Space, World};

fn api<K: CustomResourceExt>(space: &Space) -> Api<DynamicObject> {
    let resource: ApiResource = K::api_resource();
    Api::namespaced_with(space.client.clone(), &space.namespace, &resource)
}

fn object<K: CustomResourceExt>(name: &str, spec: Value) -> Value {
    let resource = K::api_resource();
    json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// The API server's words on an object that it refuses.
async fn refused<K: CustomResourceExt>(space: &Space, object: &Value) -> String {
    let typed: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    match api::<K>(space).create(&PostParams::default(), &typed).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 422, "{object}: {status:?}");
            status.message.clone()
        }
        other => panic!("the API server takes {object}: {other:?}"),
    }
}

async fn patched(space: &Space, name: &str, patch: Value) -> Result<DynamicObject, String> {
    let api = api::<MaterializedViewRefresh>(space);
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(|error| error.to_string())
}

async fn created(space: &Space, name: &str, spec: Value) {
    let object = object::<MaterializedViewRefresh>(name, spec);
    let typed: DynamicObject = serde_json::from_value(object).expect("an object");
    api::<MaterializedViewRefresh>(space)
        .create(&PostParams::default(), &typed)
        .await
        .expect("the API server takes it");
}

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
        "spec.manifestChecksum must be",
        "spec.defaultConcurrency must not",
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
        "full" => (json!(false), json!(true)),
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
        if !["view", "cluster", "full"].contains(&field) {
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

/// One value that breaks each bound of the schema, beside its field's path.
fn violations(node: &Value, path: &[String], found: &mut Vec<(Vec<String>, Value, String)>) {
    let number = |key: &str| node[key].as_f64().map(|bound| bound as i64);
    let mut breaks = |value: Value, bound: String| found.push((path.to_vec(), value, bound));
    if let Some(least) = number("minimum") {
        breaks(json!(least - 1), format!("must be at least {least}"));
    }
    if let Some(most) = number("maximum") {
        breaks(json!(most + 1), format!("must be at most {most}"));
    }
    let sized = |size: i64| match node["type"].as_str() {
        Some("array") => json!(vec!["x"; size as usize]),
        _ => json!("x".repeat(size as usize)),
    };
    for key in ["minLength", "minItems"] {
        if let Some(least) = number(key) {
            breaks(sized(least - 1), format!("must have at least {least}"));
        }
    }
    for key in ["maxLength", "maxItems"] {
        if let Some(most) = number(key) {
            breaks(sized(most + 1), format!("must have at most {most}"));
        }
    }
    match node["type"].as_str() {
        Some("boolean") => breaks(json!("true"), "must be a boolean".to_string()),
        Some("integer") => breaks(json!("1"), "must be an integer".to_string()),
        Some("string") => breaks(json!(1), "must be a string".to_string()),
        Some("array") => breaks(json!("x"), "must be an array".to_string()),
        Some("object") => breaks(json!("x"), "must be an object".to_string()),
        _ => {}
    }
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        violations(child, &[path, std::slice::from_ref(name)].concat(), found);
    }
    if node["items"].is_object() {
        violations(
            &node["items"],
            &[path, &["[1]".to_string()]].concat(),
            found,
        );
    }
}

/// `value` at `path` below a spec that is good otherwise.
fn with(spec: &Value, path: &[String], value: Value) -> Value {
    let mut spec = spec.clone();
    let mut at = &mut spec;
    for step in path {
        if step == "[1]" {
            *at = json!(["x", null]);
            at = &mut at[1];
        } else {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[step.as_str()];
        }
    }
    *at = value;
    spec
}

async fn every_bound_holds<K: CustomResourceExt>(
    good: Value,
    check: fn(&Value) -> Vec<validate::Violation>,
) {
    let space = Space::new().await;
    let mut bounds = Vec::new();
    let schema = schema::of::<K>();
    for (name, child) in schema["properties"]["spec"]["properties"]
        .as_object()
        .expect("fields")
    {
        violations(child, std::slice::from_ref(name), &mut bounds);
    }
    assert!(bounds.len() > 20, "{}", bounds.len());
    for (path, value, bound) in bounds {
        let field = format!("spec.{}", path.join(".").replace(".[", "["));
        let object = object::<K>("r", with(&good, &path, value));
        let said = refused::<K>(&space, &object).await;
        assert!(said.contains(&field), "{field}: {said}");
        let ours = check(&object);
        assert!(
            ours.iter().any(|violation| violation.path == field
                && violation.to_string().starts_with(&format!("{field} "))
                && violation.to_string().contains(&bound)),
            "{field} {bound}: {ours:?}; the API server says {said}"
        );
    }
}

#[tokio::test]
async fn every_bound_of_a_refresh_is_held_by_the_api_server_and_by_the_validator() {
    let good = json!({"view": ["v"]});
    every_bound_holds::<MaterializedViewRefresh>(good, validate::refresh).await;
}

#[tokio::test]
async fn every_bound_of_a_cluster_is_held_by_the_api_server_and_by_the_validator() {
    every_bound_holds::<RefreshCluster>(json!({}), validate::cluster).await;
}

#[tokio::test]
async fn a_refresh_without_a_view_is_refused() {
    let space = Space::new().await;
    let object = object::<MaterializedViewRefresh>("r", json!({"cluster": "default"}));
    let said = refused::<MaterializedViewRefresh>(&space, &object).await;
    assert!(said.contains("spec.view: Required value"), "{said}");
    assert_eq!(
        validate::refresh(&object)[0].to_string(),
        "spec.view is missing"
    );
}

#[tokio::test]
async fn applying_the_same_yaml_again_changes_nothing_even_with_a_default_spelled_out() {
    let space = Space::new().await;
    let api = api::<MaterializedViewRefresh>(&space);
    let apply = async |spec: Value| {
        let object = object::<MaterializedViewRefresh>("r", spec);
        api.patch("r", &PatchParams::apply("gitops"), &Patch::Apply(&object))
            .await
            .expect("applies")
    };
    let first = apply(json!({"view": ["v"]})).await;
    // The first write after the creation stores the status's default, whoever makes it.
    let second = apply(json!({"view": ["v"]})).await;
    assert_eq!(first.metadata.generation, second.metadata.generation);
    let third = apply(json!({"view": ["v"]})).await;
    assert_eq!(second.resource_version(), third.resource_version());
    let spelled = json!({"view": ["v"], "cluster": "default", "full": false, "suspend": false, "cancel": false, "priority": 0});
    let nulled = json!({"view": ["v"], "full": null, "priority": null});
    for same in [spelled, nulled] {
        let applied = apply(same).await;
        assert_eq!(first.metadata.generation, applied.metadata.generation);
    }
    // Another manager's cancel is not undone by applying the YAML again.
    patched(&space, "r", json!({"spec": {"cancel": true}}))
        .await
        .expect("cancels");
    assert_eq!(
        apply(json!({"view": ["v"]})).await.data["spec"]["cancel"],
        true
    );
}

#[tokio::test]
async fn a_refresh_reads_well_before_any_controller_has_seen_it() {
    let space = Space::new().await;
    created(&space, "r", json!({"view": ["sales", "by_day"]})).await;
    let resource = MaterializedViewRefresh::api_resource();
    let url = format!(
        "/apis/{}/namespaces/{}/{}",
        resource.api_version, space.namespace, resource.plural
    );
    let request = http(&url).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table: Value = space
        .client
        .request(request.body(Vec::new()).expect("a request"))
        .await
        .expect("a table");
    let cells: Vec<(&str, i64, &Value)> = table["columnDefinitions"]
        .as_array()
        .expect("columns")
        .iter()
        .zip(table["rows"][0]["cells"].as_array().expect("cells"))
        .map(|(column, cell)| {
            (
                column["name"].as_str().expect("a name"),
                column["priority"].as_i64().unwrap_or(0),
                cell,
            )
        })
        .collect();
    let narrow: Vec<&str> = cells
        .iter()
        .filter(|cell| cell.1 == 0)
        .map(|cell| cell.0)
        .collect();
    assert_eq!(
        narrow,
        [
            "Name",
            "View",
            "Cluster",
            "Phase",
            "Progress",
            "Mode",
            "Rows",
            "Source Version",
            "Age"
        ]
    );
    let cell = |name: &str| cells.iter().find(|cell| cell.0 == name).map(|cell| cell.2);
    assert_eq!(cell("View"), Some(&json!("by_day")));
    assert_eq!(cell("Path"), Some(&json!(r#"["sales","by_day"]"#)));
    assert_eq!(cell("Cluster"), Some(&json!("default")));
    assert_eq!(cell("Phase"), Some(&json!("Queued")));

    let selected =
        |phase: &str| kube::api::ListParams::default().fields(&format!("status.phase={phase}"));
    let queued = space
        .refreshes
        .list(&selected("Queued"))
        .await
        .expect("phase is selectable");
    assert_eq!(queued.items.len(), 1);
    assert_eq!(
        queued.items[0]
            .status
            .as_ref()
            .and_then(|s| s.observed_generation),
        Some(-1)
    );
    assert!(
        space
            .refreshes
            .list(&selected("Running"))
            .await
            .expect("phase is selectable")
            .items
            .is_empty()
    );
}

fn http(url: &str) -> axum::http::request::Builder {
    axum::http::Request::get(url)
}

/// A typed template would stop a watch of all clusters; a patch only makes its own cluster not ready.
#[tokio::test]
async fn any_part_of_a_pod_template_is_taken_and_a_wrong_one_is_told_when_it_is_read() {
    let space = Space::new().await;
    let cluster = async |name: &str, template: Value| {
        let object = object::<RefreshCluster>(name, json!({"template": template}));
        let typed: DynamicObject = serde_json::from_value(object).expect("an object");
        let api = api::<RefreshCluster>(&space);
        api.create(&PostParams::default(), &typed)
            .await
            .expect("taken");
        let read = space.clusters.get(name).await.expect("readable");
        read.spec.template.expect("a template").typed()
    };
    let partial = json!({
        "metadata": {"labels": {"team": "a"}},
        "spec": {"nodeSelector": {"disk": "fast"}, "containers": [{"name": "worker", "resources": {"limits": {"memory": "2Gi"}}}]},
    });
    let typed = cluster("good", partial)
        .await
        .expect("a part of a template");
    assert_eq!(typed.spec.expect("a spec").containers[0].name, "worker");
    let said = cluster("bad", json!({"spec": {"containers": "none"}}))
        .await
        .expect_err("no template");
    assert!(
        said.starts_with("spec.template is no part of a pod template"),
        "{said}"
    );
    assert_eq!(
        space
            .clusters
            .list(&Default::default())
            .await
            .expect("a list")
            .items
            .len(),
        2
    );
}

/// REST's own words for a bound name the field as the request does.
#[tokio::test]
async fn rest_names_the_field_and_the_bound() {
    let world = World::new().await;
    let refused = async |server: &Server, body: Value| {
        let answer = server
            .post("/v1/materialized_view/v/refresh", body.to_string())
            .await;
        answer.error(400, 13).to_string()
    };
    for (field, value, rest) in [
        ("src_version", json!(0), "is 0 and must be at least 1"),
        ("source_version", json!(-4), "is -4 and must be at least 1"),
        (
            "max_rows_per_fragment",
            json!(0),
            "is 0 and must be at least 1",
        ),
        (
            "concurrency",
            json!(1001),
            "is 1001 and must be at most 1000",
        ),
        (
            "intra_applier_concurrency",
            json!(2.5),
            "is 2.5 and must be an integer",
        ),
        (
            "source_task_size",
            json!("64"),
            "is a string and must be an integer",
        ),
        (
            "output_limit",
            json!([]),
            "is an array and must be an integer",
        ),
        ("cluster", json!(7), "is 7 and must be a string"),
        ("full", json!(1), "is 1 and must be a boolean"),
        (
            "expected_incarnation",
            json!(""),
            "has 0 characters and must have at least 1",
        ),
        (
            "id",
            json!({}),
            "is an object and must be an array of strings",
        ),
        (
            "context",
            json!("x"),
            "is a string and must be an object of strings",
        ),
        ("identity", json!("x"), "is a string and must be an object"),
        ("manifest", json!({}), "is an object and must be a string"),
    ] {
        let said = refused(&world.server, json!({field: value})).await;
        assert_eq!(said, format!("{field} {rest}"));
    }
    assert_eq!(world.stored().await, 0);
}
