//! A second real cluster beside the first, brought up when it is first needed,
//! and one namespace in it for one test: with the same tables, and a user who
//! may do there what relance needs and nothing else.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource};
use relance::resources::{RefreshCluster, names};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::operator::{Operator, PATIENCE, needed};

/// Tests that take parts of the second cluster down run alone.
static CALM: RwLock<()> = RwLock::const_new(());

/// Holds the second cluster as it should be, or alone.
pub enum Hold {
    Calm(#[allow(dead_code)] RwLockReadGuard<'static, ()>),
    Alone(#[allow(dead_code)] RwLockWriteGuard<'static, ()>),
}

/// See the module.
pub struct Far {
    pub client: Client,
    /// The namespace of the Jobs.
    pub namespace: String,
    pub jobs: Api<Job>,
    pub pods: Api<Pod>,
    _hold: Hold,
}

/// The name of the second cluster.
fn name() -> String {
    format!("{}-far", needed("RELANCE_TEST_CLUSTER"))
}

fn try_script(arguments: &[&str]) -> Output {
    Command::new(needed("RELANCE_TEST_CLUSTER_SCRIPT"))
        .args(arguments)
        .env("NAME", name())
        .stderr(Stdio::inherit())
        .output()
        .unwrap()
}

/// The cluster script, for the second cluster.
pub fn script(arguments: &[&str]) -> String {
    let output = try_script(arguments);
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

/// Starts what is down of the second cluster. Whatever waits there for an API
/// server that is away asks less and less often, and would notice its return
/// only minutes later; so it begins anew.
pub fn bring_back() {
    assert!(try_bring_back(), "the second cluster does not come back");
}

fn try_bring_back() -> bool {
    let waiting = ["controller-manager", "scheduler", "kubelet"];
    let stopped = waiting.map(|component| try_script(&["kill", component]));
    stopped.iter().all(|output| output.status.success()) && try_script(&["up"]).status.success()
}

fn kubeconfig() -> Kubeconfig {
    Kubeconfig::read_from(script(&["kubeconfig"])).unwrap()
}

async fn client() -> Client {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig(), &options).await;
    Client::try_from(config.unwrap()).unwrap()
}

async fn up() {
    static UP: OnceCell<()> = OnceCell::const_new();
    UP.get_or_init(|| async {
        tokio::task::spawn_blocking(|| {
            script(&["up"]);
            let image = script(&["image", &needed("RELANCE_TEST_BINARY")]);
            assert_eq!(image, needed("RELANCE_TEST_IMAGE"));
        })
        .await
        .unwrap();
    })
    .await;
}

async fn make<K>(api: &Api<K>, object: Value) -> K
where
    K: Resource<DynamicType = ()> + DeserializeOwned + serde::Serialize + Clone + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

impl Far {
    /// A namespace in the second cluster and RefreshCluster `far` for it.
    pub async fn of(operator: &Operator) -> Far {
        let hold = Hold::Calm(CALM.read().await);
        Far::held(operator, hold).await
    }

    /// The same for a test that takes parts of that cluster down.
    pub async fn alone(operator: &Operator) -> Far {
        let hold = Hold::Alone(CALM.write().await);
        Far::held(operator, hold).await
    }

    async fn held(operator: &Operator, hold: Hold) -> Far {
        up().await;
        let client = client().await;
        let namespace = format!("far-{}", operator.space.namespace);
        make::<Namespace>(
            &Api::all(client.clone()),
            json!({"metadata": {
                "name": namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            }}),
        )
        .await;
        let far = Far {
            jobs: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
            _hold: hold,
        };
        far.share_tables(operator).await;
        far.user("relance").await;
        far.give_kubeconfig(operator, "relance").await;
        far.cluster(operator, json!({})).await;
        far
    }

    /// The tables of the operator's namespace, at the same path in the pods.
    async fn share_tables(&self, operator: &Operator) {
        let folder = std::fs::read_link(&operator.tables).unwrap();
        let volume = format!("{}-tables", self.namespace);
        let capacity = json!({"storage": "1Gi"});
        make::<PersistentVolume>(
            &Api::all(self.client.clone()),
            json!({"metadata": {"name": volume}, "spec": {
                "capacity": capacity, "accessModes": ["ReadWriteMany"],
                "storageClassName": "", "hostPath": {"path": folder},
                "claimRef": {"namespace": self.namespace, "name": "tables"},
            }}),
        )
        .await;
        make::<PersistentVolumeClaim>(
            &Api::namespaced(self.client.clone(), &self.namespace),
            json!({"metadata": {"name": "tables"}, "spec": {
                "accessModes": ["ReadWriteMany"], "storageClassName": "",
                "volumeName": volume, "resources": {"requests": capacity},
            }}),
        )
        .await;
    }

    /// A service account that may do what `launch::target` says, and no more.
    pub async fn user(&self, name: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        make(&accounts, json!({"metadata": {"name": name}})).await;
        make::<Role>(
            &Api::namespaced(self.client.clone(), &self.namespace),
            json!({"metadata": {"name": name}, "rules": [
                {"apiGroups": ["batch"], "resources": ["jobs"],
                 "verbs": ["create", "get", "list", "watch", "delete"]},
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
                {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
            ]}),
        )
        .await;
        make::<RoleBinding>(
            &Api::namespaced(self.client.clone(), &self.namespace),
            json!({"metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.namespace}]}),
        )
        .await;
    }

    /// From here on the API server takes no token of that user's.
    pub async fn remove_user(&self, name: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        accounts
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// A kubeconfig with a token of that user's.
    pub async fn kubeconfig_of(&self, user: &str) -> Value {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(3600),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let token = accounts
            .create_token_request(user, &PostParams::default(), &request)
            .await
            .unwrap();
        let admin = kubeconfig();
        let cluster = admin.clusters[0].cluster.clone().unwrap();
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "far",
            "contexts": [{"name": "far", "context": {
                "cluster": "far", "user": user, "namespace": self.namespace,
            }}],
            "clusters": [{"name": "far", "cluster": {
                "server": cluster.server,
                "certificate-authority-data": cluster.certificate_authority_data,
            }}],
            "users": [{"name": user, "user": {"token": token.status.unwrap().token}}],
        })
    }

    /// The administrator's kubeconfig at `path`, for this namespace.
    pub fn kubeconfig_at(&self, path: &str) -> Value {
        let admin = std::fs::read_to_string(path).unwrap();
        let mut admin: Value = serde_yaml::from_str(&admin).unwrap();
        admin["contexts"][0]["context"]["namespace"] = json!(self.namespace);
        admin
    }

    /// The same by another address of that API server.
    pub async fn kubeconfig_elsewhere(&self, user: &str) -> Value {
        let mut kubeconfig = self.kubeconfig_of(user).await;
        let cluster = &mut kubeconfig["clusters"][0]["cluster"];
        let server: axum::http::Uri = cluster["server"].as_str().unwrap().parse().unwrap();
        let there = server.authority().unwrap().to_string();
        let address = crate::proxy::pipe(there).await;
        cluster["server"] = json!(format!("https://{address}"));
        cluster["tls-server-name"] = json!(server.host());
        kubeconfig
    }

    /// Puts it into the operator's Secret `far`.
    pub async fn give_kubeconfig(&self, operator: &Operator, user: &str) {
        let kubeconfig = self.kubeconfig_of(user).await;
        give(operator, &kubeconfig).await;
    }

    /// Makes or changes RefreshCluster `far`.
    pub async fn cluster(&self, operator: &Operator, spec: Value) {
        let mut all = json!({"kubeconfigSecretRef": {"name": "far"}});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        operator.cluster("far", all).await;
    }

    /// Has the workers of RefreshCluster `far` wait before they begin.
    pub async fn slow(&self, operator: &Operator, seconds: u32) {
        let template = slow_template(operator, seconds);
        self.cluster(operator, json!({"template": template})).await;
    }

    /// The Jobs of one home in the namespace.
    pub async fn job_count(&self) -> usize {
        let jobs = self.jobs.list(&Default::default()).await.unwrap();
        jobs.items.len()
    }

    /// Waits until no Job is left.
    pub async fn until_no_job(&self) {
        let start = Instant::now();
        // An API server that has just been started refuses connections at first.
        while !matches!(self.jobs.list(&Default::default()).await, Ok(jobs) if jobs.items.is_empty())
        {
            assert!(start.elapsed() < PATIENCE, "a Job is still there");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // Whatever the test took down comes back for the next one.
        if matches!(self._hold, Hold::Alone(_)) && !try_bring_back() {
            // One panic is enough: a second one would end all tests.
            eprintln!("the second cluster does not come back");
        }
    }
}

/// A pod template whose worker sleeps first, and ends at once on SIGTERM.
pub fn slow_template(operator: &Operator, seconds: u32) -> Value {
    let wait = format!("trap 'exit 143' TERM; sleep {seconds} & wait; exec relance worker");
    json!({"spec": {
        "containers": [{
            "name": "worker",
            "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", wait],
            "volumeMounts": [{"name": "tables", "mountPath": operator.tables}],
        }],
        "volumes": [{"name": "tables", "persistentVolumeClaim": {"claimName": "tables"}}],
    }})
}

/// Puts a kubeconfig into the operator's Secret `far`.
pub async fn give(operator: &Operator, kubeconfig: &Value) {
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "far"},
        "stringData": {"kubeconfig": serde_json::to_string(kubeconfig).unwrap()},
    });
    let force = PatchParams::apply("relance-tests").force();
    let secrets: &Api<Secret> = &operator.space.secrets;
    secrets
        .patch("far", &force, &Patch::Apply(secret))
        .await
        .unwrap();
}

/// What the second cluster says of all that runs in it, for a test that fails.
pub fn shown() -> String {
    let kinds = "nodes,jobs,pods";
    let output = Command::new("kubectl")
        .args(["--kubeconfig", &script(&["kubeconfig"])])
        .args(["get", kinds, "-A", "-o", "wide", "--request-timeout=5s"])
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).into_owned()
}

/// Whether a refresh is held for a Job in another cluster.
pub async fn is_held(operator: &Operator, refresh: &str) -> bool {
    let refresh = operator.space.refreshes.get(refresh).await.unwrap();
    let finalizers = refresh.metadata.finalizers.unwrap_or_default();
    finalizers.iter().any(|f| f == names::REMOTE_FINALIZER)
}

/// Waits until RefreshCluster `far` is Ready or not, for this reason.
pub async fn until_ready(operator: &Operator, status: &str, reason: &str) -> RefreshCluster {
    let start = Instant::now();
    loop {
        let cluster = operator.space.clusters.get("far").await.unwrap();
        let found = cluster.status.clone().unwrap_or_default();
        let ready = found
            .conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == status && c.reason == reason);
        if ready {
            return cluster;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "RefreshCluster far is not {status} for {reason}, but {found:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
