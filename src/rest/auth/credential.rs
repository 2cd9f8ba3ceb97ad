//! What a caller shows, and who it turned out to be.

use std::sync::Arc;

use axum::Extension;
use axum::http::{HeaderMap, header};

use super::User;
use crate::rest::body::{JsonBody, wrong_type};
use crate::rest::error::ApiError;

/// The header of an API key.
const API_KEY: &str = "x-api-key";

/// What a caller shows for itself. It is never stored, logged or sent on but
/// to the API server's TokenReview, and its `Debug` says nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// An API key.
    Key(String),
    /// A bearer token.
    Token(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential({})", self.way())
    }
}

impl Credential {
    /// The headers' credential; of both kinds, the key. One that is given twice
    /// is refused, since a proxy may have looked at the other.
    pub fn of_headers(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        for (name, kind) in [
            (API_KEY, key as fn(&str) -> _),
            (header::AUTHORIZATION.as_str(), bearer),
        ] {
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else {
                continue;
            };
            if values.next().is_some() {
                return Err(ApiError::Unauthenticated(format!(
                    "the header {name} is given more than once; give it once"
                )));
            }
            let credential = value.to_str().ok().and_then(kind);
            if credential.is_some() {
                return Ok(credential);
            }
        }
        Ok(None)
    }

    /// The credential in the body's `identity`; of both kinds, the key.
    pub fn of_body(body: &JsonBody) -> Result<Option<Self>, ApiError> {
        let Some(identity) = body.get("identity") else {
            return Ok(None);
        };
        let Some(fields) = identity.as_object() else {
            return Err(wrong_type("identity", identity, "an object"));
        };
        let mut found = None;
        for (name, kind) in [
            ("auth_token", Self::Token as fn(String) -> Self),
            ("api_key", Self::Key),
        ] {
            match fields.get(name).filter(|value| !value.is_null()) {
                None => {}
                Some(serde_json::Value::String(secret)) => found = Some(kind(secret.clone())),
                // A number may be a key that lacks its quotes: tell its type alone.
                Some(_) => {
                    return Err(ApiError::InvalidInput(format!(
                        "identity.{name} is no string and must be one"
                    )));
                }
            }
        }
        Ok(found)
    }

    /// `key` or `token`.
    pub fn way(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Token(_) => "token",
        }
    }
}

fn key(value: &str) -> Option<Credential> {
    Some(Credential::Key(value.trim().to_string()))
}

fn bearer(value: &str) -> Option<Credential> {
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| Credential::Token(token.trim().to_string()))
}

/// Who calls: the user that was authenticated or, where everybody is let in,
/// what the caller shows. Its `Debug` says nothing of a credential.
#[derive(Clone, Debug, Default)]
pub struct Caller(Option<Who>);

#[derive(Clone, Debug)]
enum Who {
    Known(Arc<User>),
    Shows(Credential),
}

impl Caller {
    /// A user who was authenticated.
    pub fn known(user: Arc<User>) -> Self {
        Self(Some(Who::Known(user)))
    }

    /// The caller that was authenticated, else what a request shows of it.
    pub fn of(
        known: Option<Extension<Caller>>,
        headers: &HeaderMap,
        body: &JsonBody,
    ) -> Result<Self, ApiError> {
        let unknown = Self::unknown(headers, body)?;
        Ok(known.map_or(unknown, |Extension(known)| known))
    }

    /// The caller where nobody is authenticated.
    pub fn unknown(headers: &HeaderMap, body: &JsonBody) -> Result<Self, ApiError> {
        let in_body = Credential::of_body(body)?;
        let shown = Credential::of_headers(headers)?.or(in_body);
        Ok(Self(shown.map(Who::Shows)))
    }

    /// The user, if one was authenticated.
    pub fn user(&self) -> Option<&User> {
        match &self.0 {
            Some(Who::Known(user)) => Some(user),
            _ => None,
        }
    }

    /// What tells this caller from others; for hashing with a secret only. A
    /// user's tokens change by the hour while its retries go on, so it is the name.
    pub fn secret_bytes(&self) -> Vec<u8> {
        match &self.0 {
            None => Vec::new(),
            Some(Who::Known(user)) => format!("user {}", user.name).into_bytes(),
            Some(Who::Shows(Credential::Token(token))) => format!("bearer {token}").into_bytes(),
            Some(Who::Shows(Credential::Key(key))) => format!("key {key}").into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn headers(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn body(identity: serde_json::Value) -> JsonBody {
        JsonBody(json!({ "identity": identity }).as_object().unwrap().clone())
    }

    fn bytes(of: &[(&'static str, &'static str)], identity: serde_json::Value) -> String {
        let caller = Caller::unknown(&headers(of), &body(identity)).unwrap();
        String::from_utf8(caller.secret_bytes()).unwrap()
    }

    #[test]
    fn headers_win_over_the_body_and_the_key_over_the_token() {
        let both = json!({"api_key": "k", "auth_token": "t"});
        assert_eq!(bytes(&[], both.clone()), "key k");
        assert_eq!(bytes(&[], json!({"auth_token": "t"})), "bearer t");
        assert_eq!(bytes(&[("x-api-key", "h")], both.clone()), "key h");
        let header = ("authorization", "bearer  h ");
        assert_eq!(bytes(&[header], both.clone()), "bearer h");
        assert_eq!(bytes(&[header, ("x-api-key", "a")], both), "key a");
        let basic = ("authorization", "Basic x");
        assert_eq!(bytes(&[basic], json!(null)), "");
    }

    #[test]
    fn a_header_that_is_given_twice_is_refused() {
        for name in ["x-api-key", "authorization"] {
            let twice = headers(&[(name, "Bearer a"), (name, "Bearer b")]);
            let error = Credential::of_headers(&twice).unwrap_err();
            assert!(error.to_string().contains("more than once"), "{error}");
        }
    }

    #[test]
    fn neither_debug_nor_an_error_shows_the_credential() {
        let shown = headers(&[("x-api-key", "hush")]);
        let caller = Caller::unknown(&shown, &body(json!(null))).unwrap();
        assert!(!format!("{caller:?}").contains("hush"));
        for wrong in [json!("hush"), json!({"api_key": ["hush"]})] {
            let error = Credential::of_body(&body(wrong)).unwrap_err();
            assert!(!error.to_string().contains("hush"), "{error}");
        }
        let number = Credential::of_body(&body(json!({"api_key": 123456}))).unwrap_err();
        assert!(!number.to_string().contains("123456"), "{number}");
    }

    #[test]
    fn a_users_retries_are_the_same_callers_whatever_they_show() {
        let user = |name: &str| {
            Caller::known(Arc::new(User {
                name: name.into(),
                uid: None,
                groups: Vec::new(),
                extra: Default::default(),
            }))
        };
        assert_eq!(user("a").secret_bytes(), user("a").secret_bytes());
        assert_ne!(user("a").secret_bytes(), user("b").secret_bytes());
    }
}
