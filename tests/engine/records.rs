//! What is on record of jobs, where each request to the store takes its time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures::stream::BoxStream;
use lance::dataset::WriteMode;
use lance_io::object_store::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use relance::engine::account::{Found, find};
use relance::engine::catalog::Catalog;
use relance::engine::refresh::Request;

use crate::support::{Db, Form, SHAPES, request};

/// How long each read takes, in milliseconds.
#[derive(Clone, Debug, Default)]
struct Delay(Arc<AtomicU64>);

impl Delay {
    fn set(&self, milliseconds: u64) {
        self.0.store(milliseconds, Ordering::Relaxed);
    }

    async fn pass(&self) {
        let delay = self.0.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
}

#[derive(Debug)]
struct Slow {
    inner: Arc<dyn ObjectStore>,
    delay: Delay,
}

impl WrappingObjectStore for Delay {
    fn wrap(&self, _prefix: &str, inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Slow {
            inner,
            delay: self.clone(),
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

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slow {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Slow {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.delay.pass().await;
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
        self.delay.pass().await;
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

async fn search(
    catalog: &Catalog,
    job: &str,
    since: Option<SystemTime>,
) -> (Option<Found>, Duration) {
    let began = Instant::now();
    let found = find(catalog, job, since).await.unwrap();
    (found, began.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_nobody_knows_is_answered_in_time_by_a_store_that_takes_its_time() {
    let mut db = Db::new(true);
    let batch = db.batch(20);
    db.write(batch, WriteMode::Create, 20).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    let asked = Request {
        job: Some("nightly".to_string()),
        ..request("v")
    };
    db.refresh_as(asked).await.unwrap();
    for _ in 0..150 {
        let none: [(&str, &str); 1] = [("key", "value")];
        db.open("v").await.update_config(none).await.unwrap();
    }
    let delay = Delay::default();
    // As objects are reached, by requests that can be slow.
    let uri = format!("dir://file-object-store://{}", db.folder.path().display());
    let catalog = Catalog::connect_wrapped(&uri, &BTreeMap::new(), Arc::new(delay.clone()))
        .await
        .unwrap();

    let just_now = Some(SystemTime::now());
    delay.set(100);
    for since in [None, just_now] {
        // By its record.
        let (found, took) = search(&catalog, "nightly", since).await;
        assert_eq!(found.map(|found| found.view), Some(vec!["v".to_string()]));
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    delay.set(1_000);
    let (unknown, took) = search(&catalog, "unknown", None).await;
    assert_eq!(unknown, None);
    // Eight seconds for histories, and a few requests before.
    assert!(took < Duration::from_secs(15), "{took:?}");

    // Where only the view's history knows, it is found far back.
    let records = format!("{}/_relance", db.path("v"));
    std::fs::remove_dir_all(records).unwrap();
    delay.set(25);
    let (found, took) = search(&catalog, "nightly", just_now).await;
    assert_eq!(found.map(|found| found.view), Some(vec!["v".to_string()]));
    assert!(took < Duration::from_secs(8), "{took:?}");
}
