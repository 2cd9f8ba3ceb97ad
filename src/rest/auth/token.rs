//! Bearer tokens, which the Kubernetes API reviews.
//!
//! A token must be meant for relance's audience: one that a caller uses with
//! the Kubernetes API itself, or that a pod has for another service, is none
//! for relance, and relance's is none for them.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;

use super::User;
use super::cache::{Answers, Fingerprint, Salt};
use crate::rest::error::ApiError;
use crate::rest::store::in_time;

/// Longest token that is reviewed, in bytes.
const LONGEST: usize = 16 * 1024;

/// Reviews at a time: a flood of made-up tokens must not become the API server's.
const AT_A_TIME: usize = 32;

/// Tokens that may wait for their review: the limits of callers cannot hold up those
/// of whom nobody knows yet who they are.
const WAITING: usize = 256;

/// See the module.
pub struct Tokens {
    reviews: Api<TokenReview>,
    audience: String,
    salt: Salt,
    answers: Answers<Fingerprint, Option<Arc<User>>>,
    turns: Semaphore,
    /// Places of those that are reviewed or wait for it.
    places: Semaphore,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.audience)
    }
}

impl Tokens {
    /// Takes tokens that are meant for `audience`.
    pub fn new(client: Client, audience: String) -> Self {
        Self {
            reviews: Api::all(client),
            audience,
            salt: Salt::default(),
            answers: Answers::default(),
            turns: Semaphore::new(AT_A_TIME),
            places: Semaphore::new(AT_A_TIME + WAITING),
        }
    }

    /// The audience that tokens must be meant for.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Whose token it is, if it is anybody's.
    pub async fn user(&self, token: &str) -> Result<Option<User>, ApiError> {
        let sendable = |byte: u8| (0x21..0x7f).contains(&byte);
        if token.is_empty() || token.len() > LONGEST || !token.bytes().all(sendable) {
            return Ok(None);
        }
        let known = self
            .answers
            .get(self.salt.hash(token), self.review(token))
            .await?;
        Ok(known.map(|user| (*user).clone()))
    }

    async fn review(&self, token: &str) -> Result<Option<Arc<User>>, ApiError> {
        let _place = self.places.try_acquire().map_err(|_| {
            ApiError::Unavailable(
                "more tokens wait to be reviewed by the Kubernetes API than may; try again".into(),
            )
        })?;
        let _turn = self.turns.acquire().await;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_string()),
                audiences: Some(vec![self.audience.clone()]),
            },
            ..Default::default()
        };
        let post = PostParams::default();
        let created = self.reviews.create(&post, &review);
        // The API server's own words could tell of the token.
        let status = match in_time(created).await {
            Ok(review) => review.status.unwrap_or_default(),
            Err(ApiError::PermissionDenied(_)) => {
                tracing::error!(
                    "the Kubernetes API does not let relance create tokenreviews, so no token can be told: grant it (rest.auth.tokens of the chart), or take keys alone (--auth keys)"
                );
                return Err(cannot_tell());
            }
            Err(ApiError::InvalidInput(_)) => return Ok(None),
            Err(_) => return Err(cannot_tell()),
        };
        Ok(self.accepted(status).map(Arc::new))
    }

    fn accepted(
        &self,
        status: k8s_openapi::api::authentication::v1::TokenReviewStatus,
    ) -> Option<User> {
        // An API server that knows nothing of audiences names none.
        let meant = status
            .audiences
            .is_some_and(|audiences| audiences.contains(&self.audience));
        let user = status.user?;
        let name = user.username.filter(|name| !name.is_empty())?;
        (status.authenticated == Some(true) && meant).then(|| User {
            name,
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        })
    }
}

fn cannot_tell() -> ApiError {
    ApiError::Unavailable("the Kubernetes API cannot say now whose token this is; try again".into())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;
    use std::time::Duration;

    use axum::http::{Request, Response};
    use futures::StreamExt;
    use futures::stream::FuturesUnordered;
    use kube::client::Body;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_flood_of_made_up_tokens_waits_in_a_queue_that_has_an_end() {
        let silent = |_: Request<Body>| pending::<Result<Response<Body>, Infallible>>();
        let client = Client::new(tower::service_fn(silent), "ns");
        let tokens = Tokens::new(client, "relance".into());
        let all = AT_A_TIME + WAITING;
        let made_up: Vec<String> = (0..all + 10).map(|n| n.to_string()).collect();
        let asked = made_up.iter().map(|token| tokens.user(token));
        let mut asked: FuturesUnordered<_> = asked.collect();
        for _ in 0..10 {
            let answer = timeout(Duration::from_secs(5), asked.next()).await;
            let answer = answer.expect("at once").expect("an answer");
            assert!(
                matches!(answer, Err(ApiError::Unavailable(_))),
                "{answer:?}"
            );
        }
        let others = timeout(Duration::from_millis(50), asked.next()).await;
        assert!(others.is_err(), "the others wait for the API server");
        drop(asked);
        assert_eq!(
            tokens.places.available_permits(),
            all,
            "there is room again"
        );
    }
}
