//! The catalog that REST and controller share: connected when it is first
//! needed, so that the operator starts, describes and cancels without it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::engine::catalog::Catalog;
use crate::engine::error::EngineError;
use crate::telemetry::Metrics;

/// How long the catalog may take to answer one question.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often the catalog is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// A catalog that is connected when it is first needed.
#[derive(Clone, Debug)]
pub struct SharedCatalog {
    uri: String,
    options: BTreeMap<String, String>,
    connected: Arc<OnceCell<Catalog>>,
    up: Gauge,
}

impl SharedCatalog {
    /// The catalog at `uri`, not connected yet.
    pub fn new(uri: &str, options: BTreeMap<String, String>, metrics: &Metrics) -> Self {
        let up = Gauge::default();
        metrics.registry().register(
            "catalog_up",
            "Whether the catalog answered when it was last asked (1) or not (0)",
            up.clone(),
        );
        Self {
            uri: uri.to_string(),
            options,
            connected: Arc::default(),
            up,
        }
    }

    /// The catalog's URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The object store's options, none of them secret.
    pub fn options(&self) -> &BTreeMap<String, String> {
        &self.options
    }

    /// The catalog. Errors: `Unavailable`, and `InvalidInput` for a URI that cannot be one.
    pub async fn get(&self) -> Result<Catalog, EngineError> {
        let connect = self
            .connected
            .get_or_try_init(|| Catalog::connect(&self.uri, &self.options));
        self.in_time(connect).await?.cloned()
    }

    /// Waits for one answer of the catalog, but not for ever.
    pub async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, EngineError> {
        tokio::time::timeout(PATIENCE, answer)
            .await
            .map_err(|_| EngineError::Unavailable {
                what: "the catalog".to_string(),
                why: format!("it did not answer within {} seconds", PATIENCE.as_secs()),
            })
    }

    /// Keeps the metric true until `shutdown`.
    pub async fn watch(self, shutdown: CancellationToken) {
        let mut was_up = true;
        loop {
            let state = async { self.get().await?.ping().await };
            let state = self.in_time(state).await.and_then(|state| state);
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
