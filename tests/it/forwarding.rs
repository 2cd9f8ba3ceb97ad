//! Callers' credentials on their way to a REST catalog: who is let in there,
//! what a refresh leaves behind, and where no credential may be.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Api, Resource};
use relance::resources::reasons::condition;
use relance::resources::{Mode, Phase, names};
use serde_json::{Value, json};

use crate::callers::{AUDIENCE, Callers};
use crate::operator::{Operator, PATIENCE};
use crate::planted::{Plants, readable};
use crate::rest_catalog::RestCatalog;

/// What the chart grants beside the rest where credentials are forwarded.
async fn grant(operator: &Operator) {
    let (client, namespace) = (&operator.space.client, &operator.space.namespace);
    let role: Role = serde_json::from_value(json!({
        "metadata": {"name": "forwards"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["delete"]}],
    }))
    .unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "forwards"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "forwards"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": operator.user()}],
    }))
    .unwrap();
    let params = Default::default();
    let roles: Api<Role> = Api::namespaced(client.clone(), namespace);
    roles.create(&params, &role).await.unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    bindings.create(&params, &binding).await.unwrap();
}

struct Caller<'a> {
    operator: &'a Operator,
    header: (&'static str, String),
}

impl Caller<'_> {
    async fn post(&self, path: &str) -> (u16, Value, String) {
        let request = reqwest::Client::new().post(format!("{}{path}", self.operator.url));
        let request = request.header(self.header.0, &self.header.1).body("{}");
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or_default(),
            text,
        )
    }

    /// The job of an accepted refresh of `v`.
    async fn refresh(&self) -> String {
        // The API server's authorizer hears of a new Role a moment later.
        let start = Instant::now();
        loop {
            let (status, body, said) = self.post("/v1/materialized_view/v/refresh").await;
            match status {
                202 => return body["job_id"].as_str().unwrap().to_string(),
                _ => assert!(start.elapsed() < PATIENCE, "{status} {said}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Holds that the refresh is there, and the Secret with the credential is not.
async fn left_no_credential(operator: &Operator, job: &str) {
    operator
        .until(job, "without its caller's credential", |status| {
            let deleted = |c: &&_| is_deleted(c);
            status.conditions.iter().any(|c| deleted(&c))
        })
        .await;
    let name = names::credential_secret(job);
    let left = operator.space.secrets.get_opt(&name).await.unwrap();
    assert!(left.is_none(), "{name} is still there");
}

fn is_deleted(condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> bool {
    condition.type_ == condition::CREDENTIAL_DELETED && condition.status == "True"
}

#[tokio::test]
async fn a_callers_token_opens_the_catalog_for_its_refresh_and_is_nowhere_at_the_end() {
    let mut operator = Operator::prepared().await;
    operator.append("src", 0..10).await;
    operator.view("v", "SELECT id FROM src WHERE id > 1").await;
    let catalog = RestCatalog::of(&operator).await;
    let callers = Callers::of(&operator.space);
    let mut plants = Plants::default();
    let mut shown = Vec::new();
    for who in ["analyst", "stranger"] {
        let user = callers.account(who);
        callers.allow(&user, &["create", "get"], &["default"]).await;
        let token = callers.token(who, Some(AUDIENCE)).await;
        plants.add(who, token.rsplit('.').next().unwrap());
        shown.push(token);
    }
    let key = callers.key("keyed").await;
    callers.allow("keyed", &["get"], &[]).await;
    plants.add("keyed", key.trim_start_matches("relance_"));
    catalog.take(&shown[0]);
    catalog.take(&key);
    grant(&operator).await;
    operator
        .start_with(&[
            ("RELANCE_AUTH", "tokens,keys"),
            ("RELANCE_CATALOG", &catalog.url),
            ("RELANCE_FORWARD_CREDENTIALS", "true"),
            ("RUST_LOG", "debug"),
        ])
        .await;
    let caller = |header, value: &str| Caller {
        operator: &operator,
        header: (header, value.to_string()),
    };
    let analyst = caller("authorization", &format!("Bearer {}", shown[0]));
    let stranger = caller("authorization", &format!("Bearer {}", shown[1]));
    let keyed = caller("x-api-key", &key);

    let job = analyst.refresh().await;
    let stored = operator.space.refreshes.get(&job).await.unwrap();
    let name = names::credential_secret(&job);
    let secret = operator.space.secrets.get(&name).await.unwrap();
    let data = secret.data.unwrap();
    assert_eq!(data["token"].0, shown[0].as_bytes());
    let owners = secret.metadata.owner_references.unwrap();
    assert_eq!(Some(&owners[0].uid), stored.metadata.uid.as_ref());
    operator.succeeded(&job).await;
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());
    assert!(
        catalog.served_to_pods() > 0,
        "the worker did not ask the catalog"
    );
    left_no_credential(&operator, &job).await;

    // What ends without a Job leaves nothing either.
    let again = analyst.refresh().await;
    assert_eq!(operator.succeeded(&again).await.mode, Some(Mode::NoOp));
    left_no_credential(&operator, &again).await;

    let (status, table, said) = keyed.post("/v1/table/src/describe").await;
    assert_eq!((status, &table["version"]), (200, &json!(1)), "{said}");
    let mut answers = said;

    let stored = operator.space.refreshes.list(&Default::default()).await;
    let stored = stored.unwrap().items.len();
    for path in ["/v1/materialized_view/v/refresh", "/v1/table/src/describe"] {
        let start = Instant::now();
        let (status, body, said) = loop {
            let answer = stranger.post(path).await;
            // Its Role is known a moment later.
            let of_kubernetes = answer.2.contains("RoleBinding");
            if !of_kubernetes || start.elapsed() > PATIENCE {
                break answer;
            }
        };
        assert_eq!((status, &body["code"]), (403, &json!(15)), "{said}");
        let sentence = body["error"].as_str().unwrap();
        let told = sentence.contains("the catalog refuses the caller's credential");
        assert!(
            told && sentence.contains("'***' is not let in"),
            "{sentence}"
        );
        answers += &said;
    }
    let now = operator.space.refreshes.list(&Default::default()).await;
    assert_eq!(now.unwrap().items.len(), stored, "a refresh was made");

    operator.append("src", 10..15).await;
    catalog.refuse_pods();
    let denied = analyst.refresh().await;
    let status = operator.settled(&denied).await;
    assert_eq!(status.phase, Phase::Failed, "{status:?}");
    let failed = status
        .conditions
        .iter()
        .find(|c| c.type_ == condition::FAILED);
    assert_eq!(failed.unwrap().reason, "CatalogDenied", "{status:?}");
    let message = status.message.unwrap();
    assert!(
        message.contains("refuses the caller's credential for 'v'"),
        "{message}"
    );
    left_no_credential(&operator, &denied).await;
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());

    let mut readable = readable(&operator, answers).await;
    // The keys' own Secret holds their hashes.
    let secrets = operator.kubectl(&["get", "secrets", "-o", "yaml"]);
    readable.push(("Secrets", secrets.into_bytes()));
    for (what, text) in readable {
        assert!(text.len() > 100, "{what} is too little to be all");
        assert_eq!(plants.found_in(&text), [""; 0], "in {what}");
    }
}

#[tokio::test]
async fn a_credential_that_comes_after_the_end_is_deleted_too_and_not_said_to_be_gone_before() {
    let operator = Operator::running().await;
    grant(&operator).await;
    let spec = json!({"view": ["v"], "forwardedCredential": true, "cancel": true});
    operator.apply("asked", spec).await;
    let status = operator.settled("asked").await;
    assert_eq!(status.phase, Phase::Cancelled);
    // The controller has looked for it by now, and found none.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let refresh = operator.space.refreshes.get("asked").await.unwrap();
    let status = refresh.status.clone().unwrap_or_default();
    assert!(!status.conditions.iter().any(is_deleted), "{status:?}");
    // What a create of REST's does that the API server carried out late.
    let name = names::credential_secret("asked");
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": name, "ownerReferences": [refresh.owner_ref(&()).unwrap()]},
        "stringData": {"token": "late"},
    }))
    .unwrap();
    let secrets = &operator.space.secrets;
    secrets.create(&Default::default(), &secret).await.unwrap();
    left_no_credential(&operator, "asked").await;
}

#[tokio::test]
async fn a_directory_is_shown_no_credential() {
    let operator = Operator::running().await;
    let spec = json!({"view": ["v"], "forwardedCredential": true});
    operator.apply("asked", spec).await;
    let status = operator.settled("asked").await;
    assert_eq!(status.phase, Phase::Failed);
    let message = status.message.unwrap();
    assert!(message.contains("the catalog is a directory"), "{message}");
    left_no_credential_was_there(&operator).await;
}

/// Where there is no right to delete a Secret, and none to delete, nothing is held up.
async fn left_no_credential_was_there(operator: &Operator) {
    operator
        .patch("asked", json!({"ttlSecondsAfterFinished": 1}))
        .await;
    operator.kubectl(&["wait", "--for=delete", "mvr/asked", "--timeout=60s"]);
}
