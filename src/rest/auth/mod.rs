//! Who calls, and whether they may: Kubernetes decides both.
//!
//! # The way of a request
//!
//! 1. The **credential** is a header's, else that of the body's `identity`
//!    ([`credential`]). A request without one has its body read only to look
//!    for it there.
//! 2. It becomes a **user**: an API key by the Secret that holds the keys'
//!    hashes ([`keys`]), a bearer token by a TokenReview for relance's audience
//!    ([`token`]). Nobody is 401, in the same words whatever was wrong.
//! 3. The user's requests are **counted**: so many a second and so many at a
//!    time ([`limits`]), else 429.
//! 4. The API server is asked for the user, by a LocalSubjectAccessReview
//!    ([`access`]), for the verb that the route needs on
//!    `materializedviewrefreshes`; and by the handler for `use` of the
//!    RefreshCluster, before anybody looks whether that or the view is there:
//!    who may not learns nothing of what exists.
//!
//! Where credentials are forwarded, the REST catalog is shown the caller's own
//! from then on, and says itself what the caller may reach.
//!
//! Answers of the API server are kept for [`cache::KEEP`], under hashes. So a
//! revoked key, token or RoleBinding is of no use that much later, and an API
//! server that does not answer lets nobody in.
//!
//! With [`Access::Open`] all of this is left out. It must be asked for.

pub mod access;
pub mod audit;
pub mod cache;
pub mod credential;
pub mod keys;
pub mod limits;
pub mod token;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use kube::Client;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::routes::{self, Permission};
use super::{Api, body};
use access::{Asks, Reviews};
use audit::Note;
use credential::{Caller, Credential, Takes};
use keys::Keys;
use limits::{CallerLimits, Callers, Permit};
use token::Tokens;

/// Requests at work at a time, whoever asks.
const AT_WORK: usize = 1024;

/// Bodies of requests without a credential in their headers that are read at a time.
const STRANGERS: usize = 64;

/// How callers are known.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The audience that bearer tokens must be meant for; None: none are taken.
    pub audience: Option<String>,
    /// Whether API keys are taken.
    pub keys: bool,
    /// What one caller may ask at most.
    pub limits: CallerLimits,
}

/// Someone whom Kubernetes knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name, as RoleBindings have it.
    pub name: String,
    /// The API server's id of the user, if it has one.
    pub uid: Option<String>,
    /// Groups, as RoleBindings have them.
    pub groups: Vec<String>,
    /// What else authorizers may look at.
    pub extra: std::collections::BTreeMap<String, Vec<String>>,
}

impl User {
    /// A hash of all that an authorizer may look at.
    fn fingerprint(&self) -> cache::Fingerprint {
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        part(&self.name);
        part(self.uid.as_deref().unwrap_or_default());
        part(&self.groups.len().to_string());
        self.groups.iter().for_each(|group| part(group));
        for (key, values) in &self.extra {
            part(key);
            part(&values.len().to_string());
            values.iter().for_each(|value| part(value));
        }
        hash.finalize().into()
    }
}

/// Who is let in.
#[derive(Clone, Debug)]
pub enum Access {
    /// Everybody, to everything.
    Open(Arc<Semaphore>),
    /// Whom Kubernetes knows, to what it allows them.
    Guarded(Arc<Guard>),
}

impl Access {
    /// Lets everybody in.
    pub fn open() -> Self {
        Access::Open(Arc::new(Semaphore::new(AT_WORK)))
    }

    /// Lets those in whom `settings` and the Kubernetes API know, to what they
    /// may do in `namespace`.
    pub fn guarded(client: Client, namespace: &str, settings: Settings) -> Self {
        Access::Guarded(Arc::new(Guard {
            tokens: settings
                .audience
                .map(|audience| Tokens::new(client.clone(), audience)),
            keys: settings.keys.then(|| Keys::new(client.clone(), namespace)),
            reviews: Reviews::new(client, namespace),
            callers: Callers::new(settings.limits),
            at_work: Arc::new(Semaphore::new(AT_WORK)),
            strangers: Semaphore::new(STRANGERS),
        }))
    }

    /// Lets a request in that needs this permission; keeps its credential if
    /// that is to be forwarded. What comes with it is to be held until the
    /// request is answered.
    pub(super) async fn admit(
        &self,
        asks: Permission,
        request: Request,
        forwards: bool,
    ) -> Result<(Request, Admission), ApiError> {
        match self {
            Access::Open(at_work) => Ok((request, Admission::new(at_work, None)?)),
            Access::Guarded(guard) => guard.admit(asks, request, forwards).await,
        }
    }

    /// Whether the caller may use a RefreshCluster, be it there or not.
    pub async fn may_use(&self, caller: &Caller, cluster: &str) -> Result<(), ApiError> {
        match (self, caller.user()) {
            (Access::Open(_), _) => Ok(()),
            (Access::Guarded(guard), Some(user)) => {
                guard.reviews.allow(user, Asks::USE, Some(cluster)).await
            }
            (Access::Guarded(_), None) => Err(nobody()),
        }
    }
}

/// Lets a request to its handler, if its caller may.
pub(super) async fn guarded(api: Arc<Api>, request: Request, next: Next) -> Response {
    let asks = match routes::operation(&request) {
        Some(operation) => operation.asks,
        // Not for this method, which the router says itself.
        None if request.extensions().get::<MatchedPath>().is_some() => None,
        None => {
            let told = routes::unsupported(request.method(), request.uri().path());
            let error = told.map_or(ApiError::NoSuchRoute, ApiError::UnsupportedOperation);
            return error.into_response();
        }
    };
    let Some(asks) = asks else {
        return next.run(request).await;
    };
    match api.access.admit(asks, request, api.forwards).await {
        Ok((request, _admission)) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Holds a request's place among those at work.
#[derive(Debug)]
pub struct Admission {
    _at_work: tokio::sync::OwnedSemaphorePermit,
    _of_caller: Option<Permit>,
}

impl Admission {
    fn new(at_work: &Arc<Semaphore>, of_caller: Option<Permit>) -> Result<Self, ApiError> {
        let at_work = at_work.clone().try_acquire_owned().map_err(|_| {
            ApiError::Unavailable(format!("{AT_WORK} requests are at work already; try again"))
        })?;
        Ok(Self {
            _at_work: at_work,
            _of_caller: of_caller,
        })
    }
}

/// See [`Access::Guarded`].
#[derive(Debug)]
pub struct Guard {
    tokens: Option<Tokens>,
    keys: Option<Keys>,
    reviews: Reviews,
    callers: Callers,
    at_work: Arc<Semaphore>,
    strangers: Semaphore,
}

impl Guard {
    async fn admit(
        &self,
        asks: Permission,
        request: Request,
        forwards: bool,
    ) -> Result<(Request, Admission), ApiError> {
        let (mut request, credential) = self.credential(request).await?;
        let user = Arc::new(self.user(&credential).await?);
        if let Some(note) = request.extensions().get::<Note>() {
            note.known(user.clone(), credential.way());
        }
        let forwarded = Some(credential).filter(|_| forwards);
        let permit = self.callers.admit(&user.name)?;
        let admission = Admission::new(&self.at_work, Some(permit))?;
        let asks = Asks::of_refreshes(asks.verb);
        self.reviews.allow(&user, asks, None).await?;
        request
            .extensions_mut()
            .insert(Caller::known(user, forwarded));
        Ok((request, admission))
    }

    async fn credential(&self, request: Request) -> Result<(Request, Credential), ApiError> {
        let takes = Takes {
            keys: self.keys.is_some(),
            tokens: self.tokens.is_some(),
        };
        if let Some(credential) = Credential::of_headers(request.headers(), takes)? {
            return Ok((request, credential));
        }
        let _turn = self.strangers.try_acquire().map_err(|_| {
            ApiError::Throttled(
                "too many requests without a credential in their headers; send it as a header"
                    .into(),
            )
        })?;
        let (parts, of_body) = request.into_parts();
        let bytes = body::bytes(&parts.headers, of_body)
            .await
            .map_err(|_| nobody())?;
        // What is wrong with the body is told to those who may know.
        let credential = body::parse(&bytes).ok().and_then(|fields| {
            let body = body::JsonBody(fields);
            Credential::of_body(&body, takes).ok().flatten()
        });
        let request = Request::from_parts(parts, Body::from(bytes));
        Ok((request, credential.ok_or_else(nobody)?))
    }

    async fn user(&self, credential: &Credential) -> Result<User, ApiError> {
        let user = match credential {
            Credential::Key(key) => match &self.keys {
                Some(keys) => keys.user(key).await?,
                None => None,
            },
            Credential::Token(token) => match &self.tokens {
                Some(tokens) => tokens.user(token).await?,
                None => None,
            },
        };
        user.ok_or_else(|| {
            let token = match &self.tokens {
                Some(tokens) => format!(
                    "a Kubernetes token of audience '{}' that has not expired",
                    tokens.audience()
                ),
                None => "no token, since this server takes none".to_string(),
            };
            let key = match &self.keys {
                Some(_) => "a key that has not been revoked",
                None => "no API key, since this server takes none",
            };
            ApiError::Unauthenticated(format!(
                "the credential is not valid: send {token} as 'Authorization: Bearer', or {key} as 'x-api-key'"
            ))
        })
    }
}

/// What a request without a credential is told.
fn nobody() -> ApiError {
    ApiError::Unauthenticated(
        "the request has no credential; send a Kubernetes token as 'Authorization: Bearer', or an API key as 'x-api-key'"
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_who_differ_in_anything_have_different_fingerprints() {
        let user = |name: &str, groups: &[&str], extra: &[(&str, &[&str])]| User {
            name: name.into(),
            uid: None,
            groups: groups.iter().map(|group| group.to_string()).collect(),
            extra: extra
                .iter()
                .map(|(key, values)| {
                    (
                        key.to_string(),
                        values.iter().map(|v| v.to_string()).collect(),
                    )
                })
                .collect(),
        };
        let users = [
            user("a", &[], &[]),
            user("ab", &[], &[]),
            user("a", &["b"], &[]),
            user("a", &["b", "c"], &[]),
            user("a", &["bc"], &[]),
            user("a", &[], &[("b", &[])]),
            user("a", &["b"], &[("c", &["d"])]),
            user("a", &["b"], &[("c", &["d", "e"])]),
            User {
                uid: Some("b".into()),
                ..user("a", &[], &[])
            },
        ];
        let all: std::collections::BTreeSet<_> = users.iter().map(User::fingerprint).collect();
        assert_eq!(all.len(), users.len());
        assert_eq!(users[0].fingerprint(), users[0].clone().fingerprint());
    }
}
