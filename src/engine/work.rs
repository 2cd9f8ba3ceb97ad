//! What one plan works on: the view, its source at one version, and the pieces.

use std::sync::Arc;

use lance::Dataset;
use lance_table::format::Fragment;

use super::catalog::{Catalog, DELIMITER};
use super::error::{EngineError, Result};
use super::execute::Workbench;
use super::fingerprint::Fingerprint;
use super::freshness::{open_source, timestamp};
use super::ledger::Standing;
use super::outcome::{Mode, Outcome};
use super::plan::{Judgement, Plan};
use super::refresh::Request;
use super::view::sql::{Planned, Shape};
use super::view::{self, ViewInfo};
use super::{staged, unit};

/// What one plan works on.
pub struct Work {
    /// The plan.
    pub plan: Plan,
    /// The view as it was when the work was opened.
    pub view: ViewInfo,
    /// What units are computed from and written to.
    pub bench: Workbench,
    /// The fingerprint of each piece that the view is computed from.
    pub inputs: Vec<Fingerprint>,
}

impl Work {
    /// Opens the view, and its source at the version that was `fixed`, or asked
    /// for, or the latest. The plan has no units yet. `Ok(None)`: what was
    /// fixed cannot be carried out any more. Errors: those of the view, of its
    /// source, and of a definition that no longer fits.
    pub async fn open(
        catalog: &Catalog,
        request: &Request,
        fixed: Option<&Plan>,
    ) -> Result<Option<Work>> {
        let (view, table) = view::open(catalog, &request.view).await?;
        view.require_refreshable()?;
        view.require_incarnation(request.expected_incarnation.as_deref())?;
        let [source_id] = view.sources.as_slice() else {
            return Err(EngineError::Internal(
                "a SQL view of one source was expected".to_string(),
            ));
        };
        let wanted = fixed
            .map(|plan| plan.source_version)
            .or(request.src_version);
        let source = match open_source(catalog, &view, source_id, wanted).await {
            Err(EngineError::SourceVersionGone { .. })
                if fixed.is_some() && request.src_version.is_none() =>
            {
                return Ok(None);
            }
            other => other?,
        };
        if fixed.is_some_and(|plan| plan.source_timestamp != timestamp(&source)) {
            // The source was re-created since.
            return Ok(None);
        }
        staged::refuse_wal(&view, &table, "the view").await?;
        staged::refuse_wal(&view, &source, "its source table").await?;
        let planned = Arc::new(Planned::new(&view, &table, &source)?);
        let reads = planned.reads(&source);
        let pieces: Vec<Fingerprint> = source
            .fragments()
            .iter()
            .map(|fragment| reads.fragment(fragment))
            .collect();
        let inputs = match planned.shape() {
            Shape::RowWise => pieces,
            Shape::Limited(_) | Shape::Grouped => {
                let all = std::iter::once(reads.definition()).chain(&pieces);
                vec![Fingerprint::of_all(all)]
            }
        };
        let plan = Plan {
            source_version: source.version().version,
            source_timestamp: timestamp(&source),
            view_version: table.version().version,
            units: Vec::new(),
            kept: 0,
        };
        let bench = Workbench {
            view_name: view.name(),
            source: Arc::new(source),
            table: Arc::new(table),
            planned,
            refresh: request.refresh.clone(),
            max_rows_per_fragment: request.max_rows_per_fragment,
        };
        Ok(Some(Work {
            plan,
            view,
            bench,
            inputs,
        }))
    }

    /// The source's name, for messages.
    pub fn source_name(&self) -> String {
        let source = self.view.sources.first();
        source.map(|id| id.join(DELIMITER)).unwrap_or_default()
    }

    /// Which of the view's files are whole in `table`.
    pub fn standing(&self, table: &Dataset) -> Standing {
        Standing::new(
            table.fragments(),
            table.schema(),
            self.bench.planned.computed_names(),
        )
    }

    /// Cuts the pieces that are `missing` into units.
    pub fn cut(&self, missing: &[usize]) -> Vec<Vec<usize>> {
        match self.bench.planned.shape() {
            Shape::RowWise => unit::cut(self.bench.source.fragments(), missing),
            Shape::Limited(_) | Shape::Grouped => missing.iter().map(|at| vec![*at]).collect(),
        }
    }

    /// The source fragments of a unit; `None` for all of them.
    pub fn fragments(&self, unit: &[usize]) -> Option<Vec<Fragment>> {
        (self.bench.planned.shape() == Shape::RowWise).then(|| {
            let all = self.bench.source.fragments();
            unit.iter().filter_map(|at| all.get(*at)).cloned().collect()
        })
    }

    /// The fingerprints of a unit's pieces.
    pub fn unit_inputs(&self, unit: &[usize]) -> Vec<Fingerprint> {
        unit.iter()
            .filter_map(|at| self.inputs.get(*at))
            .cloned()
            .collect()
    }

    /// What a commit of `judgement` on top of `table` does.
    pub fn outcome(&self, judgement: &Judgement, table: &Dataset, full: bool) -> Outcome {
        Outcome {
            mode: if full || judgement.kept.is_empty() {
                Mode::Rebuild
            } else {
                Mode::Incremental
            },
            source_version: self.plan.source_version,
            view_version: table.version().version + 1,
            rows_written: judgement.added.iter().map(|c| c.rows).sum(),
            bytes_written: judgement.added.iter().map(|c| c.bytes).sum(),
            units_total: (judgement.kept.len() + judgement.added.len()) as u64,
            units_kept: judgement.kept.len() as u64,
        }
    }
}
