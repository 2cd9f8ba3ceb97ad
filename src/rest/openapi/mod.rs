//! `GET /openapi.yaml`: the document of what relance answers.
//!
//! It is the part of the Lance Namespace document that relance answers
//! (`lance-namespace.yaml`, word for word), with `relance.yaml` merged over it,
//! filtered by the route table: an operation that is not in the table is not
//! in the document, and what all operations of the table share is added from
//! it. A test holds that nothing of the table is missing.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::error::ApiError;
use super::routes::{OPERATIONS, Operation};
use crate::resources::names;

const SPECIFICATION: &str = include_str!("lance-namespace.yaml");
const OWN: &str = include_str!("relance.yaml");

/// The media type of YAML (RFC 9512).
const YAML: &str = "application/yaml";

/// Says what an operation asks of Kubernetes RBAC.
const PERMISSIONS: &str = "x-kubernetes-permissions";

/// The document cannot be put together. A bug, which a test would find.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// One of its parts is no YAML.
    #[error("the OpenAPI document cannot be put together: {0}")]
    Yaml(#[from] serde_yaml::Error),
}

/// Answers with the document.
pub async fn document() -> Result<impl IntoResponse, ApiError> {
    static DOCUMENT: LazyLock<Result<String, String>> = LazyLock::new(|| {
        let text = build().and_then(|document| Ok(serde_yaml::to_string(&document)?));
        text.map_err(|error| error.to_string())
    });
    match &*DOCUMENT {
        Ok(text) => Ok(([(header::CONTENT_TYPE, YAML)], text.as_str())),
        Err(error) => Err(ApiError::Internal(error.clone())),
    }
}

/// The document.
pub fn build() -> Result<Value, DocumentError> {
    let mut document: Value = serde_yaml::from_str(SPECIFICATION)?;
    merge(&mut document, serde_yaml::from_str(OWN)?);
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    if let Some(paths) = document["paths"].as_object_mut() {
        paths.retain(|path, item| keep(path, item));
    }
    drop_unused(&mut document);
    Ok(document)
}

/// A JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.shift_remove(&key);
            }
            value => merge(target.entry(key).or_insert(Value::Null), value),
        }
    }
}

/// Keeps the operations of `item` that are in the route table, and says whether
/// there are any.
fn keep(path: &str, item: &mut Value) -> bool {
    let Some(item) = item.as_object_mut() else {
        return false;
    };
    item.retain(|method, operation| {
        method == "parameters"
            || OPERATIONS.iter().any(|known| {
                let same = known.path == path
                    && known.method.as_str().eq_ignore_ascii_case(method)
                    && operation["operationId"] == known.id;
                if same {
                    complete(operation, known);
                }
                same
            })
    });
    item.keys().any(|key| key != "parameters")
}

/// Adds what the route table says of an operation.
fn complete(operation: &mut Value, known: &Operation) {
    let mut refusals: Vec<(&str, &str)> = Vec::new();
    if known.method == axum::http::Method::POST {
        refusals.extend([
            (
                "400",
                "The request is malformed, or asks for what cannot be.",
            ),
            ("408", "The body took too long to arrive."),
            ("413", "The body is too large."),
            ("415", "The body is compressed."),
        ]);
    }
    if let Some(asks) = known.asks {
        refusals.extend([
            ("401", "Nobody, or nobody whom relance knows, asks."),
            (
                "403",
                "Kubernetes RBAC does not allow the caller to do this.",
            ),
        ]);
        operation["security"] = json!([{"BearerAuth": []}, {"ApiKeyAuth": []}]);
        let mut permissions = vec![format!("{} {}", asks.verb.as_str(), names::REFRESHES)];
        if asks.uses_cluster {
            permissions.push(format!("use {}", names::CLUSTERS));
        }
        operation[PERMISSIONS] = json!(permissions);
    } else {
        operation["security"] = json!([]);
    }
    refusals.extend([
        ("429", "Too much was asked at once; Retry-After says when to come again."),
        ("500", "A bug."),
        ("503", "The catalog or the Kubernetes API does not answer; Retry-After says when to come again."),
    ]);
    let error =
        json!({"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}});
    let Some(responses) = operation["responses"].as_object_mut() else {
        return;
    };
    for (status, description) in refusals {
        responses.insert(status.to_string(), json!({"description": description}));
    }
    for (status, response) in responses.iter_mut() {
        if !status.starts_with('2') {
            if let Some(response) = response.as_object_mut() {
                response.remove("$ref");
            }
            response["content"] = error.clone();
        }
        if ["429", "503"].contains(&status.as_str()) {
            response["headers"] = json!({"Retry-After": {
                "description": "Seconds after which to try again.",
                "schema": {"type": "integer", "minimum": 0},
            }});
        }
    }
    responses.sort_keys();
}

/// Removes the components that nothing refers to any more.
fn drop_unused(document: &mut Value) {
    let Some(mut components) = document
        .as_object_mut()
        .and_then(|document| document.shift_remove("components"))
    else {
        return;
    };
    let mut used = BTreeSet::new();
    let mut open = references(document);
    while let Some(reference) = open.pop() {
        if let Some(target) = reference
            .strip_prefix("#/components")
            .and_then(|pointer| components.pointer(pointer))
        {
            let inner = references(target);
            if used.insert(reference) {
                open.extend(inner);
            }
        }
    }
    if let Some(kinds) = components.as_object_mut() {
        for (kind, named) in kinds.iter_mut() {
            // These are referred to by name.
            if kind == "securitySchemes" {
                continue;
            }
            if let Some(named) = named.as_object_mut() {
                named.retain(|name, _| used.contains(&format!("#/components/{kind}/{name}")));
            }
        }
        kinds.retain(|_, named| named.as_object().is_some_and(|named| !named.is_empty()));
    }
    document["components"] = components;
}

/// Every `$ref` in `value`.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(reference)) => vec![reference.clone()],
                (_, value) => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_nothing_else_is() {
        let document = build().unwrap();
        let mut told = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if method != "parameters" {
                    let id = operation["operationId"].as_str().unwrap();
                    told.insert(format!("{} {path} {id}", method.to_uppercase()));
                }
            }
        }
        let served: BTreeSet<String> = OPERATIONS
            .iter()
            .map(|o| format!("{} {} {}", o.method, o.path, o.id))
            .collect();
        assert_eq!(told, served);
    }

    #[test]
    fn an_operation_that_is_not_in_the_table_is_not_in_the_document() {
        let mut item =
            json!({"parameters": [], "post": {"operationId": "DropTable", "responses": {}}});
        assert!(!keep("/v1/table/{id}/drop", &mut item));
        let mut item = json!({"get": {"operationId": "DescribeJob", "responses": {}}});
        assert!(!keep("/v1/jobs/describe", &mut item), "another method");
    }

    #[test]
    fn every_reference_resolves_and_every_component_is_referred_to() {
        let document = build().unwrap();
        let references: BTreeSet<String> = references(&document).into_iter().collect();
        for reference in &references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for (kind, named) in document["components"].as_object().unwrap() {
            for name in named.as_object().unwrap().keys() {
                assert!(
                    kind == "securitySchemes"
                        || references.contains(&format!("#/components/{kind}/{name}")),
                    "{kind}/{name}"
                );
            }
        }
    }

    #[test]
    fn every_path_parameter_is_described_and_every_answer_but_the_good_one_is_an_error() {
        let document = build().unwrap();
        for (path, item) in document["paths"].as_object().unwrap() {
            assert_eq!(
                path.contains("{id}"),
                item.get("parameters").is_some(),
                "{path}"
            );
            for (method, operation) in item.as_object().unwrap() {
                if method == "parameters" {
                    continue;
                }
                let responses = operation["responses"].as_object().unwrap();
                let good = responses.keys().filter(|status| status.starts_with('2'));
                assert_eq!(good.count(), 1, "{path}");
                for (status, response) in responses {
                    assert!(status.parse::<u16>().is_ok(), "{path}: {status}");
                    if !status.starts_with('2') {
                        let content = &response["content"]["application/json"]["schema"]["$ref"];
                        assert_eq!(content, "#/components/schemas/ErrorResponse", "{path}");
                        assert!(response["description"].is_string(), "{path}: {status}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_fields_of_a_refresh_are_those_that_are_read() {
        let document = build().unwrap();
        let schema = &document["components"]["schemas"]["RefreshMaterializedViewRequest"];
        let told: BTreeSet<&str> = schema["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let read: BTreeSet<&str> = super::super::fields::names()
            .chain(["id", "identity", "context", "manifest"])
            .collect();
        assert_eq!(told, read);
    }
}
