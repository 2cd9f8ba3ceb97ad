//! Stores that are busy or lose answers: throttling is no failure, and what
//! was put once is put once. By a proxy before a real S3 server, which [`s3`]
//! says more of, and by a wrapper around local storage.
//!
//! [`s3`]: crate::s3

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode};
use futures::stream::BoxStream;
use lance::dataset::WriteMode;
use lance_io::object_store::WrappingObjectStore;
use lancedb::materialized_view::{MaterializedViewDefinition, prepare_definition};
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use relance::engine::catalog::Catalog;
use relance::engine::error::EngineError;
use relance::engine::outcome::{Mode, Outcome};
use relance::engine::refresh::{Progress, refresh};
use tokio::sync::watch;

use crate::s3::Bucket;
use crate::support::{Db, Form, SHAPES, request};

/// What the proxy does to requests.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Refuses each of them once.
    EachOnce(StatusCode),
    /// Refuses all of them, for so long from the first.
    AllFor(StatusCode, Duration),
    /// Carries out the first put-if-absent of each object, and says that
    /// something went wrong.
    LostAnswers,
}

/// An HTTP proxy before the S3 server, with trouble.
struct Proxy {
    upstream: String,
    trouble: Trouble,
    client: reqwest::Client,
    met: Mutex<HashSet<String>>,
    since: Mutex<Option<Instant>>,
    troubled: AtomicU64,
}

impl Proxy {
    /// Starts the proxy on a port of its own and returns its URL with it.
    async fn start(trouble: Trouble) -> (String, Arc<Proxy>) {
        let upstream = std::env::var("AWS_ENDPOINT").or(std::env::var("AWS_ENDPOINT_URL"));
        let proxy = Arc::new(Proxy {
            upstream: upstream.expect("AWS_ENDPOINT, as tests/cluster/cluster s3 prints it"),
            trouble,
            client: reqwest::Client::new(),
            met: Mutex::default(),
            since: Mutex::default(),
            troubled: AtomicU64::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answering = proxy.clone();
        let router = axum::Router::new().fallback(move |request: Request<Body>| {
            let proxy = answering.clone();
            async move { proxy.answer(request).await }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, proxy)
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let first = self
            .met
            .lock()
            .unwrap()
            .insert(format!("{} {}", parts.method, parts.uri));
        let creates = parts.method == Method::PUT && parts.headers.contains_key("if-none-match");
        match self.trouble {
            Trouble::EachOnce(status) if first => return self.refusal(status),
            Trouble::AllFor(status, time) => {
                let since = *self.since.lock().unwrap().get_or_insert_with(Instant::now);
                if since.elapsed() < time {
                    return self.refusal(status);
                }
            }
            _ => {}
        }
        let answer = self.forward(&parts, body).await;
        if matches!(self.trouble, Trouble::LostAnswers) && creates && first {
            return self.refusal(StatusCode::INTERNAL_SERVER_ERROR);
        }
        answer
    }

    fn refusal(&self, status: StatusCode) -> Response<Body> {
        self.troubled.fetch_add(1, Ordering::SeqCst);
        let code = match status {
            StatusCode::SERVICE_UNAVAILABLE => "SlowDown",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            _ => "InternalError",
        };
        let body = format!("<Error><Code>{code}</Code><Message>Reduce your rate</Message></Error>");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response
    }

    async fn forward(&self, parts: &axum::http::request::Parts, body: Bytes) -> Response<Body> {
        let url = format!("{}{}", self.upstream.trim_end_matches('/'), parts.uri);
        // The host stays the proxy's: the client signed it.
        let sent = self
            .client
            .request(parts.method.clone(), url)
            .headers(parts.headers.clone())
            .body(body)
            .send()
            .await
            .unwrap();
        let mut response = Response::new(Body::empty());
        *response.status_mut() = sent.status();
        *response.headers_mut() = sent.headers().clone();
        let length = sent.headers().get("content-length").cloned();
        *response.body_mut() = Body::from(sent.bytes().await.unwrap());
        if let (true, Some(length)) = (parts.method == Method::HEAD, length) {
            response.headers_mut().insert("content-length", length);
        }
        response
    }

    fn troubled(&self) -> u64 {
        self.troubled.load(Ordering::SeqCst)
    }
}

/// A bucket with a source of 60 rows and a view of 50 of them.
async fn bucket() -> Bucket {
    let bucket = Bucket::new();
    bucket.append(0..60, WriteMode::Create).await;
    let connection = lancedb::connect(&bucket.uri()).execute().await.unwrap();
    let source = connection.open_table("src").execute().await.unwrap();
    let definition =
        MaterializedViewDefinition::from_sql("SELECT id, x * 2 AS y FROM src WHERE id > 9")
            .unwrap();
    let prepared = prepare_definition(&source, definition).await.unwrap();
    prepared.create("v").await.unwrap();
    bucket
}

/// Refreshes the view through the proxy at `url`, twice with an append between.
async fn refreshed(bucket: &Bucket, url: &str) -> Result<Vec<Outcome>, EngineError> {
    let options = BTreeMap::from([("aws_endpoint".to_string(), url.to_string())]);
    let catalog = Catalog::connect(&format!("dir://{}", bucket.uri()), &options).await?;
    let (progress, _) = watch::channel(Progress::default());
    let mut outcomes = vec![refresh(&catalog, &request("v"), &progress).await?];
    bucket.append(60..80, WriteMode::Append).await;
    outcomes.push(refresh(&catalog, &request("v"), &progress).await?);
    Ok(outcomes)
}

async fn shown_through(trouble: Trouble, least: u64) {
    let bucket = bucket().await;
    let (url, proxy) = Proxy::start(trouble).await;
    let outcomes = refreshed(&bucket, &url).await.unwrap();
    let modes: Vec<Mode> = outcomes.iter().map(|o| o.mode).collect();
    assert_eq!(modes, [Mode::Rebuild, Mode::Incremental]);
    assert_eq!(bucket.count().await, 70);
    assert_eq!(outcomes[1].rows_written, 20);
    // One commit each, on top of the view's creation.
    assert_eq!(outcomes[1].view_version, 3);
    let troubled = proxy.troubled();
    assert!(troubled >= least, "only {troubled} requests were troubled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_every_call_once_is_only_slow() {
    shown_through(Trouble::EachOnce(StatusCode::SERVICE_UNAVAILABLE), 30).await;
    shown_through(Trouble::EachOnce(StatusCode::TOO_MANY_REQUESTS), 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_everything_for_a_while_is_only_slow() {
    let while_ = Duration::from_secs(8);
    shown_through(Trouble::AllFor(StatusCode::SERVICE_UNAVAILABLE, while_), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_whose_answer_was_lost_is_recognised_as_ones_own() {
    shown_through(Trouble::LostAnswers, 6).await;
}

/// Loses the answer of each put-if-absent, once: as a broken connection does,
/// which no client tries again by itself.
#[derive(Debug, Default)]
struct Losing {
    lost: Mutex<HashSet<Path>>,
}

#[derive(Debug)]
struct Wrap(Arc<Losing>);

impl WrappingObjectStore for Wrap {
    fn wrap(&self, _prefix: &str, inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Lossy {
            inner,
            losing: self.0.clone(),
        })
    }

    fn wrap_paginated(
        &self,
        _prefix: &str,
        original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        Some(original)
    }
}

#[derive(Debug)]
struct Lossy {
    inner: Arc<dyn ObjectStore>,
    losing: Arc<Losing>,
}

impl fmt::Display for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lossy {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Lossy {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let creates = options.mode == PutMode::Create;
        let done = self.inner.put_opts(at, payload, options).await?;
        if creates && self.losing.lost.lock().unwrap().insert(at.clone()) {
            return Err(object_store::Error::Generic {
                store: "lossy",
                source: "connection reset by peer".into(),
            });
        }
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_whose_answers_are_lost_still_commit_once() {
    let mut db = Db::new(true);
    let batch = db.batch(40);
    db.write(batch, WriteMode::Create, 20).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    for round in 0..4 {
        let losing = Arc::new(Losing::default());
        let uri = format!("dir://{}", db.folder.path().display());
        let wrapper = Arc::new(Wrap(losing.clone()));
        let catalog = Catalog::connect_wrapped(&uri, &BTreeMap::new(), wrapper)
            .await
            .unwrap();
        let (progress, _) = watch::channel(Progress::default());
        let asked = request("v");
        let workers = [0, 1].map(|index| relance::engine::refresh::Request {
            workers: 2,
            index,
            ..asked.clone()
        });
        let before = db.open("v").await.version().version;
        let runs = workers.iter().map(|w| refresh(&catalog, w, &progress));
        for outcome in futures::future::join_all(runs).await {
            let outcome = outcome.unwrap();
            let expected = db.evaluated(&SHAPES[0], Form::Plain, outcome.source_version);
            assert_eq!(db.rows("v").await, expected.await, "round {round}");
        }
        assert_eq!(db.open("v").await.version().version, before + 1);
        // The plan, a claim, the outcome.
        assert!(losing.lost.lock().unwrap().len() >= 3);
        let batch = db.batch(30);
        db.write(batch, WriteMode::Append, 15).await;
    }
}

#[tokio::test]
async fn one_creates_an_object_and_the_others_learn_that_it_is_there() {
    let db = Db::new(false);
    let losing = Arc::new(Losing::default());
    let uri = format!("dir://{}", db.folder.path().display());
    let catalog = Catalog::connect_wrapped(&uri, &BTreeMap::new(), Arc::new(Wrap(losing)))
        .await
        .unwrap();
    let objects = catalog.store().objects(&db.path("v")).await.unwrap();
    let path = objects.root().clone().join("one.json");
    assert!(objects.create(&path, &"mine").await.unwrap());
    assert!(!objects.create(&path, &"another's").await.unwrap());
    // The same content is the same object, whoever wrote it.
    assert!(objects.create(&path, &"mine").await.unwrap());
    let held: Option<String> = objects.get(&path).await.unwrap();
    assert_eq!(held.as_deref(), Some("mine"));
}
