//! What one plan works on: the view, its sources at one version each, and the
//! pieces.

use std::collections::BTreeMap;
use std::sync::Arc;

use lance::Dataset;
use lance_table::format::Fragment;

use super::catalog::{Catalog, DELIMITER};
use super::error::{EngineError, Result};
use super::execute::Workbench;
use super::fingerprint::Fingerprint;
use super::freshness::open_source;
use super::ledger::Standing;
use super::outcome::{Mode, Outcome};
use super::plan::{Judgement, Pinned, Plan};
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
    /// Opens the view, and its sources at the versions that were `fixed`, or
    /// asked for, or the latest. The plan has no units yet. `Ok(None)`: what was
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
        view.require_sole_source(request.src_version)?;
        if fixed.is_some_and(|plan| plan.sources.len() != view.sources.len()) {
            return Ok(None);
        }
        staged::refuse_wal(&view, &table, "the view").await?;
        let mut sources = Vec::with_capacity(view.sources.len());
        for (at, id) in view.sources.iter().enumerate() {
            let pinned = fixed.and_then(|plan| plan.sources.get(at));
            let wanted = pinned.map(|p| p.version).or(request.src_version);
            let source = match open_source(catalog, &view, id, wanted).await {
                Err(EngineError::SourceVersionGone { .. })
                    if fixed.is_some() && request.src_version.is_none() =>
                {
                    return Ok(None);
                }
                other => other?,
            };
            if pinned.is_some_and(|pinned| *pinned != Pinned::of(&source)) {
                // The source was re-created since.
                return Ok(None);
            }
            staged::refuse_wal(&view, &source, "its source table").await?;
            sources.push(Arc::new(source));
        }
        let [source] = sources.as_slice() else {
            return Err(EngineError::Internal(
                "a SQL view of one source was expected".to_string(),
            ));
        };
        let planned = Arc::new(Planned::new(&view, &table, source)?);
        let reads = planned.reads(source);
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
            sources: sources.iter().map(|s| Pinned::of(s)).collect(),
            view_version: table.version().version,
            units: Vec::new(),
            kept: 0,
        };
        let bench = Workbench {
            view_name: view.name(),
            sources,
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

    /// The sources' names and the versions they are pinned at.
    pub fn source_versions(&self) -> impl Iterator<Item = (String, u64)> {
        let names = self.view.sources.iter().map(|id| id.join(DELIMITER));
        names.zip(self.plan.sources.iter().map(|pinned| pinned.version))
    }

    /// An outcome that wrote nothing, at the plan's source versions and with
    /// the view at `view_version`.
    pub fn unchanged(&self, units: u64, view_version: u64) -> Outcome {
        let versions: BTreeMap<String, u64> = self.source_versions().collect();
        Outcome {
            mode: Mode::NoOp,
            source_version: self.plan.sources.first().map_or(0, |s| s.version),
            source_versions: if versions.len() > 1 {
                versions
            } else {
                BTreeMap::new()
            },
            view_version,
            rows_written: 0,
            bytes_written: 0,
            units_total: units,
            units_kept: units,
            unindexed_rows: None,
        }
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
            Shape::RowWise => unit::cut(self.fragments_of_source(), missing),
            Shape::Limited(_) | Shape::Grouped => missing.iter().map(|at| vec![*at]).collect(),
        }
    }

    /// The source fragments of a unit; `None` for all of them.
    pub fn fragments(&self, unit: &[usize]) -> Option<Vec<Fragment>> {
        (self.bench.planned.shape() == Shape::RowWise).then(|| {
            let all = self.fragments_of_source();
            unit.iter().filter_map(|at| all.get(*at)).cloned().collect()
        })
    }

    /// The fragments of the source that row-wise views are cut along.
    fn fragments_of_source(&self) -> &[Fragment] {
        match self.bench.sources.first() {
            Some(source) => source.fragments(),
            None => &[],
        }
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
            rows_written: judgement.added.iter().map(|c| c.rows).sum(),
            bytes_written: judgement.added.iter().map(|c| c.bytes).sum(),
            units_kept: judgement.kept.len() as u64,
            ..self.unchanged(
                (judgement.kept.len() + judgement.added.len()) as u64,
                table.version().version + 1,
            )
        }
    }
}
