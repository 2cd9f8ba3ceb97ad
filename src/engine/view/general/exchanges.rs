//! Rows that are parted anew, by one who writes them.
//!
//! DataFusion's [`RepartitionExec`] spills what finds no place, into one pool of files
//! for all who write to a part. Where two of them do at a time, who reads waits for ever
//! (apache/datafusion#24883). One alone spills well.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_common::tree_node::{Transformed, TreeNode};

/// `plan` with one writer for each exchange that keeps no order: those that do have
/// files for each.
pub fn by_one(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some(exchange) = node.downcast_ref::<RepartitionExec>() else {
            return Ok(Transformed::no(node));
        };
        let input = exchange.input();
        if exchange.preserve_order() || input.output_partitioning().partition_count() == 1 {
            return Ok(Transformed::no(node));
        }
        let input = one(input.clone());
        Ok(Transformed::yes(
            node.clone().with_new_children(vec![input])?,
        ))
    })
    .map(|changed| changed.data)
}

/// The rows of all parts of `plan`.
pub fn one(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match plan.output_partitioning().partition_count() {
        1 => plan,
        _ => Arc::new(CoalescePartitionsExec::new(plan)),
    }
}
