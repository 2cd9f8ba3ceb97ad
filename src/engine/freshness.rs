//! Whether a view is current, told from recorded version ids alone.
//!
//! After each success the engine records "the view at this version equals its
//! definition over the sources at those versions". That is a fact for ever, about immutable
//! manifests, each named by its number and its timestamp (a re-created table
//! uses numbers again, and never timestamps); so one small object can be
//! written over by whoever comes last.

use lance::Dataset;
use lance_table::format::Fragment;
use serde::{Deserialize, Serialize};

use super::catalog::Catalog;
use super::error::{EngineError, Result};
use super::fingerprint::{ENGINE_VERSION, Fingerprint};
use super::ledger::{self, Known, Ledgers};
use super::paths;
use super::plan::Pinned;
use super::store::Objects;
use super::view::ViewInfo;
use super::young::MANY;

/// "The view at this version equals the sources at those versions."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    engine: u32,
    definition: Fingerprint,
    sources: Vec<Pinned>,
    /// Their identifier paths: which to open before the view has said it.
    #[serde(default)]
    names: Vec<Vec<String>>,
    view: Pinned,
    /// The view's newest ledger, if its files are there and will stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settled: Option<String>,
}

impl Record {
    fn new(
        view: &ViewInfo,
        table: &Dataset,
        sources: &[Pinned],
        settled: Option<String>,
    ) -> Record {
        Record {
            engine: ENGINE_VERSION,
            definition: Fingerprint::of_text(&view.raw),
            sources: sources.to_vec(),
            names: view.sources.clone(),
            view: Pinned::of(table),
            settled,
        }
    }
}

/// What a view equals that is current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// The source version that the view equals; of the first source by name,
    /// where it reads several.
    pub source_version: u64,
    /// The view's version.
    pub view_version: u64,
    /// Rows of the view that one of its indices does not cover yet; `None`
    /// where it has no index.
    pub unindexed_rows: Option<u64>,
}

/// Whether a view is current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// A refresh would be a NoOp.
    Current(Current),
    /// A refresh must look closer.
    Stale {
        /// Why, in a few words.
        why: String,
    },
}

/// Compares what the last refresh recorded with the sources (their latest
/// version, or `src_version` of a sole one) and with `table`, the view as it is,
/// and looks for those of the view's files that a clean-up may have taken.
/// Errors: `SourceNotFound`, `SourceVersionGone`, `Unavailable`.
pub async fn check(
    catalog: &Catalog,
    view: &ViewInfo,
    table: &Dataset,
    src_version: Option<u64>,
) -> Result<Freshness> {
    let stale = |why: String| Ok(Freshness::Stale { why });
    if view.require_refreshable().is_err() || view.sources.is_empty() {
        return stale("it is no view that relance refreshes".to_string());
    }
    let version = src_version.filter(|_| view.sources.len() == 1);
    // All at once: a far-away store takes long to answer each.
    let recorded = async {
        let objects = catalog.store().objects(&view.uri).await?;
        objects.get::<Record>(&paths::fresh(objects.root())).await
    };
    let sources = view.sources.iter().map(|id| async move {
        let source = open_source(catalog, view, id, version).await?;
        Ok(Pinned::of(&source))
    });
    let (recorded, sources) = futures::try_join!(recorded, futures::future::try_join_all(sources))?;
    let Some(record) = recorded else {
        return stale("never refreshed by relance".to_string());
    };
    let now = Record {
        // A hint, which older records have not.
        names: record.names.clone(),
        ..Record::new(view, table, &sources, record.settled.clone())
    };
    if record == now {
        let objects = catalog.store().objects(&view.uri).await?;
        if let Some(why) = doubt(&objects, &record, table.fragments()).await? {
            return stale(why.to_string());
        }
        return Ok(Freshness::Current(Current {
            source_version: now.sources.first().map_or(0, |s| s.version),
            view_version: now.view.version,
            unindexed_rows: super::indices::unindexed_rows(table).await?,
        }));
    }
    if record.definition != now.definition || record.sources.len() != now.sources.len() {
        return stale("its definition was changed".to_string());
    }
    let moved = record.sources.iter().zip(&now.sources).zip(&view.sources);
    for ((before, now), id) in moved {
        if before != now {
            return stale(format!(
                "{} is at version {}, and the view equals version {}",
                match view.sources.len() {
                    1 => "the source".to_string(),
                    _ => format!("its source '{}'", id.join(super::catalog::DELIMITER)),
                },
                now.version,
                before.version
            ));
        }
    }
    stale("the view was written since".to_string())
}

/// What speaks against it that a view which is right by `record`, and has these
/// `fragments`, is there: see [`super::young::Young`].
async fn doubt(
    objects: &Objects,
    record: &Record,
    fragments: &[Fragment],
) -> Result<Option<&'static str>> {
    let listed = ledger::list(objects).await?;
    let newest = listed.last().map(|ledger| ledger.name.as_str());
    if newest.is_none() || newest == record.settled.as_deref() {
        return Ok(None);
    }
    if fragments.len() > MANY {
        // A worker has the time.
        return Ok(Some("its files are too many to look for them all here"));
    }
    let mut ledgers = Ledgers::among(objects, listed, None, None, Known::new()).await?;
    // The newest may be of a commit that never landed.
    let held = ledgers.hold(fragments).await?;
    Ok(match ledgers.lacks(fragments) {
        true => Some("files of it are gone"),
        false if !held => Some("no ledger tells of some of its files"),
        false => None,
    })
}

/// Opens the source of `view` at `version` or the latest. Errors:
/// `SourceNotFound`, `SourceVersionGone`, `Unavailable`.
pub async fn open_source(
    catalog: &Catalog,
    view: &ViewInfo,
    source: &[String],
    version: Option<u64>,
) -> Result<Dataset> {
    if let Some(dataset) = catalog.open(source, version).await? {
        return Ok(dataset);
    }
    let table = source.join(super::catalog::DELIMITER);
    match version {
        Some(version) if catalog.open(source, None).await?.is_some() => {
            Err(EngineError::SourceVersionGone { table, version })
        }
        _ => Err(EngineError::SourceNotFound {
            view: view.name(),
            table,
        }),
    }
}

/// Records that `table` as it is equals its definition over `sources`, and
/// whether its newest ledger is `settled`.
pub(super) async fn record(
    objects: &Objects,
    view: &ViewInfo,
    table: &Dataset,
    sources: &[Pinned],
    settled: Option<String>,
) -> Result<()> {
    let record = Record::new(view, table, sources, settled);
    objects.put(&paths::fresh(objects.root()), &record).await
}

/// The ledger that was the newest, and whose files were there to stay, when the
/// record was written.
pub(super) async fn settled(objects: &Objects) -> Result<Option<String>> {
    let record: Option<Record> = objects.get(&paths::fresh(objects.root())).await?;
    Ok(record.and_then(|record| record.settled))
}

/// The identifier paths of the sources that the view had when the record was
/// written.
pub(super) async fn sources(objects: &Objects) -> Result<Vec<Vec<String>>> {
    let record: Option<Record> = objects.get(&paths::fresh(objects.root())).await?;
    Ok(record.map(|record| record.names).unwrap_or_default())
}
