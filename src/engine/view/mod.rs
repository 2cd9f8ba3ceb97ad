//! What a view is: its kind, its dialect, and what it reads.

use super::catalog::Catalog;
use super::error::Result;

/// What a view computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewKind {
    /// A SQL query in lancedb's own grammar.
    Sql,
    /// A SQL query broader than that.
    GeneralSql,
    /// A Geneva query view, with Python columns perhaps.
    GenevaQuery,
    /// A Geneva chunker view: one source row becomes many.
    GenevaChunker,
    /// A Geneva table-function view.
    GenevaUdtf,
    /// A format newer than this version knows.
    Newer(String),
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
    /// Whether relance can refresh it, else the sentence that says why not.
    pub unsupported: Option<String>,
    /// `mv.incarnation`, where the view has one.
    pub incarnation: Option<String>,
    /// The source tables' identifier paths.
    pub sources: Vec<Vec<String>>,
    /// The defining SQL, where it is one.
    pub sql: Option<String>,
}

/// Reads what view `id` is. Errors: `ViewNotFound`, `NotAView`, `Unavailable`.
pub async fn inspect(catalog: &Catalog, id: &[String]) -> Result<ViewInfo> {
    let uri = catalog.locate(id).await?;
    Ok(ViewInfo {
        id: id.to_vec(),
        uri,
        version: 0,
        kind: ViewKind::Sql,
        unsupported: None,
        incarnation: None,
        sources: Vec::new(),
        sql: None,
    })
}
