//! The API server, etcd and the Job controller go away under running
//! refreshes, here and in a second cluster, and come back. A test binary of its
//! own, since no other test could run beside it; it speaks through kubectl, and
//! links next to nothing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const REFRESHES: usize = 8;
const PATIENCE: Duration = Duration::from_secs(600);
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

/// One of the two clusters, by its name.
struct Cluster(String);

impl Cluster {
    fn home() -> Cluster {
        Cluster(needed("RELANCE_TEST_CLUSTER"))
    }

    fn far() -> Cluster {
        Cluster(format!("{}-far", needed("RELANCE_TEST_CLUSTER")))
    }

    fn script(&self, arguments: &[&str]) -> String {
        let script = Command::new(needed("RELANCE_TEST_CLUSTER_SCRIPT"))
            .args(arguments)
            .env("NAME", &self.0)
            .output();
        text(script.unwrap())
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        Command::new("kubectl")
            .args(["--kubeconfig", &self.script(&["kubeconfig"])])
            .args(["-n", NAMESPACE, "--request-timeout=5s"])
            .args(arguments)
            .output()
            .expect("kubectl on the PATH, as eval \"$(tests/cluster/cluster env)\" puts it there")
    }

    fn apply(&self, yaml: &str) {
        let file = std::env::temp_dir().join(format!("relance-outage-{}.yaml", std::process::id()));
        std::fs::write(&file, yaml).unwrap();
        text(self.kubectl(&["apply", "--server-side", "-f", file.to_str().unwrap()]));
        std::fs::remove_file(file).unwrap();
    }

    /// What the objects of a kind say at a JSON path, in words.
    fn words(&self, kind: &str, path: &str) -> Vec<String> {
        // While the API server is away there is no answer.
        let output = self.kubectl(&["get", kind, "-o", &format!("jsonpath={{.items[*]{path}}}")]);
        let words = String::from_utf8(output.stdout).unwrap();
        words.split_whitespace().map(String::from).collect()
    }

    /// An empty namespace.
    fn namespace(&self) {
        self.kubectl(&["delete", "namespace", NAMESPACE]);
        text(self.kubectl(&["create", "namespace", NAMESPACE]));
    }
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
        for cluster in [Cluster::home(), Cluster::far()] {
            // Brings back what is still down.
            cluster.script(&["up"]);
            cluster.kubectl(&["delete", "namespace", NAMESPACE]);
        }
    }
}

/// A RefreshCluster whose pods see the tables.
fn refresh_cluster(name: &str, path: &Path, more: &str) -> String {
    let image = needed("RELANCE_TEST_IMAGE");
    let path = path.display();
    format!(
        "
apiVersion: relance.dev/v1alpha1
kind: RefreshCluster
metadata: {{name: {name}}}
spec:
  image: {image}{more}
  template:
    spec:
      containers:
        - {{name: worker, imagePullPolicy: Never, volumeMounts: [{{name: tables, mountPath: {path}}}]}}
      volumes: [{{name: tables, persistentVolumeClaim: {{claimName: tables}}}}]
"
    )
}

/// RefreshCluster `far`: the second cluster, with the same tables.
fn second_cluster(home: &Cluster, folder: &str, path: &Path) -> Cluster {
    let far = Cluster::far();
    far.script(&["up"]);
    far.script(&["image", &needed("RELANCE_TEST_BINARY")]);
    far.namespace();
    let volume = format!("outage-tables-{}", std::process::id());
    far.apply(&format!(
        "
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {volume}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteMany]
  storageClassName: ''
  hostPath: {{path: {folder}}}
  claimRef: {{namespace: {NAMESPACE}, name: tables}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: tables}}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ''
  volumeName: {volume}
  resources: {{requests: {{storage: 1Gi}}}}
"
    ));
    let kubeconfig = format!("--from-file=kubeconfig={}", far.script(&["kubeconfig"]));
    text(home.kubectl(&["create", "secret", "generic", "far", &kubeconfig]));
    let more = format!("\n  kubeconfigSecretRef: {{name: far}}\n  namespace: {NAMESPACE}");
    home.apply(&refresh_cluster("far", path, &more));
    far
}

#[test]
fn refreshes_go_on_after_the_api_server_etcd_and_the_job_controller_were_away() {
    let home = Cluster::home();
    let definitions = repo("crds");
    text(home.kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        definitions.to_str().unwrap(),
    ]));
    home.namespace();
    let folder = home.script(&["storage", NAMESPACE]);
    // Pods cannot enter the folders above the claim's.
    let link = PathBuf::from(format!("/var/tmp/relance-outage-{}", std::process::id()));
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    let mut left = Left {
        operator: None,
        link: link.clone(),
    };
    let path = link.display().to_string();
    let strikes = repo("demo/data/strikes-1993-2000.csv");
    tables(&path, &["create", strikes.to_str().unwrap()]);
    home.apply(&refresh_cluster("default", &link, ""));
    let far = second_cluster(&home, &folder, &link);
    let operator = Command::new(env!("CARGO_BIN_EXE_relance"))
        .args(["serve", "--controller", "--namespace", NAMESPACE])
        .args(["--catalog", &format!("dir://{path}")])
        .args(["--health-listen", "127.0.0.1:0"])
        .env("KUBECONFIG", needed("RELANCE_TEST_KUBECONFIG"))
        .stderr(Stdio::inherit())
        .spawn();
    left.operator = Some(operator.unwrap());
    for at in 0..REFRESHES {
        let cluster = ["default", "far"][at % 2];
        home.apply(&format!(
            "
apiVersion: relance.dev/v1alpha1
kind: MaterializedViewRefresh
metadata: {{name: r{at}}}
spec: {{view: [damaging_strikes], cluster: {cluster}, full: true}}
"
        ));
    }

    let start = Instant::now();
    let mut outages = [
        (&home, &["apiserver"][..]),
        (&far, &["etcd", "apiserver"]),
        (&home, &["etcd"]),
        (&home, &["controller-manager"]),
        (&home, &["etcd", "apiserver"]),
    ]
    .into_iter();
    loop {
        let phases = home.words("mvr", ".status.phase");
        let succeeded = |phase: &&String| *phase == "Succeeded";
        if phases.iter().filter(succeeded).count() == REFRESHES {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{phases:?}");
        if let Some((cluster, components)) = outages.next() {
            // In the midst of something, most likely.
            std::thread::sleep(Duration::from_millis(1_300));
            for component in components {
                cluster.script(&["kill", component]);
            }
            std::thread::sleep(Duration::from_secs(2));
            for component in components {
                cluster.script(&["start", component]);
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(outages.next().is_none(), "all ended before the last outage");
    for cluster in [&home, &far] {
        let jobs = cluster.words("jobs", ".metadata.name");
        assert_eq!(jobs.len(), REFRESHES / 2, "one Job a refresh: {jobs:?}");
    }
    let shown = tables(&path, &["show"]);
    assert!(shown.contains("of 749 rows"), "{shown}");
}
