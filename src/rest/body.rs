//! Request bodies: a JSON object, or nothing.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use futures::StreamExt;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::resources::validate;

/// Most bytes of a body.
pub const LIMIT: usize = 1024 * 1024;

/// Most JSON values of a text that a request brings. Each may take two bytes
/// there and a hundred in memory, so that those of a whole body would take it
/// more than a hundred times.
pub(super) const VALUES: usize = 4_096;

/// Bytes of a body that is too large are read up to here, so that a client
/// which writes all before it reads still gets its answer.
const DISCARD_LIMIT: usize = 16 * LIMIT;

/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// A body that is a JSON object; an absent one, an empty one and `null` read
/// as an object without fields.
#[derive(Clone, Debug, Default)]
pub struct JsonBody(pub Map<String, Value>);

impl JsonBody {
    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be a string if it is there.
    pub fn string(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, other, "a string")),
        }
    }
}

/// The sentence for a field of another type than it must be.
pub fn wrong_type(name: &str, value: &Value, must_be: &str) -> ApiError {
    ApiError::InvalidInput(format!(
        "{name} is {} and must be {must_be}",
        validate::kind(value)
    ))
}

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        parse(&bytes(&head.headers, body).await?).map(JsonBody)
    }
}

/// The bytes of a request's body, if they are not too many and come soon enough.
pub(super) async fn bytes(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
        return Err(ApiError::BodyEncoded(encoding));
    }
    tokio::time::timeout(PATIENCE, read(body))
        .await
        .map_err(|_| ApiError::BodyTimeout(PATIENCE.as_secs()))?
}

async fn read(body: Body) -> Result<Vec<u8>, ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut seen = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| {
            ApiError::InvalidInput("the request's body broke off; send it again".into())
        })?;
        seen += chunk.len();
        if seen <= LIMIT {
            bytes.extend_from_slice(&chunk);
        } else if seen > DISCARD_LIMIT {
            break;
        }
    }
    if seen > LIMIT {
        return Err(ApiError::BodyTooLarge(LIMIT));
    }
    Ok(bytes)
}

/// The fields of a body.
pub(super) fn parse(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    if has_too_many_values(bytes) {
        return Err(ApiError::InvalidInput(format!(
            "the request's body has more than {VALUES} JSON values; leave out what no operation asks for"
        )));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(other) => Err(wrong_type("the request's body", &other, "a JSON object")),
        Err(error) => Err(ApiError::InvalidInput(format!(
            "the request's body is no JSON: {error}"
        ))),
    }
}

/// Whether a JSON text has more values, at any depth, than are taken. Of a text
/// that is no JSON it says anything, and the parser the rest.
pub(super) fn has_too_many_values(json: &[u8]) -> bool {
    // One follows each comma, and one each opening bracket that is not closed at once.
    let mut values = 1;
    let (mut in_string, mut escaped, mut opened) = (false, false, false);
    for byte in json {
        if in_string {
            in_string = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        let closed = matches!(byte, b']' | b'}');
        values += usize::from(*byte == b',') + usize::from(opened && !closed);
        opened = matches!(byte, b'[' | b'{');
        in_string = *byte == b'"';
    }
    values > VALUES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_blanks_null_and_an_empty_object_all_ask_for_nothing() {
        for nothing in ["", " \n", "null", "{}"] {
            assert!(parse(nothing.as_bytes()).unwrap().is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        let deep = "[".repeat(100_000);
        let wrong: [&[u8]; 6] = [
            b"{",
            b"[]",
            b"3",
            b"{\"a\": \"\xff\"}",
            b"{} {}",
            deep.as_bytes(),
        ];
        for body in wrong {
            assert!(
                parse(body).is_err(),
                "{}",
                String::from_utf8_lossy(&body[..body.len().min(20)])
            );
        }
    }

    #[test]
    fn a_body_of_more_values_than_are_taken_is_refused_before_they_are_made() {
        let of = |values: &str| format!(r#"{{"context": {values}}}"#);
        let list = |item: &str, items: usize| format!("[{}]", vec![item; items].join(", "));
        // The body is one value, and so is the list.
        for item in ["[]", "{ }", "null", "1e3", r#""a, [{ \" \\""#] {
            let most = parse(of(&list(item, VALUES - 2)).as_bytes()).unwrap();
            assert_eq!(most["context"].as_array().map(Vec::len), Some(VALUES - 2));
            let error = parse(of(&list(item, VALUES - 1)).as_bytes()).unwrap_err();
            assert!(
                error.to_string().contains("4096 JSON values"),
                "{item}: {error}"
            );
        }
        for item in [r#"{"a": 1}"#, "[[]]"] {
            assert!(parse(of(&list(item, VALUES / 2 - 1)).as_bytes()).is_ok());
            assert!(parse(of(&list(item, VALUES / 2)).as_bytes()).is_err());
        }
    }

    #[test]
    fn a_string_is_one_value_however_much_json_it_holds() {
        let manifest = serde_json::json!({ "manifest": "[\\\"{},".repeat(100_000) });
        let fields = parse(manifest.to_string().as_bytes()).unwrap();
        assert_eq!(fields["manifest"], manifest["manifest"]);
    }

    #[test]
    fn what_is_nested_too_deep_is_told_as_that() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(200), "]".repeat(200));
        let error = parse(deep.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("recursion limit"), "{error}");
    }
}
