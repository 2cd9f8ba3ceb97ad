//! Storage as the engine sees it: Lance tables opened afresh, and small JSON
//! objects beside them.
//!
//! Every access goes through one [`Store`], so that a wrapper given to it (the
//! fault injector of the tests, a throttle) sees all of them, Lance's included.
//!
//! Object stores refuse calls when there are too many (503 SlowDown, 429), and
//! connections break. The clients of lance and object_store try again, more and
//! more slowly; what is set here is for how long ([`RETRIES`]). The one call
//! that cannot just be made again is a put-if-absent whose answer was lost:
//! [`Objects::create`] then compares what is there with what it meant to write.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::session::{CacheSpec, Session};
use lance_core::cache::{QuickCacheBackend, QuickCacheShardPolicy};
use lance_io::local::to_local_path;
use lance_io::object_store::{
    ObjectStore, ObjectStoreParams, ObjectStoreRegistry, StorageOptionsAccessor,
    WrappingObjectStore,
};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt, PutMode, PutOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tracing::debug;

use super::error::{EngineError, Result};
use super::words::{first_line, redact};

/// Bytes of index cache in the session of one opened table.
const INDEX_CACHE: usize = 16 << 20;
/// Bytes of metadata cache in the session of one opened table.
const METADATA_CACHE: usize = 64 << 20;
/// Bytes of each of the two where a table is only looked at: a session's caches
/// are laid out when it is made, and most looks are over before they are used.
const LOOK_CACHE: usize = 1 << 20;

/// Storage option: how often one call is tried again.
const RETRIES_OPTION: &str = "client_max_retries";
/// How often, unless an option or the environment says otherwise. With pauses
/// that double from 0.1 s up to 15 s that is about half a minute; lance's own
/// default, 3, is over within a second, and a bucket that is being spread over
/// more servers refuses calls for longer than that.
const RETRIES: u32 = 10;

/// Lance's scheme for local files that are reached as objects are.
const LOCAL_OBJECTS: &str = "file-object-store";

/// The stores whose listings can begin anywhere, and give names in their order.
const FROM_ANYWHERE: [&str; 2] = ["s3", "gs"];

/// How many objects are looked at together.
pub(super) const HEADS: usize = 256;

/// How often an object that must not exist yet is put, if what becomes of it
/// stays unknown.
const CREATE_ATTEMPTS: u32 = 4;

/// Opens tables and the objects beside them, with one set of options.
#[derive(Clone)]
pub struct Store {
    options: HashMap<String, String>,
    wrapper: Option<Arc<dyn WrappingObjectStore>>,
    registry: Arc<ObjectStoreRegistry>,
    /// Bytes of index cache and of metadata cache in a session.
    caches: (usize, usize),
    /// Whether whoever uses it is in no thread of tokio's, and which they are.
    inline: Option<Handle>,
    /// By URI, what the catalog vends for a table in place of `options`.
    vended: Arc<Mutex<HashMap<String, Arc<StorageOptionsAccessor>>>>,
}

impl std::fmt::Debug for Store {
    // The options may hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// A store with lance's `storage_options` (credentials among them, or else
    /// from the environment, as the object-store libraries read them).
    pub fn new(options: &BTreeMap<String, String>) -> Self {
        let mut options: HashMap<String, String> = options
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        // As lance reads it: keys in any case, and the environment first.
        if !options
            .keys()
            .any(|key| key.eq_ignore_ascii_case(RETRIES_OPTION))
        {
            options.insert(RETRIES_OPTION.to_string(), RETRIES.to_string());
        }
        Self {
            options,
            wrapper: None,
            registry: Arc::new(ObjectStoreRegistry::default()),
            caches: (INDEX_CACHE, METADATA_CACHE),
            inline: None,
            vended: Arc::default(),
        }
    }

    /// The same store, for those who look at tables and refresh none.
    pub fn for_looks(mut self) -> Self {
        self.caches = (LOOK_CACHE, LOOK_CACHE);
        self
    }

    /// The same store, for use in a thread that is none of tokio's, where local
    /// files are read then and there. What cannot be done so is done by `tokio`.
    pub fn inline(mut self, tokio: Handle) -> Self {
        self.inline = Some(tokio);
        self
    }

    /// Whether it is for use in a thread that is none of tokio's.
    pub(super) fn is_inline(&self) -> bool {
        self.inline.is_some()
    }

    /// The same store, with every operation passing through `wrapper`.
    pub fn wrapped(mut self, wrapper: Arc<dyn WrappingObjectStore>) -> Self {
        self.wrapper = Some(wrapper);
        self.registry = Arc::new(ObjectStoreRegistry::default());
        self
    }

    /// Lance's storage options.
    pub fn options(&self) -> &HashMap<String, String> {
        &self.options
    }

    /// A session of its own: lance caches transactions by version number
    /// alone, so a session must not outlive a look at one table.
    pub fn session(&self) -> Arc<Session> {
        // Lance would ask the system for the number of processors each time, and
        // then choose the same: shards are for caches of gigabytes.
        let cache = |bytes| {
            let single = QuickCacheBackend::with_shard_policy(bytes, QuickCacheShardPolicy::Single);
            CacheSpec::Backend(Arc::new(single))
        };
        let (index, metadata) = self.caches;
        Arc::new(Session::with_cache_backends(
            cache(index),
            cache(metadata),
            self.registry.clone(),
        ))
    }

    /// From now on the table at `uri` is reached by what `options` give, which
    /// are asked for anew when they expire.
    pub(super) fn vend(&self, uri: &str, options: Arc<StorageOptionsAccessor>) {
        let mut vended = self.vended.lock().unwrap_or_else(PoisonError::into_inner);
        vended.insert(uri.to_string(), options);
    }

    /// Whether a catalog has given what it takes to reach the table at `uri`.
    pub fn is_vended(&self, uri: &str) -> bool {
        let vended = self.vended.lock().unwrap_or_else(PoisonError::into_inner);
        vended.contains_key(uri)
    }

    fn params(&self, uri: &str) -> ObjectStoreParams {
        let vended = self.vended.lock().unwrap_or_else(PoisonError::into_inner);
        let vended = vended.get(uri).cloned();
        ObjectStoreParams {
            storage_options_accessor: vended.or_else(|| {
                (!self.options.is_empty()).then(|| {
                    let options = self.options.clone();
                    Arc::new(StorageOptionsAccessor::with_static_options(options))
                })
            }),
            object_store_wrapper: self.wrapper.clone(),
            ..Default::default()
        }
    }

    /// Opens the table at `uri`, freshly, at `version` or the latest.
    /// `Ok(None)`: no table, or no such version. Errors: `Unavailable`, and
    /// `InvalidInput` for one that cannot be used as it is.
    pub async fn open(&self, uri: &str, version: Option<u64>) -> Result<Option<Dataset>> {
        let inline = self.inline.as_ref().map(|tokio| (tokio, as_objects(uri)));
        let at = match &inline {
            Some((_, Some(objects))) => objects,
            _ => uri,
        };
        let mut builder = DatasetBuilder::from_uri(at)
            .with_session(self.session())
            .with_store_params(self.params(uri));
        if let Some(version) = version {
            builder = builder.with_version(version);
        }
        let loaded = match inline {
            Some((tokio, None)) => {
                let loading = tokio.spawn(async move { builder.load().await });
                loading.await.map_err(|error| {
                    let why = format!("opening a table ended early: {error}");
                    EngineError::Internal(why)
                })?
            }
            _ => builder.load().await,
        };
        match loaded {
            Ok(dataset) => Ok(Some(dataset)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(storage(&format!("the table at {}", redact(uri)), error)),
        }
    }

    /// The objects in the folder of the table at `uri`.
    pub async fn objects(&self, uri: &str) -> Result<Objects> {
        let (store, root) =
            ObjectStore::from_uri_and_params(self.registry.clone(), uri, &self.params(uri))
                .await
                .map_err(|e| storage(&format!("the store of {}", redact(uri)), e))?;
        let local = store.has_direct_local_paths() || store.scheme() == LOCAL_OBJECTS;
        Ok(Objects {
            direct: local && self.wrapper.is_none(),
            from_anywhere: store.list_is_lexically_ordered
                && FROM_ANYWHERE.contains(&store.scheme()),
            local,
            store,
            root,
        })
    }
}

/// The objects in one table's folder.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<ObjectStore>,
    root: Path,
    /// Whether they are local files.
    local: bool,
    /// Whether they may be looked at as files: nobody is to see each operation.
    direct: bool,
    /// Whether a listing can begin anywhere, and gives names in their order.
    from_anywhere: bool,
}

/// An object as a listing shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The full path.
    pub path: Path,
    /// The last part of the path.
    pub name: String,
    /// When it was written, by the store's own clock.
    pub modified: SystemTime,
}

/// The objects of a range of names.
struct Between {
    listed: Vec<Listed>,
    /// The first beyond it, as the store gave it.
    after: Option<Path>,
}

impl Objects {
    /// The table's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The object at `path`, relative to the table's folder, or the folder.
    pub fn within(&self, path: &str) -> Path {
        path.split('/')
            .fold(self.root.clone(), |folder, part| folder.join(part))
    }

    /// Writes `value` as JSON unless the object is there already. Returns
    /// whether it is this value that is there now: written by this call, or
    /// the same as another wrote.
    pub async fn create<T: Serialize>(&self, path: &Path, value: &T) -> Result<bool> {
        Ok(self.create_bytes(path, json(value)?).await?.is_none())
    }

    /// Writes `value` as JSON unless the object is there already. Returns what
    /// is there now: what all who do this agree on.
    pub async fn agree<T: Serialize + DeserializeOwned>(&self, path: &Path, value: T) -> Result<T> {
        let theirs = self.create_bytes(path, json(&value)?).await?;
        let theirs = theirs.and_then(|json| serde_json::from_slice(&json).ok());
        Ok(theirs.unwrap_or(value))
    }

    /// Writes `bytes` unless the object is there already. Returns what is there instead,
    /// if that is not the same.
    pub async fn create_bytes(&self, path: &Path, bytes: Bytes) -> Result<Option<Bytes>> {
        let mut attempt = 1;
        loop {
            let options = PutOptions {
                mode: PutMode::Create,
                ..Default::default()
            };
            let put = self
                .store
                .inner
                .put_opts(path, bytes.clone().into(), options);
            match put.await {
                Ok(_) => return Ok(None),
                // It may be an earlier attempt of this very call that is there,
                // whose answer was lost, to us or to the client below. S3 also
                // says so while another's put is under way, which may yet fail.
                Err(error @ object_store::Error::AlreadyExists { .. }) => {
                    match self.read(path).await? {
                        Some(there) => return Ok((there != bytes).then_some(there)),
                        None if attempt == CREATE_ATTEMPTS => return Err(object(path, error)),
                        None => {}
                    }
                }
                Err(error @ object_store::Error::Generic { .. }) if attempt < CREATE_ATTEMPTS => {
                    debug!(
                        %path,
                        error = first_line(&error.to_string()),
                        "whether the object was written is unknown; putting it again"
                    );
                }
                Err(error) => return Err(object(path, error)),
            }
            tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
            attempt += 1;
        }
    }

    /// Writes `value` as JSON over whatever is there.
    pub async fn put<T: Serialize>(&self, path: &Path, value: &T) -> Result<()> {
        self.store
            .inner
            .put_opts(path, json(value)?.into(), PutOptions::default())
            .await
            .map(|_| ())
            .map_err(|e| object(path, e))
    }

    /// The object's JSON, or `None` if it is not there. An object that cannot
    /// be parsed counts as absent: all that relance keeps can be made anew.
    pub async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        Ok(self
            .read(path)
            .await?
            .and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Writes `bytes` over whatever is there.
    pub async fn put_bytes(&self, path: &Path, bytes: Bytes) -> Result<()> {
        self.store
            .inner
            .put_opts(path, bytes.into(), PutOptions::default())
            .await
            .map(|_| ())
            .map_err(|e| object(path, e))
    }

    /// How many bytes the object has; `None` if it is not there.
    pub async fn size(&self, path: &Path) -> Result<Option<u64>> {
        match self.store.inner.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(object(path, error)),
        }
    }

    /// Whether the object is there, and has `size` bytes, where that is known.
    pub async fn has(&self, path: &Path, size: Option<u64>) -> Result<bool> {
        let found = self.size(path).await?;
        Ok(found.is_some_and(|found| size.is_none_or(|size| size == found)))
    }

    /// The object's bytes, or `None` if it is not there.
    pub async fn read(&self, path: &Path) -> Result<Option<Bytes>> {
        match self.store.inner.get(path).await {
            Ok(found) => found.bytes().await.map(Some).map_err(|e| object(path, e)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(object(path, error)),
        }
    }

    /// When the object was written, by the store's clock; `None` if it is not there.
    pub async fn modified(&self, path: &Path) -> Result<Option<SystemTime>> {
        match self.store.inner.head(path).await {
            Ok(meta) => Ok(Some(meta.last_modified.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(object(path, error)),
        }
    }

    /// When each of `objects` was written, as [`Objects::modified`] tells it.
    pub async fn modified_each<K>(
        &self,
        objects: Vec<(K, Path)>,
    ) -> Result<Vec<(K, Option<SystemTime>)>> {
        let paths: Vec<Path> = objects.iter().map(|(_, path)| path.clone()).collect();
        let seen = match self.direct {
            true => written_files(paths).await,
            false => vec![None; paths.len()],
        };
        futures::stream::iter(objects.into_iter().zip(seen))
            .map(|((key, path), seen)| async move {
                // What is no file by that name may be one by the store's.
                match seen {
                    Some(at) => Ok((key, Some(at))),
                    None => Ok((key, self.modified(&path).await?)),
                }
            })
            .buffer_unordered(HEADS)
            .try_collect()
            .await
    }

    /// All objects below `folder`, in the order of their names.
    pub async fn list(&self, folder: &Path) -> Result<Vec<Listed>> {
        let mut found = self
            .listed(self.store.inner.list(Some(folder)), folder)
            .await?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The same of very many. A store gives a thousand in one call, and the next after
    /// that: so it is asked for those after each of `starts`, names in their order,
    /// at the same time, if it can be.
    pub async fn list_many(&self, folder: &Path, starts: &[&str]) -> Result<Vec<Listed>> {
        if !self.from_anywhere {
            return self.list(folder).await;
        }
        let starts = starts.iter().map(|name| Some(folder.clone().join(*name)));
        let bounds: Vec<Option<Path>> = [None].into_iter().chain(starts).chain([None]).collect();
        let between = bounds
            .windows(2)
            .map(|bounds| self.list_between(folder, bounds[0].as_ref(), bounds[1].as_ref()));
        let found = futures::future::try_join_all(between).await?;
        // What one ends at the next begins with; else the store does not give them in
        // the order of their names, for all that it was taken to.
        let mut next = None;
        let is_in_order = found.iter().rev().all(|between| {
            let follows = between.after == next;
            let first = between.listed.first().map(|listed| listed.path.clone());
            next = first.or(next.take());
            follows && between.listed.is_sorted_by(|a, b| a.path <= b.path)
        });
        match is_in_order {
            true => Ok(found.into_iter().flat_map(|found| found.listed).collect()),
            false => self.list(folder).await,
        }
    }

    /// Those after `start`, up to `end`, and what comes next.
    async fn list_between(
        &self,
        folder: &Path,
        start: Option<&Path>,
        end: Option<&Path>,
    ) -> Result<Between> {
        let listed = match start {
            None => self.store.inner.list(Some(folder)),
            Some(start) => self.store.inner.list_with_offset(Some(folder), start),
        };
        let after = Mutex::new(None);
        let listed = listed.try_take_while(|meta| {
            let is_before = end.is_none_or(|end| meta.location <= *end);
            if !is_before {
                *after.lock().unwrap_or_else(PoisonError::into_inner) = Some(meta.location.clone());
            }
            futures::future::ready(Ok(is_before))
        });
        let listed = self.listed(listed.boxed(), folder).await?;
        let after = after.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Between { listed, after })
    }

    async fn listed(
        &self,
        listed: BoxStream<'_, object_store::Result<ObjectMeta>>,
        folder: &Path,
    ) -> Result<Vec<Listed>> {
        let listed = listed.map_ok(|meta| Listed {
            name: meta.location.filename().unwrap_or_default().to_string(),
            modified: meta.last_modified.into(),
            path: meta.location,
        });
        match listed.try_collect().await {
            Ok(found) => Ok(found),
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(object(folder, error)),
        }
    }

    /// The names of the folders directly in `folder`.
    pub async fn folders(&self, folder: &Path) -> Result<Vec<String>> {
        match self.store.inner.list_with_delimiter(Some(folder)).await {
            Ok(found) => Ok(found
                .common_prefixes
                .iter()
                .filter_map(|p| p.filename().map(str::to_string))
                .collect()),
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(object(folder, error)),
        }
    }

    /// Deletes objects; those that are gone already do not matter.
    pub async fn delete(&self, paths: Vec<Path>) -> Result<()> {
        let Some(first) = paths.first().cloned() else {
            return Ok(());
        };
        // As one stream: S3 then takes a thousand in one call.
        let paths = futures::stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut deletions = self.store.inner.delete_stream(paths);
        while let Some(deleted) = deletions.next().await {
            match deleted {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(object(&first, error)),
            }
        }
        Ok(())
    }

    /// Removes those of `folders` that are empty, one after the other: among local
    /// files they stay when what was in them is deleted. Other stores have none.
    pub async fn remove_empty(&self, folders: Vec<Path>) {
        if !self.local {
            return;
        }
        let removed = tokio::task::spawn_blocking(move || {
            for folder in folders {
                // One that is not empty, or is gone by now, is left as it is.
                let _ = std::fs::remove_dir(to_local_path(&folder));
            }
        });
        let _ = removed.await;
    }
}

/// When each of the local files at `paths` was written, of those that are there:
/// all in one turn, where the store takes a thread's turn for each.
async fn written_files(paths: Vec<Path>) -> Vec<Option<SystemTime>> {
    let count = paths.len();
    let look = move || {
        let written = |path: &Path| {
            let metadata = std::fs::metadata(to_local_path(path)).ok()?;
            metadata.is_file().then(|| metadata.modified().ok())?
        };
        paths.iter().map(written).collect()
    };
    match Handle::try_current() {
        Ok(tokio) => tokio.spawn_blocking(look).await,
        Err(_) => Ok(look()),
    }
    .unwrap_or_else(|_| vec![None; count])
}

fn json<T: Serialize>(value: &T) -> Result<Bytes> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|e| EngineError::Internal(format!("an object could not be written as JSON: {e}")))
}

/// The table at `uri`, reached as objects are, if it is among local files, and
/// its path the same as a URI and as a path. Lance reads local files that are
/// not in tasks of tokio's.
fn as_objects(uri: &str) -> Option<String> {
    let path = uri.strip_prefix("file://").unwrap_or(uri);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    let is_plain = path.starts_with('/') && path.chars().all(plain);
    is_plain.then(|| format!("{LOCAL_OBJECTS}://{path}"))
}

/// Whether lance says that a table or version is not there.
pub fn is_missing(error: &lance::Error) -> bool {
    matches!(
        error,
        lance::Error::DatasetNotFound { .. }
            | lance::Error::NotFound { .. }
            | lance::Error::VersionNotFound { .. }
            | lance::Error::RefNotFound { .. }
    )
}

/// An error of lance's storage as one of ours.
pub fn storage(what: &str, error: lance::Error) -> EngineError {
    let why = first_line(&error.to_string());
    match error {
        // A table that a newer Lance has written, or a place of no kind that is
        // known: it was reached, and waiting does not change it.
        lance::Error::NotSupported { .. } | lance::Error::InvalidInput { .. } => {
            EngineError::InvalidInput(format!("{what} cannot be used: {why}"))
        }
        _ => EngineError::Unavailable {
            what: what.to_string(),
            why,
        },
    }
}

fn object(path: &Path, error: object_store::Error) -> EngineError {
    EngineError::Unavailable {
        what: format!("the object {path}"),
        why: first_line(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn calls_are_tried_again_for_half_a_minute_unless_told_otherwise() {
        let store = Store::new(&options(&[("region", "x")]));
        assert_eq!(store.options()[RETRIES_OPTION], "10");
        assert_eq!(store.options()["region"], "x");
        let told = Store::new(&options(&[("CLIENT_MAX_RETRIES", "2")]));
        assert_eq!(told.options().len(), 1);
    }

    #[tokio::test]
    async fn google_and_azure_are_reached_by_lances_own_options() {
        let google = [("google_skip_signature", "true")];
        let azure = [
            ("account_name", "somebody"),
            ("azure_storage_account_key", "c2VjcmV0"),
        ];
        for (uri, pairs) in [
            ("gs://bucket/tables/v.lance", google.as_slice()),
            ("az://container/tables/v.lance", azure.as_slice()),
        ] {
            let objects = Store::new(&options(pairs)).objects(uri).await.unwrap();
            assert_eq!(objects.root().as_ref(), "tables/v.lance", "{uri}");
            assert_eq!(objects.from_anywhere, uri.starts_with("gs"), "{uri}");
        }
        // What lacks is told, without a call.
        let error = Store::new(&options(&[]))
            .objects("az://container/v.lance")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("ccount"), "{error}");
    }

    #[tokio::test]
    async fn what_no_wait_makes_usable_is_not_waited_for() {
        let store = Store::new(&options(&[]));
        let place = store.objects("nowhere://bucket/v.lance").await.unwrap_err();
        let table = lance::Error::not_supported("Please upgrade Lance to read this dataset.");
        for (error, why) in [(place, "nowhere"), (storage("the table", table), "upgrade")] {
            let told = error.to_string().contains(why);
            assert!(told && !error.retryable(), "{error:?}");
        }
        let failed = storage("the table", lance::Error::io("connection reset"));
        assert!(failed.retryable(), "{failed:?}");
    }

    #[tokio::test]
    async fn of_many_files_it_is_told_when_each_was_written_whatever_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let uri = folder.path().to_str().unwrap();
        let store = Store::new(&options(&[]));
        let objects = store.objects(uri).await.unwrap();
        assert!(objects.direct);
        let names = ["data/x.lance", "data/50 %, ü?.lance", "data/none", "data"];
        for name in &names[..2] {
            objects.put(&objects.within(name), &1).await.unwrap();
        }
        let asked: Vec<_> = names.iter().map(|n| (*n, objects.within(n))).collect();
        let mut told = objects.modified_each(asked.clone()).await.unwrap();
        told.sort();
        let mut each = Vec::new();
        for (name, path) in asked {
            each.push((name, objects.modified(&path).await.unwrap()));
        }
        each.sort();
        assert_eq!(told, each);
        let there: Vec<&str> = told.iter().filter(|t| t.1.is_some()).map(|t| t.0).collect();
        assert_eq!(there, ["data/50 %, ü?.lance", "data/x.lance"]);
    }
}
