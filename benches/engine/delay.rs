//! A store that is far away: every call takes a while longer, and is counted.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use lance_io::object_store::WrappingObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

/// Delays every call by `delay` before it is made, and counts the calls.
#[derive(Debug)]
pub struct Delay {
    /// How long.
    pub delay: Duration,
    /// Calls made.
    pub calls: AtomicU64,
}

impl Delay {
    async fn wait(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.delay).await;
    }
}

/// Wraps stores in [`Delay`].
#[derive(Debug)]
pub struct Wrap(pub Arc<Delay>);

impl WrappingObjectStore for Wrap {
    fn wrap(&self, _prefix: &str, inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Delayed {
            inner,
            delay: self.0.clone(),
        })
    }

    fn wrap_paginated(
        &self,
        _prefix: &str,
        _original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        // Listings, too, shall be delayed.
        None
    }
}

#[derive(Debug)]
struct Delayed {
    inner: Arc<dyn ObjectStore>,
    delay: Arc<Delay>,
}

impl fmt::Display for Delayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delayed {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Delayed {
    async fn put_opts(&self, at: &Path, payload: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.delay.wait().await;
        self.inner.put_opts(at, payload, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.delay.wait().await;
        let upload = self.inner.put_multipart_opts(at, options).await?;
        Ok(Box::new(DelayedUpload {
            upload,
            delay: self.delay.clone(),
        }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.delay.wait().await;
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        // As S3 does: a call for each thousand of them.
        let delay = self.delay.clone();
        let locations = locations.enumerate().then(move |(at, path)| {
            let delay = delay.clone();
            async move {
                if at % 1000 == 0 {
                    delay.wait().await;
                }
                path
            }
        });
        self.inner.delete_stream(locations.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let delay = self.delay.clone();
        let inner = self.inner.clone();
        let prefix = prefix.cloned();
        async move {
            delay.wait().await;
            inner.list(prefix.as_ref())
        }
        .flatten_stream()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.delay.wait().await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.delay.wait().await;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.delay.wait().await;
        self.inner.rename_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct DelayedUpload {
    upload: Box<dyn MultipartUpload>,
    delay: Arc<Delay>,
}

#[async_trait]
impl MultipartUpload for DelayedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let put = self.upload.put_part(data);
        let delay = self.delay.clone();
        Box::pin(async move {
            delay.wait().await;
            put.await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.delay.wait().await;
        self.upload.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.delay.wait().await;
        self.upload.abort().await
    }
}
