//! Newer definitions over older ones: what is stored stays, and what is new is
//! to be had. Under a group of its own, since no other test may see the
//! definitions change.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use relance::resources::schema;
use serde_json::{Value, json};

use crate::support::Space;

const GROUP: &str = "upgrade.relance.dev";

/// The definition of refreshes in this group, as it is now.
fn now() -> Value {
    let crds = schema::crds();
    let crd = crds
        .iter()
        .find(|crd| crd.spec.names.kind == "MaterializedViewRefresh")
        .unwrap();
    let mut crd = serde_json::to_value(crd).unwrap();
    crd["metadata"]["name"] = format!(
        "{}.{GROUP}",
        crd["spec"]["names"]["plural"].as_str().unwrap()
    )
    .into();
    crd["spec"]["group"] = GROUP.into();
    // Short names and categories are the original's.
    crd["spec"]["names"]["shortNames"] = json!([]);
    crd["spec"]["names"]["categories"] = json!([]);
    crd
}

/// The same before indices were known: without a field of the spec, one of the
/// status and the rules that speak of it.
fn before() -> Value {
    let mut crd = now();
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let spec = &mut schema["spec"];
    let removed = spec["properties"]
        .as_object_mut()
        .unwrap()
        .remove("optimizeIndices");
    assert!(removed.is_some());
    for rule in spec["x-kubernetes-validations"].as_array_mut().unwrap() {
        let parts: Vec<&str> = rule["rule"].as_str().unwrap().split(" && ").collect();
        let without: Vec<&str> = parts
            .into_iter()
            .filter(|part| !part.contains("optimizeIndices"))
            .collect();
        rule["rule"] = without.join(" && ").into();
    }
    let removed = schema["status"]["properties"]
        .as_object_mut()
        .unwrap()
        .remove("unindexedRows");
    assert!(removed.is_some());
    let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array_mut();
    columns
        .unwrap()
        .retain(|column| column["name"] != "Unindexed");
    crd
}

async fn install(space: &Space, crd: &Value) {
    let definitions: Api<CustomResourceDefinition> = Api::all(space.client.clone());
    let name = crd["metadata"]["name"].as_str().unwrap();
    let force = PatchParams::apply("relance-tests").force();
    definitions
        .patch(name, &force, &Patch::Apply(crd))
        .await
        .unwrap();
    kube_runtime::wait::await_condition(
        definitions,
        name,
        kube_runtime::wait::conditions::is_crd_established(),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn newer_definitions_keep_what_older_ones_stored_and_add_what_is_new() {
    let space = Space::new().await;
    install(&space, &before()).await;
    let kind = GroupVersionKind::gvk(GROUP, "v1alpha1", "MaterializedViewRefresh");
    let resource = ApiResource::from_gvk_with_plural(&kind, "materializedviewrefreshes");
    let refreshes: Api<DynamicObject> =
        Api::namespaced_with(space.client.clone(), &space.namespace, &resource);
    let refresh =
        |name: &str, spec: Value| DynamicObject::new(name, &resource).data(json!({ "spec": spec }));
    let post = PostParams::default();
    let made = |name: &'static str, spec: Value| {
        let refresh = refresh(name, spec);
        let refreshes = refreshes.clone();
        async move {
            for _ in 0..100 {
                // The routes come a moment after the definition.
                match refreshes.create(&PostParams::default(), &refresh).await {
                    Ok(made) => return made,
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => panic!("{error}"),
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            panic!("the definition is not served");
        }
    };
    let spec = json!({"view": ["sales", "daily"], "srcVersion": 7, "priority": 3, "full": true});
    made("ended", spec).await;
    made("waits", json!({"view": ["v"]})).await;
    let status = json!({"status": {
        "phase": "Succeeded",
        "message": "done",
        "sourceVersion": 7,
        "progress": {"unitsDone": 1, "unitsTotal": 1, "rowsWritten": 2, "bytesWritten": 3, "summary": "1/1"},
        "conditions": [{"type": "Complete", "status": "True", "reason": "Refreshed", "message": "done", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    let params = PatchParams::default();
    refreshes
        .patch_status("ended", &params, &Patch::Merge(&status))
        .await
        .unwrap();
    let old = refreshes.get("ended").await.unwrap();

    install(&space, &now()).await;
    // The new field is taken once the API server serves the new schema.
    let mut taken = false;
    for at in 0..100 {
        let name = format!("new-{at}");
        let made = refreshes
            .create(
                &post,
                &refresh(&name, json!({"view": ["v"], "optimizeIndices": true})),
            )
            .await
            .unwrap();
        taken = made.data["spec"]["optimizeIndices"] == true;
        if taken {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(taken, "the new field is not kept");
    let kept = refreshes.get("ended").await.unwrap();
    assert_eq!(kept.data["status"], old.data["status"]);
    assert_eq!(kept.metadata.uid, old.metadata.uid);
    let mut expected = old.data["spec"].clone();
    // A default of the new schema is told of old objects too.
    expected["optimizeIndices"] = false.into();
    assert_eq!(kept.data["spec"], expected);
    // Old objects can be written to, and their rules hold.
    let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
    refreshes.patch("waits", &params, &cancel).await.unwrap();
    let running = Patch::Merge(json!({"status": {"phase": "Running"}}));
    let refused = refreshes.patch_status("ended", &params, &running).await;
    assert!(refused.unwrap_err().to_string().contains("final"));
    let definitions: Api<CustomResourceDefinition> = Api::all(space.client.clone());
    let name = format!("materializedviewrefreshes.{GROUP}");
    definitions
        .delete(&name, &Default::default())
        .await
        .unwrap();
}
