//! For each bound of the schemas a value that breaks it.

use kube::CustomResourceExt;
use relance::resources::{MaterializedViewRefresh, RefreshCluster, schema, validate};
use serde_json::{Value, json};

use crate::objects::{object, refused};
use crate::support::{Server, Space, World};

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
