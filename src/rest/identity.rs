//! Who calls. Nobody is authenticated yet: what a caller shows only keeps the
//! idempotency keys of one from meeting those of another.

use axum::http::{HeaderMap, header};

use super::body::{JsonBody, wrong_type};
use super::error::ApiError;

/// What a caller shows for itself. Holds a credential: it is never stored,
/// logged or sent on, and its `Debug` says nothing of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Caller(Option<String>);

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Caller(..)"
        } else {
            "Caller(nobody)"
        })
    }
}

impl Caller {
    /// The caller by its headers, else by the body's `identity`.
    pub fn of(headers: &HeaderMap, body: &JsonBody) -> Result<Self, ApiError> {
        let in_body = body_identity(body)?;
        let text = |name: &str| {
            headers
                .get(name)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let bearer = text(header::AUTHORIZATION.as_str()).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| format!("bearer {}", token.trim()))
        });
        let api_key = text("x-api-key").map(|key| format!("key {key}"));
        Ok(Self(api_key.or(bearer).or(in_body)))
    }

    /// The bytes that tell this caller from others; for hashing with a secret only.
    pub fn secret_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default().as_bytes()
    }
}

fn body_identity(body: &JsonBody) -> Result<Option<String>, ApiError> {
    let Some(identity) = body.get("identity") else {
        return Ok(None);
    };
    let Some(fields) = identity.as_object() else {
        return Err(wrong_type("identity", identity, "an object"));
    };
    let mut found = None;
    for (name, kind) in [("auth_token", "bearer"), ("api_key", "key")] {
        match fields.get(name).filter(|value| !value.is_null()) {
            None => {}
            Some(serde_json::Value::String(secret)) => found = Some(format!("{kind} {secret}")),
            Some(other) => {
                return Err(wrong_type(&format!("identity.{name}"), other, "a string"));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn caller(headers: &[(&'static str, &'static str)], identity: serde_json::Value) -> Caller {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let body = JsonBody(json!({ "identity": identity }).as_object().unwrap().clone());
        Caller::of(&headers, &body).unwrap()
    }

    #[test]
    fn headers_win_over_the_body_and_the_key_over_the_token() {
        let body = json!({"api_key": "k"});
        assert_eq!(caller(&[], body.clone()), Caller(Some("key k".into())));
        assert_eq!(
            caller(&[("x-api-key", "h")], body.clone()),
            Caller(Some("key h".into()))
        );
        assert_eq!(
            caller(&[("authorization", "bearer t")], body),
            Caller(Some("bearer t".into()))
        );
        assert_eq!(
            caller(&[("authorization", "Basic x")], json!(null)),
            Caller(None)
        );
    }

    #[test]
    fn a_caller_does_not_show_its_credential() {
        let caller = caller(&[("x-api-key", "hush")], json!(null));
        assert!(!format!("{caller:?}").contains("hush"));
    }
}
