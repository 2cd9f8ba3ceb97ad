//! Which parts of a general query can be refreshed unit by unit.
//!
//! An optimized plan is cut into *branches*: its rows are the sum, as a
//! multiset, of theirs. A branch whose rows come one by one from one scan, its
//! *probe*, is cut into units by that table's fragments. All else is computed
//! whole.
//!
//! # Why that is right
//!
//! *Branches.* `UNION ALL` is the sum of its inputs. A projection, filter,
//! alias or unnest `f` gives each row's output from that row alone, so
//! `f(A + B) = f(A) + f(B)`: such nodes above a union move into its branches.
//!
//! *Units.* Let the path from a branch's root to its probe hold nothing but
//!
//! - projections, filters, aliases and unnests, as above, and
//! - joins in which every row of the probe's side finds its partners in the
//!   other side, `B`, by itself: inner joins; outer, semi, anti and mark joins
//!   that keep the rows of the probe's side. The rows that a probe row gives
//!   are `J(r, B)`, and the join's are the sum of these over all `r`.
//!
//! Then the branch's rows are a sum over the probe's rows, so that of a unit's
//! rows alone is the unit's part of the view, as long as every `B` is the same
//! for all units. Two things make it so: a unit's fingerprint holds all that
//! `B` reads, and `B` is *repeatable*: evaluated again over the same rows it
//! gives the same multiset, whatever order the rows come in. That is shown for
//! scans, projections, filters, aliases, unnests, unions, joins, `DISTINCT`,
//! and for aggregates that do not depend on their rows' order, over and
//! grouped by values that compare equal only if they are the same (floating
//! point has two zeros, and sums that depend on the order). `LIMIT`, windows
//! and sorts may break ties either way, so they are not repeatable.
//!
//! Expressions are functions of their row: those whose result changes by
//! itself are refused for every view, and subqueries that the optimizer leaves
//! in an expression rule a node out.

use arrow_schema::DataType;
use datafusion::common::Result;
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{Column, JoinType};
use datafusion_expr::{Distinct, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, TableScan};

/// Aggregates that give the same whatever order their rows come in.
const ORDERLESS: &[&str] = &[
    "count", "sum", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor",
];

/// The branches of `plan`: their rows together are the plan's.
pub fn split(plan: &LogicalPlan) -> Result<Vec<LogicalPlan>> {
    match plan {
        LogicalPlan::Union(union) => {
            let mut branches = Vec::new();
            for input in &union.inputs {
                for branch in split(input)? {
                    match renamed(&branch, plan)? {
                        Some(branch) => branches.push(branch),
                        None => return Ok(vec![plan.clone()]),
                    }
                }
            }
            Ok(branches)
        }
        _ if is_row_wise(plan)? => {
            let [input] = plan.inputs()[..] else {
                return Ok(vec![plan.clone()]);
            };
            let inputs = split(input)?;
            if inputs.len() < 2 {
                return Ok(vec![plan.clone()]);
            }
            inputs
                .into_iter()
                .map(|input| with_child(plan, 0, input))
                .collect()
        }
        _ => Ok(vec![plan.clone()]),
    }
}

/// `branch` with the columns named as those of `union`, which names them for
/// whatever is above it. `None` if their types are not the union's.
fn renamed(branch: &LogicalPlan, union: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let fields = union.schema().iter().zip(branch.schema().iter());
    let mut columns = Vec::new();
    for ((_, wanted), (qualifier, field)) in fields {
        if wanted.data_type() != field.data_type() {
            return Ok(None);
        }
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        columns.push(column.alias(wanted.name()));
    }
    LogicalPlanBuilder::from(branch.clone())
        .project(columns)?
        .build()
        .map(Some)
}

/// `plan` with another child at `position`.
fn with_child(plan: &LogicalPlan, position: usize, child: LogicalPlan) -> Result<LogicalPlan> {
    let mut at = 0;
    let mut child = Some(child);
    plan.clone()
        .map_children(|old| {
            at += 1;
            Ok(match child.take_if(|_| at == position + 1) {
                Some(new) => Transformed::yes(new),
                None => Transformed::no(old),
            })
        })
        .map(|changed| changed.data)
}

/// Whether each row that `plan` gives comes of one row of its only input.
fn is_row_wise(plan: &LogicalPlan) -> Result<bool> {
    Ok(matches!(
        plan,
        LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
    ) && plain(plan)?)
}

/// Whether no expression of `plan` reads other rows than its own.
fn plain(plan: &LogicalPlan) -> Result<bool> {
    let mut plain = true;
    plan.apply_expressions(|expr| {
        plain &= !expr.exists(|e| {
            Ok(matches!(
                e,
                Expr::ScalarSubquery(_)
                    | Expr::InSubquery(_)
                    | Expr::Exists(_)
                    | Expr::SetComparison(_)
                    | Expr::OuterReferenceColumn(..)
                    | Expr::WindowFunction(_)
            ))
        })?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(plain)
}

/// The path to a scan: which child to take, from the root.
pub type Path = Vec<usize>;

/// The paths to all scans by whose rows `branch` can be cut.
pub fn probes(branch: &LogicalPlan) -> Result<Vec<Path>> {
    let mut found = Vec::new();
    look(branch, &mut Vec::new(), &mut found)?;
    Ok(found)
}

fn look(plan: &LogicalPlan, path: &mut Path, found: &mut Vec<Path>) -> Result<()> {
    let mut descend = |child: &LogicalPlan, at: usize, found: &mut Vec<Path>| {
        path.push(at);
        let result = look(child, path, found);
        path.pop();
        result
    };
    match plan {
        LogicalPlan::TableScan(scan) if scan.fetch.is_none() && plain(plan)? => {
            found.push(path.clone());
        }
        LogicalPlan::Join(join) if plain(plan)? => {
            use JoinType::*;
            let from_left = matches!(
                join.join_type,
                Inner | Left | LeftSemi | LeftAnti | LeftMark
            );
            let from_right = matches!(
                join.join_type,
                Inner | Right | RightSemi | RightAnti | RightMark
            );
            if from_left && is_repeatable(&join.right)? {
                descend(&join.left, 0, found)?;
            }
            if from_right && is_repeatable(&join.left)? {
                descend(&join.right, 1, found)?;
            }
        }
        _ if is_row_wise(plan)? => {
            for child in plan.inputs() {
                descend(child, 0, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether `plan` gives the same rows each time, in whatever order.
fn is_repeatable(plan: &LogicalPlan) -> Result<bool> {
    let mut repeatable = true;
    plan.apply(|node| {
        repeatable &= match node {
            LogicalPlan::TableScan(scan) => scan.fetch.is_none() && plain(node)?,
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::Join(_) => plain(node)?,
            LogicalPlan::Union(_) | LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => {
                plain(node)?
            }
            LogicalPlan::Distinct(Distinct::All(input)) => input
                .schema()
                .fields()
                .iter()
                .all(|field| is_exact(field.data_type())),
            LogicalPlan::Aggregate(aggregate) => {
                let schema = aggregate.input.schema();
                let mut exact = plain(node)?;
                for key in &aggregate.group_expr {
                    exact &= match key {
                        Expr::GroupingSet(_) => false,
                        key => is_exact(&key.get_type(schema)?),
                    };
                }
                for expr in &aggregate.aggr_expr {
                    exact &= is_orderless(expr, schema)?;
                }
                exact
            }
            _ => false,
        };
        Ok(match repeatable {
            true => TreeNodeRecursion::Continue,
            false => TreeNodeRecursion::Stop,
        })
    })?;
    Ok(repeatable)
}

/// Whether an aggregate gives the same whatever order its rows come in.
fn is_orderless(expr: &Expr, schema: &datafusion_common::DFSchema) -> Result<bool> {
    let Expr::AggregateFunction(call) = expr.clone().unalias() else {
        return Ok(false);
    };
    let name = call.func.name();
    if !ORDERLESS.contains(&name) || !call.params.order_by.is_empty() {
        return Ok(false);
    }
    if name == "count" && !call.params.distinct {
        return Ok(true);
    }
    for arg in &call.params.args {
        if !is_exact(&arg.get_type(schema)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether values of this type that compare equal are the same.
fn is_exact(data_type: &DataType) -> bool {
    match data_type {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => false,
        DataType::Dictionary(_, value) => is_exact(value),
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            is_exact(f.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|f| is_exact(f.data_type())),
        other => !other.is_nested(),
    }
}

/// The scan at the end of `path`.
pub fn scan_at<'a>(plan: &'a LogicalPlan, path: &[usize]) -> Option<&'a TableScan> {
    match (plan, path) {
        (LogicalPlan::TableScan(scan), []) => Some(scan),
        (plan, [first, rest @ ..]) => scan_at(plan.inputs().get(*first)?, rest),
        _ => None,
    }
}

/// `plan` with the scan at the end of `path` put through `change`.
pub fn with_scan(
    plan: &LogicalPlan,
    path: &[usize],
    change: &dyn Fn(&TableScan) -> Result<TableScan>,
) -> Result<LogicalPlan> {
    match (plan, path) {
        (LogicalPlan::TableScan(scan), []) => Ok(LogicalPlan::TableScan(change(scan)?)),
        (plan, [first, rest @ ..]) => {
            let inputs = plan.inputs();
            let child = inputs.get(*first).ok_or_else(lost)?;
            with_child(plan, *first, with_scan(child, rest, change)?)
        }
        _ => Err(lost()),
    }
}

/// A plan that is not the one that was looked at.
pub fn lost() -> datafusion::error::DataFusionError {
    datafusion::error::DataFusionError::Internal("a branch lost its probe".to_string())
}

/// All scans of `plan` but the one at the end of `path`, where one is given.
/// Those within subqueries are among them; the rows that a recursive query has
/// so far are not.
pub fn other_scans(plan: &LogicalPlan, path: Option<&[usize]>) -> Result<Vec<TableScan>> {
    let mut found = Vec::new();
    collect(plan, path, &mut found)?;
    Ok(found)
}

fn collect(plan: &LogicalPlan, path: Option<&[usize]>, found: &mut Vec<TableScan>) -> Result<()> {
    if path.is_none() {
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                found.push(scan.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        return Ok(());
    }
    for (at, child) in plan.inputs().into_iter().enumerate() {
        match path {
            Some([first, rest @ ..]) if *first == at => collect(child, Some(rest), found)?,
            _ => collect(child, None, found)?,
        }
    }
    Ok(())
}
