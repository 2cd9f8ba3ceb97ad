//! Views in a REST catalog: found, read and refreshed through it, by the
//! credential that it takes and by what it vends.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchIterator};
use arrow_schema::{ArrowError, SchemaRef};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use lance::Dataset;
use lance::dataset::WriteMode;
use lance_namespace::models::{
    CreateNamespaceRequest, DeclareTableRequest, DescribeTableRequest, ListNamespacesRequest,
    ListTablesRequest,
};
use lance_namespace::{LanceNamespace, NamespaceError};
use lance_namespace_impls::DirectoryNamespaceBuilder;
use lancedb::materialized_view::{
    DEFINITION_META_KEY, MaterializedViewDefinition, definition_metadata_from_sql,
    prepare_definition,
};
use relance::catalog::Source;
use relance::catalog::credential::Credential;
use relance::engine::catalog::Catalog;
use relance::engine::error::EngineError;
use relance::engine::outcome::Mode;
use relance::engine::refresh::{Progress, Request, refresh};
use relance::engine::view;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::s3::Bucket;
use crate::support::request;

const TOKEN: &str = "a-token-that-is-taken";

/// A REST catalog over another namespace. It takes one token only, repeats what
/// it is shown in its errors, and vends storage options.
struct RestCatalog {
    url: String,
    state: Arc<Serving>,
}

struct Serving {
    namespace: Arc<dyn LanceNamespace>,
    vended: HashMap<String, String>,
    manages_versions: bool,
    /// So many requests it is too busy to answer.
    busy: Mutex<usize>,
    headers: Mutex<Vec<HeaderMap>>,
}

type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

fn refused(status: StatusCode, code: u32, error: &str) -> (StatusCode, Json<Value>) {
    (status, Json(json!({"code": code, "error": error})))
}

fn failed(error: &lance::Error) -> (StatusCode, Json<Value>) {
    let lance::Error::Namespace { source, .. } = error else {
        return refused(StatusCode::INTERNAL_SERVER_ERROR, 18, "broken");
    };
    let code = source.downcast_ref::<NamespaceError>().unwrap().code();
    refused(StatusCode::NOT_FOUND, code.as_u32(), &error.to_string())
}

impl Serving {
    /// The identifier of a request that may be made.
    fn asked(
        &self,
        headers: HeaderMap,
        id: &str,
        query: &HashMap<String, String>,
    ) -> Result<Vec<String>, (StatusCode, Json<Value>)> {
        let mut busy = self.busy.lock().unwrap();
        if *busy > 0 {
            *busy -= 1;
            return Err(refused(StatusCode::SERVICE_UNAVAILABLE, 17, "busy"));
        }
        drop(busy);
        let shown = headers.get("authorization").cloned();
        self.headers.lock().unwrap().push(headers);
        let shown = shown.as_ref().map_or("nothing", |v| v.to_str().unwrap());
        if shown != format!("Bearer {TOKEN}") {
            let said = format!("nobody is known by {shown}");
            return Err(refused(StatusCode::UNAUTHORIZED, 16, &said));
        }
        let delimiter = query["delimiter"].as_str();
        Ok(match id == delimiter {
            true => Vec::new(),
            false => id.split(delimiter).map(String::from).collect(),
        })
    }
}

async fn describe(
    State(state): State<Arc<Serving>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    Json(body): Json<DescribeTableRequest>,
) -> Answer {
    let id = state.asked(headers, &id, &query)?;
    assert_eq!(body.vend_credentials, Some(true));
    let request = DescribeTableRequest {
        id: Some(id),
        with_table_uri: Some(query.get("with_table_uri").is_some_and(|v| v == "true")),
        ..Default::default()
    };
    let found = state.namespace.describe_table(request).await;
    let mut found = found.map_err(|error| failed(&error))?;
    found.storage_options = Some(state.vended.clone());
    found.managed_versioning = Some(state.manages_versions);
    Ok(Json(serde_json::to_value(found).unwrap()))
}

fn told(page: lance::Result<impl serde::Serialize>) -> Answer {
    let page = page.map_err(|error| failed(&error))?;
    Ok(Json(serde_json::to_value(page).unwrap()))
}

/// Names one by one, a page each.
async fn tables(
    State(state): State<Arc<Serving>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Answer {
    let id = state.asked(headers, &id, &query)?;
    let request = ListTablesRequest {
        id: Some(id),
        page_token: query.get("page_token").cloned(),
        limit: Some(1),
        ..Default::default()
    };
    told(state.namespace.list_tables(request).await)
}

async fn namespaces(
    State(state): State<Arc<Serving>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Answer {
    let id = state.asked(headers, &id, &query)?;
    let request = ListNamespacesRequest {
        id: Some(id),
        page_token: query.get("page_token").cloned(),
        ..Default::default()
    };
    told(state.namespace.list_namespaces(request).await)
}

/// Who asks for something else has shown the credential there.
async fn elsewhere(State(state): State<Arc<Serving>>, headers: HeaderMap) -> StatusCode {
    state.headers.lock().unwrap().push(headers);
    StatusCode::NOT_FOUND
}

impl RestCatalog {
    async fn start(
        root: &str,
        options: &BTreeMap<String, String>,
        vended: HashMap<String, String>,
        manages_versions: bool,
    ) -> RestCatalog {
        let namespace = DirectoryNamespaceBuilder::new(root)
            .storage_options(options.clone().into_iter().collect())
            .build()
            .await
            .unwrap();
        let state = Arc::new(Serving {
            namespace: Arc::new(namespace),
            vended,
            manages_versions,
            busy: Mutex::new(0),
            headers: Mutex::default(),
        });
        let router = Router::new()
            .route("/prefix/v1/table/{id}/describe", post(describe))
            .route("/prefix/v1/namespace/{id}/table/list", get(tables))
            .route("/prefix/v1/namespace/{id}/list", get(namespaces))
            .fallback(elsewhere)
            .with_state(state.clone());
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/prefix/", socket.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(socket, router).await });
        RestCatalog { url, state }
    }

    fn shown(&self, token: &str) -> Catalog {
        let source = Source {
            uri: self.url.clone(),
            headers: BTreeMap::from([("x-database".into(), "sales".into())]),
            ..Default::default()
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        source.connect_as(&Credential::Token(token.into())).unwrap()
    }
}

async fn refreshed(catalog: &Catalog, view: &[&str]) -> Result<Mode, EngineError> {
    let asked = Request {
        view: view.iter().map(|part| part.to_string()).collect(),
        ..request("v")
    };
    let (progress, _) = watch::channel(Progress::default());
    Ok(refresh(catalog, &asked, &progress).await?.mode)
}

fn ids(ids: std::ops::Range<i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
    RecordBatch::try_from_iter_with_nullable([("id", column, true)]).unwrap()
}

async fn write(uri: &str, batches: Vec<RecordBatch>, schema: SchemaRef, mode: WriteMode) {
    let batches = batches.into_iter().map(Ok::<_, ArrowError>);
    let reader = RecordBatchIterator::new(batches, schema);
    let params = lance::dataset::WriteParams {
        mode,
        ..Default::default()
    };
    Dataset::write(reader, uri, Some(params)).await.unwrap();
}

/// A folder with the tables `src` and the view `v` of it in the namespace `team`;
/// where they are.
async fn team(root: &str) -> [String; 2] {
    let namespace = DirectoryNamespaceBuilder::new(root).build().await.unwrap();
    let team = CreateNamespaceRequest {
        id: Some(vec!["team".into()]),
        ..Default::default()
    };
    namespace.create_namespace(team).await.unwrap();
    let mut places = Vec::new();
    for table in ["src", "v"] {
        let table = DeclareTableRequest {
            id: Some(vec!["team".into(), table.into()]),
            ..Default::default()
        };
        let declared = namespace.declare_table(table).await.unwrap();
        places.push(declared.location.unwrap());
    }
    let rows = ids(0..4);
    let definition = definition_metadata_from_sql("SELECT id FROM team.src WHERE id > 1");
    let metadata = HashMap::from([(DEFINITION_META_KEY.to_string(), definition)]);
    let schema = Arc::new(rows.schema().as_ref().clone().with_metadata(metadata));
    let of_rows = rows.schema();
    write(&places[0], vec![rows], of_rows, WriteMode::Create).await;
    write(&places[1], vec![], schema, WriteMode::Create).await;
    places.try_into().unwrap()
}

#[tokio::test]
async fn a_view_in_a_namespace_of_a_rest_catalog_is_refreshed_from_its_source_there() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display().to_string();
    let [source, view_at] = team(&root).await;
    let served = RestCatalog::start(&root, &BTreeMap::new(), HashMap::new(), false).await;
    let catalog = served.shown(TOKEN);

    assert_eq!(
        refreshed(&catalog, &["team", "v"]).await.unwrap(),
        Mode::Rebuild
    );
    let count = async || {
        Dataset::open(&view_at)
            .await
            .unwrap()
            .count_rows(None)
            .await
    };
    assert_eq!(count().await.unwrap(), 2);
    let more = ids(4..9);
    let schema = more.schema();
    write(&source, vec![more], schema, WriteMode::Append).await;
    let mode = refreshed(&catalog, &["team", "v"]).await.unwrap();
    assert_eq!(mode, Mode::Incremental);
    assert_eq!(count().await.unwrap(), 7);
    assert_eq!(
        refreshed(&catalog, &["team", "v"]).await.unwrap(),
        Mode::NoOp
    );

    // Several pages of names, of the root and below.
    let listed = catalog.tables().await.unwrap();
    assert_eq!(listed, [["team", "src"], ["team", "v"]]);
    for missing in [
        &["team", "w"][..],
        &["elsewhere", "v"],
        &["v"],
        &["a$b", "c d"],
    ] {
        let id: Vec<String> = missing.iter().map(|part| part.to_string()).collect();
        let error = view::inspect(&catalog, &id).await.unwrap_err();
        let gone = matches!(error, EngineError::ViewNotFound { .. });
        assert!(gone, "{missing:?}: {error:?}");
    }
    // What a URL takes for a step up is not even asked for.
    let asked = || served.state.headers.lock().unwrap().len();
    let before = asked();
    for step in [".", ".."] {
        let error = view::inspect(&catalog, &[step.to_string()]).await;
        let error = error.unwrap_err();
        let gone = matches!(error, EngineError::ViewNotFound { .. });
        assert!(gone, "{step}: {error:?}");
    }
    assert_eq!(asked(), before);
    let headers = served.state.headers.lock().unwrap();
    assert!(headers.iter().all(|sent| sent["x-database"] == "sales"));
}

#[tokio::test]
async fn a_catalog_that_refuses_the_callers_credential_is_told_of_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display().to_string();
    team(&root).await;
    let served = RestCatalog::start(&root, &BTreeMap::new(), HashMap::new(), false).await;
    let catalog = served.shown("a-stale-token");
    let error = refreshed(&catalog, &["team", "v"]).await.unwrap_err();
    let denied = matches!(error, EngineError::CatalogDenied { .. });
    assert!(denied && !error.retryable(), "{error:?}");
    let sentence = error.to_string();
    assert!(
        sentence.contains("team$v") && sentence.contains("Bearer ***"),
        "{sentence}"
    );
    assert!(!format!("{error:?} {catalog:?}").contains("stale"));
    // It answers, which is what is asked.
    catalog.ping().await.unwrap();
    let listed = catalog.tables().await.unwrap_err();
    assert!(
        matches!(listed, EngineError::CatalogDenied { .. }),
        "{listed:?}"
    );
}

#[tokio::test]
async fn a_catalog_that_is_busy_for_a_moment_is_asked_again_and_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display().to_string();
    team(&root).await;
    let served = RestCatalog::start(&root, &BTreeMap::new(), HashMap::new(), false).await;
    let catalog = served.shown(TOKEN);
    *served.state.busy.lock().unwrap() = 2;
    refreshed(&catalog, &["team", "v"]).await.unwrap();
    *served.state.busy.lock().unwrap() = 100;
    let error = refreshed(&catalog, &["team", "v"]).await.unwrap_err();
    let unavailable = matches!(error, EngineError::Unavailable { .. });
    assert!(unavailable && error.retryable(), "{error:?}");
    assert_eq!(*served.state.busy.lock().unwrap(), 97);
}

#[tokio::test]
async fn a_table_whose_versions_its_catalog_manages_is_not_committed_to() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display().to_string();
    let [_, view_at] = team(&root).await;
    let served = RestCatalog::start(&root, &BTreeMap::new(), HashMap::new(), true).await;
    let error = refreshed(&served.shown(TOKEN), &["team", "v"])
        .await
        .unwrap_err();
    assert!(
        matches!(error, EngineError::Unsupported { .. }),
        "{error:?}"
    );
    let view = Dataset::open(&view_at).await.unwrap();
    assert_eq!(view.version().version, 1);
}

#[tokio::test]
async fn what_a_catalog_vends_opens_its_tables() {
    let bucket = Bucket::new();
    bucket.append(0..20, WriteMode::Create).await;
    let connection = lancedb::connect(&bucket.uri()).execute().await.unwrap();
    let source = connection.open_table("src").execute().await.unwrap();
    let definition = MaterializedViewDefinition::from_sql("SELECT id FROM src WHERE id > 9");
    let prepared = prepare_definition(&source, definition.unwrap()).await;
    prepared.unwrap().create("v").await.unwrap();
    let vended = |secret: &str| {
        let key = std::env::var("AWS_ACCESS_KEY_ID").unwrap();
        HashMap::from([
            ("aws_access_key_id".to_string(), key),
            ("aws_secret_access_key".to_string(), secret.to_string()),
        ])
    };
    // What is vended counts, and not what the environment has.
    let wrong = vended("wrong-and-secret-0123456789");
    let served = RestCatalog::start(&bucket.uri(), &BTreeMap::new(), wrong, false).await;
    let error = refreshed(&served.shown(TOKEN), &["v"]).await.unwrap_err();
    let unavailable = matches!(error, EngineError::Unavailable { .. });
    assert!(
        unavailable && !error.to_string().contains("secret-0123"),
        "{error:?}"
    );

    let right = vended(&std::env::var("AWS_SECRET_ACCESS_KEY").unwrap());
    let served = RestCatalog::start(&bucket.uri(), &BTreeMap::new(), right, false).await;
    let mode = refreshed(&served.shown(TOKEN), &["v"]).await.unwrap();
    assert_eq!(mode, Mode::Rebuild);
    assert_eq!(bucket.count().await, 10);
}

/// `relance` over the catalog, with `token` in the environment.
fn relance(served: &RestCatalog, token: &str, arguments: &[&str]) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_relance"))
        .args(arguments)
        .args(["--json", "--catalog-header", "x-database=sales"])
        .env("RELANCE_CATALOG", &served.url)
        .env("RELANCE_CATALOG_TOKEN", token)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_the_credential_of_its_environment() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display().to_string();
    team(&root).await;
    let served = RestCatalog::start(&root, &BTreeMap::new(), HashMap::new(), false).await;
    let refreshed = relance(&served, TOKEN, &["refresh", "team$v"]);
    assert!(refreshed.status.success(), "{refreshed:?}");
    let listed = relance(&served, TOKEN, &["views"]);
    let view: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(
        (&view["view"], &view["state"]),
        (&json!("team$v"), &json!("Current"))
    );
    assert_eq!(view["source"], "team$src");

    // Who runs it mends it, so it may be tried again.
    let refused = relance(&served, "a-stale-token", &["refresh", "team$v"]);
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("it refuses relance's own credential"),
        "{said}"
    );
    assert!(!said.contains("stale"), "{said}");
}
