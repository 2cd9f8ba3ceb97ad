//! The rules of a CustomResourceDefinition, run without an API server: first
//! the schema's bounds, then its CEL rules, in the words in which the API
//! server says them where those words are ours.
//!
//! Transition rules (those that compare with what was before) are the API
//! server's alone.

use std::sync::LazyLock;

use kube::core::cel::{CompiledSchema, ErrorKind, Validator, apply_defaults, compile_schema};
use moka::sync::Cache;
use serde_json::{Map, Value, json};

use super::rules::Quick;
use super::{MaterializedViewRefresh, schema};

/// How many specs are remembered that break no rule, and of how many bytes.
const MOST_KNOWN: u64 = 1_000;
const LONGEST_KNOWN: usize = 1_024;

/// A rule that an object breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where, such as `spec.concurrency` or `spec.view[1]`.
    pub path: String,
    /// A CEL rule's own message, which is a whole sentence, or what is wrong
    /// with the field at `path`, to be read after the field's name.
    pub problem: Problem,
}

/// What a [`Violation`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A CEL rule's message.
    Rule(String),
    /// A bound of the schema, such as `is 0 and must be at least 1`.
    Bound(String),
}

impl Violation {
    /// The sentence, with the field called `name`.
    pub fn sentence(&self, name: &str) -> String {
        match &self.problem {
            Problem::Rule(message) => message.clone(),
            Problem::Bound(problem) => format!("{name} {problem}"),
        }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence(&self.path))
    }
}

struct Rules {
    schema: Value,
    compiled: CompiledSchema,
    validator: Validator,
    quick: Quick,
}

impl Rules {
    fn new(schema: Value) -> Self {
        Self {
            compiled: compile_schema(&schema),
            validator: Validator::new(),
            quick: Quick::default(),
            schema,
        }
    }

    fn check(&self, object: &Value) -> Vec<Violation> {
        let object = &pruned(object);
        let mut found = Vec::new();
        bounds(&self.schema, object, "", &mut found);
        // A rule that reads a value of the wrong shape only says so less well.
        if found.is_empty()
            && !self
                .quick
                .all_hold(&self.compiled, &apply_defaults(&self.schema, object))
            && let Err(errors) = self
                .validator
                .validate_compiled(&self.compiled, object, None)
        {
            found.extend(errors.into_iter().map(|error| Violation {
                problem: Problem::Rule(match error.kind {
                    ErrorKind::ValidationFailure => error.message,
                    _ => format!(
                        "rule '{}' cannot be evaluated: {}",
                        error.rule, error.message
                    ),
                }),
                path: error.field_path,
            }));
        }
        found
    }
}

/// The rules that a new refresh, as JSON, breaks.
pub fn refresh(object: &Value) -> Vec<Violation> {
    static RULES: LazyLock<Rules> =
        LazyLock::new(|| Rules::new(schema::of::<MaterializedViewRefresh>()));
    RULES.check(object)
}

/// The rules that `spec.view` of a refresh, as JSON, breaks by itself.
pub fn view(view: &Value) -> Vec<Violation> {
    static RULES: LazyLock<Rules> = LazyLock::new(|| {
        let schema = schema::of::<MaterializedViewRefresh>();
        Rules::new(schema["properties"]["spec"]["properties"]["view"].clone())
    });
    let within = |wrong: Violation| Violation {
        path: format!("spec.view{}", wrong.path),
        ..wrong
    };
    RULES.check(view).into_iter().map(within).collect()
}

/// The rules that the spec of a new refresh, as JSON, breaks beside its view,
/// which is to be held against [`view`]: no rule reads both. Most refreshes say
/// the same of all else, which is looked through once.
pub fn beside_view(spec: &Map<String, Value>) -> Vec<Violation> {
    static KNOWN: LazyLock<Cache<String, ()>> = LazyLock::new(|| Cache::new(MOST_KNOWN));
    let mut spec = Value::Object(spec.clone());
    spec["view"] = json!(["v"]);
    let text = spec.to_string();
    if KNOWN.contains_key(&text) {
        return Vec::new();
    }
    let found = refresh(&json!({"metadata": {"name": "r"}, "spec": spec}));
    if found.is_empty() && text.len() <= LONGEST_KNOWN {
        KNOWN.insert(text, ());
    }
    found
}

/// The rules that a new RefreshCluster, as JSON, breaks.
pub fn cluster(object: &Value) -> Vec<Violation> {
    static RULES: LazyLock<Rules> =
        LazyLock::new(|| Rules::new(schema::of::<super::RefreshCluster>()));
    RULES.check(object)
}

/// Without the fields that are null: the API server drops them when it reads a
/// request, as none of ours is nullable. (What it makes of a server-side apply
/// it does not read like that, and refuses a null where there is no default.)
fn pruned(value: &Value) -> Value {
    let Value::Object(fields) = value else {
        return value.clone();
    };
    fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), pruned(value)))
        .collect()
}

fn bounds(schema: &Value, value: &Value, path: &str, found: &mut Vec<Violation>) {
    let mut refuse = |problem: String| {
        found.push(Violation {
            path: path.to_string(),
            problem: Problem::Bound(problem),
        })
    };
    if let Some(expected) = schema["type"].as_str()
        && !is(expected, value)
    {
        return refuse(format!(
            "is {} and must be {}",
            kind(value),
            article(expected)
        ));
    }
    let limit = |key: &str| schema[key].as_f64();
    match value {
        Value::Number(number) if number.is_u64() && !number.is_i64() => {
            let maximum = limit("maximum").map_or(i64::MAX, |maximum| maximum as i64);
            refuse(format!("is {number} and must be at most {maximum}"));
        }
        Value::Number(number) => {
            // Bounds beyond 2^53 are none of ours: comparing as f64 is exact.
            let number_as_float = number.as_f64().unwrap_or(f64::NAN);
            if let Some(minimum) = limit("minimum").filter(|minimum| number_as_float < *minimum) {
                refuse(format!("is {number} and must be at least {minimum}"));
            }
            if let Some(maximum) = limit("maximum").filter(|maximum| number_as_float > *maximum) {
                refuse(format!("is {number} and must be at most {maximum}"));
            }
        }
        Value::String(text) => {
            size(
                schema,
                text.chars().count(),
                "Length",
                "character",
                &mut refuse,
            );
            if let Some(allowed) = schema["enum"].as_array()
                && !allowed.contains(value)
            {
                let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
                refuse(format!(
                    "is '{text}' and must be one of {}",
                    allowed.join(", ")
                ));
            }
        }
        Value::Array(items) => {
            size(schema, items.len(), "Items", "part", &mut refuse);
            for (index, item) in items.iter().enumerate() {
                bounds(&schema["items"], item, &format!("{path}[{index}]"), found);
            }
        }
        Value::Object(fields) => {
            let join = |name: &str| match path {
                "" => name.to_string(),
                path => format!("{path}.{name}"),
            };
            for name in schema["required"].as_array().into_iter().flatten() {
                if let Some(name) = name.as_str().filter(|name| !fields.contains_key(*name)) {
                    found.push(Violation {
                        path: join(name),
                        problem: Problem::Bound("is missing".to_string()),
                    });
                }
            }
            for (name, child) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(value) = fields.get(name) {
                    bounds(child, value, &join(name), found);
                }
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn size(schema: &Value, size: usize, of_what: &str, unit: &str, refuse: &mut impl FnMut(String)) {
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    let size = size as u64;
    if let Some(least) = schema[format!("min{of_what}")]
        .as_u64()
        .filter(|least| size < *least)
    {
        refuse(format!(
            "has {size} {unit}{} and must have at least {least}",
            plural(size)
        ));
    }
    if let Some(most) = schema[format!("max{of_what}")]
        .as_u64()
        .filter(|most| size > *most)
    {
        refuse(format!(
            "has {size} {unit}{} and must have at most {most}",
            plural(size)
        ));
    }
}

fn is(expected: &str, value: &Value) -> bool {
    match expected {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

/// What a JSON value is: a number itself, else its type with its article.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(_) => "a boolean".to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_string(),
        Value::Array(_) => "an array".to_string(),
        Value::Object(_) => "an object".to_string(),
    }
}

fn article(expected: &str) -> String {
    match expected.chars().next() {
        Some('a' | 'e' | 'i' | 'o' | 'u') => format!("an {expected}"),
        _ => format!("a {expected}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::names;

    fn sentences(spec: Value) -> Vec<String> {
        refresh(&json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "MaterializedViewRefresh",
            "metadata": {"name": "r"},
            "spec": spec,
        }))
        .iter()
        .map(ToString::to_string)
        .collect()
    }

    #[test]
    fn a_refresh_that_names_a_view_alone_breaks_no_rule() {
        assert_eq!(sentences(json!({"view": ["v"]})), [""; 0]);
    }

    #[test]
    fn a_view_breaks_by_itself_what_it_breaks_within_a_refresh() {
        for (path, holds) in [
            (json!(["v"]), true),
            (json!(["a", "b c"]), true),
            (json!([]), false),
            (json!(["v", ""]), false),
            (json!(["a/b"]), false),
            (json!(["a", "\u{7}"]), false),
            (json!(["v".repeat(5_000)]), false),
        ] {
            let within = json!({"metadata": {"name": "r"}, "spec": {"view": path}});
            assert_eq!(view(&path), refresh(&within), "{path}");
            assert_eq!(view(&path).is_empty(), holds, "{path}");
        }
    }

    #[test]
    fn what_a_spec_says_beside_its_view_breaks_what_it_breaks_with_it() {
        for spec in [
            json!({}),
            json!({"full": true, "priority": 3, "srcVersion": null}),
            json!({"full": 1}),
            json!({"concurrency": 0}),
            json!({"cluster": "No"}),
            json!({"manifestChecksum": "0".repeat(64)}),
            json!({"expectedIncarnation": "i".repeat(2_000)}),
        ] {
            let mut whole = spec.clone();
            whole["view"] = json!(["a", "b"]);
            let within = json!({"metadata": {"name": "r"}, "spec": whole});
            let spec = spec.as_object().unwrap();
            // Known from the second time on.
            for _ in 0..2 {
                assert_eq!(beside_view(spec), refresh(&within), "{spec:?}");
            }
        }
    }

    #[test]
    fn no_rule_holds_a_view_or_a_name_against_something_else() {
        let schema = schema::of::<MaterializedViewRefresh>();
        let rules = |schema: &Value| {
            let rules = schema["x-kubernetes-validations"].as_array().unwrap();
            let rules = rules.iter().map(|rule| rule["rule"].as_str().unwrap());
            // Nothing was there before.
            let rules = rules.filter(|rule| !rule.contains("oldSelf"));
            rules.map(str::to_string).collect::<Vec<_>>()
        };
        let (whole, spec) = (rules(&schema), rules(&schema["properties"]["spec"]));
        assert!(!whole.is_empty() && !spec.is_empty());
        assert!(whole.iter().all(|rule| !rule.contains("self.spec")));
        assert!(spec.iter().all(|rule| !rule.contains("view")), "{spec:?}");
    }

    #[test]
    fn a_bound_is_told_with_the_fields_path_its_value_and_the_bound() {
        assert_eq!(
            sentences(json!({"view": ["v"], "concurrency": 0})),
            ["spec.concurrency is 0 and must be at least 1"]
        );
        assert_eq!(
            sentences(json!({"view": ["v", ""]})),
            ["spec.view[1] has 0 characters and must have at least 1"]
        );
        assert_eq!(
            sentences(json!({"view": "v"})),
            ["spec.view is a string and must be an array"]
        );
        assert_eq!(sentences(json!({})), ["spec.view is missing"]);
    }

    #[test]
    fn a_cel_rule_is_told_in_its_own_words() {
        assert_eq!(
            sentences(json!({"view": ["a/b"]})),
            [r"spec.view: a part of the view's path must not hold '/', '\' or control characters"]
        );
    }

    #[test]
    fn a_reference_to_what_no_secret_can_be_called_is_refused_and_no_other() {
        let sum = "0".repeat(64);
        for name in ["my secret", "100%", "a/b", "a..b", "A", "s", "a.b-c.0"] {
            let spec = json!({
                "view": ["v"], "manifestSecretRef": {"name": name}, "manifestChecksum": sum,
            });
            let said = sentences(spec);
            let refused = said
                .iter()
                .any(|sentence| sentence.starts_with("spec.manifestSecretRef.name must be"));
            assert_eq!(refused, !names::is_secret_name(name), "{name}: {said:?}");
        }
    }

    #[test]
    fn a_null_is_as_good_as_an_absent_field() {
        assert_eq!(
            sentences(json!({"view": ["v"], "full": null, "srcVersion": null})),
            [""; 0]
        );
        assert_eq!(sentences(json!({"view": null})), ["spec.view is missing"]);
    }
}
