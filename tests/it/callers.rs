//! Callers of the REST API whom Kubernetes knows, and what they may do.

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use relance::resources::names;
use relance::rest::auth::limits::CallerLimits;
use relance::rest::auth::{Settings, keys};
use serde_json::json;

use crate::support::Space;

/// The audience of relance's tokens here.
pub const AUDIENCE: &str = "relance";

/// So much that no test meets them.
pub const NO_LIMITS: CallerLimits = CallerLimits {
    per_second: 1_000_000,
    at_a_time: 1_000_000,
};

/// See the module.
pub struct Callers {
    pub client: Client,
    pub namespace: String,
}

impl Callers {
    pub fn of(space: &Space) -> Callers {
        Callers {
            client: space.client.clone(),
            namespace: space.namespace.clone(),
        }
    }

    /// Gives a user these verbs on refreshes, and `use` of these RefreshClusters.
    pub async fn allow(&self, user: &str, verbs: &[&str], clusters: &[&str]) {
        let name = format!("allow-{}", uuid::Uuid::new_v4().simple());
        let mut rules = Vec::new();
        let group = ["relance.dev"];
        if !verbs.is_empty() {
            let resources = ["materializedviewrefreshes"];
            rules.push(json!({"apiGroups": group, "resources": resources, "verbs": verbs}));
        }
        if !clusters.is_empty() {
            rules.push(json!({
                "apiGroups": group, "resources": ["refreshclusters"], "verbs": ["use"], "resourceNames": clusters,
            }));
        }
        let role: Role =
            serde_json::from_value(json!({"metadata": {"name": name}, "rules": rules})).unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"user": name_of(user)}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }))
        .unwrap();
        let post = PostParams::default();
        let roles: Api<Role> = Api::namespaced(self.client.clone(), &self.namespace);
        roles.create(&post, &role).await.unwrap();
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), &self.namespace);
        bindings.create(&post, &binding).await.unwrap();
    }

    /// Takes away all that [`Self::allow`] gave to a user.
    pub async fn forbid(&self, user: &str) {
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), &self.namespace);
        let of_user = kube::api::ListParams::default().labels(&format!("user={}", name_of(user)));
        for binding in bindings.list(&of_user).await.unwrap() {
            let name = binding.name_any();
            bindings.delete(&name, &Default::default()).await.unwrap();
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A new key of this user, added to the Secret as `relance key` says.
    pub async fn key(&self, user: &str) -> String {
        self.key_in(user, &[]).await
    }

    /// The same in groups.
    pub async fn key_in(&self, user: &str, groups: &[String]) -> String {
        let made = keys::make(&name_of(user), user, groups).unwrap();
        let manifest: serde_json::Value = serde_yaml::from_str(&made.manifest).unwrap();
        let own = PatchParams::apply(&format!("key-{}", name_of(user))).force();
        self.secrets()
            .patch(names::API_KEYS_SECRET, &own, &Patch::Apply(manifest))
            .await
            .unwrap();
        made.key
    }

    /// Removes a user's key from the Secret.
    pub async fn revoke_key(&self, user: &str) {
        let patch = Patch::Merge(json!({"data": {name_of(user): null}}));
        let params = PatchParams::default();
        self.secrets()
            .patch(names::API_KEYS_SECRET, &params, &patch)
            .await
            .unwrap();
    }

    fn accounts(&self) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The user name of a service account.
    pub fn account(&self, name: &str) -> String {
        format!("system:serviceaccount:{}:{name}", self.namespace)
    }

    /// A token of a service account, which is made if it is not there. No
    /// audience: the API server's own.
    pub async fn token(&self, account: &str, audience: Option<&str>) -> String {
        let made: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": account}})).unwrap();
        match self.accounts().create(&PostParams::default(), &made).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other.unwrap()),
        }
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.iter().map(|name| name.to_string()).collect(),
                expiration_seconds: Some(3600),
                ..Default::default()
            },
            ..Default::default()
        };
        let made = self
            .accounts()
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .unwrap();
        made.status.unwrap().token
    }

    /// Deletes a service account, and with it all its tokens.
    pub async fn delete_account(&self, account: &str) {
        let accounts = self.accounts();
        accounts.delete(account, &Default::default()).await.unwrap();
    }
}

fn name_of(user: &str) -> String {
    user.replace(':', ".")
}

/// Tokens and keys, without limits.
pub fn tokens_and_keys() -> Settings {
    Settings {
        audience: Some(AUDIENCE.to_string()),
        keys: true,
        limits: NO_LIMITS,
    }
}
