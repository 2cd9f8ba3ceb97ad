//! A view planned over its sources, whatever its dialect.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_schema::SchemaRef;
use lance::Dataset;

use super::general::General;
use super::merge::Merge;
use super::{ViewInfo, ViewKind, sql};
use crate::engine::error::{EngineError, Result};
use crate::engine::memory::Memory;

/// What is said where lance's planner panicked.
const UNPLANNED: &str = "its query holds a literal or a call that cannot be planned";

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
        let general = async || {
            let general = General::new(view, table, sources, memory).await;
            general.map(Planned::General)
        };
        match (&view.kind, sources) {
            (ViewKind::GeneralSql, _) => general().await,
            (_, [source]) => match by_lance(view, table, source, memory) {
                // What lance's planner does not read, DataFusion's may.
                Err(unread) if view.query.is_some() && is_mismatch(&unread) => {
                    let general = general().await;
                    general.map_err(|error| match is_mismatch(&error) && !is_unread(&unread) {
                        // What is wrong of the query as lancedb takes it.
                        true => unread,
                        false => error,
                    })
                }
                planned => planned.map(|planned| Planned::Sql(Box::new(planned))),
            },
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

fn is_mismatch(error: &EngineError) -> bool {
    matches!(error, EngineError::DefinitionMismatch { .. })
}

/// Whether lance's planner has said just that it does not read such a thing.
fn is_unread(error: &EngineError) -> bool {
    matches!(error, EngineError::DefinitionMismatch { why, .. }
        if ["not supported", "Unsupported", UNPLANNED].iter().any(|said| why.contains(said)))
}

/// [`sql::Planned::new`]. Lance's planner panics at some literals that it does not read,
/// such as `N'text'`.
fn by_lance(
    view: &ViewInfo,
    table: &Dataset,
    source: &Dataset,
    memory: &Memory,
) -> Result<sql::Planned> {
    let planned = || sql::Planned::new(view, table, source, memory);
    catch_unwind(AssertUnwindSafe(planned)).unwrap_or_else(|_| {
        Err(EngineError::DefinitionMismatch {
            view: view.name(),
            why: format!("{UNPLANNED}; recreate the view without it"),
        })
    })
}
