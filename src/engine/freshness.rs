//! Whether a view is current, told from recorded version ids alone.
//!
//! After each success the engine records "the view at this version equals the
//! source at that version". That is a fact for ever, about two immutable
//! manifests, each named by its number and its timestamp (a re-created table
//! uses numbers again, and never timestamps); so one small object can be
//! written over by whoever comes last.

use lance::Dataset;
use serde::{Deserialize, Serialize};

use super::catalog::Catalog;
use super::error::{EngineError, Result};
use super::fingerprint::{ENGINE_VERSION, Fingerprint};
use super::paths;
use super::store::Objects;
use super::view::ViewInfo;

/// "The view at this version equals the source at that version."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    engine: u32,
    definition: Fingerprint,
    source_version: u64,
    source_timestamp: u64,
    view_version: u64,
    view_timestamp: u64,
}

impl Record {
    fn new(view: &ViewInfo, table: &Dataset, source: &Dataset) -> Record {
        Record {
            engine: ENGINE_VERSION,
            definition: Fingerprint::of_text(&view.raw),
            source_version: source.version().version,
            source_timestamp: timestamp(source),
            view_version: table.version().version,
            view_timestamp: timestamp(table),
        }
    }
}

/// The timestamp of a manifest in nanoseconds since 1970.
pub fn timestamp(dataset: &Dataset) -> u64 {
    dataset.manifest().timestamp_nanos as u64
}

/// Whether a view is current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// A refresh would be a NoOp.
    Current {
        /// The source version that the view equals.
        source_version: u64,
        /// The view's version.
        view_version: u64,
    },
    /// A refresh must look closer.
    Stale {
        /// Why, in a few words.
        why: String,
    },
}

/// Compares what the last refresh recorded with the source (its latest
/// version, or `src_version`) and the view as they are. Errors:
/// `SourceNotFound`, `SourceVersionGone`, `ViewNotFound`, `Unavailable`.
pub async fn check(
    catalog: &Catalog,
    view: &ViewInfo,
    src_version: Option<u64>,
) -> Result<Freshness> {
    let stale = |why: String| Ok(Freshness::Stale { why });
    let (Some(_), [source_id]) = (&view.definition, view.sources.as_slice()) else {
        return stale("it is no SQL view of one source".to_string());
    };
    let objects = catalog.store().objects(&view.uri).await?;
    let Some(record) = objects.get::<Record>(&paths::fresh(objects.root())).await? else {
        return stale("never refreshed by relance".to_string());
    };
    let table = catalog
        .store()
        .open(&view.uri, None)
        .await?
        .ok_or_else(|| EngineError::ViewNotFound { view: view.name() })?;
    let source = open_source(catalog, view, source_id, src_version).await?;
    let now = Record::new(
        &super::view::read(&view.id, &view.uri, &table)?,
        &table,
        &source,
    );
    if record == now {
        return Ok(Freshness::Current {
            source_version: now.source_version,
            view_version: now.view_version,
        });
    }
    if record.definition != now.definition {
        stale("its definition was changed".to_string())
    } else if (record.source_version, record.source_timestamp)
        != (now.source_version, now.source_timestamp)
    {
        stale(format!(
            "the source is at version {}, and the view equals version {}",
            now.source_version, record.source_version
        ))
    } else {
        stale("the view was written since".to_string())
    }
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

/// Records that `table` as it is equals its definition over `source`.
pub(super) async fn record(
    objects: &Objects,
    view: &ViewInfo,
    table: &Dataset,
    source: &Dataset,
) -> Result<()> {
    objects
        .put(
            &paths::fresh(objects.root()),
            &Record::new(view, table, source),
        )
        .await
}
