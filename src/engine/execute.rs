//! Computes units: scan, evaluate, write files that no version refers to yet,
//! and record the claim.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::error::DataFusionError;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use lance::Dataset;
use lance::dataset::transaction::Operation;
use lance::dataset::{InsertBuilder, WriteDestination, WriteMode, WriteParams};
use lance_table::format::Fragment;

use super::compute::AbortOnDrop;
use super::error::EngineError;
use super::fingerprint::Fingerprint;
use super::ledger::Claim;
use super::memory::Memory;
use super::scan;
use super::standing::{Columns, Standing};
use super::store::is_missing;
use super::unit::Extent;
use super::view::planned::Planned;
use super::words::first_line;
use super::work::Task;

/// What units are computed from and written to. All of it at fixed versions.
#[derive(Clone)]
pub struct Workbench {
    /// The view's name, for messages.
    pub view_name: String,
    /// The sources, each at the plan's version.
    pub sources: Vec<Arc<Dataset>>,
    /// The view's table, which the files are written for.
    pub table: Arc<Dataset>,
    /// The view's definition over that source.
    pub planned: Arc<Planned>,
    /// What units may hold.
    pub memory: Memory,
    /// UID of the refresh.
    pub refresh: String,
    /// Most rows in one fragment; lance's default if `None`.
    pub max_rows_per_fragment: Option<u64>,
}

/// Why a unit was not computed.
#[derive(Debug)]
pub enum UnitError {
    /// A file of the source version is gone, in the store's own words: it was
    /// cleaned up meanwhile, mostly.
    SourceGone(String),
    /// The query needs more memory than it may have.
    OutOfMemory(EngineError),
    /// Anything else.
    Other(EngineError),
}

impl Workbench {
    /// The sole source of a view that has one.
    pub fn source(&self) -> std::result::Result<&Arc<Dataset>, UnitError> {
        match self.sources.as_slice() {
            [source] => Ok(source),
            _ => Err(UnitError::Other(EngineError::Internal(
                "a view of one source was expected".to_string(),
            ))),
        }
    }

    /// Computes the rows of `task` and stages them, those of its `parts` at the same
    /// time, if these are several. The claim is not recorded yet.
    pub async fn compute(
        &self,
        task: Task,
        inputs: Vec<Fingerprint>,
        parts: Vec<Extent>,
    ) -> std::result::Result<Claim, UnitError> {
        if parts.len() <= 1 {
            return self.compute_part(task, inputs).await;
        }
        let parts = parts.into_iter().map(|extent| {
            let (bench, inputs) = (self.clone(), inputs.clone());
            let part = Task {
                extent: Some(extent),
                ..task.clone()
            };
            AbortOnDrop(tokio::spawn(async move {
                bench.compute_part(part, inputs).await
            }))
        });
        let mut fragments = Vec::new();
        // All of them under way, taken in their order: it is the rows' own.
        for part in parts.collect::<Vec<_>>() {
            let claim = part.await.map_err(|error| {
                let why = format!("a part of a unit ended early: {error}");
                UnitError::Other(EngineError::Internal(why))
            })??;
            fragments.extend(claim.fragments);
        }
        Ok(self.claim(inputs, fragments))
    }

    async fn compute_part(
        &self,
        task: Task,
        inputs: Vec<Fingerprint>,
    ) -> std::result::Result<Claim, UnitError> {
        match self
            .stage(self.rows(&task, false).await?, inputs.clone())
            .await
        {
            // Slower, and within whatever memory there is.
            Err(UnitError::OutOfMemory(_)) => {
                self.stage(self.rows(&task, true).await?, inputs).await
            }
            other => other,
        }
    }

    /// The rows of `task`.
    async fn rows(
        &self,
        task: &Task,
        frugal: bool,
    ) -> std::result::Result<SendableRecordBatchStream, UnitError> {
        let extent = task.extent.as_ref();
        let rows = match &*self.planned {
            Planned::Sql(planned) => match (&task.parts, planned.merge()) {
                // Whole they need less than they and the states of parts do.
                (Some(parts), Some(merge)) if !frugal => {
                    let states = parts.states(self, merge.schema());
                    let rows = planned.merged(self.source()?, merge, states).await;
                    rows.map_err(lance::Error::from)
                }
                _ => planned.evaluate(self.source()?, extent, frugal).await,
            },
            Planned::General(general) => {
                let rows = general.evaluate(task.branch, extent, frugal).await;
                rows.map_err(lance::Error::from)
            }
        };
        rows.map_err(|e| self.sort(e))
    }

    /// Puts the rows of `claims`, which are in the view, into files of their
    /// own, together. `Ok(None)`: they are not there any more.
    pub async fn merge(&self, claims: &[Claim]) -> std::result::Result<Option<Claim>, UnitError> {
        let names = self.planned.computed_names().into_iter();
        let columns = Columns::new(self.table.schema(), names);
        let standing = Standing::new(self.table.fragments(), &columns);
        let ids: Option<Vec<Vec<u64>>> = claims.iter().map(|c| standing.fragments_of(c)).collect();
        let Some(ids) = ids else {
            return Ok(None);
        };
        let fragments: HashMap<u64, &Fragment> =
            self.table.fragments().iter().map(|f| (f.id, f)).collect();
        // In the order of the inputs, so that rows can be found again ([`super::trim`]).
        let fragments = ids.iter().flatten().filter_map(|id| fragments.get(id));
        let mut scanner = self.table.scan();
        self.memory.bound(&mut scanner);
        scanner.with_fragments(fragments.map(|f| Fragment::clone(f)).collect());
        let rows = scan::stored(&mut scanner, None)
            .await
            .map_err(|e| self.sort(e))?;
        let inputs = claims.iter().flat_map(|claim| claim.inputs.iter().cloned());
        match self.stage(rows, inputs.collect()).await {
            Ok(claim) => Ok(Some(claim)),
            // The view's version was cleaned up meanwhile.
            Err(UnitError::SourceGone(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The states of the groups of `extent`.
    pub async fn states(
        &self,
        extent: &Extent,
    ) -> datafusion::common::Result<SendableRecordBatchStream> {
        match (&*self.planned, self.sources.as_slice()) {
            (Planned::Sql(planned), [source]) => planned.states(source, extent).await,
            _ => Err(DataFusionError::Internal(
                "a view with groups was expected".to_string(),
            )),
        }
    }

    /// Writes `rows` to files that no version of the view refers to yet.
    async fn stage(
        &self,
        rows: SendableRecordBatchStream,
        inputs: Vec<Fingerprint>,
    ) -> std::result::Result<Claim, UnitError> {
        let mut rows = Box::pin(rows.peekable());
        // The writer wants a first batch; a unit without rows has no file.
        loop {
            match rows.as_mut().peek().await {
                None => return Ok(self.claim(inputs, Vec::new())),
                Some(Ok(batch)) if batch.num_rows() == 0 => {
                    rows.next().await;
                }
                Some(_) => break,
            }
        }
        let schema = Arc::new(arrow_schema::Schema::from(self.table.schema()));
        let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
        let mut params = WriteParams {
            mode: WriteMode::Append,
            ..Default::default()
        };
        if let Some(rows) = self.max_rows_per_fragment {
            params.max_rows_per_file = usize::try_from(rows).unwrap_or(usize::MAX);
            params.max_rows_per_group = params.max_rows_per_group.min(params.max_rows_per_file);
        }
        let staged = InsertBuilder::new(WriteDestination::Dataset(self.table.clone()))
            .with_params(&params)
            .execute_uncommitted_stream(rows)
            .await
            .map_err(|e| self.sort(e))?;
        match staged.operation {
            Operation::Append { fragments } => Ok(self.claim(inputs, fragments)),
            other => Err(UnitError::Other(EngineError::Internal(format!(
                "staging rows gave the operation {other}, and an append was expected"
            )))),
        }
    }

    fn claim(&self, inputs: Vec<Fingerprint>, fragments: Vec<Fragment>) -> Claim {
        Claim {
            inputs,
            refresh: self.refresh.clone(),
            rows: fragments
                .iter()
                .map(|f| f.physical_rows.unwrap_or(0) as u64)
                .sum(),
            bytes: fragments
                .iter()
                .flat_map(|f| &f.files)
                .map(|f| f.file_size_bytes.get().map_or(0, |b| b.get()))
                .sum(),
            fragments,
            of: Vec::new(),
        }
    }

    /// Sorts an error of lance into storage (try again) and evaluation (the
    /// rows cannot be computed, whoever tries).
    pub fn sort(&self, error: lance::Error) -> UnitError {
        let mut of_storage = matches!(error, lance::Error::IO { .. });
        let mut missing = is_missing(&error) || error.is_not_found();
        let mut out_of_memory = false;
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if let Some(store) = current.downcast_ref::<object_store::Error>() {
                of_storage = true;
                missing |= matches!(store, object_store::Error::NotFound { .. });
            } else if let Some(io) = current.downcast_ref::<std::io::Error>() {
                of_storage = true;
                missing |= io.kind() == std::io::ErrorKind::NotFound;
            } else if let Some(engine) = current.downcast_ref::<EngineError>() {
                of_storage |= matches!(engine, EngineError::Unavailable { .. });
            } else if let Some(query) = current.downcast_ref::<DataFusionError>() {
                out_of_memory |= matches!(query, DataFusionError::ResourcesExhausted(_));
            } else if let Some(lance) = current.downcast_ref::<lance::Error>() {
                of_storage |= matches!(lance, lance::Error::IO { .. });
                missing |= is_missing(lance) || lance.is_not_found();
            }
            // What lance passes through counts itself, not just its causes.
            let passed = current.downcast_ref::<lance::Error>();
            cause = match passed.and_then(lance::Error::external_source) {
                Some(source) => Some(source.as_ref()),
                None => current.source(),
            };
        }
        if out_of_memory {
            UnitError::OutOfMemory(EngineError::EvaluationFailed {
                view: self.view_name.clone(),
                why: format!(
                    "its query needs more memory than the workers have, raise their limit; {}",
                    first_line(&error.to_string())
                ),
            })
        } else if missing {
            UnitError::SourceGone(first_line(&error.to_string()))
        } else if of_storage {
            UnitError::Other(EngineError::Unavailable {
                what: format!(
                    "storage, while rows of view '{}' were computed,",
                    self.view_name
                ),
                why: first_line(&error.to_string()),
            })
        } else {
            UnitError::Other(EngineError::EvaluationFailed {
                view: self.view_name.clone(),
                why: first_line(&error.to_string()),
            })
        }
    }
}
