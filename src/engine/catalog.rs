//! Where tables are found: a Lance namespace. Either the directory namespace,
//! over any store that lance can reach, or one that somebody else connected: it
//! says where tables are, and may vend what it takes to reach them.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use lance::Dataset;
use lance_io::object_store::{
    EXPIRES_AT_MILLIS_KEY, StorageOptionsAccessor, StorageOptionsProvider, WrappingObjectStore,
};
use lance_namespace::models::{DescribeTableRequest, ListNamespacesRequest, ListTablesRequest};
use lance_namespace::{LanceNamespace, NamespaceError};
use lance_namespace_impls::DirectoryNamespaceBuilder;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::error::{EngineError, Result};
use super::store::Store;
use super::words::{first_line, redact};

/// The delimiter that joins an identifier path into one string.
pub const DELIMITER: &str = "$";

/// Most bytes in the name of a folder, on every common file system.
const LONGEST_NAME: usize = 255;

/// What the directory namespace adds to a table's name.
const FOLDER_SUFFIX: &str = ".lance";

/// What it puts into the folder of a table that is no longer one of its own.
const DEREGISTERED: &str = ".lance-deregistered";

/// Where Lance keeps a table's versions, in its folder.
const VERSIONS_DIR: &str = "_versions";

/// Whose catalog it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A directory, reached by what reaches its tables.
    Directory,
    /// One that is shown relance's own credential, if any.
    Own,
    /// One that is shown the credential of whoever asked.
    Caller,
}

/// A catalog of Lance tables.
#[derive(Clone)]
pub struct Catalog {
    namespace: Arc<dyn LanceNamespace>,
    access: Access,
    store: Store,
    root: String,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog")
            .field("root", &redact(&self.root))
            .finish_non_exhaustive()
    }
}

/// A table as the catalog knows it.
#[derive(Clone, Debug)]
pub struct TableDescription {
    /// The latest version.
    pub version: u64,
    /// Where the table is.
    pub uri: String,
    /// Its columns.
    pub schema: arrow_schema::Schema,
}

impl Catalog {
    /// Connects to the directory namespace at `dir://PATH`: `dir:///tables`,
    /// `dir://s3://bucket/path`; `file:///tables` and `s3://bucket/path` mean
    /// the same. `options` are lance's storage options. Errors: `InvalidInput`
    /// for a URI of another form, `Unavailable` when the store does not answer.
    pub async fn connect(uri: &str, options: &BTreeMap<String, String>) -> Result<Catalog> {
        Self::with_store(uri, Store::new(options)).await
    }

    /// The same catalog, for those who look at tables and refresh none.
    pub fn for_looks(mut self) -> Self {
        self.store = self.store.for_looks();
        self
    }

    /// Whether its tables are local files.
    pub fn is_local(&self) -> bool {
        let path = self.root.strip_prefix("file://").unwrap_or(&self.root);
        self.access == Access::Directory && path.starts_with('/')
    }

    /// The same catalog, for use in a thread that is none of tokio's, if it is
    /// local: see [`Store::inline`].
    pub fn inline(mut self, tokio: Handle) -> Self {
        self.store = self.store.inline(tokio);
        self
    }

    /// As [`Catalog::connect`], with `wrapper` around every storage operation
    /// on tables.
    pub async fn connect_wrapped(
        uri: &str,
        options: &BTreeMap<String, String>,
        wrapper: Arc<dyn WrappingObjectStore>,
    ) -> Result<Catalog> {
        Self::with_store(uri, Store::new(options).wrapped(wrapper)).await
    }

    async fn with_store(uri: &str, store: Store) -> Result<Catalog> {
        let root = root_of(uri)?;
        let namespace = DirectoryNamespaceBuilder::new(&root)
            .storage_options(store.options().clone())
            .session(store.session())
            .build()
            .await
            .map_err(|e| {
                let what = format!("the catalog {}", redact(&root));
                match namespace_error(&e) {
                    // Its list of namespaces is of another version of Lance.
                    Some(NamespaceError::Unsupported { message }) => {
                        let why = first_line(message);
                        EngineError::InvalidInput(format!("{what} cannot be used: {why}"))
                    }
                    _ => EngineError::Unavailable {
                        what,
                        why: first_line(&e.to_string()),
                    },
                }
            })?;
        Ok(Catalog {
            namespace: Arc::new(namespace),
            access: Access::Directory,
            store,
            root,
        })
    }

    /// The catalog that `namespace` is. `name` says in errors which it is.
    /// Tables for which it vends no storage options are reached by `options`.
    pub fn over(
        namespace: Arc<dyn LanceNamespace>,
        access: Access,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> Catalog {
        Catalog {
            namespace,
            access,
            store: Store::new(options),
            root: name.to_string(),
        }
    }

    /// What opens the catalog's tables.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The URI of table `id`. Errors: `ViewNotFound`, `Unavailable`, and
    /// `Unsupported` for one that this version cannot work with.
    pub async fn locate(&self, id: &[String]) -> Result<String> {
        let missing = || EngineError::ViewNotFound {
            view: id.join(DELIMITER),
        };
        // A store asked for a longer name says that it failed, not that there is none.
        let longest = LONGEST_NAME - FOLDER_SUFFIX.len();
        if id.is_empty()
            || id
                .iter()
                .any(|part| part.is_empty() || part.len() > longest)
        {
            return Err(missing());
        }
        if let ([name], true) = (id, self.store.is_inline()) {
            match self.look_for(name) {
                Some(true) => return Ok(self.uri_of(name)),
                Some(false) => return Err(missing()),
                None => {}
            }
        }
        let request = DescribeTableRequest {
            id: Some(id.to_vec()),
            vend_credentials: Some(self.access != Access::Directory),
            ..Default::default()
        };
        let found = match self.namespace.describe_table(request).await {
            Ok(found) => found,
            Err(error) => {
                return Err(match namespace_error(&error) {
                    Some(
                        NamespaceError::TableNotFound { .. }
                        | NamespaceError::NamespaceNotFound { .. },
                    ) => missing(),
                    Some(NamespaceError::InvalidInput { message }) => {
                        EngineError::InvalidInput(message.clone())
                    }
                    // What a directory says of its list of namespaces alone; that
                    // it has none is another word of it.
                    Some(NamespaceError::Unsupported { message })
                        if self.access == Access::Directory =>
                    {
                        EngineError::Unsupported {
                            view: id.join(DELIMITER),
                            kind: "a table of a catalog that another version of Lance keeps"
                                .to_string(),
                            why: first_line(message),
                        }
                    }
                    // A nested name in a catalog that has no namespaces.
                    Some(NamespaceError::Unsupported { .. }) if id.len() > 1 => missing(),
                    _ => self.failed(&id.join(DELIMITER), &error),
                });
            }
        };
        if found.managed_versioning == Some(true) {
            return Err(EngineError::Unsupported {
                view: id.join(DELIMITER),
                kind: "a table whose versions its catalog manages".to_string(),
                why: "relance commits to the table itself; have the catalog leave its versions to Lance"
                    .to_string(),
            });
        }
        let uri = found.table_uri.or(found.location).ok_or_else(missing)?;
        let uri = uri.trim_end_matches('/').to_string();
        if let Some(vended) = found.storage_options.filter(|vended| !vended.is_empty()) {
            let provider = Arc::new(Vended {
                namespace: self.namespace.clone(),
                id: id.to_vec(),
                beside: self.store.options().clone(),
                lasting: lasting(&vended),
            });
            let options = provider.with(vended);
            let accessor = StorageOptionsAccessor::with_initial_and_provider(options, provider);
            self.store.vend(&uri, Arc::new(accessor));
        }
        Ok(uri)
    }

    /// Where the directory namespace has table `name` of its root (Lance
    /// directory namespace, V1).
    fn uri_of(&self, name: &str) -> String {
        format!("{}/{name}{FOLDER_SUFFIX}", self.root.trim_end_matches('/'))
    }

    /// The folder of table `name` in a local directory, whose parts are called
    /// as they are.
    fn folder_of(&self, name: &str) -> Option<PathBuf> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if !self.is_local() || !name.chars().all(is_plain) {
            return None;
        }
        let uri = self.uri_of(name);
        Some(PathBuf::from(uri.strip_prefix("file://").unwrap_or(&uri)))
    }

    /// Whether a local directory has the folder of table `name`, told by two
    /// calls where the namespace lists the folder. None: for the namespace to say.
    fn look_for(&self, name: &str) -> Option<bool> {
        let folder = self.folder_of(name)?;
        let there = |path: &Path| match path.metadata() {
            Ok(_) => Some(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Some(false),
            Err(_) => None,
        };
        Some(there(&folder)? && !there(&folder.join(DEREGISTERED))?)
    }

    /// Where the versions of table `id` are, if that is a local folder which may
    /// be looked at then and there.
    pub(super) fn versions_of(&self, id: &[String]) -> Option<PathBuf> {
        match (id, self.store.is_inline()) {
            ([name], true) => Some(self.folder_of(name)?.join(VERSIONS_DIR)),
            _ => None,
        }
    }

    /// What an answer of the catalog about `table` means that is none.
    fn failed(&self, table: &str, error: &lance::Error) -> EngineError {
        use NamespaceError::{PermissionDenied, Unauthenticated};
        let unavailable = |why: &str| EngineError::Unavailable {
            what: format!("the catalog {}", redact(&self.root)),
            why: first_line(why),
        };
        match (namespace_error(error), self.access) {
            (Some(Unauthenticated { message } | PermissionDenied { message }), Access::Caller) => {
                EngineError::CatalogDenied {
                    table: table.to_string(),
                    why: first_line(message),
                }
            }
            (Some(Unauthenticated { message } | PermissionDenied { message }), Access::Own) => {
                unavailable(&format!("it refuses relance's own credential ({message})"))
            }
            (Some(NamespaceError::ServiceUnavailable { message }), _) => unavailable(message),
            _ => unavailable(&error.to_string()),
        }
    }

    /// Opens table `id` at `version` or the latest. `Ok(None)`: the catalog
    /// has no such table, or the table no such version.
    pub async fn open(&self, id: &[String], version: Option<u64>) -> Result<Option<Dataset>> {
        match self.locate(id).await {
            Ok(uri) => self.store.open(&uri, version).await,
            Err(EngineError::ViewNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What table `id` is. Errors: `ViewNotFound`, `Unavailable`.
    pub async fn describe_table(&self, id: &[String]) -> Result<TableDescription> {
        let uri = self.locate(id).await?;
        let dataset =
            self.store
                .open(&uri, None)
                .await?
                .ok_or_else(|| EngineError::ViewNotFound {
                    view: id.join(DELIMITER),
                })?;
        Ok(TableDescription {
            version: dataset.version().version,
            uri,
            schema: arrow_schema::Schema::from(dataset.schema()),
        })
    }

    /// The identifier paths of all tables, by name. Errors: `Unavailable`.
    pub async fn tables(&self) -> Result<Vec<Vec<String>>> {
        let unavailable = |error: lance::Error| self.failed("its list of tables", &error);
        let mut found = Vec::new();
        let mut namespaces: Vec<Vec<String>> = vec![Vec::new()];
        while let Some(namespace) = namespaces.pop() {
            let mut token = None;
            loop {
                let is_first = token.is_none();
                let request = ListTablesRequest {
                    id: Some(namespace.clone()),
                    page_token: token,
                    ..Default::default()
                };
                let page = match self.namespace.list_tables(request).await {
                    Ok(page) => page,
                    Err(error) if is_first && self.has_none(&error) => break,
                    Err(error) => return Err(unavailable(error)),
                };
                found.extend(page.tables.iter().map(|name| {
                    let mut id = namespace.clone();
                    id.push(name.clone());
                    id
                }));
                token = page.page_token.filter(|t| !t.is_empty());
                if token.is_none() {
                    break;
                }
            }
            let mut token = None;
            loop {
                let is_first = token.is_none();
                let request = ListNamespacesRequest {
                    id: Some(namespace.clone()),
                    page_token: token,
                    ..Default::default()
                };
                let page = match self.namespace.list_namespaces(request).await {
                    Ok(page) => page,
                    Err(error) if is_first && self.has_none(&error) => break,
                    Err(error) => return Err(unavailable(error)),
                };
                namespaces.extend(page.namespaces.iter().map(|name| {
                    let mut id = namespace.clone();
                    id.push(name.clone());
                    id
                }));
                token = page.page_token.filter(|t| !t.is_empty());
                if token.is_none() {
                    break;
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether it is no failure that a namespace's tables, or the namespaces in
    /// it, are not listed: there are none.
    fn has_none(&self, error: &lance::Error) -> bool {
        match namespace_error(error) {
            // It was dropped meanwhile, or is the root of a catalog without one.
            Some(NamespaceError::NamespaceNotFound { .. }) => true,
            // Many REST catalogs have tables at one depth alone. A directory has
            // them at any, and fails so where another version of Lance keeps it.
            Some(NamespaceError::Unsupported { .. } | NamespaceError::InvalidInput { .. }) => {
                self.access != Access::Directory
            }
            _ => false,
        }
    }

    /// Whether the catalog answers at all, be it that it wants another
    /// credential, or lists no tables at its root. Errors: `Unavailable`.
    pub async fn ping(&self) -> Result<()> {
        let request = ListTablesRequest {
            id: Some(Vec::new()),
            limit: Some(1),
            ..Default::default()
        };
        match self.namespace.list_tables(request).await {
            Ok(_) => Ok(()),
            Err(error) => match namespace_error(&error) {
                None
                | Some(
                    NamespaceError::ServiceUnavailable { .. }
                    | NamespaceError::Throttling { .. }
                    | NamespaceError::Internal { .. },
                ) => Err(self.failed("its list of tables", &error)),
                Some(_) => Ok(()),
            },
        }
    }
}

/// What a catalog vends for a table, fetched anew when it expires.
struct Vended {
    namespace: Arc<dyn LanceNamespace>,
    id: Vec<String>,
    /// What counts where the catalog says nothing else.
    beside: HashMap<String, String>,
    /// What tells options that do not expire from others that do not: lance
    /// shares connections by [`Vended::provider_id`].
    lasting: String,
}

fn lasting(vended: &HashMap<String, String>) -> String {
    if vended.contains_key(EXPIRES_AT_MILLIS_KEY) {
        return String::new();
    }
    let sorted: BTreeMap<_, _> = vended.iter().collect();
    let mut hash = Sha256::new();
    for (key, value) in sorted {
        for text in [key, value] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
    }
    hex::encode(hash.finalize())
}

impl Vended {
    fn with(&self, vended: HashMap<String, String>) -> HashMap<String, String> {
        let mut options = self.beside.clone();
        options.extend(vended);
        options
    }
}

impl std::fmt::Debug for Vended {
    // What is vended holds credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.provider_id())
    }
}

#[async_trait]
impl StorageOptionsProvider for Vended {
    async fn fetch_storage_options(&self) -> lance::Result<Option<HashMap<String, String>>> {
        let request = DescribeTableRequest {
            id: Some(self.id.clone()),
            vend_credentials: Some(true),
            ..Default::default()
        };
        let found = self.namespace.describe_table(request).await?;
        Ok(found.storage_options.map(|vended| self.with(vended)))
    }

    fn provider_id(&self) -> String {
        let of = self.namespace.namespace_id();
        format!("{of} {} {}", self.id.join("\u{1f}"), self.lasting)
    }
}

fn namespace_error(error: &lance::Error) -> Option<&NamespaceError> {
    match error {
        lance::Error::Namespace { source, .. } => source.downcast_ref::<NamespaceError>(),
        _ => None,
    }
}

/// The root that a catalog URI names. Errors: `InvalidInput`, for what can be no
/// directory's.
pub fn root_of(uri: &str) -> Result<String> {
    let rest = uri.strip_prefix("dir://").unwrap_or(uri);
    let known = [
        "file://",
        "s3://",
        "gs://",
        "az://",
        "memory://",
        // Lance's name for local files that are reached as objects are.
        "file-object-store://",
    ]
    .iter()
    .any(|scheme| rest.starts_with(scheme));
    if known || rest.starts_with('/') || rest.starts_with('.') {
        Ok(rest.to_string())
    } else {
        Err(EngineError::InvalidInput(format!(
            "the catalog '{}' is not understood; give dir:///PATH, dir://s3://BUCKET/PATH or https://HOST[/PREFIX]",
            redact(uri)
        )))
    }
}

#[cfg(test)]
mod tests {
    use lance_namespace::models::{CreateNamespaceRequest, DeclareTableRequest};

    use super::*;

    fn id(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|part| part.to_string()).collect()
    }

    async fn connect(root: &Path) -> Result<Catalog> {
        Catalog::connect(root.to_str().unwrap(), &BTreeMap::new()).await
    }

    /// A directory that has the table `v` in the namespace `team`, and where it
    /// lists them.
    async fn nested() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let namespace = DirectoryNamespaceBuilder::new(root).build().await.unwrap();
        let team = CreateNamespaceRequest {
            id: Some(id(&["team"])),
            ..Default::default()
        };
        namespace.create_namespace(team).await.unwrap();
        let table = DeclareTableRequest {
            id: Some(id(&["team", "v"])),
            ..Default::default()
        };
        namespace.declare_table(table).await.unwrap();
        let listed = folder.path().join("__manifest");
        (folder, listed)
    }

    #[tokio::test]
    async fn a_nested_table_is_missing_only_where_the_directory_says_so() {
        let (folder, listed) = nested().await;
        let catalog = connect(folder.path()).await.unwrap();
        catalog.locate(&id(&["team", "v"])).await.unwrap();
        for missing in [&["team", "w"], &["elsewhere", "v"]] {
            let error = catalog.locate(&id(missing)).await.unwrap_err();
            let gone = matches!(error, EngineError::ViewNotFound { .. });
            assert!(gone, "{missing:?}: {error:?}");
        }
        assert_eq!(catalog.tables().await.unwrap(), [["team", "v"]]);
        std::fs::remove_dir_all(listed.join("data")).unwrap();
        let catalog = connect(folder.path()).await.unwrap();
        let located = catalog.locate(&id(&["team", "v"])).await.unwrap_err();
        let listed = catalog.tables().await.unwrap_err();
        for error in [located, listed] {
            let unavailable = matches!(error, EngineError::Unavailable { .. });
            assert!(unavailable, "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_directory_that_another_lance_keeps_is_told_as_that_and_not_waited_for() {
        let (folder, listed) = nested().await;
        let catalog = connect(folder.path()).await.unwrap();
        let mut listed = Dataset::open(listed.to_str().unwrap()).await.unwrap();
        let flags = ("lance.namespace.manifest.reader_feature_flags", "1");
        listed.update_metadata([flags]).await.unwrap();
        let located = catalog.locate(&id(&["team", "v"])).await.unwrap_err();
        let connected = connect(folder.path()).await.unwrap_err();
        for error in [located, connected] {
            let told = error.to_string().contains("upgrade");
            assert!(told && !error.retryable(), "{error:?}");
        }
    }

    #[test]
    fn a_catalog_is_a_directory_or_a_bucket() {
        assert_eq!(root_of("dir:///tables").unwrap(), "/tables");
        assert_eq!(root_of("dir://s3://bucket/a").unwrap(), "s3://bucket/a");
        assert_eq!(root_of("s3://bucket").unwrap(), "s3://bucket");
        assert_eq!(root_of("dir://gs://bucket/a").unwrap(), "gs://bucket/a");
        assert_eq!(root_of("az://container/a").unwrap(), "az://container/a");
        assert_eq!(root_of("file:///tables").unwrap(), "file:///tables");
        for wrong in ["", "tables", "http://host/x", "dir://host"] {
            assert!(root_of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_in_a_uri_are_not_repeated() {
        let error = root_of("https://user:secret@host/x?token=hidden").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}
