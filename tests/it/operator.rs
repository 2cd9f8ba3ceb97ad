//! A whole operator for one test: a namespace that enforces the `restricted`
//! Pod Security Standard, tables on a volume that its pods mount, a
//! RefreshCluster `default`, and `relance serve` as a process that can be killed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
use arrow_schema::{DataType, Field, Schema};
use futures::TryStreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use lancedb::materialized_view::{MaterializedViewDefinition, prepare_definition};
use relance::engine::commit::REFRESH;
use relance::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshStatus, Phase, RefreshCluster,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Space, kubeconfig, may_review_tokens, repo};

/// How long a refresh may take here: debug builds on few and busy cores.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub fn needed(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set; this test needs a whole cluster: tests/run brings one up and sets it"
        )
    })
}

/// One that is killed often is followed soon.
const KILLED_OFTEN: &[&str] = &["--lease-seconds", "3"];

/// See the module.
pub struct Operator {
    pub space: Space,
    pub jobs: Api<Job>,
    /// The catalog's folder, at a path that is the same here and in the pods.
    pub tables: PathBuf,
    pub url: String,
    health: String,
    process: Option<Child>,
}

impl Operator {
    /// A namespace with all but the process.
    pub async fn prepared() -> Operator {
        let space = Space::new().await;
        let namespaces: Api<Namespace> = Api::all(space.client.clone());
        let label =
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
        namespaces
            .patch(
                &space.namespace,
                &PatchParams::default(),
                &Patch::Merge(label),
            )
            .await
            .unwrap();
        let storage = Command::new(needed("RELANCE_TEST_CLUSTER_SCRIPT"))
            .args(["storage", &space.namespace])
            .env("NAME", needed("RELANCE_TEST_CLUSTER"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(storage.status.success());
        let folder = String::from_utf8(storage.stdout).unwrap();
        // Pods cannot enter the folders above the claim's.
        let tables = PathBuf::from(format!("/var/tmp/relance-{}", space.namespace));
        std::os::unix::fs::symlink(folder.trim(), &tables).unwrap();
        let [api, health] = [free_address(), free_address()];
        let operator = Operator {
            jobs: Api::namespaced(space.client.clone(), &space.namespace),
            space,
            tables,
            url: format!("http://{api}"),
            health,
            process: None,
        };
        operator.cluster("default", json!({})).await;
        operator.grant().await;
        operator
    }

    /// Gives the process's user what the chart gives to both halves of the
    /// operator, and nothing else; waits until the API server knows.
    async fn grant(&self) {
        let namespace = &self.space.namespace;
        let user = self.user();
        let text = std::fs::read_to_string(repo("deploy/relance.yaml")).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let mut role = serde_yaml::Value::deserialize(document).unwrap();
            if role["kind"] == "ClusterRole" {
                may_review_tokens(&self.space.client, &user, &user).await;
            }
            if role["kind"] != "Role" {
                continue;
            }
            role["metadata"]["namespace"] = namespace.as_str().into();
            for rule in role["rules"].as_sequence_mut().unwrap() {
                if rule["resources"][0] == "namespaces" {
                    rule["resourceNames"][0] = namespace.as_str().into();
                }
            }
            let role: Role = serde_yaml::from_value(role).unwrap();
            let name = role.metadata.name.clone().unwrap();
            let binding = json!({
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            });
            let binding: RoleBinding = serde_json::from_value(binding).unwrap();
            let post = PostParams::default();
            let client = &self.space.client;
            let roles = Api::<Role>::namespaced(client.clone(), namespace);
            roles.create(&post, &role).await.unwrap();
            let bindings = Api::<RoleBinding>::namespaced(client.clone(), namespace);
            bindings.create(&post, &binding).await.unwrap();
        }
        let mut file = Kubeconfig::read_from(kubeconfig()).unwrap();
        for named in &mut file.auth_infos {
            named.auth_info.as_mut().unwrap().impersonate = Some(user.clone());
        }
        let yaml = serde_yaml::to_string(&file).unwrap();
        std::fs::write(self.kubeconfig(), yaml).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        let limited = Client::try_from(config.unwrap()).unwrap();
        let clusters = Api::<RefreshCluster>::namespaced(limited, namespace);
        let start = Instant::now();
        while let Err(error) = clusters.list(&Default::default()).await {
            assert!(start.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The user that the process is.
    pub fn user(&self) -> String {
        format!("operator-of-{}", self.space.namespace)
    }

    /// The process's own kubeconfig.
    fn kubeconfig(&self) -> PathBuf {
        std::env::temp_dir().join(format!("relance-{}.kubeconfig", self.space.namespace))
    }

    /// A namespace, the source `src` of ten rows and the view `v` of eight, and the process.
    pub async fn running() -> Operator {
        let mut operator = Operator::prepared().await;
        operator.append("src", 0..10).await;
        operator.view("v", "SELECT id FROM src WHERE id > 1").await;
        operator.start().await;
        operator
    }

    /// Makes or changes a RefreshCluster whose workers reach the tables.
    pub async fn cluster(&self, name: &str, spec: Value) {
        let mut cluster = json!({
            "image": needed("RELANCE_TEST_IMAGE"),
            "template": {"spec": {
                "containers": [{
                    "name": "worker",
                    "imagePullPolicy": "Never",
                    "volumeMounts": [{"name": "tables", "mountPath": self.tables}],
                }],
                "volumes": [{"name": "tables", "persistentVolumeClaim": {"claimName": "tables"}}],
            }},
        });
        for (key, value) in spec.as_object().unwrap() {
            cluster[key] = value.clone();
        }
        let cluster = json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "RefreshCluster",
            "metadata": {"name": name},
            "spec": cluster,
        });
        let force = PatchParams::apply("relance-tests").force();
        let clusters: &Api<RefreshCluster> = &self.space.clusters;
        clusters
            .patch(name, &force, &Patch::Apply(cluster))
            .await
            .unwrap();
    }

    pub fn catalog(&self) -> String {
        format!("dir://{}", self.tables.display())
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&mut self) {
        self.start_with(&[]).await;
    }

    /// The same with more in the process's environment.
    pub async fn start_with(&mut self, environment: &[(&str, &str)]) {
        let address = self.url.trim_start_matches("http://");
        self.process = Some(self.run(address, &self.health, KILLED_OFTEN, environment));
        let url = format!("http://{}/readyz", self.health);
        let start = Instant::now();
        while reqwest::get(&url).await.map(|a| a.status().as_u16()).ok() != Some(200) {
            assert!(start.elapsed() < PATIENCE, "the operator is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the process is the replica that acts.
    pub async fn acts(&self) {
        let start = Instant::now();
        while !leads(&self.health).await {
            assert!(start.elapsed() < PATIENCE, "not elected");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the process.
    pub fn spawn(&mut self) {
        let address = self.url.trim_start_matches("http://");
        self.process = Some(self.run(address, &self.health, KILLED_OFTEN, &[]));
    }

    /// Another process beside it, which nobody should run: one that does not
    /// share the first one's Lease.
    pub fn second(&self) -> Second {
        // Its Lease is none that the Roles speak of.
        self.beside(
            &["--lease", "by-accident"],
            &[("KUBECONFIG", &kubeconfig())],
        )
    }

    /// Another replica of it.
    pub fn replica(&self, arguments: &[&str]) -> Second {
        self.beside(arguments, &[])
    }

    fn beside(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Second {
        let [api, health] = [free_address(), free_address()];
        Second {
            process: self.run(&api, &health, arguments, environment),
            url: format!("http://{api}"),
            health,
        }
    }

    fn run(
        &self,
        listen: &str,
        health: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Child {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        Command::new(env!("CARGO_BIN_EXE_relance"))
            .arg("serve")
            .args(["--namespace", &self.space.namespace])
            .env("RELANCE_CATALOG", self.catalog())
            .args(["--listen", listen])
            .args(["--health-listen", health])
            .args(access(arguments, environment))
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// What the process has logged so far.
    pub fn log_lines(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.log()).unwrap();
        log.lines().map(String::from).collect()
    }

    fn log(&self) -> PathBuf {
        std::env::temp_dir().join(format!("relance-{}.log", self.space.namespace))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Appends a row for each id, in one fragment; makes the table if it is not there.
    pub async fn append(&self, table: &str, ids: std::ops::Range<i64>) {
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
        let rows = Int64Array::from_iter_values(ids);
        let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(rows)]).unwrap();
        let uri = self.uri(table);
        let mode = match Path::new(&uri).exists() {
            true => WriteMode::Append,
            false => WriteMode::Create,
        };
        let params = WriteParams {
            mode,
            ..WriteParams::default()
        };
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        Dataset::write(reader, &uri, Some(params)).await.unwrap();
    }

    fn uri(&self, table: &str) -> String {
        format!("{}/{table}.lance", self.tables.display())
    }

    /// Makes an empty view, as lancedb does.
    pub async fn view(&self, name: &str, sql: &str) {
        let connection = lancedb::connect(&self.tables.display().to_string());
        let connection = connection.execute().await.unwrap();
        let definition = MaterializedViewDefinition::from_sql(sql).unwrap();
        let source = connection.open_table(&definition.source_table);
        let source = source.execute().await.unwrap();
        let prepared = prepare_definition(&source, definition).await.unwrap();
        prepared.create(name).await.unwrap();
    }

    pub async fn open(&self, table: &str) -> Dataset {
        Dataset::open(&self.uri(table)).await.unwrap()
    }

    /// The ids in a table or view, in order.
    pub async fn ids(&self, table: &str) -> Vec<i64> {
        let dataset = self.open(table).await;
        let stream = dataset.scan().try_into_stream().await.unwrap();
        let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        let mut ids = Vec::new();
        for batch in &batches {
            let column = batch.column_by_name("id").unwrap();
            let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
            ids.extend(column.values().iter().copied());
        }
        ids.sort();
        ids
    }

    /// What the operator's health listener says of its metrics.
    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.health);
        reqwest::get(url).await.unwrap().text().await.unwrap()
    }

    /// How many versions of a view carry the UID of this refresh.
    pub async fn commits(&self, view: &str, refresh: &MaterializedViewRefresh) -> usize {
        let dataset = self.open(view).await;
        let uid = refresh.metadata.uid.clone().unwrap();
        let mut commits = 0;
        for version in 1..=dataset.version().version {
            let transaction = dataset.read_transaction_by_version(version).await.unwrap();
            let properties = transaction.and_then(|t| t.transaction_properties);
            commits += properties
                .iter()
                .filter(|properties| properties.get(REFRESH) == Some(&uid))
                .count();
        }
        commits
    }

    /// Applies a refresh with this spec.
    pub async fn apply(&self, name: &str, spec: Value) -> MaterializedViewRefresh {
        let refresh = MaterializedViewRefresh::new(name, serde_json::from_value(spec).unwrap());
        self.space
            .refreshes
            .create(&PostParams::default(), &refresh)
            .await
            .unwrap()
    }

    pub async fn patch(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        let params = PatchParams::default();
        let patched = self.space.refreshes.patch(name, &params, &patch).await;
        patched.unwrap();
    }

    pub async fn status(&self, name: &str) -> MaterializedViewRefreshStatus {
        let refresh = self.space.refreshes.get(name).await.unwrap();
        refresh.status.unwrap_or_default()
    }

    /// Waits until the refresh's status is as wished.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        wished: impl Fn(&MaterializedViewRefreshStatus) -> bool,
    ) -> MaterializedViewRefreshStatus {
        let start = Instant::now();
        loop {
            let status = self.status(name).await;
            if wished(&status) {
                return status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{name} is not {what}, but {status:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for the refresh's end.
    pub async fn settled(&self, name: &str) -> MaterializedViewRefreshStatus {
        self.until(name, "at its end", |status| status.phase.is_terminal())
            .await
    }

    /// Waits for the refresh's success.
    pub async fn succeeded(&self, name: &str) -> MaterializedViewRefreshStatus {
        let status = self.settled(name).await;
        assert_eq!(status.phase, Phase::Succeeded, "{name}: {status:?}");
        status
    }

    /// The Jobs of the namespace.
    pub async fn job_names(&self) -> BTreeSet<String> {
        let jobs = self.jobs.list(&Default::default()).await.unwrap();
        jobs.items.iter().map(ResourceExt::name_any).collect()
    }

    /// How many Jobs are in the namespace.
    pub async fn job_count(&self) -> usize {
        self.job_names().await.len()
    }

    /// kubectl in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = Command::new("kubectl")
            .args(["--kubeconfig", &kubeconfig(), "-n", &self.space.namespace])
            .args(arguments)
            .output()
            .expect("kubectl on the PATH, as eval \"$(tests/cluster/cluster env)\" puts it there");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}{wrong}");
        said
    }
}

/// Everybody is let in, unless the test says who.
fn access<'a>(arguments: &[&str], environment: &[(&str, &str)]) -> &'a [&'a str] {
    let said = environment.iter().any(|(name, _)| *name == "RELANCE_AUTH");
    match said || arguments.contains(&"--auth") {
        true => &[],
        false => &["--open-access"],
    }
}

fn free_address() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().to_string()
}

/// Whether a replica is the one that acts, by its own word; false if it does not answer.
async fn leads(health: &str) -> bool {
    let url = format!("http://{health}/metrics");
    let patience = Duration::from_millis(500);
    let asked = reqwest::Client::new().get(url).timeout(patience).send();
    match asked.await {
        Ok(answer) => {
            let text = answer.text().await.unwrap_or_default();
            text.contains("\nrelance_controller_leader 1\n")
        }
        Err(_) => false,
    }
}

/// A second process, which ends with the test.
pub struct Second {
    process: Child,
    pub url: String,
    health: String,
}

impl Second {
    /// Whether it is the replica that acts.
    pub async fn leads(&self) -> bool {
        leads(&self.health).await
    }

    /// Waits until it acts; how long that took.
    pub async fn elected(&self) -> Duration {
        let start = Instant::now();
        while !self.leads().await {
            assert!(start.elapsed() < PATIENCE, "not elected");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        start.elapsed()
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Asks it to end, and waits until it has.
    pub async fn end(mut self) {
        self.signal("TERM");
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0));
                return;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(&self.tables);
        let _ = std::fs::remove_file(self.kubeconfig());
        if std::thread::panicking() {
            eprintln!("the operator's log: {}", self.log().display());
            if let Ok(log) = std::fs::read_to_string(self.log()) {
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines.len().saturating_sub(40);
                eprintln!("{}", lines[tail..].join("\n"));
            }
        } else {
            let _ = std::fs::remove_file(self.log());
        }
    }
}
