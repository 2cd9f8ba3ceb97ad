//! What about a refresh can be wrong because of how the world is: its view,
//! its cluster. REST refuses it at once, an applied resource ends Failed, and
//! both say the sentence that is written here.

use lance::Dataset;
use thiserror::Error;

use crate::engine::catalog::Catalog;
use crate::engine::error::EngineError;
use crate::engine::view::{self, KnownViews, ViewInfo};
use crate::resources::{MaterializedViewRefreshSpec, RefreshClusterSpec, reasons};

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
    /// A caller's credential would have to go to another cluster.
    #[error(
        "RefreshCluster '{cluster}' is another cluster, where no caller's credential is forwarded to; use a RefreshCluster whose Jobs run in this one"
    )]
    NotForwarded {
        /// The cluster.
        cluster: String,
    },
    /// The cluster's policy allows no Geneva manifest that a refresh brings along.
    #[error(
        "RefreshCluster '{cluster}' allows no refresh to bring a Geneva manifest (spec.policy.inlineManifests is false); leave the manifest out, or use another cluster"
    )]
    ManifestNotAllowed {
        /// The cluster.
        cluster: String,
    },
    /// A Geneva manifest names an image that the cluster's policy does not list.
    #[error(
        "the Geneva manifest names image '{image}', which is not among spec.policy.images of RefreshCluster '{cluster}'; name one that is, or use another cluster"
    )]
    ImageNotAllowed {
        /// The cluster.
        cluster: String,
        /// The image.
        image: String,
    },
}

impl WorldError {
    /// A stable CamelCase reason.
    pub fn reason(&self) -> &'static str {
        match self {
            WorldError::View(error) => error.reason(),
            WorldError::UnknownCluster { .. } => reasons::CLUSTER_NOT_FOUND,
            WorldError::NotForwarded { .. } => reasons::CREDENTIAL_NOT_FORWARDED,
            WorldError::ManifestNotAllowed { .. } => reasons::MANIFEST_NOT_ALLOWED,
            WorldError::ImageNotAllowed { .. } => reasons::IMAGE_NOT_ALLOWED,
        }
    }

    /// Whether waiting may help, without anyone changing the refresh.
    pub fn retryable(&self) -> bool {
        match self {
            WorldError::View(error) => error.retryable(),
            _ => false,
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

/// As [`view`], for those who need to know only that. What is `known` of it is
/// not looked at again.
pub async fn is_refreshable(
    catalog: &Catalog,
    known: &KnownViews,
    spec: &MaterializedViewRefreshSpec,
) -> Result<(), WorldError> {
    let info = known.inspect(catalog, &spec.view).await?;
    Ok(judge(&info, spec)?)
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

/// Whether a refresh may take its caller's credential along to a cluster.
pub fn may_take_credential(name: &str, cluster: &RefreshClusterSpec) -> Result<(), WorldError> {
    match cluster.is_remote() {
        false => Ok(()),
        true => Err(WorldError::NotForwarded {
            cluster: name.to_string(),
        }),
    }
}

/// Whether a refresh through a cluster may bring a Geneva manifest that names these images.
pub fn may_bring_manifest<'a>(
    name: &str,
    cluster: &RefreshClusterSpec,
    images: impl IntoIterator<Item = &'a str>,
) -> Result<(), WorldError> {
    let policy = cluster.policy();
    if !policy.inline_manifests {
        return Err(WorldError::ManifestNotAllowed {
            cluster: name.to_string(),
        });
    }
    match images.into_iter().find(|image| !policy.allows_image(image)) {
        Some(image) => Err(WorldError::ImageNotAllowed {
            cluster: name.to_string(),
            image: image.to_string(),
        }),
        None => Ok(()),
    }
}

/// The images that a Geneva manifest names; none of one that cannot be read,
/// which whoever runs it refuses.
pub fn images_of_manifest(json: &[u8]) -> Vec<String> {
    let manifest: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let images = ["head_image", "worker_image"].map(|field| manifest[field].as_str());
    images
        .into_iter()
        .flatten()
        .filter(|image| !image.is_empty())
        .map(String::from)
        .collect()
}
