//! How resources read back: to GitOps tools, to `kubectl get`, and to relance.

use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{CustomResourceExt, ResourceExt};
use relance::resources::{MaterializedViewRefresh, RefreshCluster};
use serde_json::{Value, json};

use crate::objects::{api, created, object, patched};
use crate::support::Space;

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
    let spelled = json!({"view": ["v"], "cluster": "default", "full": false, "optimizeIndices": false, "suspend": false, "cancel": false, "priority": 0});
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
