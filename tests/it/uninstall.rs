//! `helm uninstall` with a refresh under way in another cluster: it is let go
//! of, and goes on with whoever is installed next.

use std::process::Command;

use relance::kubectl::{PLUGIN, exit};
use relance::resources::{Phase, reasons};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::far::{Far, give, is_held, until_ready};
use crate::operator::{Operator, needed};
use crate::support::{kubeconfig, repo};

fn helm(operator: &Operator, arguments: &[&str]) {
    let output = Command::new("helm")
        .args(["--kubeconfig", &kubeconfig(), "-n"])
        .arg(&operator.space.namespace)
        .args(arguments)
        .output()
        .expect("helm on the PATH, as eval \"$(tests/cluster/cluster env)\" puts it there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
}

/// The controller as the chart installs it, beside the tests' own RefreshClusters.
fn install(operator: &Operator) {
    let values = json!({
        "image": needed("RELANCE_TEST_IMAGE"),
        "imagePullPolicy": "Never",
        "catalog": operator.catalog(),
        "volumes": [{"name": "tables", "persistentVolumeClaim": {"claimName": "tables"}}],
        "volumeMounts": [{"name": "tables", "mountPath": operator.tables}],
        "cluster": {"create": false},
        "admissionPolicy": {"create": false},
        "rest": {"replicas": 1},
        "controller": {"replicas": 1},
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    let chart = repo("deploy/chart").display().to_string();
    let values = file.path().display().to_string();
    // Those of the tests' own process stand in the chart's place.
    operator.kubectl(&["delete", "roles,rolebindings", "--all"]);
    let base = ["install", "relance", &chart, "--skip-crds", "--wait"];
    let more = ["--timeout", "3m", "--values", &values];
    helm(operator, &[&base[..], &more].concat());
}

/// `release`, by an administrator; its exit code and what it said.
fn release(operator: &Operator, timeout: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join(PLUGIN);
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_relance"), &link).unwrap();
    let output = Command::new(link)
        .args(["release", "--timeout", timeout, "-n"])
        .arg(&operator.space.namespace)
        .env("KUBECONFIG", kubeconfig())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// Has the operator's pods reach the other cluster, to which no way leads from
/// this one's pods but by this machine.
async fn lead_there(operator: &Operator, far: &Far) {
    let mut kubeconfig = far.kubeconfig_of("relance").await;
    let cluster = &mut kubeconfig["clusters"][0]["cluster"];
    let server = cluster["server"].as_str().unwrap().to_string();
    let server = server.trim_start_matches("https://").to_string();
    let door = TcpListener::bind((needed("RELANCE_TEST_HOST_IP"), 0));
    let door = door.await.unwrap();
    cluster["server"] = json!(format!("https://{}", door.local_addr().unwrap()));
    cluster["tls-server-name"] = json!("localhost");
    give(operator, &kubeconfig).await;
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = door.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(server).await?;
                tokio::io::copy_bidirectional(&mut inside, &mut outside).await
            });
        }
    });
}

// Several threads, since helm and kubectl are waited for on one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uninstall_lets_go_of_refreshes_in_other_clusters_which_go_on_with_the_next_install() {
    let operator = Operator::prepared().await;
    operator.append("src", 0..10).await;
    operator.view("v", "SELECT id FROM src WHERE id > 1").await;
    operator.view("w", "SELECT id FROM src WHERE id > 5").await;
    let far = Far::of(&operator).await;
    far.slow(&operator, 600).await;
    lead_there(&operator, &far).await;
    install(&operator);
    until_ready(&operator, "True", reasons::CLUSTER_READY).await;
    for view in ["v", "w"] {
        let spec: Value = json!({"view": [view], "cluster": "far"});
        operator.apply(view, spec).await;
        operator
            .until(view, "launched", |s| {
                s.job.as_ref().is_some_and(|j| j.uid.is_some())
            })
            .await;
        assert!(is_held(&operator, view).await);
    }
    assert_eq!(far.job_count().await, 2);
    // An operator that acts would only hold them again.
    let (code, said) = release(&operator, "0s");
    assert_eq!(code, Some(exit::FAILED), "{said}");
    assert!(said.contains("an operator acts by Lease"), "{said}");

    helm(&operator, &["uninstall", "relance", "--timeout", "4m"]);
    far.until_no_job().await;
    for view in ["v", "w"] {
        assert!(!is_held(&operator, view).await);
        assert_eq!(operator.status(view).await.phase, Phase::Queued);
    }
    // The operator had lost its Role when it would have given the Lease back.
    let (code, said) = release(&operator, "1m");
    assert_eq!(
        (code, said.as_str()),
        (Some(exit::OK), "no refresh is held\n")
    );
    let left = operator.kubectl(&["get", "jobs,roles,serviceaccounts", "-o", "name"]);
    assert!(!left.contains("uninstall"), "{left}");
    // Nothing keeps them from going, and what stays goes on.
    operator.kubectl(&["delete", "mvr", "w", "--timeout=20s"]);
    far.cluster(&operator, json!({})).await;
    let _next = operator.second();
    operator.succeeded("v").await;
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());
}
