//! A view planned over its sources, whatever its dialect.

use std::sync::Arc;

use arrow_schema::SchemaRef;
use lance::Dataset;

use super::general::General;
use super::merge::Merge;
use super::{ViewInfo, ViewKind, sql};
use crate::engine::error::{EngineError, Result};
use crate::engine::memory::Memory;

/// A view planned over one version of each of its sources.
#[derive(Debug)]
pub enum Planned {
    /// In lancedb's own grammar, over one source.
    Sql(Box<sql::Planned>),
    /// In any SQL, over any number of them.
    General(General),
}

impl Planned {
    /// Plans `view` over `sources`, which are those of the view in their order.
    /// Errors: `DefinitionMismatch` where the definition cannot be evaluated or
    /// no longer gives the view's columns, `Unsupported` for functions whose
    /// result changes by itself.
    pub async fn new(
        view: &ViewInfo,
        table: &Dataset,
        sources: &[Arc<Dataset>],
        memory: &Memory,
    ) -> Result<Planned> {
        match (&view.kind, sources) {
            (ViewKind::GeneralSql, sources) => General::new(view, table, sources, memory)
                .await
                .map(Planned::General),
            (_, [source]) => sql::Planned::new(view, table, source, memory)
                .map(|planned| Planned::Sql(Box::new(planned))),
            _ => Err(EngineError::Internal(
                "a view of one source was expected".to_string(),
            )),
        }
    }

    /// Whether the view holds the source's row ids (the 0.38 to 0.40 form).
    pub fn provenance(&self) -> bool {
        match self {
            Planned::Sql(planned) => planned.provenance(),
            Planned::General(_) => false,
        }
    }

    /// The columns of the states that groups are merged from, where they are.
    pub fn states_schema(&self) -> Option<SchemaRef> {
        match self {
            Planned::Sql(planned) => planned.merge().map(Merge::schema),
            Planned::General(_) => None,
        }
    }

    /// The names of the view's columns that a refresh computes.
    pub fn computed_names(&self) -> Vec<&str> {
        match self {
            Planned::Sql(planned) => planned.computed_names().collect(),
            Planned::General(general) => general.computed_names().collect(),
        }
    }
}
