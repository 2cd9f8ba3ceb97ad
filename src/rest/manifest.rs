//! Geneva manifests that come inline with a request.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::body::{VALUES, has_too_many_values, wrong_type};
use super::error::ApiError;

/// A Geneva manifest that was looked at. Holds tokens perhaps: it goes into a
/// Secret and nowhere else, and its `Debug` says nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct GenevaManifest {
    text: String,
    checksum: String,
}

impl std::fmt::Debug for GenevaManifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GenevaManifest({})", self.checksum)
    }
}

#[derive(Clone, Copy)]
enum Shape {
    Text,
    Flag,
    Texts,
    TextLists,
    TextMap,
    Object,
}

const FIELDS: [(&str, Shape); 14] = [
    ("name", Shape::Text),
    ("version", Shape::Text),
    ("pip", Shape::Texts),
    ("py_modules", Shape::Texts),
    ("head_image", Shape::Text),
    ("worker_image", Shape::Text),
    ("zips", Shape::TextLists),
    ("checksum", Shape::Text),
    ("requirements_path", Shape::Text),
    ("conda", Shape::Object),
    ("conda_environment_path", Shape::Text),
    ("env_vars", Shape::TextMap),
    ("pip_extra_index_urls", Shape::Texts),
    ("skip_site_packages", Shape::Flag),
];

impl GenevaManifest {
    /// Reads the request's `manifest`: JSON in a string. Fields that are not
    /// known are left to those who know them, absent ones and nulls are fine.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let refuse = |why: &str| {
            Err(ApiError::InvalidInput(format!(
                "manifest is no Geneva manifest: {why}"
            )))
        };
        if has_too_many_values(text.as_bytes()) {
            return refuse(&format!("it has more than {VALUES} JSON values"));
        }
        let fields: Map<String, Value> = match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return refuse("it must be a JSON object"),
            // serde's words tell the place and what was expected, none of the content.
            Err(error) => {
                return refuse(&format!(
                    "it is no JSON (line {}, column {})",
                    error.line(),
                    error.column()
                ));
            }
        };
        if !FIELDS.iter().any(|(name, _)| fields.contains_key(*name)) {
            return refuse("it has none of a Geneva manifest's fields");
        }
        for (name, shape) in FIELDS {
            if let Some(value) = fields.get(name).filter(|value| !value.is_null()) {
                shape.check(&format!("manifest.{name}"), value)?;
            }
        }
        Ok(Self {
            text: text.to_string(),
            checksum: hex::encode(Sha256::digest(text)),
        })
    }

    /// The manifest's JSON, for its Secret.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the JSON's bytes in lower-case hex.
    pub fn checksum(&self) -> &str {
        &self.checksum
    }
}

impl Shape {
    fn check(self, name: &str, value: &Value) -> Result<(), ApiError> {
        let refuse = |must_be: &str| match value {
            // A value may be a token: tell its type alone.
            Value::Number(_) => Err(ApiError::InvalidInput(format!(
                "{name} is a number and must be {must_be}"
            ))),
            other => Err(wrong_type(name, other, must_be)),
        };
        match (self, value) {
            (Shape::Text, Value::String(_))
            | (Shape::Flag, Value::Bool(_))
            | (Shape::Object, Value::Object(_)) => Ok(()),
            (Shape::Texts, Value::Array(items)) => each(name, items, Shape::Text),
            (Shape::TextLists, Value::Array(items)) => each(name, items, Shape::Texts),
            (Shape::TextMap, Value::Object(entries)) => entries
                .iter()
                .try_for_each(|(key, value)| Shape::Text.check(&format!("{name}['{key}']"), value)),
            (Shape::Text, _) => refuse("a string"),
            (Shape::Flag, _) => refuse("a boolean"),
            (Shape::Object, _) => refuse("an object"),
            (Shape::Texts, _) => refuse("an array of strings"),
            (Shape::TextLists, _) => refuse("an array of arrays of strings"),
            (Shape::TextMap, _) => refuse("an object of strings"),
        }
    }
}

fn each(name: &str, items: &[Value], shape: Shape) -> Result<(), ApiError> {
    items
        .iter()
        .enumerate()
        .try_for_each(|(index, item)| shape.check(&format!("{name}[{index}]"), item))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_as_geneva_writes_it_is_taken() {
        let text = r#"{"name": "m", "version": "1", "pip": ["numpy==2"], "py_modules": [], "head_image": null,
            "worker_image": "w:1", "zips": [["a.zip"]], "checksum": "abc", "requirements_path": null, "conda": {},
            "conda_environment_path": null, "env_vars": {"TOKEN": "hush"}, "pip_extra_index_urls": [],
            "skip_site_packages": false, "newer_field": 1}"#;
        let manifest = GenevaManifest::parse(text).expect("good");
        assert_eq!(manifest.text(), text);
        assert_eq!(manifest.checksum(), hex::encode(Sha256::digest(text)));
        assert!(!format!("{manifest:?}").contains("hush"));
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_the_fields_name_and_none_of_its_content() {
        for (text, sentence) in [
            (
                "hush",
                "manifest is no Geneva manifest: it is no JSON (line 1, column 1)",
            ),
            (
                "[]",
                "manifest is no Geneva manifest: it must be a JSON object",
            ),
            (
                r#"{"hush": 1}"#,
                "manifest is no Geneva manifest: it has none of a Geneva manifest's fields",
            ),
            (
                r#"{"pip": "hush"}"#,
                "manifest.pip is a string and must be an array of strings",
            ),
            (
                r#"{"zips": ["hush"]}"#,
                "manifest.zips[0] is a string and must be an array of strings",
            ),
            (
                r#"{"env_vars": {"A": 123456}}"#,
                "manifest.env_vars['A'] is a number and must be a string",
            ),
            (
                r#"{"env_vars": ["hush"]}"#,
                "manifest.env_vars is an array and must be an object of strings",
            ),
            (
                r#"{"skip_site_packages": "no"}"#,
                "manifest.skip_site_packages is a string and must be a boolean",
            ),
            (
                r#"{"conda": []}"#,
                "manifest.conda is an array and must be an object",
            ),
            (
                r#"{"name": {}}"#,
                "manifest.name is an object and must be a string",
            ),
        ] {
            assert_eq!(
                GenevaManifest::parse(text).unwrap_err().to_string(),
                sentence
            );
        }
    }

    #[test]
    fn a_manifest_of_more_values_than_are_taken_is_refused() {
        let of =
            |items: usize| format!(r#"{{"name": "m", "pip": [{}"a"]}}"#, "\"a\",".repeat(items));
        assert!(GenevaManifest::parse(&of(1_000)).is_ok());
        let error = GenevaManifest::parse(&of(VALUES)).unwrap_err().to_string();
        assert!(error.contains("more than 4096 JSON values"), "{error}");
    }
}
