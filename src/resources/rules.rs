//! Whether CEL rules hold, found out quickly.
//!
//! Nearly every object breaks none, and most of the time that kube's validator
//! takes goes into compiling the rules' regular expressions anew. Here each is
//! compiled once. What does not clearly hold is for the validator to judge, and
//! to put into words.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use kube::core::cel::cel::extractors::This;
use kube::core::cel::cel::objects::{Key, Map};
use kube::core::cel::cel::{self, Context, ExecutionError, FunctionContext};
use kube::core::cel::{CompiledSchema, KubeCelExt, SchemaFormat};
use moka::sync::Cache;
use regex::Regex;
use serde_json::Value;

/// Most regular expressions that are kept: those of the rules, and there are
/// a handful.
const MOST_KEPT: u64 = 64;

/// Evaluates rules.
pub struct Quick {
    functions: Context<'static>,
}

impl Default for Quick {
    fn default() -> Self {
        let mut functions = Context::default().with_all();
        functions.add_function("matches", matches);
        Self { functions }
    }
}

impl Quick {
    /// Whether all rules of `schema` hold for `object`, which has its defaults,
    /// transition rules apart.
    /// False: one is broken, or cannot be told here.
    pub fn all_hold(&self, schema: &CompiledSchema, object: &Value) -> bool {
        self.rules_hold(schema, object) && self.hold_within(schema, object)
    }

    fn rules_hold(&self, schema: &CompiledSchema, value: &Value) -> bool {
        if schema.validations.is_empty() {
            return true;
        }
        let Some(bound) = bound(value, Some(schema)) else {
            return false;
        };
        let mut scope = self.functions.new_inner_scope();
        scope.add_variable_from_value("self", bound);
        schema.validations.iter().all(|rule| match rule {
            Ok(rule) if rule.is_transition_rule => rule.rule.optional_old_self != Some(true),
            Ok(rule) => rule.program.execute(&scope) == Ok(cel::Value::Bool(true)),
            Err(_) => false,
        })
    }

    fn hold_within(&self, schema: &CompiledSchema, value: &Value) -> bool {
        let branches = [&schema.all_of, &schema.one_of, &schema.any_of];
        let mut branches = branches.into_iter().flatten();
        branches.all(|branch| self.all_hold(branch, value))
            && match value {
                Value::Object(fields) => fields.iter().all(|(name, field)| {
                    let other = schema.additional_properties.as_deref();
                    let other = other.filter(|_| !schema.preserve_unknown_fields);
                    let schema = schema.properties.get(name).or(other);
                    schema.is_none_or(|schema| self.all_hold(schema, field))
                }),
                Value::Array(items) => {
                    let schema = schema.items.as_deref();
                    schema.is_none_or(|schema| items.iter().all(|item| self.all_hold(schema, item)))
                }
                _ => true,
            }
    }
}

/// A value as rules see it; None for what they see otherwise than it is: a
/// string that is a time, and names that CEL spells in its own way.
fn bound(value: &Value, schema: Option<&CompiledSchema>) -> Option<cel::Value> {
    let translated = schema.is_some_and(|schema| {
        schema.embedded_resource
            || !matches!(
                schema.format,
                SchemaFormat::None | SchemaFormat::IntOrString
            )
    });
    if translated {
        return None;
    }
    Some(match value {
        Value::Null => cel::Value::Null,
        Value::Bool(truth) => cel::Value::Bool(*truth),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => cel::Value::Int(number),
            (None, Some(number)) => cel::Value::UInt(number),
            _ => cel::Value::Float(number.as_f64()?),
        },
        Value::String(text) => cel::Value::String(Arc::new(text.clone())),
        Value::Array(items) => {
            let schema = schema.and_then(|schema| schema.items.as_deref());
            let items = items.iter().map(|item| bound(item, schema));
            cel::Value::List(Arc::new(items.collect::<Option<_>>()?))
        }
        Value::Object(fields) => {
            let is_map = schema.is_some_and(|schema| schema.is_map);
            let fields = fields.iter().map(|(name, field)| {
                if !is_map && !is_plain(name) {
                    return None;
                }
                let schema = schema.and_then(|schema| {
                    let other = schema.additional_properties.as_deref();
                    schema.properties.get(name).or(other)
                });
                Some((Key::String(Arc::new(name.clone())), bound(field, schema)?))
            });
            let map: HashMap<Key, cel::Value> = fields.collect::<Option<_>>()?;
            cel::Value::Map(Map { map: Arc::new(map) })
        }
    })
}

/// Whether a field's name is the same in CEL: all that CEL reserves are words
/// in lower case, of which the API has but one.
fn is_plain(name: &str) -> bool {
    name != "namespace" && name.chars().all(|c| c.is_ascii_alphanumeric())
}

/// CEL's `matches`, which keeps what it has compiled.
fn matches(
    call: &FunctionContext,
    This(text): This<Arc<String>>,
    pattern: Arc<String>,
) -> Result<bool, ExecutionError> {
    static COMPILED: LazyLock<Cache<Arc<String>, Regex>> = LazyLock::new(|| Cache::new(MOST_KEPT));
    if let Some(regex) = COMPILED.get(&pattern) {
        return Ok(regex.is_match(&text));
    }
    let regex = Regex::new(&pattern).map_err(|error| call.error(error))?;
    let matched = regex.is_match(&text);
    COMPILED.insert(pattern, regex);
    Ok(matched)
}

#[cfg(test)]
mod tests {
    use kube::core::cel::{Validator, apply_defaults, compile_schema};
    use serde_json::json;

    use super::*;
    use crate::resources::{
        MaterializedViewRefresh, MaterializedViewRefreshSpec, RefreshCluster, RefreshClusterSpec,
        schema,
    };

    /// What holds quickly holds; whether all that holds does so quickly.
    fn agree(schema: &Value, object: &Value, holds: bool, quickly: bool) {
        let compiled = compile_schema(schema);
        let judged = Validator::new().validate_compiled(&compiled, object, None);
        assert_eq!(judged.is_ok(), holds, "{object}: {judged:?}");
        let object = apply_defaults(schema, object);
        let quick = Quick::default().all_hold(&compiled, &object);
        assert_eq!(quick, holds && quickly, "{object}");
    }

    #[test]
    fn refreshes_are_judged_as_the_validator_judges_them() {
        let schema = schema::of::<MaterializedViewRefresh>();
        for (name, view, cluster, holds) in [
            ("r", json!(["v"]), "default", true),
            ("r-1", json!(["a", "b", "c d"]), "x.y-z", true),
            ("r", json!(["a/b"]), "default", false),
            ("r", json!(["a", "\u{7}"]), "default", false),
            ("r", json!(["v"]), "No", false),
            ("R", json!(["v"]), "default", false),
            (&"r".repeat(41), json!(["v"]), "default", false),
        ] {
            let mut spec = MaterializedViewRefreshSpec::of(["v"]);
            spec.cluster = cluster.to_string();
            let mut refresh = json!({"metadata": {"name": name}, "spec": spec});
            refresh["spec"]["view"] = view;
            agree(&schema, &refresh, holds, true);
        }
    }

    #[test]
    fn what_rules_see_otherwise_than_it_is_is_left_to_the_validator() {
        let refresh = schema::of::<MaterializedViewRefresh>();
        let defaulted = json!({"metadata": {"name": "r"}, "spec": {"view": ["v"]}});
        agree(&refresh, &defaulted, true, true);
        let cluster = schema::of::<RefreshCluster>();
        let spec = json!(RefreshClusterSpec::default());
        let mut object = json!({"metadata": {"name": "c"}, "spec": spec});
        object["spec"]["namespace"] = json!("a");
        agree(&cluster, &object, false, false);
        object["spec"]["kubeconfigSecretRef"] = json!({"name": "s", "key": "k"});
        agree(&cluster, &object, true, false);
    }

    #[test]
    fn rules_are_found_in_lists_maps_and_branches() {
        let rule = json!([{"rule": "self.size() > 1", "message": "m"}]);
        let text = json!({"type": "string", "x-kubernetes-validations": rule});
        let list = json!({"type": "array", "items": text});
        let map = json!({"type": "object", "additionalProperties": text});
        let branch = json!({"type": "string", "allOf": [text]});
        for (schema, good, bad) in [
            (&list, json!(["ab", "cd"]), json!(["ab", "c"])),
            (&map, json!({"x": "ab"}), json!({"x": "ab", "y": "c"})),
            (&branch, json!("ab"), json!("c")),
        ] {
            agree(schema, &good, true, true);
            agree(schema, &bad, false, true);
        }
    }
}
