//! A namespace of the test cluster, a catalog on disk, and a REST API between them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ObjectMeta;
use kube::{Client, Config};
use lance::Dataset;
use lancedb::materialized_view::{
    DEFINITION_META_KEY, MaterializedViewDefinition, definition_metadata_from_sql_with_defaults,
    prepare_definition,
};
use relance::catalog::{SharedCatalog, Source};
use relance::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshSpec, RefreshCluster, RefreshClusterSpec,
    schema,
};
use relance::rest::auth::Access;
use relance::telemetry::Metrics;
use relance::{listener, rest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A file of this package, in whose folder tests are run.
pub fn repo(path: &str) -> PathBuf {
    std::path::absolute(path).unwrap()
}

/// The path of the test cluster's kubeconfig.
pub fn kubeconfig() -> String {
    std::env::var("RELANCE_TEST_KUBECONFIG").unwrap_or_else(|_| {
        panic!(
            "RELANCE_TEST_KUBECONFIG is not set; these tests need a Kubernetes API: \
             run tests/cluster/cluster up --control-plane-only and eval \"$(tests/cluster/cluster env)\""
        )
    })
}

/// A client that may do everything.
pub async fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig()).expect("a readable kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .expect("a usable kubeconfig");
    Client::try_from(config).expect("a client")
}

/// A namespace of its own for one test, with the CustomResourceDefinitions installed.
pub struct Space {
    pub client: Client,
    pub namespace: String,
    pub refreshes: Api<MaterializedViewRefresh>,
    pub clusters: Api<RefreshCluster>,
    pub secrets: Api<Secret>,
}

impl Space {
    pub async fn new() -> Space {
        let client = client().await;
        install(&client).await;
        let namespace = format!("it-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let object = Namespace {
            metadata: ObjectMeta {
                name: Some(namespace.clone()),
                ..Default::default()
            },
            ..Default::default()
        };
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .expect("a namespace");
        Space {
            refreshes: Api::namespaced(client.clone(), &namespace),
            clusters: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
        }
    }

    /// A RefreshCluster with nothing said.
    pub async fn cluster(&self, name: &str) {
        let cluster = RefreshCluster::new(name, RefreshClusterSpec::default());
        self.clusters
            .create(&PostParams::default(), &cluster)
            .await
            .expect("a RefreshCluster");
    }
}

/// Installs the definitions once a test run, and waits until they are served.
async fn install(client: &Client) {
    static DONE: OnceCell<()> = OnceCell::const_new();
    DONE.get_or_init(|| async {
        let definitions = Api::all(client.clone());
        for crd in schema::crds() {
            let name = crd.metadata.name.clone().expect("a name");
            let force = PatchParams::apply("relance-tests").force();
            definitions
                .patch(&name, &force, &Patch::Apply(&crd))
                .await
                .expect("the API server takes the definition");
            kube_runtime::wait::await_condition(
                definitions.clone(),
                &name,
                kube_runtime::wait::conditions::is_crd_established(),
            )
            .await
            .expect("the definition is established");
        }
        // Established is said a moment before the routes are there.
        let probe: Api<RefreshCluster> = Api::all(client.clone());
        for _ in 0..100 {
            if probe.list(&Default::default()).await.is_ok() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("the API server does not serve the definitions");
    })
    .await;
}

/// A folder with the table `src`, the SQL view `v` over it, the view `joined`
/// of both, and one Geneva view of each kind as far as their metadata go.
pub async fn catalog() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().display().to_string();
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let rows = Int64Array::from_iter_values(0..10);
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(rows)]).expect("a batch");
    let reader = RecordBatchIterator::new([Ok(batch)], schema);
    Dataset::write(reader, &format!("{root}/src.lance"), None)
        .await
        .expect("the source");
    let connection = lancedb::connect(&root).execute().await.expect("connects");
    let source = connection.open_table("src").execute().await.expect("opens");
    let definition = MaterializedViewDefinition::from_sql("SELECT id FROM src WHERE id > 1");
    prepare_definition(&source, definition.expect("SQL"))
        .await
        .expect("prepares")
        .create("v")
        .await
        .expect("the view");
    let sql = "SELECT a.id FROM src AS a JOIN v AS b ON a.id = b.id";
    let definition = definition_metadata_from_sql_with_defaults(sql, "", &[]);
    let metadata = HashMap::from([(DEFINITION_META_KEY.to_string(), definition)]);
    let schema = Schema::new_with_metadata(vec![Field::new("id", DataType::Int64, true)], metadata);
    let rows = std::iter::empty::<Result<RecordBatch, ArrowError>>();
    let reader = RecordBatchIterator::new(rows, Arc::new(schema));
    Dataset::write(reader, &format!("{root}/joined.lance"), None)
        .await
        .expect("a view of two sources");
    for kind in ["1", "chunker", "udtf"] {
        let metadata = HashMap::from([
            ("geneva::view::query".to_string(), "{}".to_string()),
            ("geneva::view::version".to_string(), kind.to_string()),
        ]);
        let schema =
            Schema::new_with_metadata(vec![Field::new("x", DataType::Int64, true)], metadata);
        let rows = std::iter::empty::<Result<RecordBatch, ArrowError>>();
        let reader = RecordBatchIterator::new(rows, Arc::new(schema));
        Dataset::write(reader, &format!("{root}/geneva_{kind}.lance"), None)
            .await
            .expect("a Geneva view");
    }
    folder
}

/// A REST API on a port of its own.
pub struct Server {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<()>,
    /// Sent along with each request.
    pub headers: Vec<(String, String)>,
    http: reqwest::Client,
}

/// What the API answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub allow: Option<String>,
    pub retry_after: Option<String>,
}

impl Answer {
    /// The job_id of an accepted refresh.
    pub fn job_id(&self) -> String {
        assert_eq!(self.status, 202, "{self:?}");
        self.body["job_id"].as_str().expect("a job_id").to_string()
    }

    /// Holds that this is an error of the spec's form; gives its sentence.
    pub fn error(&self, status: u16, code: u64) -> &str {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.body["code"], code, "{self:?}");
        assert!(self.body["detail"].is_string(), "{self:?}");
        assert!(
            self.body["instance"]
                .as_str()
                .is_some_and(|i| i.starts_with('/')),
            "{self:?}"
        );
        let sentence = self.body["error"].as_str().expect("a sentence");
        assert!(!sentence.is_empty());
        sentence
    }
}

impl Server {
    pub async fn start(client: Client, namespace: &str, uri: &str) -> Server {
        Server::with_options(client, namespace, uri, &[]).await
    }

    pub async fn with_options(
        client: Client,
        namespace: &str,
        uri: &str,
        options: &[(&str, &str)],
    ) -> Server {
        Server::with_access(client, namespace, uri, options, Access::open()).await
    }

    /// One that lets in whom `access` says; the others let everybody in.
    pub async fn with_access(
        client: Client,
        namespace: &str,
        uri: &str,
        options: &[(&str, &str)],
        access: Access,
    ) -> Server {
        let metrics = Metrics::default();
        let options = options
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        let source = Source {
            uri: uri.to_string(),
            options,
            ..Default::default()
        };
        let catalog = SharedCatalog::new(source, &metrics);
        let api = rest::Api::new(client, namespace, catalog, access, false, &metrics);
        let api = Arc::new(api);
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = socket.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let ending = shutdown.clone();
        let served = tokio::spawn(async move {
            listener::serve(socket, rest::router(api.clone()), None, ending).await;
            api.tasks.close();
            api.tasks.wait().await;
        });
        Server {
            address,
            shutdown,
            served,
            headers: Vec::new(),
            http: reqwest::Client::new(),
        }
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        self.headers
            .iter()
            .fold(self.http.request(method, url), |request, (name, value)| {
                request.header(name, value)
            })
    }

    pub async fn send(request: reqwest::RequestBuilder) -> Answer {
        let answer = request.send().await.expect("an answer");
        let header = |name: &str| {
            let value = answer.headers().get(name);
            value.map(|value| value.to_str().expect("text").to_string())
        };
        let (allow, retry_after) = (header("allow"), header("retry-after"));
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("a body");
        let body = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{status} with a body that is no JSON ({error}): {text}")
        });
        Answer {
            status,
            body,
            allow,
            retry_after,
        }
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let mut request = self.request(reqwest::Method::POST, path).body(body.into());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Self::send(request).await
    }
}

/// A namespace with a RefreshCluster `default`, a catalog and a REST API.
pub struct World {
    pub space: Space,
    pub server: Server,
    pub folder: TempDir,
}

impl World {
    pub async fn new() -> World {
        let (space, folder) = tokio::join!(Space::new(), catalog());
        space.cluster("default").await;
        let uri = format!("dir://{}", folder.path().display());
        let server = Server::start(space.client.clone(), &space.namespace, &uri).await;
        World {
            space,
            server,
            folder,
        }
    }

    /// Another replica over the same namespace and catalog.
    pub async fn replica(&self) -> Server {
        let uri = format!("dir://{}", self.folder.path().display());
        Server::start(client().await, &self.space.namespace, &uri).await
    }

    pub async fn refresh(&self, body: &str) -> Answer {
        self.server
            .post("/v1/materialized_view/v/refresh", body.to_string())
            .await
    }

    /// What is asked of a refresh that is there.
    pub async fn spec(&self, job_id: &str) -> MaterializedViewRefreshSpec {
        let found = self.space.refreshes.get(job_id).await;
        found.expect("there").spec
    }

    /// Writes the status of a refresh, as the controller would.
    pub async fn end(&self, job_id: &str, status: Value) {
        let patch = Patch::Merge(serde_json::json!({ "status": status }));
        self.space
            .refreshes
            .patch_status(job_id, &PatchParams::default(), &patch)
            .await
            .expect("status written");
    }

    /// How many refreshes are stored.
    pub async fn stored(&self) -> usize {
        let all = self.space.refreshes.list(&Default::default()).await;
        all.expect("a list").items.len()
    }
}

/// Lets a user review tokens, as the chart's ClusterRole lets REST's account.
pub async fn may_review_tokens(client: &Client, name: &str, user: &str) {
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": name},
        "rules": [{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}],
    }))
    .unwrap();
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }))
    .unwrap();
    let post = PostParams::default();
    Api::all(client.clone()).create(&post, &role).await.unwrap();
    Api::all(client.clone())
        .create(&post, &binding)
        .await
        .unwrap();
}
