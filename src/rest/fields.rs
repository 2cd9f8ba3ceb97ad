//! From a refresh request's fields to a spec.
//!
//! The fields are copied as they are into the resource's JSON, and the CRD's
//! own rules then judge types and ranges, so that REST and `kubectl apply`
//! refuse the same things. Unknown fields are ignored, by the spec's word.

use serde_json::{Map, Value, json};

use super::body::{JsonBody, wrong_type};
use super::error::ApiError;
use crate::resources::refresh::KEPT_SECONDS;
use crate::resources::{MaterializedViewRefreshSpec, names, validate};

/// The request's name of a field, and the resource's.
const FIELDS: [(&str, &str); 10] = [
    ("src_version", "srcVersion"),
    ("full", "full"),
    ("expected_incarnation", "expectedIncarnation"),
    ("max_rows_per_fragment", "maxRowsPerFragment"),
    ("concurrency", "concurrency"),
    ("intra_applier_concurrency", "intraApplierConcurrency"),
    ("source_task_size", "sourceTaskSize"),
    ("output_limit", "outputLimit"),
    ("optimize_indices", "optimizeIndices"),
    ("cluster", "cluster"),
];

/// What stock `lancedb` clients call `src_version`.
const SOURCE_VERSION: &str = "source_version";

/// What the request may say about how to refresh.
pub fn names() -> impl Iterator<Item = &'static str> {
    FIELDS
        .iter()
        .map(|(theirs, _)| *theirs)
        .chain([SOURCE_VERSION])
}

/// The spec of refresh `name`, which relance has made, that a request asks for:
/// of a view that breaks no rule ([`check_view`]), with `manifest` being the
/// checksum of an inline Geneva manifest.
pub fn spec(
    name: &str,
    view: &[String],
    body: &JsonBody,
    manifest: Option<&str>,
) -> Result<MaterializedViewRefreshSpec, ApiError> {
    check_id(view, body)?;
    check_context(body)?;
    let mut spec = Map::from_iter([("ttlSecondsAfterFinished".to_string(), json!(KEPT_SECONDS))]);
    for (theirs, ours) in FIELDS {
        if let Some(value) = body.get(theirs) {
            spec.insert(ours.to_string(), value.clone());
        }
    }
    let src_version = body.get("src_version");
    if let Some(value) = body.get(SOURCE_VERSION) {
        if src_version.is_some_and(|other| other != value) {
            return Err(ApiError::InvalidInput(
                "source_version and src_version differ, and mean the same; give one of them".into(),
            ));
        }
        spec.insert("srcVersion".to_string(), value.clone());
    }
    if let Some(checksum) = manifest {
        spec.insert(
            "manifestSecretRef".to_string(),
            json!({"name": names::manifest_secret(name)}),
        );
        spec.insert("manifestChecksum".to_string(), json!(checksum));
    }
    if let Some(violation) = validate::beside_view(&spec).first() {
        let field = request_name(&violation.path, src_version.is_none());
        return Err(ApiError::InvalidInput(violation.sentence(&field)));
    }
    spec.insert("view".to_string(), json!(view));
    serde_json::from_value(Value::Object(spec))
        .map_err(|error| ApiError::InvalidInput(format!("the request's body is wrong: {error}")))
}

/// Holds an identifier path against the rules for `spec.view`: also where it is
/// only to be described, since no name that breaks them can be refreshed.
pub fn check_view(view: &[String]) -> Result<(), ApiError> {
    match validate::view(&json!(view)).first() {
        None => Ok(()),
        Some(wrong) => Err(ApiError::InvalidInput(
            wrong.sentence(&request_name(&wrong.path, false)),
        )),
    }
}

/// What the request calls the field at `path` of the resource.
fn request_name(path: &str, by_lancedb: bool) -> String {
    let path = path.strip_prefix("spec.").unwrap_or(path);
    if let Some(index) = path.strip_prefix("view") {
        return format!("id{index}");
    }
    FIELDS
        .iter()
        .find(|(_, ours)| *ours == path)
        .map(|(theirs, _)| match *theirs {
            "src_version" if by_lancedb => SOURCE_VERSION,
            theirs => theirs,
        })
        .unwrap_or(path)
        .to_string()
}

fn check_id(view: &[String], body: &JsonBody) -> Result<(), ApiError> {
    let Some(value) = body.get("id") else {
        return Ok(());
    };
    let Some(parts) = value.as_array() else {
        return Err(wrong_type("id", value, "an array of strings"));
    };
    if let Some((index, other)) = parts.iter().enumerate().find(|(_, part)| !part.is_string()) {
        return Err(wrong_type(&format!("id[{index}]"), other, "a string"));
    }
    if !parts.iter().filter_map(Value::as_str).eq(view) {
        return Err(ApiError::InvalidInput(format!(
            "id is {value} in the body and {} in the path; leave it out of the body",
            json!(view)
        )));
    }
    Ok(())
}

fn check_context(body: &JsonBody) -> Result<(), ApiError> {
    let Some(value) = body.get("context") else {
        return Ok(());
    };
    let Some(entries) = value.as_object() else {
        return Err(wrong_type("context", value, "an object of strings"));
    };
    match entries.iter().find(|(_, entry)| !entry.is_string()) {
        Some((key, entry)) => Err(wrong_type(&format!("context['{key}']"), entry, "a string")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> Vec<String> {
        vec!["ns".to_string(), "v".to_string()]
    }

    fn ask(body: Value) -> Result<MaterializedViewRefreshSpec, String> {
        let body = JsonBody(body.as_object().expect("an object").clone());
        spec("r", &view(), &body, None).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_request_asks_for_the_view_and_a_week() {
        let mut expected = MaterializedViewRefreshSpec::of(view());
        expected.ttl_seconds_after_finished = Some(604_800);
        assert_eq!(ask(json!({})), Ok(expected));
    }

    #[test]
    fn every_field_reaches_the_spec() {
        let spec = ask(json!({
            "id": ["ns", "v"], "src_version": 7, "full": true, "expected_incarnation": "i",
            "max_rows_per_fragment": 1000, "concurrency": 3, "intra_applier_concurrency": 2,
            "source_task_size": 64, "output_limit": 10, "optimize_indices": true, "cluster": "big",
            "identity": {"api_key": "hush"}, "context": {"header.x": "y"}, "unknown": {"a": 1},
        }))
        .expect("good");
        let mut expected = MaterializedViewRefreshSpec::of(view());
        expected.src_version = Some(7);
        expected.full = true;
        expected.expected_incarnation = Some("i".into());
        expected.max_rows_per_fragment = Some(1000);
        expected.concurrency = Some(3);
        expected.intra_applier_concurrency = Some(2);
        expected.source_task_size = Some(64);
        expected.output_limit = Some(10);
        expected.optimize_indices = true;
        expected.cluster = "big".into();
        expected.ttl_seconds_after_finished = Some(604_800);
        assert_eq!(spec, expected);
    }

    #[test]
    fn explicit_nulls_ask_for_nothing() {
        let nulls: Map<String, Value> = FIELDS
            .iter()
            .map(|(name, _)| *name)
            .chain(["id", "identity", "context", "manifest", SOURCE_VERSION])
            .map(|name| (name.to_string(), Value::Null))
            .collect();
        assert_eq!(ask(Value::Object(nulls)), ask(json!({})));
    }

    #[test]
    fn a_sentence_names_the_field_as_the_request_does() {
        for (body, sentence) in [
            (
                json!({"concurrency": 0}),
                "concurrency is 0 and must be at least 1",
            ),
            (
                json!({"concurrency": 5_000_000_000i64}),
                "concurrency is 5000000000 and must be at most 1000",
            ),
            (
                json!({"intra_applier_concurrency": "2"}),
                "intra_applier_concurrency is a string and must be an integer",
            ),
            (
                json!({"src_version": 1.5}),
                "src_version is 1.5 and must be an integer",
            ),
            (
                json!({"src_version": -1}),
                "src_version is -1 and must be at least 1",
            ),
            (
                json!({"source_version": 0}),
                "source_version is 0 and must be at least 1",
            ),
            (
                json!({"src_version": u64::MAX}),
                "src_version is 18446744073709551615 and must be at most 9223372036854775807",
            ),
            (
                json!({"full": "yes"}),
                "full is a string and must be a boolean",
            ),
            (
                json!({"cluster": ""}),
                "cluster has 0 characters and must have at least 1",
            ),
            (
                json!({"cluster": ["a"]}),
                "cluster is an array and must be a string",
            ),
            (
                json!({"output_limit": true}),
                "output_limit is a boolean and must be an integer",
            ),
            (
                json!({"id": "v"}),
                "id is a string and must be an array of strings",
            ),
            (json!({"id": ["ns", 3]}), "id[1] is 3 and must be a string"),
            (
                json!({"context": {"a": 1}}),
                "context['a'] is 1 and must be a string",
            ),
            (
                json!({"context": []}),
                "context is an array and must be an object of strings",
            ),
            (
                json!({"src_version": 1, "source_version": 2}),
                "source_version and src_version differ, and mean the same; give one of them",
            ),
            (
                json!({"id": ["v"]}),
                r#"id is ["v"] in the body and ["ns","v"] in the path; leave it out of the body"#,
            ),
        ] {
            assert_eq!(ask(body.clone()).unwrap_err(), sentence, "{body}");
        }
        assert!(ask(json!({"src_version": 2, "source_version": 2})).is_ok());
    }
}
