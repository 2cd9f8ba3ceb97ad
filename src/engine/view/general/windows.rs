//! Windows over whole groups of rows, some groups at a time.
//!
//! DataFusion's [`WindowAggExec`], which it takes for all windows but those that it can
//! compute while rows come, holds all rows that it reads, and counts none of them. They
//! come sorted by what its windows are parted by, and what a window gives for a row
//! depends on rows of the same group alone. So it is given whole groups, of few rows
//! together where it can be, and what these take comes out of the pool: who has one
//! group that is larger is told so.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::{concat, partition};
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::WindowAggExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties,
    SendableRecordBatchStream,
};
use datafusion_common::tree_node::{Transformed, TreeNode};
use futures::{StreamExt, TryStreamExt};

use crate::engine::width::bytes_of;

/// How often rows are held: as they came, put together, and with what windows gave.
const TIMES: usize = 3;

/// `plan` with its windows computed by groups.
pub fn by_groups(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some(window) = node.downcast_ref::<WindowAggExec>() else {
            return Ok(Transformed::no(node));
        };
        let by_groups = ByGroups {
            keys: keys(window),
            input: window.input().clone(),
            window: node,
        };
        Ok(Transformed::yes(Arc::new(by_groups)))
    })
    .map(|changed| changed.data)
}

/// What all of its windows are parted by; none, if not by the same.
fn keys(window: &WindowAggExec) -> Vec<Arc<dyn PhysicalExpr>> {
    let mut all = window.window_expr().iter().map(|expr| expr.partition_by());
    let first = all.next().unwrap_or_default();
    match all.all(|keys| keys == first) {
        true => first.to_vec(),
        false => Vec::new(),
    }
}

/// A [`WindowAggExec`] that is given some groups at a time.
#[derive(Debug)]
struct ByGroups {
    window: Arc<dyn ExecutionPlan>,
    input: Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
}

impl DisplayAs for ByGroups {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ByGroups: ")?;
        self.window.fmt_as(t, f)
    }
}

impl ExecutionPlan for ByGroups {
    fn name(&self) -> &str {
        "ByGroups"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.window.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        by_groups(self.window.clone().with_new_children(children)?)
    }

    fn execute(&self, at: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let groups = Groups {
            rows: self.input.execute(at, context.clone())?,
            window: self.window.clone(),
            input: self.input.clone(),
            keys: self.keys.clone(),
            at_a_time: context.session_config().batch_size(),
            reservation: MemoryConsumer::new(format!("windows' groups [{at}]"))
                .register(context.memory_pool()),
            context,
            whole: Vec::new(),
            open: Vec::new(),
            next: None,
            last: None,
            over: false,
        };
        let given = futures::stream::try_unfold(groups, |mut groups| async move {
            let given = groups.next().await?;
            Ok::<_, DataFusionError>(given.map(|given| (given, groups)))
        });
        let given = given.map_ok(|given| futures::stream::iter(given.into_iter().map(Ok)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            given.try_flatten(),
        )))
    }
}

/// The rows on their way to the windows.
struct Groups {
    rows: SendableRecordBatchStream,
    window: Arc<dyn ExecutionPlan>,
    input: Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    context: Arc<TaskContext>,
    at_a_time: usize,
    reservation: MemoryReservation,
    /// Those of groups that are whole.
    whole: Vec<RecordBatch>,
    /// Those of the group after them, of which more may come.
    open: Vec<RecordBatch>,
    /// What has come, and found no place.
    next: Option<RecordBatch>,
    /// The keys of the last row that has come.
    last: Option<Vec<ArrayRef>>,
    over: bool,
}

impl Groups {
    /// The rows of the next groups, with what the windows give for them; `None` after
    /// the last.
    async fn next(&mut self) -> Result<Option<Vec<RecordBatch>>> {
        // What was given is used by now.
        self.reservation.resize(TIMES * self.held());
        while !self.over && rows_of(&self.whole) < self.at_a_time {
            let batch = match self.next.take() {
                Some(batch) => Some(batch),
                None => self.rows.next().await.transpose()?,
            };
            let Some(batch) = batch else {
                self.over = true;
                self.whole.append(&mut self.open);
                break;
            };
            if batch.num_rows() == 0 {
                continue;
            }
            if let Err(error) = self.reservation.try_grow(TIMES * bytes_of(&batch)) {
                if self.whole.is_empty() {
                    return Err(error);
                }
                self.next = Some(batch);
                break;
            }
            self.take(batch)?;
        }
        if self.whole.is_empty() {
            return Ok(None);
        }
        let rows = Rows {
            properties: self.input.properties().clone(),
            rows: Mutex::new(Some(std::mem::take(&mut self.whole))),
        };
        let window = self
            .window
            .clone()
            .with_new_children(vec![Arc::new(rows)])?;
        let given = window.execute(0, self.context.clone())?;
        let given: Vec<RecordBatch> = given.try_collect().await?;
        let slices = given.into_iter().flat_map(|batch| {
            let starts = (0..batch.num_rows()).step_by(self.at_a_time);
            let slice = |from: usize| {
                let rows = self.at_a_time.min(batch.num_rows() - from);
                batch.slice(from, rows)
            };
            starts.map(slice).collect::<Vec<_>>()
        });
        Ok(Some(slices.collect()))
    }

    /// Notes the rows of `batch`, which come after those that are there.
    fn take(&mut self, batch: RecordBatch) -> Result<()> {
        let rows = batch.num_rows();
        if self.keys.is_empty() {
            self.open.push(batch);
            return Ok(());
        }
        let keys = self.keys.iter();
        let keys = keys.map(|key| key.evaluate(&batch)?.into_array(rows));
        let keys = keys.collect::<Result<Vec<ArrayRef>>>()?;
        if let Some(last) = &self.last {
            let both = last.iter().zip(&keys);
            let both = both.map(|(last, key)| Ok(concat(&[last, &key.slice(0, 1)])?));
            if partition(&both.collect::<Result<Vec<_>>>()?)?.len() > 1 {
                self.whole.append(&mut self.open);
            }
        }
        let last = partition(&keys)?.ranges().pop().unwrap_or(0..rows);
        if last.start > 0 {
            self.whole.append(&mut self.open);
            self.whole.push(batch.slice(0, last.start));
        }
        self.open.push(batch.slice(last.start, rows - last.start));
        self.last = Some(keys.iter().map(|key| key.slice(rows - 1, 1)).collect());
        Ok(())
    }

    fn held(&self) -> usize {
        self.whole.iter().chain(&self.open).map(bytes_of).sum()
    }
}

fn rows_of(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// Rows in the place of what they came from, in the same order.
struct Rows {
    properties: Arc<PlanProperties>,
    rows: Mutex<Option<Vec<RecordBatch>>>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

impl DisplayAs for Rows {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

impl ExecutionPlan for Rows {
    fn name(&self) -> &str {
        "Rows"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = rows.take().ok_or_else(|| {
            DataFusionError::Internal("the rows of a window's groups were read twice".to_string())
        })?;
        let rows = futures::stream::iter(rows.into_iter().map(Ok));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::Int64Array;
    use arrow_cast::pretty::pretty_format_batches;
    use datafusion::datasource::MemTable;
    use datafusion::execution::memory_pool::MemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::physical_plan::execute_stream;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::engine::pool::Pool;

    const QUERY: &str = "SELECT k, j, x, sum(x) OVER (PARTITION BY k, j) AS s, \
                         count(*) OVER (PARTITION BY k, j) AS n FROM t";

    /// Rows of groups of some rows each, and one of a third of them, with NULL keys.
    async fn context(rows: i64, batch: usize, pool: usize) -> SessionContext {
        let column = |value: &dyn Fn(i64) -> Option<i64>| -> ArrayRef {
            Arc::new((0..rows).map(value).collect::<Int64Array>())
        };
        let columns = [
            (
                "k",
                column(&|n| (n % 3 > 0).then_some(n * 7919 % rows / 20)),
            ),
            ("j", column(&|n| (n % 3 > 0).then_some(n % 2))),
            ("x", column(&|n| Some(n * 31 % 17))),
        ];
        let batch_of = RecordBatch::try_from_iter(columns).unwrap();
        let table = MemTable::try_new(batch_of.schema(), vec![vec![batch_of]]).unwrap();
        let config = SessionConfig::new()
            .with_target_partitions(2)
            .with_batch_size(batch)
            .with_sort_spill_reservation_bytes(1 << 10);
        let pool: Arc<dyn MemoryPool> = Arc::new(Pool::new(pool));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool);
        let runtime = runtime.build_arc().unwrap();
        let context = SessionContext::new_with_config_rt(config, runtime);
        context.register_table("t", Arc::new(table)).unwrap();
        context
    }

    async fn rows(context: &SessionContext, sql: &str, parted: bool) -> Result<Vec<String>> {
        let mut plan = context.sql(sql).await?.create_physical_plan().await?;
        if parted {
            plan = by_groups(plan)?;
            let is_parted = format!("{plan:?}").contains("ByGroups");
            assert!(is_parted || !sql.contains("OVER (PARTITION BY k, j)"));
        }
        let given = execute_stream(plan, context.task_ctx())?;
        let given: Vec<RecordBatch> = given.try_collect().await?;
        let text = pretty_format_batches(&given)?.to_string();
        let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
        lines.sort_unstable();
        Ok(lines)
    }

    #[tokio::test]
    async fn windows_give_the_same_by_groups_however_batches_fall() {
        for batch in [1, 3, 64, 8192] {
            let context = context(500, batch, 1 << 30).await;
            for sql in [
                QUERY,
                "SELECT k, sum(x) OVER () AS s FROM t",
                "SELECT k, x, sum(s) OVER (PARTITION BY x) AS z FROM (\
                 SELECT k, x, sum(x) OVER (PARTITION BY k) AS s FROM t)",
                "SELECT k, ntile(3) OVER (PARTITION BY k ORDER BY x, j) AS n FROM t",
                "SELECT k, sum(x) OVER (PARTITION BY k ORDER BY x ROWS BETWEEN CURRENT ROW \
                 AND UNBOUNDED FOLLOWING) AS n FROM t",
            ] {
                let whole = rows(&context, sql, false).await.unwrap();
                let parted = rows(&context, sql, true).await.unwrap();
                assert_eq!(parted, whole, "{sql}, {batch}");
            }
        }
    }

    #[tokio::test]
    async fn what_groups_take_comes_out_of_the_pool() {
        // Nothing is larger than the largest group, and all are.
        let context = context(30_000, 256, 2 << 20).await;
        let few = "SELECT k, j, x, sum(x) OVER (PARTITION BY k, j, x) AS s FROM t";
        assert_eq!(rows(&context, few, true).await.unwrap().len(), 30_004);
        let all = "SELECT k, j, x, sum(x) OVER () AS s, count(*) OVER () AS n FROM t";
        let error = rows(&context, all, true).await.unwrap_err();
        assert!(error.to_string().contains("windows' groups"), "{error}");
    }
}
