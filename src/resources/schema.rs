//! The CustomResourceDefinitions, as the API server gets them and as `crds/`
//! holds them.
//!
//! kube's derive makes them from the types; what the derive cannot say is put
//! right here: no field is `nullable` (a null that is kept would be one more
//! way of saying nothing, which the immutability rule would tell from the
//! other), and a resource that no controller has seen reads as such.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{MaterializedViewRefresh, RefreshCluster};

/// All CustomResourceDefinitions, in the order in which `relance crds` prints them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        crd::<MaterializedViewRefresh>(json!({"observedGeneration": -1, "phase": "Queued"})),
        crd::<RefreshCluster>(json!({"observedGeneration": -1, "active": 0, "queued": 0})),
    ]
}

/// The OpenAPI schema of a resource's whole object; null for a kind that is not ours.
pub fn of<K: CustomResourceExt>() -> Value {
    crds()
        .into_iter()
        .find(|crd| crd.metadata.name.as_deref() == Some(K::crd_name()))
        .and_then(|crd| crd.spec.versions.into_iter().next()?.schema)
        .and_then(|schema| serde_json::to_value(schema.open_api_v3_schema?).ok())
        .unwrap_or(Value::Null)
}

/// The definitions by name, each as YAML.
pub fn yaml() -> Result<Vec<(String, String)>, Box<dyn std::error::Error>> {
    crds()
        .into_iter()
        .map(|crd| {
            let name = crd.metadata.name.clone().unwrap_or_default();
            let value = whole_numbers(serde_json::to_value(crd)?);
            Ok((name, serde_yaml::to_string(&value)?))
        })
        .collect()
}

/// The typed schema holds bounds as floats; people write `1`, not `1.0`.
fn whole_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 => (float as i64).into(),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(whole_numbers).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, whole_numbers(value)))
            .collect(),
        other => other,
    }
}

fn crd<K: CustomResourceExt>(unseen: Value) -> CustomResourceDefinition {
    let mut crd = K::crd();
    for version in &mut crd.spec.versions {
        let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
        else {
            continue;
        };
        walk(schema, &|node| node.nullable = None);
        if let Some(status) = schema
            .properties
            .as_mut()
            .and_then(|properties| properties.get_mut("status"))
        {
            status.default = Some(
                k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON(
                    unseen.clone(),
                ),
            );
        }
    }
    crd
}

type Node = k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

fn walk(node: &mut Node, change: &impl Fn(&mut Node)) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    };
    change(node);
    for child in node.properties.iter_mut().flat_map(|p| p.values_mut()) {
        walk(child, change);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(child)) = &mut node.items {
        walk(child, change);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(child)) = &mut node.additional_properties {
        walk(child, change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undescribed(node: &Value, path: &str, found: &mut Vec<String>) {
        for (name, child) in node["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if child["description"].as_str().is_none_or(str::is_empty) && path != ".metadata" {
                found.push(path.clone());
            }
            undescribed(child, &path, found);
        }
        if node["items"].is_object() {
            undescribed(&node["items"], &format!("{path}[]"), found);
        }
    }

    #[test]
    fn every_field_has_a_description() {
        for schema in [of::<MaterializedViewRefresh>(), of::<RefreshCluster>()] {
            let mut found = Vec::new();
            undescribed(&schema, "", &mut found);
            assert!(found.is_empty(), "without a description: {found:?}");
        }
    }

    /// `RELANCE_UPDATE=1 cargo test crds_folder` rewrites the folder.
    #[test]
    fn the_crds_folder_holds_what_the_types_say() {
        let folder = std::path::Path::new("crds");
        let definitions = yaml().expect("serializes");
        for (name, definition) in &definitions {
            let file = folder.join(format!("{name}.yaml"));
            if std::env::var_os("RELANCE_UPDATE").is_some() {
                std::fs::write(&file, definition).expect("writable");
            }
            let held = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(
                held == *definition,
                "{} is not what the types say: run RELANCE_UPDATE=1 cargo test crds_folder",
                file.display()
            );
        }
        let files = std::fs::read_dir(folder).expect("readable").count();
        assert_eq!(files, definitions.len(), "crds/ holds files of no type");
    }

    #[test]
    fn a_definition_is_small_enough_for_client_side_apply() {
        for crd in crds() {
            let bytes = serde_json::to_vec(&crd).expect("serializes").len();
            assert!(bytes < 262_144, "{bytes} bytes");
        }
    }
}
