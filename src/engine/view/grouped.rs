//! `GROUP BY` views: planned and run by DataFusion over a Lance scan.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_schema::{DataType, SchemaRef};
use datafusion::datasource::empty::EmptyTable;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_expr::Expr;
use lance::dataset::ROW_ID;
use lance_datafusion::exec::SessionContextExt;
use lancedb::materialized_view::MaterializedViewDefinition;

use super::extremes;
use super::merge::Merge;
use super::sql::quoted;
use crate::engine::words::first_line;

/// The name that the source has in the query.
const SOURCE: &str = "__source";

/// What a grouped query gives and reads.
pub(super) struct PlannedGroups {
    /// The names and types of the output columns.
    pub types: Vec<(String, DataType)>,
    /// The source's columns that keys and aggregates read.
    pub columns: BTreeSet<String>,
    /// Every expression in the plan.
    pub exprs: Vec<Expr>,
}

/// Plans the query over a source of `schema`. The error is the end of a sentence.
pub(super) fn plan(
    schema: &SchemaRef,
    definition: &MaterializedViewDefinition,
) -> std::result::Result<PlannedGroups, String> {
    let said = |e: datafusion::error::DataFusionError| {
        format!(
            "it cannot be planned over '{}' ({}); restore the source column or recreate the view",
            definition.source_table,
            first_line(&e.to_string())
        )
    };
    let context = SessionContext::new();
    context
        .register_table(SOURCE, Arc::new(EmptyTable::new(schema.clone())))
        .map_err(said)?;
    let statement = context
        .state()
        .sql_to_statement(&sql(definition, false), &datafusion_sql_dialect())
        .map_err(said)?;
    // Planning is synchronous in all but name: the one table is in memory.
    let plan =
        futures::executor::block_on(context.state().statement_to_plan(statement)).map_err(said)?;
    let types = plan
        .schema()
        .fields()
        .iter()
        .map(|f| (f.name().clone(), f.data_type().clone()))
        .collect();
    let mut exprs = Vec::new();
    plan.apply(|node| {
        exprs.extend(node.expressions());
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(said)?;
    let columns = exprs
        .iter()
        .flat_map(|expr| expr.column_refs().into_iter().map(|c| c.name.clone()))
        .filter(|name| schema.field_with_name(name).is_ok())
        .collect();
    Ok(PlannedGroups {
        types,
        columns,
        exprs,
    })
}

/// The groups of `rows`, which the view's filter has passed already, computed in
/// `context`. With `row_ids` each group also has the smallest row id of its rows.
pub(super) async fn execute(
    context: &SessionContext,
    rows: SendableRecordBatchStream,
    definition: &MaterializedViewDefinition,
    row_ids: bool,
) -> datafusion::common::Result<SendableRecordBatchStream> {
    extremes::register(context);
    let source = context.read_one_shot(rows)?.into_view();
    context.register_table(SOURCE, source)?;
    let statement = context
        .state()
        .sql_to_statement(&sql(definition, row_ids), &datafusion_sql_dialect())?;
    let plan = context.state().statement_to_plan(statement).await?;
    context
        .execute_logical_plan(plan)
        .await?
        .execute_stream()
        .await
}

/// How the groups of rows of schema `scanned` are merged from parts; `None` if
/// one of the aggregates cannot be. The error is the end of a sentence.
pub(super) fn merge(
    scanned: &SchemaRef,
    definition: &MaterializedViewDefinition,
    row_ids: bool,
) -> std::result::Result<Option<Merge>, String> {
    let sql = sql(definition, row_ids);
    // As above: the one table is in memory.
    futures::executor::block_on(Merge::new(&sql, SOURCE, scanned)).map_err(|e| {
        format!(
            "its groups cannot be planned ({}); recreate the view",
            first_line(&e.to_string())
        )
    })
}

fn datafusion_sql_dialect() -> datafusion::config::Dialect {
    datafusion::config::Dialect::Generic
}

fn sql(definition: &MaterializedViewDefinition, row_ids: bool) -> String {
    let mut items: Vec<String> = definition
        .projections
        .iter()
        .map(|p| format!("{} AS {}", p.expression, quoted(&p.output)))
        .collect();
    if row_ids {
        items.push(format!("min({ROW_ID}) AS {ROW_ID}"));
    }
    format!(
        "SELECT {} FROM {SOURCE} GROUP BY {}",
        items.join(", "),
        definition.group_by.join(", ")
    )
}
