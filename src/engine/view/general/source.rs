//! A source table as DataFusion sees it: a Lance scan, of all its rows or of a
//! unit's.
//!
//! Filters stay with DataFusion, so that they mean the same wherever they
//! stand in the query.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::source_as_provider;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::TableType;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_common::tree_node::TreeNodeRecursion;
use datafusion_expr::{Expr, LogicalPlan};
use lance::Dataset;
use lance::dataset::scanner::MaterializationStyle;
use lance_core::datatypes::BlobHandling;

use crate::engine::memory::Memory;
use crate::engine::scan::holds_blobs;
use crate::engine::unit::Extent;

/// One version of a source, or some of its rows.
#[derive(Clone, Debug)]
pub struct SourceTable {
    /// Which of the view's sources it is.
    pub index: usize,
    dataset: Arc<Dataset>,
    schema: SchemaRef,
    extent: Option<Extent>,
    memory: Memory,
}

impl SourceTable {
    /// All of `dataset`, the view's source at `index`.
    pub fn new(index: usize, dataset: Arc<Dataset>, memory: Memory) -> SourceTable {
        SourceTable {
            index,
            schema: Arc::new(scanned(&dataset)),
            dataset,
            extent: None,
            memory,
        }
    }

    /// The source.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The same, of these rows only.
    pub fn restricted(&self, extent: Extent) -> SourceTable {
        SourceTable {
            extent: Some(extent),
            ..self.clone()
        }
    }
}

/// The columns of `dataset` as a scan gives them: blobs as their bytes.
fn scanned(dataset: &Dataset) -> Schema {
    let schema = Schema::from(dataset.schema());
    let fields = schema.fields.iter().zip(&dataset.schema().fields);
    let fields = fields.map(|(field, stored)| match stored.is_blob() {
        true => Arc::new(Field::new(
            field.name(),
            DataType::LargeBinary,
            field.is_nullable(),
        )),
        false => field.clone(),
    });
    Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata.clone())
}

#[async_trait]
impl TableProvider for SourceTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        let mut scan = self.dataset.scan();
        let scans = state.config().get_extension::<Scans>();
        let memory = self.memory.beside_pool(scans.map_or(1, |scans| scans.0));
        memory.bound(&mut scan);
        scan.materialization_style(MaterializationStyle::AllEarly);
        if let Some(extent) = &self.extent {
            extent.restrict(&mut scan).await?;
        }
        if let Some(projection) = projection {
            let columns: Vec<&String> = projection
                .iter()
                .map(|at| self.schema.field(*at).name())
                .collect();
            scan.project(&columns)?;
        }
        let stored = self.dataset.schema();
        let is_read = |at: usize| projection.is_none_or(|projection| projection.contains(&at));
        let mut read = stored.fields.iter().enumerate();
        if read.any(|(at, field)| holds_blobs(field) && is_read(at)) {
            memory.bound_blobs(&mut scan);
        }
        scan.blob_handling(BlobHandling::AllBinary);
        scan.limit(limit.and_then(|l| i64::try_from(l).ok()), None)?;
        scan.create_plan().await.map_err(DataFusionError::from)
    }
}

/// How many tables a plan scans, as an extension of its session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scans(usize);

impl Scans {
    /// Those of `plan`, its subqueries included.
    pub fn of(plan: &LogicalPlan) -> datafusion::common::Result<Scans> {
        let mut scans = 0;
        plan.apply_with_subqueries(|node| {
            scans += usize::from(matches!(node, LogicalPlan::TableScan(_)));
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(Scans(scans))
    }
}

/// The source table behind a scan of a plan; `None` for the rows that a
/// recursive query has so far.
pub fn of(scan: &datafusion_expr::TableScan) -> datafusion::common::Result<Option<SourceTable>> {
    let provider = source_as_provider(&scan.source)?;
    if provider.downcast_ref::<CteWorkTable>().is_some() {
        return Ok(None);
    }
    match provider.downcast_ref::<SourceTable>() {
        Some(table) => Ok(Some(table.clone())),
        None => Err(DataFusionError::Internal(format!(
            "'{}' is no source table",
            scan.table_name
        ))),
    }
}
