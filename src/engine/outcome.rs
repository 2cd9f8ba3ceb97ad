//! What a refresh did, as its commit tells it.

use serde::{Deserialize, Serialize};

/// How a view was brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Nothing had to be written.
    NoOp,
    /// What was still right was kept, the rest recomputed.
    Incremental,
    /// Every row was computed anew.
    Rebuild,
}

/// What a refresh did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How the view was brought up to date.
    pub mode: Mode,
    /// The source version that the view equals.
    pub source_version: u64,
    /// The view's version that the refresh left.
    pub view_version: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Bytes of data files written.
    pub bytes_written: u64,
    /// Units in the plan.
    pub units_total: u64,
    /// Units whose rows were already right.
    pub units_kept: u64,
}

/// Looks for the commit of refresh `refresh_uid` in the view's history and
/// among the outcome objects beside its plan.
pub async fn find(
    _catalog: &super::catalog::Catalog,
    _view: &[String],
    _refresh_uid: &str,
) -> super::error::Result<Option<Outcome>> {
    Ok(None)
}
