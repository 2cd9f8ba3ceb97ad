//! What about a refresh can be wrong because of how the world is: its view,
//! its cluster. REST refuses it at once, an applied resource ends Failed, and
//! both say the sentence that is written here.

use lance::Dataset;
use thiserror::Error;

use crate::engine::catalog::Catalog;
use crate::engine::error::EngineError;
use crate::engine::view::{self, ViewInfo};
use crate::resources::MaterializedViewRefreshSpec;
use crate::resources::reasons;

/// What the world says against a refresh.
#[derive(Debug, Error)]
pub enum WorldError {
    /// About the view, or the catalog that should have it.
    #[error(transparent)]
    View(#[from] EngineError),
    /// The refresh names a cluster that is not there.
    #[error("the namespace has no RefreshCluster '{name}'; {}", there_are(.known))]
    UnknownCluster {
        /// What the refresh names.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
}

impl WorldError {
    /// A stable CamelCase reason.
    pub fn reason(&self) -> &'static str {
        match self {
            WorldError::View(error) => error.reason(),
            WorldError::UnknownCluster { .. } => reasons::CLUSTER_NOT_FOUND,
        }
    }

    /// Whether waiting may help, without anyone changing the refresh.
    pub fn retryable(&self) -> bool {
        match self {
            WorldError::View(error) => error.retryable(),
            WorldError::UnknownCluster { .. } => false,
        }
    }
}

fn there_are(known: &[String]) -> String {
    if known.is_empty() {
        return "there are none: create one".to_string();
    }
    format!("there are: {}", known.join(", "))
}

/// Opens the refresh's view, and says what stands against refreshing it so.
pub async fn view(
    catalog: &Catalog,
    spec: &MaterializedViewRefreshSpec,
) -> Result<(ViewInfo, Dataset), WorldError> {
    let (info, table) = view::open(catalog, &spec.view).await?;
    judge(&info, spec)?;
    Ok((info, table))
}

/// Whether a view that was looked at can be refreshed as `spec` asks.
fn judge(info: &ViewInfo, spec: &MaterializedViewRefreshSpec) -> Result<(), EngineError> {
    if let Some(limit) = spec.output_limit
        && !info.kind.takes_output_limit()
    {
        return Err(EngineError::InvalidInput(format!(
            "output_limit is {limit}, and '{}' is no chunker view: leave it out, only chunker views take it",
            info.name()
        )));
    }
    info.require_refreshable()?;
    info.require_sole_source(spec.src_version)?;
    info.require_incarnation(spec.expected_incarnation.as_deref())
}

/// The cluster that a refresh names, among those there are.
pub fn cluster<'a, C>(
    name: &str,
    known: impl IntoIterator<Item = (&'a str, C)>,
) -> Result<C, WorldError> {
    let mut names = Vec::new();
    for (known, cluster) in known {
        if known == name {
            return Ok(cluster);
        }
        names.push(known.to_string());
    }
    names.sort();
    Err(WorldError::UnknownCluster {
        name: name.to_string(),
        known: names,
    })
}
