//! A real REST catalog over an operator's tables: the reference adapter of the
//! Lance Namespace, behind a gate that lets in whoever shows a token it knows.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::operator::{Operator, PATIENCE, needed};

/// Ends the adapter with its process, or when nobody reads what it says.
const ADAPTER: &str = "
import sys, lance.namespace
with lance.namespace.RestAdapter('dir', {'root': sys.argv[1]}, port=0) as adapter:
    print(adapter.port, flush=True)
    sys.stdin.read()
";

/// See the module.
pub struct RestCatalog {
    /// Where operator and pods reach it.
    pub url: String,
    gate: Arc<Gate>,
    adapter: Child,
}

struct Gate {
    behind: String,
    http: reqwest::Client,
    taken: Mutex<BTreeSet<String>>,
    refuses_pods: Mutex<bool>,
    /// Who came, and whether it was let in.
    came: Mutex<Vec<(IpAddr, bool)>>,
}

impl RestCatalog {
    pub async fn of(operator: &Operator) -> RestCatalog {
        let mut adapter = Command::new(needed("RELANCE_TEST_PYTHON"))
            .args(["-c", ADAPTER])
            .arg(&operator.tables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = adapter.stdout.take().unwrap();
        let mut port = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut port).unwrap();
        let gate = Arc::new(Gate {
            behind: format!("http://127.0.0.1:{}", port.trim()),
            http: reqwest::Client::new(),
            taken: Mutex::default(),
            refuses_pods: Mutex::new(false),
            came: Mutex::default(),
        });
        let start = Instant::now();
        while gate.http.get(&gate.behind).send().await.is_err() {
            assert!(start.elapsed() < PATIENCE, "the adapter does not answer");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let router = Router::new().fallback(pass).with_state(gate.clone());
        let host = needed("RELANCE_TEST_HOST_IP");
        let socket = tokio::net::TcpListener::bind((host.as_str(), 0)).await;
        let socket = socket.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let router = router.into_make_service_with_connect_info::<std::net::SocketAddr>();
        tokio::spawn(async move { axum::serve(socket, router).await });
        RestCatalog { url, gate, adapter }
    }

    /// From now on lets in whoever shows this token or key.
    pub fn take(&self, secret: &str) {
        self.gate.taken.lock().unwrap().insert(secret.to_string());
    }

    /// From now on lets nobody in from a pod, whatever it shows.
    pub fn refuse_pods(&self) {
        *self.gate.refuses_pods.lock().unwrap() = true;
    }

    /// How many requests came from pods and were let in.
    pub fn served_to_pods(&self) -> usize {
        let came = self.gate.came.lock().unwrap();
        came.iter()
            .filter(|(from, let_in)| is_pod(*from) && *let_in)
            .count()
    }
}

/// What is not on this machine's own addresses is a pod.
fn is_pod(from: IpAddr) -> bool {
    from.to_string() != needed("RELANCE_TEST_HOST_IP") && !from.is_loopback()
}

async fn pass(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(from): ConnectInfo<std::net::SocketAddr>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let token = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let shown = text("x-api-key").or(token).unwrap_or_default();
    let known = gate.taken.lock().unwrap().contains(shown);
    let let_in = known && !(is_pod(from.ip()) && *gate.refuses_pods.lock().unwrap());
    gate.came.lock().unwrap().push((from.ip(), let_in));
    if !let_in {
        // As careless as a server can be.
        let error = format!("'{shown}' is not let in");
        let said = json!({"code": 16, "error": error}).to_string();
        return (StatusCode::UNAUTHORIZED, said).into_response();
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("{}{path}", gate.behind);
    let mut request = gate.http.request(method, url).body(body);
    if let Some(kind) = headers.get("content-type") {
        request = request.header("content-type", kind);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status();
    (status, answer.bytes().await.unwrap()).into_response()
}

impl Drop for RestCatalog {
    fn drop(&mut self) {
        let _ = self.adapter.kill();
        let _ = self.adapter.wait();
    }
}
