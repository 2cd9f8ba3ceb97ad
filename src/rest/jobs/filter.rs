//! The filter of events: a boolean SQL expression over their columns, parsed
//! and evaluated by DataFusion.
//!
//! Comparisons, AND, OR, NOT, IN, LIKE, BETWEEN and IS NULL of columns and
//! literals: no functions, casts or subqueries, whose cost would be the
//! caller's to choose. What is left is done in a thread of its own, while the
//! one that serves requests goes on.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::DataType;
use datafusion::common::DFSchema;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionConfig;
use datafusion_sql::sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value};
use tokio::sync::{Semaphore, oneshot};

use crate::engine::view::deep::STACK;
use crate::rest::error::ApiError;

/// Longest filter, in bytes.
const LONGEST: usize = 4_096;

/// Deepest nesting of an expression.
const DEEPEST: usize = 32;

/// Which rows of `batch` the filter selects, once it is its turn. What is
/// neither true nor false is not selected.
pub async fn select(
    filter: &str,
    batch: &RecordBatch,
    turns: &Arc<Semaphore>,
) -> Result<BooleanArray, ApiError> {
    if filter.len() > LONGEST {
        return Err(ApiError::InvalidInput(format!(
            "filter has {} bytes and must have at most {LONGEST}",
            filter.len()
        )));
    }
    let (wanted, rows) = (filter.to_string(), batch.clone());
    let evaluated = beside(turns, move || evaluate(&wanted, &rows)).await?;
    let evaluated = evaluated.unwrap_or_else(|| Err("it cannot be evaluated".to_string()));
    evaluated.map_err(|why| {
        let schema = batch.schema();
        let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        ApiError::InvalidInput(format!(
            "filter is no boolean SQL expression over the columns {} ({why}); write one such as state = 'claim_complete'",
            columns.join(", ")
        ))
    })
}

/// Does `work` in a thread of its own, once it is its turn. `Ok(None)`: it
/// panicked.
async fn beside<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, ApiError> {
    let turn = turns.clone().acquire_owned().await;
    let (answer, worked) = oneshot::channel();
    let thread = std::thread::Builder::new().stack_size(STACK);
    let started = thread.spawn(move || {
        let _turn = turn;
        // Who asked may have gone meanwhile.
        let _ = answer.send(work());
    });
    match started {
        Ok(_) => Ok(worked.await.ok()),
        Err(error) => Err(ApiError::Unavailable(format!(
            "the filter cannot be evaluated now ({error}); try again"
        ))),
    }
}

fn evaluate(filter: &str, batch: &RecordBatch) -> Result<BooleanArray, String> {
    let said = |error: datafusion::error::DataFusionError| {
        let text = error.strip_backtrace();
        text.lines().next().unwrap_or_default().to_string()
    };
    let mut config = SessionConfig::new();
    config.options_mut().sql_parser.recursion_limit = DEEPEST;
    let state = SessionStateBuilder::new().with_config(config).build();
    let dialect = state.config().options().sql_parser.dialect;
    let parsed = state
        .sql_to_expr_with_alias(filter, &dialect)
        .map_err(said)?;
    if parsed.alias.is_some() {
        return Err("it has an alias".to_string());
    }
    allowed(&parsed.expr)?;
    let schema = DFSchema::try_from(batch.schema()).map_err(said)?;
    let logical = state
        .create_logical_expr_from_sql_expr(parsed, &schema)
        .map_err(said)?;
    let physical = state.create_physical_expr(logical, &schema).map_err(said)?;
    let data_type = physical.data_type(&batch.schema()).map_err(said)?;
    if data_type != DataType::Boolean {
        return Err(format!("it is of type {data_type}"));
    }
    let values = physical.evaluate(batch).map_err(said)?;
    let values = values.into_array(batch.num_rows()).map_err(said)?;
    Ok(values.as_boolean().clone())
}

/// Refuses what may cost more than a look at each row.
fn allowed(expr: &Expr) -> Result<(), String> {
    let mut open = vec![(expr, 1)];
    while let Some((expr, depth)) = open.pop() {
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} deep"));
        }
        let inner: Vec<&Expr> = match expr {
            Expr::Identifier(_) => Vec::new(),
            Expr::Value(value) if !matches!(value.value, Value::Placeholder(_)) => Vec::new(),
            Expr::Nested(inner)
            | Expr::IsNull(inner)
            | Expr::IsNotNull(inner)
            | Expr::IsTrue(inner)
            | Expr::IsNotTrue(inner)
            | Expr::IsFalse(inner)
            | Expr::IsNotFalse(inner)
            | Expr::UnaryOp {
                op: UnaryOperator::Not | UnaryOperator::Minus | UnaryOperator::Plus,
                expr: inner,
            } => vec![inner],
            Expr::BinaryOp {
                left,
                op:
                    BinaryOperator::And
                    | BinaryOperator::Or
                    | BinaryOperator::Eq
                    | BinaryOperator::NotEq
                    | BinaryOperator::Lt
                    | BinaryOperator::LtEq
                    | BinaryOperator::Gt
                    | BinaryOperator::GtEq,
                right,
            } => vec![left, right],
            Expr::InList { expr, list, .. } => std::iter::once(&**expr).chain(list).collect(),
            Expr::Between {
                expr, low, high, ..
            } => vec![expr, low, high],
            Expr::Like { expr, pattern, .. } | Expr::ILike { expr, pattern, .. } => {
                vec![expr, pattern]
            }
            _ => return Err("only comparisons of columns and literals are evaluated".to_string()),
        };
        open.extend(inner.into_iter().map(|inner| (inner, depth + 1)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, StringArray};
    use arrow_schema::{Field, Schema};

    use super::*;

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("state", DataType::Utf8, false),
            Field::new("claim_entity", DataType::Utf8, true),
            Field::new("rows_processed", DataType::Int64, true),
        ]);
        let state = StringArray::from(vec!["queued", "claim_complete", "done"]);
        let entity = StringArray::from(vec![None, Some("u1"), None]);
        let rows = Int64Array::from(vec![None, Some(8), None]);
        RecordBatch::try_new(
            Arc::new(schema),
            vec![Arc::new(state), Arc::new(entity), Arc::new(rows)],
        )
        .unwrap()
    }

    async fn selected(filter: &str) -> Result<Vec<usize>, String> {
        let turns = Arc::new(Semaphore::new(1));
        let selected = select(filter, &batch(), &turns).await;
        let selected = selected.map_err(|error| error.to_string())?;
        let rows = (0..selected.len())
            .filter(|&row| arrow_array::Array::is_valid(&selected, row) && selected.value(row));
        Ok(rows.collect())
    }

    #[tokio::test]
    async fn rows_are_selected_as_sql_says() {
        for (filter, rows) in [
            ("state = 'claim_complete'", vec![1]),
            ("STATE <> 'done' and not (state = 'queued')", vec![1]),
            ("state in ('queued', 'done')", vec![0, 2]),
            ("state not like 'claim%'", vec![0, 2]),
            ("claim_entity is null", vec![0, 2]),
            ("claim_entity <> 'u1'", vec![]),
            ("rows_processed between 5 and 9", vec![1]),
            ("rows_processed > -1", vec![1]),
            ("state = 'nothing'", vec![]),
            ("true", vec![0, 1, 2]),
        ] {
            assert_eq!(selected(filter).await, Ok(rows), "{filter}");
        }
    }

    #[tokio::test]
    async fn what_is_no_boolean_expression_over_the_columns_is_refused() {
        let deep = format!("{}true", "not ".repeat(500));
        let long = "true or ".repeat(400) + "true";
        let nested = "(".repeat(900) + "true" + &")".repeat(900);
        for filter in [
            "",
            " ",
            "state",
            "1",
            "'x'",
            "state =",
            "state = 'a' as b",
            "state = 'a'; drop table x",
            "colour = 'red'",
            "upper(state) = 'QUEUED'",
            "repeat(state, 1000000000) = 'x'",
            "state || state = 'x'",
            "cast(state as int) = 1",
            "state = $1",
            "state = ?",
            "exists (select 1)",
            "state in (select 1)",
            "events.state = 'a'",
            "rows_processed = 'many'",
            "\0",
            "'",
            "état = 'x'",
            &deep,
            &long,
            &nested,
        ] {
            let sentence = selected(filter).await.unwrap_err();
            assert!(sentence.starts_with("filter "), "{filter}: {sentence}");
            assert!(!sentence.contains('\n'), "{filter}: {sentence}");
        }
        let longest = format!("state = '{}'", "x".repeat(LONGEST));
        assert!(selected(&longest).await.unwrap_err().contains("4096"));
    }

    #[tokio::test]
    async fn a_filter_waits_for_its_turn_while_others_are_served() {
        let turns = Arc::new(Semaphore::new(1));
        let held = turns.clone().acquire_owned().await.unwrap();
        let (filter, batch) = ("state = 'done'", batch());
        let served = async {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            drop(held);
        };
        let (selected, ()) = tokio::join!(select(filter, &batch, &turns), served);
        assert_eq!(selected.unwrap().true_count(), 1);
        // Given back by the thread, whether it has been answered yet or not.
        let _ = turns.acquire().await.unwrap();
    }

    #[tokio::test]
    async fn the_thread_that_serves_requests_goes_on_while_a_filter_is_evaluated() {
        let turns = Arc::new(Semaphore::new(1));
        let (go, wait) = std::sync::mpsc::channel();
        let served = async { go.send(7).unwrap() };
        let (worked, ()) = tokio::join!(beside(&turns, move || wait.recv().unwrap()), served);
        assert_eq!(worked.unwrap(), Some(7));
        let panicked = beside(&turns, || panic!("a bug")).await;
        assert_eq!(panicked.unwrap(), None::<()>);
    }
}
