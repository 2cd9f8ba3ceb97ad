//! `GROUP BY` in two steps: the *states* of a part of the rows (a count and a
//! sum for an average, the values seen for a distinct count), and the groups
//! that come of the states of all parts.
//!
//! The steps are DataFusion's own `Partial` and `Final` aggregation, taken
//! apart: states are batches of columns, so that they can be stored. It works
//! for aggregates whose states merge to the same in any order. Sums and means
//! of floating-point values do up to their last bits, which depend on how the
//! rows were parted; all others exactly, `min` and `max` of values with NaN
//! among them because [`extremes`] takes their place. Views with any other
//! aggregate are computed whole.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use datafusion::common::Result;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use futures::StreamExt;
use lance_datafusion::exec::OneShotExec;

use super::extremes;

/// Aggregates whose states merge to the same in any order.
const MERGEABLE: &[&str] = &[
    "approx_distinct",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "max",
    "median",
    "min",
    "stddev",
    "stddev_pop",
    "sum",
    "var",
    "var_pop",
];

/// Those that also do where they are over distinct values.
const MERGEABLE_DISTINCT: &[&str] = &["avg", "count", "max", "median", "min", "sum"];

/// A grouped query taken apart. Its leaves are placeholders for rows.
#[derive(Clone, Debug)]
pub struct Merge {
    /// From rows to states.
    partial: Arc<AggregateExec>,
    /// From states to groups: all that stands above the partial aggregation.
    above: Arc<dyn ExecutionPlan>,
}

impl Merge {
    /// Takes `sql` over one table, `table` of `schema`, apart. `None` if one
    /// of its aggregates cannot be merged.
    pub(super) async fn new(sql: &str, table: &str, schema: &SchemaRef) -> Result<Option<Merge>> {
        // As it is written: no rule may turn it into another query, and no two
        // steps into one. Some functions, as `coalesce`, are there only to be
        // simplified to others.
        let state = SessionStateBuilder::new_with_default_features()
            .with_config(SessionConfig::new().with_target_partitions(1))
            .with_optimizer_rules(vec![Arc::new(SimplifyExpressions::new())])
            .with_physical_optimizer_rules(Vec::new())
            .build();
        let context = SessionContext::new_with_state(state);
        extremes::register(&context);
        context.register_table(table, Arc::new(EmptyTable::new(schema.clone())))?;
        let plan = context.sql(sql).await?.create_physical_plan().await?;
        let mut partials = Vec::new();
        let mut aggregates = 0;
        plan.apply(|node| {
            if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
                aggregates += 1;
                if *aggregate.mode() == AggregateMode::Partial {
                    partials.push(aggregate.clone());
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let [partial] = partials.as_slice() else {
            return Ok(None);
        };
        let mergeable = partial.aggr_expr().iter().all(|call| {
            let known = match call.is_distinct() {
                true => MERGEABLE_DISTINCT,
                false => MERGEABLE,
            };
            known.contains(&call.fun().name()) && call.order_bys().is_empty()
        });
        let single_set = partial.group_expr().is_single();
        // By a constant alone: one group, which DataFusion has even of no rows.
        let keys = partial.group_expr().expr();
        let keyed = keys.iter().any(|(key, _)| !collect_columns(key).is_empty());
        if aggregates != 2 || !mergeable || !single_set || !keyed {
            return Ok(None);
        }
        Ok(Some(Merge {
            partial: Arc::new(partial.clone()),
            above: plan,
        }))
    }

    /// The columns of states.
    pub fn schema(&self) -> SchemaRef {
        self.partial.schema()
    }

    /// The states of `rows`, which have the columns of the table by name.
    pub(super) fn states(
        &self,
        rows: SendableRecordBatchStream,
        config: SessionConfig,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<SendableRecordBatchStream> {
        let partial: Arc<dyn ExecutionPlan> = self.partial.clone();
        let plan = put(partial, rows, |node| node.is::<EmptyExec>())?;
        run(plan, config, runtime)
    }

    /// The groups that come of all the `states`.
    pub(super) fn merged(
        &self,
        states: SendableRecordBatchStream,
        config: SessionConfig,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<SendableRecordBatchStream> {
        let is_partial = |node: &dyn ExecutionPlan| {
            node.downcast_ref::<AggregateExec>()
                .is_some_and(|a| *a.mode() == AggregateMode::Partial)
        };
        let plan = put(self.above.clone(), states, is_partial)?;
        run(plan, config, runtime)
    }
}

/// `plan` with `rows` in the place of the one node that `is_leaf` tells.
fn put(
    plan: Arc<dyn ExecutionPlan>,
    rows: SendableRecordBatchStream,
    is_leaf: impl Fn(&dyn ExecutionPlan) -> bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut rows = Some(rows);
    plan.transform_down(|node| {
        if !is_leaf(node.as_ref()) {
            return Ok(Transformed::no(node));
        }
        let rows = rows.take().ok_or_else(|| {
            DataFusionError::Internal("a grouped query reads its rows twice".to_string())
        })?;
        let leaf: Arc<dyn ExecutionPlan> =
            Arc::new(OneShotExec::new(in_columns(rows, node.schema())));
        Ok(Transformed::new(leaf, true, TreeNodeRecursion::Jump))
    })
    .map(|changed| changed.data)
}

/// `rows` with just the columns of `schema`, by name.
fn in_columns(rows: SendableRecordBatchStream, schema: SchemaRef) -> SendableRecordBatchStream {
    let wanted = schema.clone();
    let rows = rows.map(move |batch| {
        let batch = batch?;
        let columns = wanted
            .fields()
            .iter()
            .map(|field| {
                batch.column_by_name(field.name()).cloned().ok_or_else(|| {
                    DataFusionError::Internal(format!("there is no column '{}'", field.name()))
                })
            })
            .collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(
            wanted.clone(),
            columns,
            &options,
        )?)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

fn run(
    plan: Arc<dyn ExecutionPlan>,
    config: SessionConfig,
    runtime: &Arc<RuntimeEnv>,
) -> Result<SendableRecordBatchStream> {
    let mut config = config.with_target_partitions(1);
    // States shall be one for each group, not one for each row.
    let execution = &mut config.options_mut().execution;
    execution.skip_partial_aggregation_probe_rows_threshold = usize::MAX;
    let context = SessionContext::new_with_config_rt(config, runtime.clone());
    execute_stream(plan, context.task_ctx())
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, StringArray};
    use arrow_cast::pretty::pretty_format_batches;
    use arrow_schema::{DataType, Field, Schema};
    use futures::TryStreamExt;

    use super::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("k", DataType::Utf8, true),
            Field::new("x", DataType::Int64, true),
        ]))
    }

    fn rows(of: std::ops::Range<i64>) -> SendableRecordBatchStream {
        let keys = of
            .clone()
            .map(|i| (i % 4 != 3).then(|| format!("k{}", i % 3)));
        let values = of.map(|i| (i % 5 != 2).then_some(i * 7 % 11));
        let batch = RecordBatch::try_new(
            schema(),
            vec![
                Arc::new(StringArray::from_iter(keys)),
                Arc::new(Int64Array::from_iter(values)),
            ],
        )
        .unwrap();
        let rows = futures::stream::iter([Ok(batch)]);
        Box::pin(RecordBatchStreamAdapter::new(schema(), rows))
    }

    async fn by_parts(sql: &str, cuts: &[i64]) -> String {
        let runtime = Arc::new(RuntimeEnv::default());
        let merge = Merge::new(sql, "t", &schema()).await.unwrap().unwrap();
        let mut states = Vec::new();
        for pair in cuts.windows(2) {
            let part = merge.states(rows(pair[0]..pair[1]), SessionConfig::new(), &runtime);
            let part = part.unwrap();
            states.extend(part.try_collect::<Vec<_>>().await.unwrap());
        }
        let all = futures::stream::iter(states.into_iter().map(Ok));
        let all = RecordBatchStreamAdapter::new(merge.schema(), all);
        let groups = merge
            .merged(Box::pin(all), SessionConfig::new(), &runtime)
            .unwrap();
        let groups: Vec<RecordBatch> = groups.try_collect().await.unwrap();
        let text = pretty_format_batches(&groups).unwrap().to_string();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    #[tokio::test]
    async fn groups_are_the_same_however_the_rows_are_parted() {
        for sql in [
            "SELECT k, count(*) AS n, count(x) AS c, sum(x) AS s, min(x) AS a, max(k) AS b, \
             avg(x) AS m FROM t GROUP BY k",
            "SELECT x % 3 AS g, count(DISTINCT x) AS d, sum(DISTINCT x) AS s FROM t GROUP BY x % 3",
            "SELECT k, median(x) AS m, bit_xor(x) AS b, bool_and(x > 1) AS w, \
             approx_distinct(x) AS e FROM t GROUP BY k",
            "SELECT k, x, sum(x) FILTER (WHERE x > 3) AS s, max(x) + count(*) AS t FROM t \
             GROUP BY k, x",
            "SELECT coalesce(k, '?') AS c, sum(coalesce(x, 1)) AS s, nvl2(max(x), 1, 0) AS n FROM t \
             GROUP BY coalesce(k, '?')",
        ] {
            let whole = by_parts(sql, &[0, 100]).await;
            assert!(whole.lines().count() > 4, "{whole}");
            assert_eq!(by_parts(sql, &[0, 1, 50, 51, 100]).await, whole, "{sql}");
        }
    }

    #[tokio::test]
    async fn floats_that_cannot_be_compared_merge_to_the_same_too() {
        // Of each group some are NaN, some zero and some minus zero.
        let value = "CASE x % 4 WHEN 0 THEN x * 0.0 / 0.0 WHEN 1 THEN 0.0 WHEN 2 THEN -0.0 \
                     ELSE x END";
        for float in ["DOUBLE", "FLOAT"] {
            let value = format!("CAST({value} AS {float})");
            let sql = format!(
                "SELECT k, min({value}) AS a, max({value}) AS b, max(DISTINCT -{value}) AS c \
                 FROM t GROUP BY k"
            );
            let whole = by_parts(&sql, &[0, 100]).await;
            assert!(whole.contains("NaN") && whole.contains("-0.0"), "{whole}");
            let each: Vec<i64> = (0..=100).collect();
            for cuts in [&each[..], &[0, 7, 13, 77, 100]] {
                assert_eq!(by_parts(&sql, cuts).await, whole, "{sql} {cuts:?}");
            }
        }
    }

    #[tokio::test]
    async fn no_rows_give_no_groups() {
        let text = by_parts("SELECT k, count(*) AS n FROM t GROUP BY k", &[]).await;
        assert!(!text.contains('0'), "{text}");
    }

    #[tokio::test]
    async fn aggregates_that_depend_on_the_order_of_rows_are_not_taken_apart() {
        for sql in [
            "SELECT k, array_agg(x) AS a FROM t GROUP BY k",
            "SELECT k, first_value(x ORDER BY x) AS a FROM t GROUP BY k",
            "SELECT k, string_agg(k, ',') AS a, count(*) AS n FROM t GROUP BY k",
            "SELECT k, approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY x) AS a FROM t GROUP BY k",
        ] {
            assert!(
                Merge::new(sql, "t", &schema()).await.unwrap().is_none(),
                "{sql}"
            );
        }
    }
}
