//! A store that goes out of order: counts operations, and from one of them on
//! all fail.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use lance_io::object_store::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use tokio::sync::Notify;

/// How long data files that are to be written together are waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const LITTLE: Duration = Duration::from_millis(50);

/// What goes wrong, and what has been seen.
#[derive(Debug)]
pub struct Faults {
    operations: AtomicU64,
    fail_from: u64,
    /// Whether the first operation to fail takes effect all the same.
    after: bool,
    struck: AtomicBool,
    /// The data files of tables that were begun.
    written: Mutex<Vec<String>>,
    /// What is waited for before an object is put, or read.
    hold: Option<Hold>,
    /// All fails once an object whose path holds this was put.
    last: Option<&'static str>,
    dead: AtomicBool,
    /// How many data files are waited for, once one is begun; none, if that is 0.
    together: usize,
    /// How many are being written, and how many were at the most.
    at_once: Mutex<(usize, usize)>,
}

/// The first put of an object whose path holds `of`, or the first read, waits
/// until it may go on.
#[derive(Debug)]
struct Hold {
    of: Mutex<&'static str>,
    reads: bool,
    begun: AtomicBool,
    reached: Notify,
    go_on: Notify,
}

impl Faults {
    /// Every operation from number `fail_from` on fails; with `after`, the
    /// first of them has taken effect when it fails.
    pub fn new(fail_from: u64, after: bool) -> Arc<Faults> {
        Arc::new(Self::of(fail_from, after, None))
    }

    fn of(fail_from: u64, after: bool, hold: Option<Hold>) -> Faults {
        Faults {
            operations: AtomicU64::new(0),
            fail_from,
            after,
            struck: AtomicBool::new(false),
            written: Mutex::default(),
            hold,
            last: None,
            dead: AtomicBool::new(false),
            together: 0,
            at_once: Mutex::default(),
        }
    }

    /// All works until an object whose path holds `of` was put, and fails from
    /// then on.
    pub fn after(of: &'static str) -> Arc<Faults> {
        Arc::new(Faults {
            last: Some(of),
            ..Self::of(u64::MAX, false, None)
        })
    }

    /// All works, but a data file is written once `together` have been begun, or no
    /// more come for long.
    pub fn gathering(together: usize) -> Arc<Faults> {
        Arc::new(Faults {
            together,
            ..Self::of(u64::MAX, false, None)
        })
    }

    /// How many data files were written at a time, at the most.
    pub fn most_at_once(&self) -> usize {
        self.at_once.lock().unwrap().1
    }

    async fn gathered(&self, at: &Path) {
        if self.together == 0 || !at.as_ref().contains("/data/") {
            return;
        }
        {
            let mut at_once = self.at_once.lock().unwrap();
            at_once.0 += 1;
            at_once.1 = at_once.1.max(at_once.0);
        }
        let begun = tokio::time::Instant::now();
        while self.most_at_once() < self.together && begun.elapsed() < PATIENCE {
            tokio::time::sleep(LITTLE).await;
        }
        // There may be one more than there should be.
        tokio::time::sleep(10 * LITTLE).await;
        self.at_once.lock().unwrap().0 -= 1;
    }

    fn put(&self, at: &Path) {
        if self.last.is_some_and(|last| at.as_ref().contains(last)) {
            self.dead.store(true, Ordering::SeqCst);
        }
    }

    /// All works, but the first put of an object whose path holds `of` waits for
    /// [`Faults::go_on`].
    pub fn holding(of: &'static str) -> Arc<Faults> {
        Self::hold(of, false)
    }

    /// As [`Faults::holding`], the first read.
    pub fn holding_read(of: &'static str) -> Arc<Faults> {
        Self::hold(of, true)
    }

    fn hold(of: &'static str, reads: bool) -> Arc<Faults> {
        let hold = Hold {
            of: Mutex::new(of),
            reads,
            begun: AtomicBool::new(false),
            reached: Notify::new(),
            go_on: Notify::new(),
        };
        Arc::new(Self::of(u64::MAX, false, Some(hold)))
    }

    /// Waits until that has come.
    pub async fn reached(&self) {
        self.hold.as_ref().unwrap().reached.notified().await;
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.hold.as_ref().unwrap().go_on.notify_one();
    }

    /// The same, until the next put of an object whose path holds `of`.
    pub fn go_on_until(&self, of: &'static str) {
        let hold = self.hold.as_ref().unwrap();
        *hold.of.lock().unwrap() = of;
        hold.begun.store(false, Ordering::SeqCst);
        hold.go_on.notify_one();
    }

    async fn held(&self, at: &Path, reads: bool) {
        if let Some(hold) = &self.hold
            && hold.reads == reads
            && at.as_ref().contains(*hold.of.lock().unwrap())
            && !hold.begun.swap(true, Ordering::SeqCst)
        {
            hold.reached.notify_one();
            hold.go_on.notified().await;
        }
    }

    /// Only counts.
    pub fn none() -> Arc<Faults> {
        Faults::new(u64::MAX, false)
    }

    /// How many operations were seen.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::SeqCst)
    }

    /// Whether an operation has failed.
    pub fn struck(&self) -> bool {
        self.struck.load(Ordering::SeqCst)
    }

    /// How many data files and deletion files were begun below `folder`.
    pub fn written(&self, folder: &str) -> usize {
        let written = self.written.lock().unwrap();
        written.iter().filter(|path| path.contains(folder)).count()
    }

    fn wrote(&self, at: &Path) {
        if at.as_ref().contains("/data/") || at.as_ref().contains("/_deletions/") {
            self.written.lock().unwrap().push(at.to_string());
        }
    }

    fn meet(&self) -> Fate {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        if number < self.fail_from && !self.dead.load(Ordering::SeqCst) {
            return Fate::Works;
        }
        self.struck.store(true, Ordering::SeqCst);
        if self.after && number == self.fail_from {
            Fate::WorksAndFails
        } else {
            Fate::Fails
        }
    }

    async fn through<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        match self.meet() {
            Fate::Works => operation.await,
            Fate::WorksAndFails => {
                let _ = operation.await;
                Err(broken())
            }
            Fate::Fails => Err(broken()),
        }
    }
}

enum Fate {
    Works,
    WorksAndFails,
    Fails,
}

fn broken() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: "storage is out of order".into(),
    }
}

/// Puts the faults around whatever store lance opens.
#[derive(Debug)]
pub struct Wrap(pub Arc<Faults>);

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

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.faults.wrote(at);
        self.faults.gathered(at).await;
        self.faults.held(at, false).await;
        let put = self.inner.put_opts(at, payload, o);
        let put = self.faults.through(put).await?;
        self.faults.put(at);
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.faults.wrote(at);
        self.faults.gathered(at).await;
        let inner = self
            .faults
            .through(self.inner.put_multipart_opts(at, options))
            .await?;
        Ok(Box::new(FaultyUpload {
            inner,
            faults: self.faults.clone(),
        }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults.held(at, true).await;
        self.faults.through(self.inner.get_opts(at, options)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.faults.meet() {
            Fate::Works => self.inner.delete_stream(locations),
            Fate::WorksAndFails => {
                let mut deleted = self.inner.delete_stream(locations);
                futures::stream::once(async move {
                    while deleted.next().await.is_some() {}
                    Err(broken())
                })
                .boxed()
            }
            Fate::Fails => futures::stream::once(async { Err(broken()) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.faults.meet() {
            Fate::Works => self.inner.list(prefix),
            _ => futures::stream::once(async { Err(broken()) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.faults
            .through(self.inner.list_with_delimiter(prefix))
            .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let copied = self.inner.copy_opts(from, to, options);
        self.faults.through(copied).await?;
        self.faults.put(to);
        Ok(())
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let renamed = self.inner.rename_opts(from, to, options);
        self.faults.through(renamed).await?;
        self.faults.put(to);
        Ok(())
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    faults: Arc<Faults>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.inner.put_part(data);
        let faults = self.faults.clone();
        Box::pin(async move { faults.through(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.faults.through(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.faults.through(self.inner.abort()).await
    }
}
