//! Objects of the two resources as plain JSON, so that wrong ones can be written too.

use kube::CustomResourceExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use relance::resources::MaterializedViewRefresh;
use serde_json::{Value, json};

use crate::support::Space;

pub fn api<K: CustomResourceExt>(space: &Space) -> Api<DynamicObject> {
    let resource: ApiResource = K::api_resource();
    Api::namespaced_with(space.client.clone(), &space.namespace, &resource)
}

pub fn object<K: CustomResourceExt>(name: &str, spec: Value) -> Value {
    let resource = K::api_resource();
    json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// The API server's words on an object that it refuses.
pub async fn refused<K: CustomResourceExt>(space: &Space, object: &Value) -> String {
    let typed: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    match api::<K>(space).create(&PostParams::default(), &typed).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 422, "{object}: {status:?}");
            status.message.clone()
        }
        other => panic!("the API server takes {object}: {other:?}"),
    }
}

pub async fn patched(space: &Space, name: &str, patch: Value) -> Result<DynamicObject, String> {
    let api = api::<MaterializedViewRefresh>(space);
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(|error| error.to_string())
}

pub async fn created(space: &Space, name: &str, spec: Value) {
    let object = object::<MaterializedViewRefresh>(name, spec);
    let typed: DynamicObject = serde_json::from_value(object).expect("an object");
    api::<MaterializedViewRefresh>(space)
        .create(&PostParams::default(), &typed)
        .await
        .expect("the API server takes it");
}
