//! REST under the Role that is installed for it: enough, and no more.

use std::time::{Duration, Instant};

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::Client;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ObjectMeta;
use relance::resources::names;
use relance::rest::auth::{Access, Settings};
use serde::Deserialize;
use serde_json::json;

use crate::callers::{Callers, NO_LIMITS};
use crate::operator::PATIENCE;
use crate::support::{Answer, Server, World, kubeconfig, may_review_tokens, repo};

/// The rules of the Role `relance-rest` in the rendered manifests.
pub fn installed_rules() -> Vec<PolicyRule> {
    let file = repo("deploy/relance.yaml");
    let text = std::fs::read_to_string(file).expect("the rendered manifests");
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| serde_yaml::Value::deserialize(document).expect("YAML"))
        .find(|object| object["kind"] == "Role" && object["metadata"]["name"] == "relance-rest")
        .and_then(|object| serde_yaml::from_value::<Role>(object).ok())
        .and_then(|role| role.rules)
        .expect("the Role of REST")
}

/// A client that may do just what `rules` say, in the world's namespace.
pub async fn limited(world: &World, user: &str, rules: Vec<PolicyRule>) -> Client {
    let space = &world.space;
    let metadata = ObjectMeta {
        name: Some(user.to_string()),
        ..Default::default()
    };
    let role = Role {
        metadata: metadata.clone(),
        rules: Some(rules),
    };
    let binding = RoleBinding {
        metadata,
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "Role".into(),
            name: user.into(),
        },
        subjects: Some(vec![Subject {
            kind: "User".into(),
            name: user.into(),
            ..Default::default()
        }]),
    };
    let post = PostParams::default();
    Api::namespaced(space.client.clone(), &space.namespace)
        .create(&post, &role)
        .await
        .expect("a Role");
    Api::namespaced(space.client.clone(), &space.namespace)
        .create(&post, &binding)
        .await
        .expect("a RoleBinding");
    let file = Kubeconfig::read_from(kubeconfig()).expect("a readable kubeconfig");
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .expect("a usable kubeconfig");
    config.auth_info.impersonate = Some(user.to_string());
    // An audited run counts what REST does here too.
    let agent = axum::http::HeaderValue::from_static("relance-rest/test");
    config.headers.push((axum::http::header::USER_AGENT, agent));
    Client::try_from(config).expect("a client")
}

/// The key of a caller who may do everything there.
async fn caller(world: &World) -> Vec<(String, String)> {
    let callers = Callers::of(&world.space);
    callers
        .allow("caller", &["*"], &["default", "nowhere"])
        .await;
    vec![("x-api-key".into(), callers.key("caller").await)]
}

/// A server that takes API keys.
async fn taking_keys(world: &World, client: Client, caller: Vec<(String, String)>) -> Server {
    let namespace = &world.space.namespace;
    let settings = Settings {
        audience: None,
        keys: true,
        limits: NO_LIMITS,
    };
    let access = Access::guarded(client.clone(), namespace, settings);
    let uri = format!("dir://{}", world.folder.path().display());
    let mut server = Server::with_access(client, namespace, &uri, &[], access).await;
    server.headers = caller;
    server
}

/// A REST API that runs with what the chart grants, and lets in whom Kubernetes
/// knows by `settings`.
pub async fn guarded(world: &World, settings: Settings) -> Server {
    let space = &world.space;
    // Cluster-scoped, so that no other test's is meant.
    let user = format!(
        "rest-of-{}",
        &uuid::Uuid::new_v4().simple().to_string()[..12]
    );
    let tokens = settings.audience.is_some();
    let client = limited(world, &user, installed_rules()).await;
    if tokens {
        may_review_tokens(&space.client, &user, &user).await;
    }
    let access = Access::guarded(client.clone(), &space.namespace, settings);
    let uri = format!("dir://{}", world.folder.path().display());
    let server = Server::with_access(client, &space.namespace, &uri, &[], access).await;
    until(&server, "rights to know its callers", |status| {
        status == 401
    })
    .await;
    server
}

/// Waits until a stranger's token and key get this status.
async fn until(server: &Server, what: &str, wished: impl Fn(u16) -> bool) {
    let start = Instant::now();
    for header in [
        ("authorization", "Bearer nobody's"),
        ("x-api-key", "nobody's"),
    ] {
        loop {
            let answer = server.post_with("/v1/jobs/describe", &[header], "").await;
            if wished(answer.status) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "no {what}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn server(world: &World, user: &str, rules: Vec<PolicyRule>) -> Server {
    let client = limited(world, user, rules).await;
    let server = taking_keys(world, client, caller(world).await).await;
    // The API server's authorizer hears of a new Role a moment later.
    for _ in 0..50 {
        let told = server
            .post("/v1/jobs/describe", r#"{"job_id": "probe"}"#)
            .await;
        if ![403, 503].contains(&told.status) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    server
}

fn request() -> String {
    json!({"manifest": r#"{"name": "m"}"#}).to_string()
}

async fn post(server: &Server, key: &str) -> Answer {
    server
        .post_with(
            "/v1/materialized_view/v/refresh",
            &[("idempotency-key", key)],
            request(),
        )
        .await
}

#[tokio::test]
async fn the_installed_role_is_enough() {
    let world = World::new().await;
    let server = server(&world, "rest-whole", installed_rules()).await;
    let job_id = post(&server, "k").await.job_id();
    assert_eq!(post(&server, "k").await.job_id(), job_id);
    // A replica that finds the salt there already.
    let client = limited(&world, "rest-replica", installed_rules()).await;
    let replica = taking_keys(&world, client, server.headers.clone()).await;
    assert_eq!(post(&replica, "k").await.job_id(), job_id);
    let told = server
        .post("/v1/jobs/describe", json!({"job_id": job_id}).to_string())
        .await;
    assert_eq!(told.status, 200, "{told:?}");
}

#[tokio::test]
async fn a_refresh_whose_manifest_cannot_be_stored_is_refused_and_taken_back() {
    let world = World::new().await;
    let mut rules = installed_rules();
    for rule in &mut rules {
        if rule
            .resources
            .as_ref()
            .is_some_and(|resources| resources.contains(&"secrets".to_string()))
        {
            rule.verbs.retain(|verb| verb != "create");
        }
    }
    rules.retain(|rule| !rule.verbs.is_empty());
    let server = server(&world, "rest-no-secrets", rules).await;
    let said = server
        .post("/v1/materialized_view/v/refresh", request())
        .await;
    assert!(said.error(403, 15).contains("secrets"), "{said:?}");
    assert_eq!(world.stored().await, 0);
}

/// Each verb that is taken away makes something fail that REST has to do.
#[tokio::test]
async fn the_installed_role_has_no_verb_too_many() {
    let world = World::new().await;
    let rules = installed_rules();
    let mut tried = 0;
    for (index, rule) in rules.iter().enumerate() {
        for verb in &rule.verbs {
            // Taking back needs the one, the test above shows that; the
            // admission policy asks for the other, and is not installed here.
            if verb == "delete" || verb == "use" {
                continue;
            }
            let mut fewer = rules.clone();
            fewer[index].verbs.retain(|other| other != verb);
            fewer.retain(|rule| !rule.verbs.is_empty());
            let server = server(&world, &format!("rest-{index}-{verb}"), fewer).await;
            // Without its salt, the first step is to make it.
            let salt = &world.space.secrets;
            let _ = salt
                .delete(names::IDEMPOTENCY_SECRET, &Default::default())
                .await;
            let nowhere = json!({"cluster": "nowhere"}).to_string();
            let cancel = world.space.refreshes.list(&Default::default()).await;
            let cancel = cancel
                .expect("a list")
                .items
                .into_iter()
                .find_map(|refresh| {
                    (!refresh.spec.cancel)
                        .then(|| json!({"job_id": refresh.name_any()}).to_string())
                });
            let cancel = cancel.unwrap_or_else(|| "{}".to_string());
            let answers = [
                post(&server, "a").await,
                post(&server, "a").await,
                // The answer to this one names the clusters there are.
                server
                    .post("/v1/materialized_view/v/refresh", nowhere)
                    .await,
                server.post("/v1/jobs/list", "").await,
                server.post("/v1/jobs/cancel", cancel).await,
            ];
            // 503 where it is about the caller, who has nothing to do with it.
            let fails = |answer: &Answer| [403, 503].contains(&answer.status);
            assert!(
                answers.iter().any(fails),
                "{verb} on {:?} is not needed: {answers:?}",
                rule.resources
            );
            tried += 1;
        }
    }
    assert!(tried >= 7, "{tried}");
}
