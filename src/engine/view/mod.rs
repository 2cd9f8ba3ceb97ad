//! What a view is: its kind, its dialect, and what it reads.
//!
//! One file a dialect: [`lancedb`] reads the SQL views of lancedb (both
//! forms), [`geneva`] recognises Geneva's. [`planned`] is a view over its
//! sources: [`sql`] plans and evaluates those in lancedb's own grammar, with
//! [`unnest`], [`grouped`] and [`merge`] (with its [`extremes`]) for the shapes
//! that a plain Lance scan cannot express, and [`general`] those in any SQL. What is too
//! [`deep`] for either is refused.

pub mod deep;
pub mod extremes;
pub mod general;
pub mod geneva;
pub mod grouped;
mod known;
pub mod lancedb;
pub mod merge;
mod output;
pub mod planned;
pub mod sql;
pub mod unnest;

use std::collections::HashMap;
use std::sync::Arc;

use ::lancedb::materialized_view::MaterializedViewDefinition;
use lance::Dataset;

use self::general::names::Query;
pub use self::known::KnownViews;
use super::catalog::{Catalog, DELIMITER};
use super::error::{EngineError, Result};

/// What a view computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewKind {
    /// A SQL query in lancedb's own grammar.
    Sql,
    /// A SQL query broader than that (joins, several sources, windows, …).
    GeneralSql,
    /// A Geneva query view, with Python columns perhaps.
    GenevaQuery,
    /// A Geneva chunker view: one source row becomes many.
    GenevaChunker,
    /// A Geneva table-function view.
    GenevaUdtf,
    /// A format that this version does not know, by its tag.
    Newer(String),
}

impl ViewKind {
    /// The kind in words, with its article.
    pub fn in_words(&self) -> String {
        match self {
            ViewKind::Sql => "a SQL view".to_string(),
            ViewKind::GeneralSql => "a general SQL view".to_string(),
            ViewKind::GenevaQuery => "a Geneva query view".to_string(),
            ViewKind::GenevaChunker => "a Geneva chunker view".to_string(),
            ViewKind::GenevaUdtf => "a Geneva table-function (udtf) view".to_string(),
            ViewKind::Newer(tag) => format!("a view of format {tag}"),
        }
    }

    /// Whether `output_limit` may be given: it trims what a chunker expands.
    pub fn takes_output_limit(&self) -> bool {
        matches!(self, ViewKind::GenevaChunker)
    }
}

/// What a view is, without having planned anything.
#[derive(Clone, Debug)]
pub struct ViewInfo {
    /// Identifier path.
    pub id: Vec<String>,
    /// Resolved table URI: what "the same view" means.
    pub uri: String,
    /// The view's latest version.
    pub version: u64,
    /// What it computes.
    pub kind: ViewKind,
    /// Why relance cannot refresh it, where it cannot: the end of a sentence.
    pub unsupported: Option<String>,
    /// `mv.incarnation`, where the view has one.
    pub incarnation: Option<String>,
    /// The source tables' identifier paths.
    pub sources: Vec<Vec<String>>,
    /// The defining SQL as stored, where it is SQL.
    pub sql: Option<String>,
    /// What lancedb's grammar makes of the SQL, where it can.
    pub definition: Option<MaterializedViewDefinition>,
    /// The query of a general SQL view.
    pub query: Option<Arc<Query>>,
    /// The stored definition as it is, to tell whether it was changed.
    pub raw: String,
}

impl ViewInfo {
    /// The identifier path as one string.
    pub fn name(&self) -> String {
        self.id.join(DELIMITER)
    }

    /// `Unsupported` if relance cannot refresh the view.
    pub fn require_refreshable(&self) -> Result<()> {
        match &self.unsupported {
            None => Ok(()),
            Some(why) => Err(EngineError::Unsupported {
                view: self.name(),
                kind: self.kind.in_words(),
                why: why.clone(),
            }),
        }
    }

    /// `InvalidInput` if a source version is asked for and there is not just
    /// one source that it could be of.
    pub fn require_sole_source(&self, src_version: Option<impl std::fmt::Display>) -> Result<()> {
        match src_version {
            Some(version) if self.sources.len() != 1 => Err(EngineError::InvalidInput(format!(
                "src_version is {version}, and '{}' reads {} source tables: leave it out, it pins \
                 the version of a sole source",
                self.name(),
                self.sources.len()
            ))),
            _ => Ok(()),
        }
    }

    /// `IncarnationMismatch` unless the view is the one that was `expected`.
    pub fn require_incarnation(&self, expected: Option<&str>) -> Result<()> {
        let Some(expected) = expected else {
            return Ok(());
        };
        if self.incarnation.as_deref() == Some(expected) {
            return Ok(());
        }
        Err(EngineError::IncarnationMismatch {
            view: self.name(),
            expected: expected.to_string(),
            found: self
                .incarnation
                .clone()
                .unwrap_or_else(|| "(none)".to_string()),
        })
    }
}

/// Reads what view `id` is. Errors: `ViewNotFound`, `NotAView`, `Unavailable`.
pub async fn inspect(catalog: &Catalog, id: &[String]) -> Result<ViewInfo> {
    open(catalog, id).await.map(|(info, _)| info)
}

/// As [`inspect`], with the view's table as it is now, freshly opened.
pub async fn open(catalog: &Catalog, id: &[String]) -> Result<(ViewInfo, Dataset)> {
    let uri = catalog.locate(id).await?;
    open_at(catalog, id, &uri).await
}

/// As [`open`], where the catalog has just said that the view is at `uri`.
pub async fn open_at(catalog: &Catalog, id: &[String], uri: &str) -> Result<(ViewInfo, Dataset)> {
    let opened = catalog.store().open(uri, None).await?;
    let dataset = opened.ok_or_else(|| EngineError::ViewNotFound {
        view: id.join(DELIMITER),
    })?;
    let info = read(id, uri, &dataset)?;
    Ok((info, dataset))
}

/// As [`open`], where the view was at `uri` before: it is opened there while the
/// catalog is asked where it is now.
pub async fn reopen(catalog: &Catalog, id: &[String], uri: &str) -> Result<(ViewInfo, Dataset)> {
    let (now, opened) = futures::try_join!(catalog.locate(id), catalog.store().open(uri, None))?;
    match opened {
        Some(dataset) if now == uri => Ok((read(id, uri, &dataset)?, dataset)),
        _ => open_at(catalog, id, &now).await,
    }
}

/// What the table `dataset` says of itself. Errors: `NotAView`.
pub fn read(id: &[String], uri: &str, dataset: &Dataset) -> Result<ViewInfo> {
    let metadata: &HashMap<String, String> = &dataset.schema().metadata;
    let described = lancedb::describe(metadata)
        .or_else(|| geneva::describe(metadata))
        .ok_or_else(|| EngineError::NotAView {
            view: id.join(DELIMITER),
        })?;
    Ok(ViewInfo {
        id: id.to_vec(),
        uri: uri.to_string(),
        version: dataset.version().version,
        kind: described.kind,
        unsupported: described.unsupported.or_else(|| {
            described
                .sources
                .iter()
                .any(|source| source == id)
                .then(|| "its query reads the view itself; drop it".to_string())
        }),
        incarnation: metadata.get(lancedb::INCARNATION).cloned(),
        sources: described.sources,
        sql: described.sql,
        definition: described.definition,
        query: described.query,
        raw: described.raw,
    })
}

/// What a dialect makes of a table's metadata.
#[derive(Clone)]
pub(crate) struct Described {
    pub kind: ViewKind,
    pub unsupported: Option<String>,
    pub sources: Vec<Vec<String>>,
    pub sql: Option<String>,
    pub definition: Option<MaterializedViewDefinition>,
    pub query: Option<Arc<Query>>,
    pub raw: String,
}
