//! What a caller shows, and who it turned out to be.
//!
//! A credential is never logged, and is sent on to the API server's
//! TokenReview alone; where credentials are forwarded, also to the REST
//! catalog, and to the worker of the caller's refresh by a Secret.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};

use super::User;
pub use crate::catalog::credential::Credential;
use crate::rest::body::{JsonBody, wrong_type};
use crate::rest::error::ApiError;

/// The header of an API key.
const API_KEY: &str = "x-api-key";

/// What kinds of credential are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// API keys.
    pub keys: bool,
    /// Bearer tokens.
    pub tokens: bool,
}

impl Takes {
    /// Both kinds.
    pub const ALL: Takes = Takes {
        keys: true,
        tokens: true,
    };

    /// A key and a token in the order in which they count: the key first, and
    /// what is not taken last, to be refused by its name where there is no other.
    fn order<T>(self, key: T, token: T) -> [T; 2] {
        match self.tokens && !self.keys {
            true => [token, key],
            false => [key, token],
        }
    }
}

impl Credential {
    /// The headers' credential; of both kinds, the key, where keys are taken.
    /// An empty one is none. One that is given twice is refused, since a proxy
    /// may have looked at the other.
    pub fn of_headers(headers: &HeaderMap, takes: Takes) -> Result<Option<Self>, ApiError> {
        let in_key = (API_KEY, key as fn(&str) -> _);
        let in_token = (header::AUTHORIZATION.as_str(), bearer as fn(&str) -> _);
        for (name, kind) in takes.order(in_key, in_token) {
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

    /// The credential in the body's `identity`; of both kinds, the key, where keys
    /// are taken. An empty one is none.
    pub fn of_body(body: &JsonBody, takes: Takes) -> Result<Option<Self>, ApiError> {
        let Some(identity) = body.get("identity") else {
            return Ok(None);
        };
        let Some(fields) = identity.as_object() else {
            return Err(wrong_type("identity", identity, "an object"));
        };
        let shown = |name: &str| match fields.get(name).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(serde_json::Value::String(secret)) => {
                Ok(Some(secret.clone()).filter(|secret| !secret.is_empty()))
            }
            // A number may be a key that lacks its quotes: tell its type alone.
            Some(_) => Err(ApiError::InvalidInput(format!(
                "identity.{name} is no string and must be one"
            ))),
        };
        let token = shown("auth_token")?.map(Self::Token);
        let ordered = takes.order(shown("api_key")?.map(Self::Key), token);
        Ok(ordered.into_iter().flatten().next())
    }
}

fn key(value: &str) -> Option<Credential> {
    let value = value.trim();
    (!value.is_empty()).then(|| Credential::Key(value.to_string()))
}

fn bearer(value: &str) -> Option<Credential> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
        .then(|| Credential::Token(token.to_string()))
}

/// Who calls: the user that was authenticated or, where everybody is let in,
/// what the caller shows. Its `Debug` says nothing of a credential.
#[derive(Clone, Debug, Default)]
pub struct Caller(Option<Who>);

#[derive(Clone, Debug)]
enum Who {
    /// With the credential, where it is to be forwarded.
    Known(Arc<User>, Option<Credential>),
    Shows(Credential),
}

impl Caller {
    /// A user who was authenticated, with the credential if it is to be forwarded.
    pub fn known(user: Arc<User>, forwarded: Option<Credential>) -> Self {
        Self(Some(Who::Known(user, forwarded)))
    }

    /// The credential, as far as it was kept.
    pub fn credential(&self) -> Option<&Credential> {
        match self.0.as_ref()? {
            Who::Known(_, forwarded) => forwarded.as_ref(),
            Who::Shows(credential) => Some(credential),
        }
    }

    /// The caller that was authenticated, else what a request shows of it.
    pub fn of(
        known: Option<Caller>,
        headers: &HeaderMap,
        body: &JsonBody,
    ) -> Result<Self, ApiError> {
        match known {
            // What it shows has been looked at; the rest of it must be well-formed.
            Some(known) => Credential::of_body(body, Takes::ALL).map(|_| known),
            None => Self::unknown(headers, body),
        }
    }

    /// The caller where nobody is authenticated.
    pub fn unknown(headers: &HeaderMap, body: &JsonBody) -> Result<Self, ApiError> {
        let in_body = Credential::of_body(body, Takes::ALL)?;
        let shown = Credential::of_headers(headers, Takes::ALL)?.or(in_body);
        Ok(Self(shown.map(Who::Shows)))
    }

    /// The user, if one was authenticated.
    pub fn user(&self) -> Option<&User> {
        match &self.0 {
            Some(Who::Known(user, _)) => Some(user),
            _ => None,
        }
    }

    /// What tells this caller from others; for hashing with a secret only. A
    /// user's tokens change by the hour while its retries go on, so it is the name.
    pub fn secret_bytes(&self) -> Vec<u8> {
        match &self.0 {
            None => Vec::new(),
            Some(Who::Known(user, _)) => format!("user {}", user.name).into_bytes(),
            Some(Who::Shows(Credential::Token(token))) => format!("bearer {token}").into_bytes(),
            Some(Who::Shows(Credential::Key(key))) => format!("key {key}").into_bytes(),
        }
    }
}

/// A request's caller and its body, for operations whose body has no
/// `identity`: one that is malformed there is nobody's.
#[derive(Debug)]
pub struct Asked {
    /// Who asks.
    pub caller: Caller,
    /// What for.
    pub body: JsonBody,
}

impl<S: Send + Sync> FromRequest<S> for Asked {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let known = request.extensions().get::<Caller>().cloned();
        let headers = request.headers().clone();
        let body = JsonBody::from_request(request, state).await?;
        let unknown = || Caller::unknown(&headers, &body).unwrap_or_default();
        let caller = known.unwrap_or_else(unknown);
        Ok(Self { caller, body })
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
    fn what_is_empty_or_not_taken_hides_nothing_that_is_taken() {
        let token = || Some(Credential::Token("t".into()));
        let key = || Some(Credential::Key("k".into()));
        let both = headers(&[("x-api-key", "k"), ("authorization", "Bearer t")]);
        let empty = headers(&[("x-api-key", " "), ("authorization", "Bearer t")]);
        let twice = [
            ("x-api-key", "k"),
            ("x-api-key", "l"),
            ("authorization", "Bearer t"),
        ];
        let [tokens, keys] =
            [(false, true), (true, false)].map(|(keys, tokens)| Takes { keys, tokens });
        for (shown, takes, found) in [
            (&both, Takes::ALL, key()),
            (&both, keys, key()),
            (&both, tokens, token()),
            (&empty, Takes::ALL, token()),
            (&headers(&twice), tokens, token()),
            // To be told that no keys are taken.
            (&headers(&[("x-api-key", "k")]), tokens, key()),
            (&headers(&[("authorization", "Bearer ")]), tokens, None),
        ] {
            let chosen = Credential::of_headers(shown, takes).unwrap();
            assert_eq!(chosen, found, "{takes:?}");
        }
        let chosen = |identity, takes| Credential::of_body(&body(identity), takes).unwrap();
        let both = json!({"api_key": "k", "auth_token": "t"});
        assert_eq!(chosen(both, tokens), token());
        let empty = json!({"api_key": "", "auth_token": "t"});
        assert_eq!(chosen(empty, Takes::ALL), token());
    }

    #[test]
    fn a_header_that_is_given_twice_is_refused() {
        for name in ["x-api-key", "authorization"] {
            let twice = headers(&[(name, "Bearer a"), (name, "Bearer b")]);
            let error = Credential::of_headers(&twice, Takes::ALL).unwrap_err();
            assert!(error.to_string().contains("more than once"), "{error}");
        }
    }

    #[test]
    fn neither_debug_nor_an_error_shows_the_credential() {
        let shown = headers(&[("x-api-key", "hush")]);
        let caller = Caller::unknown(&shown, &body(json!(null))).unwrap();
        assert!(!format!("{caller:?}").contains("hush"));
        for wrong in [json!("hush"), json!({"api_key": ["hush"]})] {
            let error = Credential::of_body(&body(wrong), Takes::ALL).unwrap_err();
            assert!(!error.to_string().contains("hush"), "{error}");
        }
        let number =
            Credential::of_body(&body(json!({"api_key": 123456})), Takes::ALL).unwrap_err();
        assert!(!number.to_string().contains("123456"), "{number}");
    }

    #[test]
    fn a_users_retries_are_the_same_callers_whatever_they_show() {
        let user = |name: &str| {
            let user = User {
                name: name.into(),
                uid: None,
                groups: Vec::new(),
                extra: Default::default(),
            };
            Caller::known(Arc::new(user), None)
        };
        assert_eq!(user("a").secret_bytes(), user("a").secret_bytes());
        assert_ne!(user("a").secret_bytes(), user("b").secret_bytes());
    }
}
