//! Storage that fails: for every operation k of a refresh, everything from k
//! on fails, once before it takes effect and once after. Then storage is
//! mended and the view refreshed again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use lance::dataset::WriteMode;
use lance_io::object_store::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use relance::engine::catalog::Catalog;
use relance::engine::outcome::Outcome;
use relance::engine::refresh::{Progress, Request, refresh};
use tokio::sync::watch;

use crate::support::{Db, Form, Shape, request, shape};

/// Counts operations, and fails all from `fail_from` on. With `after`, a
/// failing operation has taken effect when it fails.
#[derive(Debug)]
struct Faults {
    operations: AtomicU64,
    fail_from: u64,
    after: AtomicBool,
}

impl Faults {
    fn new(fail_from: u64, after: bool) -> Arc<Faults> {
        Arc::new(Faults {
            operations: AtomicU64::new(0),
            fail_from,
            after: AtomicBool::new(after),
        })
    }

    /// Whether this operation fails.
    fn strikes(&self) -> bool {
        self.operations.fetch_add(1, Ordering::SeqCst) >= self.fail_from
    }

    fn first_of_them(&self) -> bool {
        // Only the first one took effect: afterwards storage is gone.
        self.after.load(Ordering::SeqCst)
            && self.operations.load(Ordering::SeqCst) == self.fail_from + 1
    }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: "storage is out of order".into(),
    }
}

#[derive(Debug)]
struct Wrap(Arc<Faults>);

impl WrappingObjectStore for Wrap {
    fn wrap(&self, _prefix: &str, original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Faulty {
            inner: original,
            faults: self.0.clone(),
        })
    }

    fn wrap_paginated(
        &self,
        _prefix: &str,
        _original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        // Listings, too, shall pass through the faults.
        None
    }
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

impl Faulty {
    async fn through<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        if !self.faults.strikes() {
            return operation.await;
        }
        if self.faults.first_of_them() {
            let _ = operation.await;
        }
        Err(broken())
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.through(self.inner.put_opts(at, payload, o)).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.through(self.inner.put_multipart_opts(at, options))
            .await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.through(self.inner.get_opts(at, options)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        if self.faults.strikes() {
            return futures::stream::once(async { Err(broken()) }).boxed();
        }
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.faults.strikes() {
            return futures::stream::once(async { Err(broken()) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.through(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.through(self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.through(self.inner.rename_opts(from, to, options))
            .await
    }
}

async fn faulty_refresh(
    db: &Db,
    asked: &Request,
    faults: Arc<Faults>,
) -> std::result::Result<Outcome, relance::engine::error::EngineError> {
    let uri = format!("dir://{}", db.folder.path().display());
    let catalog =
        Catalog::connect_wrapped(&uri, &Default::default(), Arc::new(Wrap(faults))).await?;
    let (progress, _) = watch::channel(Progress::default());
    refresh(&catalog, asked, &progress).await
}

/// A view with a half to keep and a half to compute.
async fn prepared(shape: &Shape, form: Form) -> Db {
    let mut db = Db::new(true);
    let batch = db.batch(40);
    db.write(batch, WriteMode::Create, 20).await;
    db.create_view("v", shape.sql, form).await;
    db.refresh("v").await.unwrap();
    let more = db.batch(30);
    db.write(more, WriteMode::Append, 15).await;
    db.open("src").await.delete("id = 5").await.unwrap();
    db
}

async fn commits_of(db: &Db, refresh: &str) -> usize {
    let table = db.open("v").await;
    let mut found = 0;
    for version in 1..=table.version().version {
        let transaction = table.read_transaction_by_version(version).await.unwrap();
        found += usize::from(
            transaction
                .and_then(|t| t.transaction_properties)
                .is_some_and(|p| p.get("relance.refresh").map(String::as_str) == Some(refresh)),
        );
    }
    found
}

async fn sweep(shape: &Shape, form: Form) {
    let counter = Faults::new(u64::MAX, false);
    let db = prepared(shape, form).await;
    faulty_refresh(&db, &request("v"), counter.clone())
        .await
        .unwrap();
    let operations = counter.operations.load(Ordering::SeqCst);
    assert!(operations > 10, "only {operations} operations were seen");

    for k in 0..operations {
        for after in [false, true] {
            let db = prepared(shape, form).await;
            let before = db.rows("v").await;
            let asked = request("v");
            let faults = Faults::new(k, after);
            let result = faulty_refresh(&db, &asked, faults.clone()).await;
            let now = db.rows("v").await;
            let wanted = db.evaluated(shape, form, 3).await;
            let place = format!("{} {form:?}, k={k} after={after}: {result:?}", shape.name);
            if result.is_ok() {
                assert_eq!(now, wanted, "{place}");
            } else {
                // Readers see the view as it was or as it shall be.
                assert!(now == before || now == wanted, "{place}");
            }
            // The same refresh again, as a new pod would run it.
            let again = db.refresh_as(asked.clone()).await.unwrap();
            assert_eq!(db.rows("v").await, wanted, "{place}, then {again:?}");
            assert_eq!(again.source_version, 3, "{place}");
            assert_eq!(
                commits_of(&db, &asked.refresh).await,
                1,
                "{place}, then {again:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_refresh_survives_a_fault_at_every_operation() {
    sweep(shape("filtered"), Form::Plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grouped_refresh_of_the_older_form_survives_a_fault_at_every_operation() {
    sweep(shape("grouped"), Form::Provenance).await;
}
