//! Joins without an equality, which compare each row of one side with each of the other.
//!
//! DataFusion's [`NestedLoopJoinExec`] holds the rows of its left side. Where they find
//! no place it says nothing, but asks for all of them once more, spills them, and joins
//! some at a time. As it does that, rows are lost, or there are too many:
//!
//! - What has been asked once gives only the rows that are left (so do lance's scans), or
//!   panics. So the left side begins anew.
//! - Each part of the right side decides by its own rows which ones of the left side have
//!   a match. So the right side is one.
//! - Those of the right side that have none are forgotten where the last rows of the left
//!   side are the ones that found no place. So the sides of such a join are swapped; if
//!   both are to be given, it does not spill.
//!
//! What does not spill fails for memory, and says so.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::joins::NestedLoopJoinExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::work_table::WorkTableExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties, SendableRecordBatchStream,
};
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_expr::JoinType;

use super::exchanges::one;

/// `plan` with such joins as give all of their rows, whether they spill or not. They do
/// only if they may (`spills`).
pub fn whole(plan: Arc<dyn ExecutionPlan>, spills: bool) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() else {
            return Ok(Transformed::no(node));
        };
        let spilling = match spills && !reads_itself(&node)? {
            true => spilling(&node, join)?,
            false => None,
        };
        let whole = match spilling {
            Some(spilling) => spilling,
            None => with_sides(&node, join.left().clone(), false, join.right().clone())?,
        };
        Ok(Transformed::yes(whole))
    })
    .map(|changed| changed.data)
}

/// What gives the rows of `join`, which is `node`, where it spills; `None` if nothing does.
fn spilling(
    node: &Arc<dyn ExecutionPlan>,
    join: &NestedLoopJoinExec,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    use JoinType::{Full, Inner, Right, RightAnti, RightMark, RightSemi};
    let of = *join.join_type();
    let plan = match of {
        Full => return Ok(None),
        Right | RightSemi | RightAnti | RightMark => join.swap_inputs()?,
        _ => node.clone(),
    };
    if plan.schema() != node.schema() {
        return Ok(None);
    }
    let plan = plan.transform_down(|node| {
        // Swapped, it may be under a projection.
        let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() else {
            return Ok(Transformed::no(node));
        };
        let right = match of {
            Inner => join.right().clone(),
            _ => one(join.right().clone()),
        };
        let whole = with_sides(&node, one(join.left().clone()), true, right)?;
        Ok(Transformed::new(whole, true, TreeNodeRecursion::Jump))
    })?;
    // Another side may come parted just so.
    let parted = node.output_partitioning();
    let is_parted = matches!(parted, Partitioning::Hash(..)) && parted.partition_count() > 1;
    Ok(Some(match is_parted && of != Inner {
        true => Arc::new(RepartitionExec::try_new(plan.data, parted.clone())?),
        false => plan.data,
    }))
}

/// Whether `plan` reads the rows that a recursive query has so far: they can be asked
/// for once.
fn reads_itself(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    plan.exists(|node| Ok(node.downcast_ref::<WorkTableExec>().is_some()))
}

fn with_sides(
    join: &Arc<dyn ExecutionPlan>,
    left: Arc<dyn ExecutionPlan>,
    spills: bool,
    right: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let left = Arc::new(Again {
        input: left,
        spills,
        asked: AtomicBool::new(false),
    });
    join.clone().with_new_children(vec![left, right])
}

/// Rows that begin anew where they are asked for again, or say that they cannot be.
#[derive(Debug)]
struct Again {
    input: Arc<dyn ExecutionPlan>,
    spills: bool,
    asked: AtomicBool,
}

impl DisplayAs for Again {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Again: spills={}", self.spills)
    }
}

impl ExecutionPlan for Again {
    fn name(&self) -> &str {
        "Again"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children
            .pop()
            .ok_or_else(|| DataFusionError::Internal("rows that come from nowhere".to_string()))?;
        Ok(Arc::new(Again {
            input,
            spills: self.spills,
            asked: AtomicBool::new(false),
        }))
    }

    fn execute(&self, at: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if !self.asked.swap(true, Ordering::Relaxed) {
            return self.input.execute(at, context);
        }
        if !self.spills {
            return Err(DataFusionError::ResourcesExhausted(
                "one side of a join without an equality finds no place".to_string(),
            ));
        }
        reset_plan_states(self.input.clone())?.execute(at, context)
    }
}
