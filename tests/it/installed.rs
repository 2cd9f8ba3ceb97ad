//! The operator as its chart installs it: in the cluster, with the service
//! accounts and Roles of the chart and nothing else.

use std::process::Command;

use relance::resources::{Mode, Phase};
use serde_json::{Value, json};

use crate::callers::{AUDIENCE, Callers};
use crate::operator::{Operator, PATIENCE, needed};
use crate::support::{kubeconfig, repo};

#[tokio::test]
async fn the_chart_installs_an_operator_whose_roles_suffice() {
    let operator = Operator::prepared().await;
    operator.append("src", 0..10).await;
    operator.view("v", "SELECT id FROM src WHERE id > 1").await;
    // The helper's own stands in the chart's place.
    operator.kubectl(&["delete", "refreshcluster", "default"]);
    operator.kubectl(&["delete", "roles,rolebindings", "--all"]);
    let values = json!({
        "image": needed("RELANCE_TEST_IMAGE"),
        "imagePullPolicy": "Never",
        "catalog": operator.catalog(),
        // What goes wrong beside the way is told there.
        "logLevel": "info,relance=debug",
        "volumes": [{"name": "tables", "persistentVolumeClaim": {"claimName": "tables"}}],
        "volumeMounts": [{"name": "tables", "mountPath": operator.tables}],
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    let helm = Command::new("helm")
        .args([
            "--kubeconfig",
            &kubeconfig(),
            "--namespace",
            &operator.space.namespace,
        ])
        .args(["install", "relance"])
        .arg(repo("deploy/chart"))
        .args(["--skip-crds", "--wait", "--timeout", "2m", "--values"])
        .arg(file.path())
        .output()
        .expect("helm on the PATH, as eval \"$(tests/cluster/cluster env)\" puts it there");
    assert!(
        helm.status.success(),
        "{}",
        String::from_utf8_lossy(&helm.stderr)
    );

    let told = Command::new("helm")
        .args(["--kubeconfig", &kubeconfig(), "--namespace"])
        .args([&operator.space.namespace, "test", "relance", "--logs"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
    assert!(told.contains("Phase:          Succeeded"), "{told}");
    only_who_may_use_a_cluster_creates_refreshes_on_it(&operator).await;
    rest_makes_no_secret_that_kubernetes_puts_a_token_into(&operator).await;

    let address = "jsonpath={.spec.clusterIP}";
    let address = operator.kubectl(&["get", "service", "relance", "-o", address]);
    let url = format!("http://{address}:2333/v1/materialized_view/v/refresh");
    let http = reqwest::Client::new();
    let stranger = http.post(&url).send().await.unwrap();
    assert_eq!(stranger.status().as_u16(), 401, "the chart lets nobody in");
    let callers = Callers::of(&operator.space);
    callers
        .allow(&callers.account("analyst"), &["create"], &["default"])
        .await;
    let by_token = format!("Bearer {}", callers.token("analyst", Some(AUDIENCE)).await);
    let post = |key: &'static str| {
        let body = json!({"manifest": r#"{"name": "m"}"#}).to_string();
        let request = http.post(&url).header("authorization", &by_token);
        let request = request.header("idempotency-key", key).body(body);
        async move {
            // The API server's authorizer hears of a new Role a moment later.
            let start = std::time::Instant::now();
            let text = loop {
                let request = request.try_clone().unwrap();
                let answer = request.send().await.unwrap();
                let status = answer.status().as_u16();
                let text = answer.text().await.unwrap();
                match status {
                    202 => break text,
                    403 => assert!(start.elapsed() < PATIENCE, "{text}"),
                    other => panic!("{other}: {text}"),
                }
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            };
            let body: Value = serde_json::from_str(&text).unwrap();
            body["job_id"].as_str().unwrap().to_string()
        }
    };
    let first = post("one").await;
    assert_eq!(post("one").await, first, "the same key, another refresh");
    operator.succeeded(&first).await;
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());
    operator.apply("again", json!({"view": ["v"]})).await;
    assert_eq!(operator.succeeded("again").await.mode, Some(Mode::NoOp));

    // The verbs that success does not need: stop a Job, ask why there is no pod, delete what is over.
    operator.kubectl(&["create", "quota", "none", "--hard=pods=0"]);
    operator
        .apply("stuck", json!({"view": ["v"], "full": true}))
        .await;
    operator
        .until("stuck", "held up by the quota", |status| {
            status
                .message
                .as_ref()
                .is_some_and(|m| m.contains("exceeded quota"))
        })
        .await;
    operator
        .patch(
            "stuck",
            json!({"cancel": true, "ttlSecondsAfterFinished": 3}),
        )
        .await;
    operator
        .until("stuck", "cancelled", |s| s.phase == Phase::Cancelled)
        .await;
    operator.kubectl(&["wait", "--for=delete", "mvr/stuck", "--timeout=60s"]);
    operator.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "refreshcluster/default",
        "--timeout=30s",
    ]);

    for half in ["rest", "controller"] {
        let log = operator.kubectl(&["logs", &format!("deployment/relance-{half}")]);
        assert!(!log.to_lowercase().contains("forbidden: user"), "{log}");
        assert!(!log.contains("cannot "), "{log}");
    }
}

/// The admission policy, asked as users of kubectl meet it.
async fn only_who_may_use_a_cluster_creates_refreshes_on_it(operator: &Operator) {
    operator.kubectl(&[
        "create",
        "role",
        "creates",
        "--verb=create",
        "--resource=materializedviewrefreshes.relance.dev",
    ]);
    // kubectl makes no Role with a verb that is no request's.
    let uses = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "uses"},
        "rules": [{
            "apiGroups": ["relance.dev"],
            "resources": ["refreshclusters"],
            "resourceNames": ["default"],
            "verbs": ["use"],
        }],
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), uses.to_string()).unwrap();
    operator.kubectl(&["apply", "-f", file.path().to_str().unwrap()]);
    for role in ["creates", "uses"] {
        let role = format!("--role={role}");
        operator.kubectl(&["create", "rolebinding", &role[7..], &role, "--user=may"]);
    }
    operator.kubectl(&[
        "create",
        "rolebinding",
        "creates-only",
        "--role=creates",
        "--user=may-not",
    ]);
    // A dry run is admitted as a creation is.
    let create = |user: &str, cluster: &str| {
        let refresh = json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "MaterializedViewRefresh",
            "metadata": {"name": "asked"},
            "spec": {"view": ["v"], "cluster": cluster},
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), refresh.to_string()).unwrap();
        let output = Command::new("kubectl")
            .args(["--kubeconfig", &kubeconfig(), "--as", user])
            .args(["-n", &operator.space.namespace])
            .args(["create", "--dry-run=server", "-f"])
            .arg(file.path())
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    // The API server hears of the policy a moment after it was made.
    let start = std::time::Instant::now();
    let refused = loop {
        match create("may-not", "default") {
            Err(said) if said.contains("may not use") => break said,
            other => assert!(start.elapsed() < PATIENCE, "{other:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    assert!(
        refused.contains("may-not may not use refreshcluster 'default'"),
        "{refused}"
    );
    assert_eq!(create("may", "default"), Ok(()));
    let elsewhere = create("may", "other").unwrap_err();
    assert!(elsewhere.contains("may not use"), "{elsewhere}");
}

/// The other admission policy, as who has got hold of REST's own rights would meet it.
async fn rest_makes_no_secret_that_kubernetes_puts_a_token_into(operator: &Operator) {
    let namespace = &operator.space.namespace;
    let rest = format!("system:serviceaccount:{namespace}:relance-rest");
    let create = |kind: &str| {
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": kind,
            "metadata": {
                "name": "asked",
                "annotations": {"kubernetes.io/service-account.name": "relance-controller"},
            },
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), secret.to_string()).unwrap();
        let output = Command::new("kubectl")
            .args(["--kubeconfig", &kubeconfig(), "--as", &rest])
            .args(["-n", namespace])
            .args(["create", "--dry-run=server", "-f"])
            .arg(file.path())
            .output()
            .unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let start = std::time::Instant::now();
    loop {
        let said = create("kubernetes.io/service-account-token");
        if said.contains("of type Opaque alone") {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{said}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let said = create("Opaque");
    assert!(said.contains("secret/asked created"), "{said}");
}
