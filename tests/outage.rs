//! The API server, etcd and the Job controller go away under running
//! refreshes, and come back. A test binary of its own, since no other test
//! could run beside it; it speaks through kubectl, and links next to nothing.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const REFRESHES: usize = 8;
const PATIENCE: Duration = Duration::from_secs(240);
const NAMESPACE: &str = "outage";

fn needed(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set; this test needs a whole cluster: tests/run brings one up and sets it"
        )
    })
}

/// A file of this package, in whose folder tests are run.
fn repo(path: &str) -> PathBuf {
    std::path::absolute(path).unwrap()
}

fn text(output: Output) -> String {
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{wrong}");
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

fn cluster(arguments: &[&str]) -> String {
    let script = Command::new(needed("RELANCE_TEST_CLUSTER_SCRIPT"))
        .args(arguments)
        .env("NAME", needed("RELANCE_TEST_CLUSTER"))
        .output();
    text(script.unwrap())
}

fn kubectl(arguments: &[&str]) -> Output {
    Command::new("kubectl")
        .args(["--kubeconfig", &needed("RELANCE_TEST_KUBECONFIG")])
        .args(["-n", NAMESPACE, "--request-timeout=5s"])
        .args(arguments)
        .output()
        .expect("kubectl on the PATH, as eval \"$(tests/cluster/cluster env)\" puts it there")
}

fn apply(yaml: &str) {
    let file = std::env::temp_dir().join(format!("relance-outage-{}.yaml", std::process::id()));
    std::fs::write(&file, yaml).unwrap();
    text(kubectl(&[
        "apply",
        "--server-side",
        "-f",
        file.to_str().unwrap(),
    ]));
    std::fs::remove_file(file).unwrap();
}

fn tables(folder: &str, arguments: &[&str]) -> String {
    let python = Command::new(needed("RELANCE_TEST_PYTHON"))
        .arg(repo("demo/tables.py"))
        .arg(folder)
        .args(arguments)
        .output();
    text(python.unwrap())
}

/// What the test leaves behind, however it ends.
struct Left {
    operator: Option<Child>,
    link: PathBuf,
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(operator) = &mut self.operator {
            let _ = operator.kill();
            let _ = operator.wait();
        }
        let _ = std::fs::remove_file(&self.link);
        // Brings back what is still down.
        cluster(&["up"]);
        kubectl(&["delete", "namespace", NAMESPACE]);
    }
}

fn phases() -> Vec<String> {
    // While the API server is away there is no answer.
    let output = kubectl(&["get", "mvr", "-o", "jsonpath={.items[*].status.phase}"]);
    let phases = String::from_utf8(output.stdout).unwrap();
    phases.split_whitespace().map(String::from).collect()
}

#[test]
fn refreshes_go_on_after_the_api_server_etcd_and_the_job_controller_were_away() {
    let definitions = repo("crds");
    text(kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        definitions.to_str().unwrap(),
    ]));
    kubectl(&["delete", "namespace", NAMESPACE]);
    text(kubectl(&["create", "namespace", NAMESPACE]));
    let folder = cluster(&["storage", NAMESPACE]);
    // Pods cannot enter the folders above the claim's.
    let link = PathBuf::from(format!("/var/tmp/relance-outage-{}", std::process::id()));
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    let mut left = Left {
        operator: None,
        link: link.clone(),
    };
    let path = link.display();
    tables(
        &path.to_string(),
        &[
            "create",
            repo("demo/data/strikes-1993-2000.csv").to_str().unwrap(),
        ],
    );
    let image = needed("RELANCE_TEST_IMAGE");
    apply(&format!(
        "
apiVersion: relance.dev/v1alpha1
kind: RefreshCluster
metadata: {{name: default}}
spec:
  image: {image}
  template:
    spec:
      containers:
        - {{name: worker, imagePullPolicy: Never, volumeMounts: [{{name: tables, mountPath: {path}}}]}}
      volumes: [{{name: tables, persistentVolumeClaim: {{claimName: tables}}}}]
"
    ));
    let operator = Command::new(env!("CARGO_BIN_EXE_relance"))
        .args(["serve", "--controller", "--namespace", NAMESPACE])
        .args(["--catalog", &format!("dir://{path}")])
        .args(["--health-listen", "127.0.0.1:0"])
        .env("KUBECONFIG", needed("RELANCE_TEST_KUBECONFIG"))
        .stderr(Stdio::inherit())
        .spawn();
    left.operator = Some(operator.unwrap());
    for at in 0..REFRESHES {
        apply(&format!(
            "
apiVersion: relance.dev/v1alpha1
kind: MaterializedViewRefresh
metadata: {{name: r{at}}}
spec: {{view: [damaging_strikes], full: true}}
"
        ));
    }

    let start = Instant::now();
    let mut outages = [
        &["apiserver"][..],
        &["etcd"],
        &["controller-manager"],
        &["etcd", "apiserver"],
    ]
    .into_iter();
    loop {
        let ended = phases()
            .iter()
            .filter(|phase| *phase == "Succeeded")
            .count();
        if ended == REFRESHES {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{:?}", phases());
        if let Some(components) = outages.next() {
            // In the midst of something, most likely.
            std::thread::sleep(Duration::from_millis(1_300));
            for component in components {
                cluster(&["kill", component]);
            }
            std::thread::sleep(Duration::from_secs(2));
            for component in components {
                cluster(&["start", component]);
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(outages.next().is_none(), "all ended before the last outage");
    let jobs = text(kubectl(&[
        "get",
        "jobs",
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ]));
    assert_eq!(
        jobs.split_whitespace().count(),
        REFRESHES,
        "one Job a refresh: {jobs}"
    );
    let shown = tables(&path.to_string(), &["show"]);
    assert!(shown.contains("of 749 rows"), "{shown}");
}
