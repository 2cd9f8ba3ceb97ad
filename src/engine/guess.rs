//! Sources that are opened while the view itself still is: those that it had
//! when it was last refreshed, which mostly are those that it has. A store that
//! is far away takes long to answer each call, and opening a table takes five,
//! one after the other.
//!
//! Nothing depends on the guess: what it lacks is opened once the view has said
//! what it reads.

use std::collections::HashMap;
use std::sync::Arc;

use lance::Dataset;
use tracing::debug;

use super::catalog::Catalog;
use super::error::Result;
use super::store::Objects;
use super::{freshness, staged};

/// Tables by their identifier paths, opened, and found without a write-ahead log.
#[derive(Default)]
pub struct Guess(HashMap<Vec<String>, Arc<Dataset>>);

impl Guess {
    /// Opens what the view that `objects` belongs to was last refreshed from, at
    /// `version` if that is a sole source, else at the latest.
    pub async fn make(catalog: &Catalog, objects: &Objects, version: Option<u64>) -> Guess {
        let names = freshness::sources(objects).await.unwrap_or_default();
        let version = version.filter(|_| names.len() == 1);
        let opened = names.into_iter().map(|id| async move {
            match open(catalog, &id, version).await {
                Ok(source) => Some((id, source?)),
                Err(error) => {
                    debug!(%error, "a source could not be opened ahead");
                    None
                }
            }
        });
        let opened = futures::future::join_all(opened).await;
        Guess(opened.into_iter().flatten().collect())
    }

    /// Table `id` at `version`, or the latest when the guess was made.
    pub fn get(&self, id: &[String], version: Option<u64>) -> Option<Arc<Dataset>> {
        let source = self.0.get(id)?;
        let fits = version.is_none_or(|version| version == source.version().version);
        fits.then(|| source.clone())
    }
}

async fn open(
    catalog: &Catalog,
    id: &[String],
    version: Option<u64>,
) -> Result<Option<Arc<Dataset>>> {
    let uri = catalog.locate(id).await?;
    let objects = catalog.store().objects(&uri).await?;
    let (source, logged) = futures::try_join!(
        catalog.store().open(&uri, version),
        staged::has_wal(&objects)
    )?;
    Ok(source.filter(|_| !logged).map(Arc::new))
}
