//! How a catalog is reached ([`Source`]), and the catalog that REST and
//! controller share: connected when it is first needed, so that the operator
//! starts, describes and cancels without it.
//!
//! A catalog is a directory (`dir://…`) or a REST catalog (`https://…`,
//! [`remote`]). A REST catalog is shown the operator's own credential, from
//! the environment, or that of whoever asked ([`credential`]).

pub mod credential;
mod looks;
pub mod remote;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::engine::catalog::{self, Access, Catalog};
use crate::engine::error::EngineError;
use crate::panics::Panicked;
use crate::telemetry::Metrics;
use credential::{Credential, Place};
use remote::RemoteNamespace;

/// How long the catalog may take to answer one question.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often the catalog is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Where tables are found, and what is no secret of how to get there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The catalog's URI.
    pub uri: String,
    /// Options of the object store.
    pub options: BTreeMap<String, String>,
    /// HTTP headers that are sent to a REST catalog.
    pub headers: BTreeMap<String, String>,
}

impl Source {
    /// Whether it is a REST catalog, which may be shown a credential.
    pub fn is_remote(&self) -> bool {
        remote::is_remote(&self.uri)
    }

    /// `InvalidInput` unless it is a REST catalog.
    pub fn require_remote(&self) -> Result<(), EngineError> {
        if self.is_remote() {
            return Ok(());
        }
        Err(EngineError::InvalidInput(
            "a caller's credential is to be forwarded, and the catalog is a directory, which takes none; give a REST catalog (https://…), or forward no credentials"
                .into(),
        ))
    }

    /// `InvalidInput` if it cannot be a catalog's, told without reaching for it.
    pub fn check(&self) -> Result<(), EngineError> {
        match self.is_remote() {
            true => {
                let own = Place::OWN.in_environment();
                let connected = self.over(remote::client()?, own.as_ref(), Access::Own);
                connected.map(drop)
            }
            false => catalog::root_of(&self.uri).map(drop),
        }
    }

    /// Connects, to a REST catalog with the operator's own credential, which
    /// the environment has. Errors: `Unavailable`, and `InvalidInput` for a
    /// URI that cannot be one.
    pub async fn connect(&self) -> Result<Catalog, EngineError> {
        if !self.is_remote() {
            return Catalog::connect(&self.uri, &self.options).await;
        }
        let own = Place::OWN.in_environment();
        self.over(remote::client()?, own.as_ref(), Access::Own)
    }

    /// Connects to a REST catalog with the credential of whoever asked.
    pub fn connect_as(&self, caller: &Credential) -> Result<Catalog, EngineError> {
        self.over(remote::client()?, Some(caller), Access::Caller)
    }

    fn over(
        &self,
        http: reqwest::Client,
        shown: Option<&Credential>,
        access: Access,
    ) -> Result<Catalog, EngineError> {
        self.require_remote()?;
        let namespace = RemoteNamespace::new(http, &self.uri, &self.headers, shown)?;
        let name = remote::base(&self.uri)?;
        let namespace = Arc::new(namespace);
        Ok(Catalog::over(namespace, access, &name, &self.options))
    }
}

/// A catalog that is connected when it is first needed.
#[derive(Clone, Debug)]
pub struct SharedCatalog {
    source: Arc<Source>,
    connected: Arc<OnceCell<Catalog>>,
    /// Its connections serve all callers; what it is sent is each one's own.
    http: Arc<OnceCell<reqwest::Client>>,
    up: Gauge,
}

impl SharedCatalog {
    /// The catalog at `source`, not connected yet.
    pub fn new(source: Source, metrics: &Metrics) -> Self {
        let up = Gauge::default();
        metrics.registry().register(
            "catalog_up",
            "Whether the catalog answered when it was last asked (1) or not (0)",
            up.clone(),
        );
        Self {
            source: Arc::new(source),
            connected: Arc::default(),
            http: Arc::default(),
            up,
        }
    }

    /// Where it is.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The catalog as `caller` sees it; without a caller's credential, as
    /// relance does. Errors: as [`SharedCatalog::get`].
    pub async fn seen_by(&self, caller: Option<&Credential>) -> Result<Catalog, EngineError> {
        let Some(caller) = caller else {
            return self.get().await;
        };
        let http = self.http.get_or_try_init(async || remote::client());
        let http = http.await?.clone();
        let catalog = self.source.over(http, Some(caller), Access::Caller)?;
        Ok(catalog.for_looks())
    }

    /// The catalog. Errors: `Unavailable`.
    pub async fn get(&self) -> Result<Catalog, EngineError> {
        let connect = async || Ok(self.source.connect().await?.for_looks());
        let connected = self.connected.get_or_try_init(connect);
        let connected = self.in_time(connected).await?;
        connected.cloned().map_err(not_usable)
    }

    /// Looks at `catalog`, where local files are concerned in a thread for looks:
    /// a look is a dozen reads of a few pages, and to have tokio hand each of
    /// them to a thread and back costs more than they do. Errors: `Unavailable`
    /// if it takes too long, and those of `look`.
    pub async fn look<T, L>(
        &self,
        catalog: Catalog,
        look: impl Fn(Catalog) -> L,
    ) -> Result<T, EngineError>
    where
        T: Send + 'static,
        L: Future<Output = T> + Send + 'static,
    {
        let answer = async {
            if catalog.is_local() {
                let inline = catalog.clone().inline(Handle::current());
                if let Some(answer) = looks::there_and_then(look(inline).boxed()).await {
                    return Ok(answer);
                }
            }
            looks::beside(look(catalog).boxed()).await
        };
        self.in_time(answer).await?.map_err(bug)
    }

    /// Looks at a catalog in more than a few reads. Errors: `Unavailable` if it
    /// takes too long, and those of `look`.
    pub async fn look_long<T: Send + 'static>(
        &self,
        look: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, EngineError> {
        self.look_within(PATIENCE, look).await
    }

    /// The same for what takes longer than one question by its nature.
    pub async fn look_within<T: Send + 'static>(
        &self,
        patience: Duration,
        look: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, EngineError> {
        let looked = within(patience, looks::beside(look.boxed())).boxed();
        looked.await?.map_err(bug)
    }

    /// Waits for one answer of the catalog, but not for ever.
    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, EngineError> {
        within(PATIENCE, answer).await
    }

    /// Keeps the metric true until `shutdown`.
    pub async fn watch(self, shutdown: CancellationToken) {
        let mut was_up = true;
        loop {
            let state = async {
                let catalog = self.get().await?;
                self.look_long(async move { catalog.ping().await }).await?
            };
            let state = tokio::select! {
                // A catalog that hangs does not hold up the end.
                () = shutdown.cancelled() => return,
                state = state => state,
            };
            self.up.set(state.is_ok().into());
            match &state {
                Err(error) if was_up => tracing::warn!(%error, "the catalog does not answer"),
                Ok(()) if !was_up => tracing::info!("the catalog answers again"),
                _ => {}
            }
            was_up = state.is_ok();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PING_INTERVAL) => {}
            }
        }
    }
}

/// A look that met a bug is one look's error: others go on.
fn bug(panicked: Panicked) -> EngineError {
    tracing::error!(%panicked, "a look at the catalog met a bug");
    EngineError::Internal(format!(
        "a look at the catalog met a bug ({panicked}); see the operator's log"
    ))
}

async fn within<T>(patience: Duration, answer: impl Future<Output = T>) -> Result<T, EngineError> {
    let answered = tokio::time::timeout(patience, answer).await;
    answered.map_err(|_| EngineError::Unavailable {
        what: "the catalog".to_string(),
        why: format!("it did not answer within {} seconds", patience.as_secs()),
    })
}

/// An error of the operator's own catalog, which no request can mend: what waits
/// for it is to wait until whoever runs the operator has.
fn not_usable(error: EngineError) -> EngineError {
    match error {
        EngineError::InvalidInput(why) => EngineError::Unavailable {
            what: "the operator's catalog".to_string(),
            why,
        },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{StatusCode, Uri};
    use serde_json::json;

    use super::*;

    /// A REST catalog that answers the root's list of tables, and the list of the
    /// namespaces in `deep`, by `status` and `code`. It has the table `v` there.
    async fn shallow(status: StatusCode, code: u32) -> Catalog {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let router = axum::Router::new().fallback(move |uri: Uri| async move {
            let refused = json!({"code": code, "error": "not at this depth"});
            let (status, answer) = match uri.path() {
                "/v1/namespace/%24/list" => (StatusCode::OK, json!({"namespaces": ["deep"]})),
                "/v1/namespace/deep/table/list" => (StatusCode::OK, json!({"tables": ["v"]})),
                _ => (status, refused),
            };
            (status, axum::Json(answer))
        });
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", socket.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(socket, router).await });
        let source = Source {
            uri,
            ..Source::default()
        };
        source
            .over(remote::client().unwrap(), None, Access::Own)
            .unwrap()
    }

    #[tokio::test]
    async fn a_catalog_without_tables_at_its_root_is_up_and_lists_those_below() {
        for (status, code) in [(406, 0), (501, 0), (400, 13), (404, 1)] {
            let catalog = shallow(StatusCode::from_u16(status).unwrap(), code).await;
            catalog.ping().await.unwrap();
            let listed = catalog.tables().await.unwrap();
            assert_eq!(listed, [["deep", "v"]], "{status}");
        }
        let catalog = shallow(StatusCode::INTERNAL_SERVER_ERROR, 18).await;
        for failed in [
            catalog.ping().await.unwrap_err(),
            catalog.tables().await.unwrap_err(),
        ] {
            assert!(
                matches!(failed, EngineError::Unavailable { .. }),
                "{failed:?}"
            );
        }
    }

    fn shared(uri: &str) -> SharedCatalog {
        let source = Source {
            uri: uri.into(),
            ..Source::default()
        };
        SharedCatalog::new(source, &Metrics::default())
    }

    #[tokio::test]
    async fn what_can_be_no_catalog_is_told_at_the_start_and_ends_nothing_that_waits_for_it() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for (uri, fits) in [
            ("dir:///tables", true),
            ("dir://s3://bucket/tables", true),
            ("https://host/prefix", true),
            ("dir://bucket/tables", false),
            ("tables", false),
            ("https://user:hush@host", false),
        ] {
            let catalog = shared(uri);
            let checked = catalog.source().check();
            assert_eq!(checked.is_ok(), fits, "{uri}: {checked:?}");
            if !fits {
                let refused = catalog.get().await.unwrap_err();
                assert!(refused.retryable(), "{refused:?}");
            }
        }
        let headers = BTreeMap::from([("not a header".to_string(), "x".to_string())]);
        let source = Source {
            headers,
            ..shared("https://host").source().clone()
        };
        assert!(source.check().is_err());
    }

    #[tokio::test]
    async fn a_look_that_panics_is_an_error_of_that_look_alone() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = shared(&format!("dir://{}", folder.path().display()));
        let known = catalog.get().await.unwrap();
        let asked = |panics: bool| {
            let (catalog, known) = (catalog.clone(), known.clone());
            async move {
                let look = move |_| async move {
                    assert!(!panics, "no such luck");
                    7
                };
                catalog.look(known, look).await
            }
        };
        let (met, other) = futures::join!(asked(true), asked(false));
        let met = met.unwrap_err();
        assert!(matches!(met, EngineError::Internal(_)), "{met:?}");
        assert!(met.to_string().contains("no such luck"), "{met}");
        assert_eq!(other.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_catalog_that_hangs_does_not_hold_up_the_end() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The kernel takes the connection, and nobody answers.
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", socket.local_addr().unwrap());
        let source = Source {
            uri,
            ..Source::default()
        };
        let shutdown = CancellationToken::new();
        let watch = SharedCatalog::new(source, &Metrics::default()).watch(shutdown.clone());
        let watch = tokio::spawn(watch);
        let (_connection, _) = socket.accept().await.unwrap();
        shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(2), watch).await;
        ended.expect("it ends at once").unwrap();
    }
}
