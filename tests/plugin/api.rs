//! The API server of the tests, and the plug-in before it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request.
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub query: HashMap<String, String>,
    pub body: Value,
}

impl Asked {
    /// What is asked for, such as `GET pods/p/log` or `WATCH pods`: the part of
    /// the path behind the namespace, or else all of it.
    pub fn what(&self) -> String {
        let verb = match self.query.contains_key("watch") {
            true => "WATCH",
            false => self.method.as_str(),
        };
        let inner = self.path.split_once("/namespaces/");
        let inner = inner.and_then(|(_, rest)| rest.split_once('/'));
        format!(
            "{verb} {}",
            inner.map_or(self.path.as_str(), |(_, rest)| rest)
        )
    }
}

/// An API server.
pub struct Api {
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
}

impl Api {
    /// One that answers so.
    pub async fn that(answer: impl Fn(&Asked) -> Response + Send + Sync + 'static) -> Api {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (all, answer) = (asked.clone(), Arc::new(answer));
        let router = Router::new().fallback(
            move |method: Method,
                  uri: Uri,
                  Query(query): Query<HashMap<String, String>>,
                  body: Bytes| {
                let asked = Asked {
                    method,
                    path: uri.path().to_string(),
                    query,
                    body: serde_json::from_slice(&body).unwrap_or_default(),
                };
                all.lock().unwrap().push(format!("{} {uri}", asked.method));
                std::future::ready(answer(&asked))
            },
        );
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(socket, router).await });
        Api {
            port,
            asked,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> Value {
        let server = format!("http://127.0.0.1:{}", self.port);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [
                {"name": "here", "context": {"cluster": "it", "user": "me", "namespace": "ns"}},
                {"name": "the other", "context": {"cluster": "it", "user": "me"}},
            ],
            "clusters": [{"name": "it", "cluster": {"server": server}}],
            "users": [{"name": "me", "user": {"token": "t0ken"}}],
        })
    }

    /// Writes a file beside the kubeconfig.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The plug-in before it, by `kubeconfig`.
    pub fn by(&self, kubeconfig: &Value, arguments: &[&str]) -> Command {
        let file = self.file("config", &kubeconfig.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_relance"));
        command
            .arg("kubectl")
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// The plug-in before it.
    pub fn plugin(&self, arguments: &[&str]) -> Command {
        self.by(&self.kubeconfig(), arguments)
    }

    /// What the plug-in says.
    pub async fn says(&self, arguments: &[&str]) -> Said {
        said(self.plugin(arguments)).await
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs it to its end.
pub async fn said(mut command: Command) -> Said {
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.expect("it does not end").unwrap();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A refresh as it is stored.
pub fn refresh(name: &str, phase: &str, message: &str) -> Value {
    json!({
        "apiVersion": "relance.dev/v1alpha1",
        "kind": "MaterializedViewRefresh",
        "metadata": {"name": name, "namespace": "ns", "uid": "u-1", "resourceVersion": "1"},
        "spec": {"view": ["v"]},
        "status": {"phase": phase, "message": message},
    })
}

/// An answer.
pub fn ok(object: &Value) -> Response {
    ([("content-type", "application/json")], object.to_string()).into_response()
}

/// A list of them.
pub fn list(kind: &str, items: &[Value]) -> Response {
    let version = match kind {
        "Pod" => "v1",
        _ => "relance.dev/v1alpha1",
    };
    ok(&json!({
        "apiVersion": version,
        "kind": format!("{kind}List"),
        "metadata": {"resourceVersion": "1"},
        "items": items,
    }))
}

/// A watch that tells this and goes on.
pub fn watched(kind: &str, objects: &[Value]) -> Response {
    let event = |object| format!("{}\n", json!({"type": kind, "object": object}));
    let events: Vec<_> = objects
        .iter()
        .map(|o| Ok::<_, std::io::Error>(event(o)))
        .collect();
    Body::from_stream(stream::iter(events).chain(stream::pending())).into_response()
}

/// A refusal.
pub fn refused(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
        "details": {"name": "it"},
    });
    let code = axum::http::StatusCode::from_u16(code).unwrap();
    (code, ok(&status)).into_response()
}

/// The caller may not.
pub fn forbidden() -> Response {
    refused(403, "Forbidden", "you-know-who cannot do that")
}

/// Bytes, of a connection that breaks off behind them.
pub fn broken(bytes: &'static [u8]) -> Response {
    let bytes = [Ok(bytes), Err(std::io::Error::other("gone"))];
    // One after the other, or the break would be all that is sent.
    let bytes = stream::iter(bytes).then(|bytes| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bytes
    });
    Body::from_stream(bytes).into_response()
}
