//! What a user may do, which the Kubernetes API is asked for.
//!
//! By LocalSubjectAccessReviews: to ask them a Role of the namespace is enough,
//! and what they answer is what `kubectl auth can-i --as` answers.

use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, ResourceAttributes, SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};

use super::User;
use super::cache::{Answers, Fingerprint};
use crate::resources::names;
use crate::rest::error::ApiError;
use crate::rest::routes::Verb;
use crate::rest::store::in_time;

/// What a caller must be allowed, in relance's API group and namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asks {
    /// A verb of Kubernetes RBAC.
    verb: &'static str,
    /// The plural name of a resource.
    resource: &'static str,
}

impl Asks {
    /// To have refreshes run through a RefreshCluster.
    pub const USE: Asks = Asks {
        verb: "use",
        resource: names::CLUSTERS,
    };

    /// To do that with refreshes.
    pub fn of_refreshes(verb: Verb) -> Self {
        Self {
            verb: verb.as_str(),
            resource: names::REFRESHES,
        }
    }
}

type Question = (Fingerprint, Asks, Option<String>);

/// See the module.
pub struct Reviews {
    reviews: Api<LocalSubjectAccessReview>,
    namespace: String,
    answers: Answers<Question, bool>,
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reviews({})", self.namespace)
    }
}

impl Reviews {
    /// Asks what users may do in `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            reviews: Api::namespaced(client, namespace),
            namespace: namespace.to_string(),
            answers: Answers::default(),
        }
    }

    /// Nothing if `user` may do that, on the object called `name` or on all;
    /// else `PermissionDenied`, in words that do not depend on what is there.
    pub async fn allow(&self, user: &User, asks: Asks, name: Option<&str>) -> Result<(), ApiError> {
        let question = (user.fingerprint(), asks, name.map(str::to_string));
        let allowed = self
            .answers
            .get(question, self.review(user, asks, name))
            .await?;
        if allowed {
            return Ok(());
        }
        let Asks { verb, resource } = asks;
        let called = name.map(|name| format!(" '{name}'")).unwrap_or_default();
        Err(ApiError::PermissionDenied(format!(
            "user '{}' may not {verb} {resource}.{}{called} in namespace '{}'; have someone grant it by a Role and a RoleBinding",
            user.name,
            names::GROUP,
            self.namespace
        )))
    }

    async fn review(&self, user: &User, asks: Asks, name: Option<&str>) -> Result<bool, ApiError> {
        let review = LocalSubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(self.namespace.clone()),
                    group: Some(names::GROUP.to_string()),
                    resource: Some(asks.resource.to_string()),
                    verb: Some(asks.verb.to_string()),
                    name: name.map(str::to_string),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let post = PostParams::default();
        let created = self.reviews.create(&post, &review);
        match in_time(created).await {
            Ok(review) => Ok(review.status.is_some_and(|status| status.allowed)),
            Err(error) => {
                tracing::error!(%error, "the Kubernetes API cannot be asked what a caller may do; relance needs create on localsubjectaccessreviews.authorization.k8s.io");
                Err(ApiError::Unavailable(
                    "the Kubernetes API cannot say now what you may do; try again".into(),
                ))
            }
        }
    }
}
