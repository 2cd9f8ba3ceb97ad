//! A SQL view planned over its source, and evaluated.
//!
//! Expressions mean what they mean to lancedb, because lance's own planner
//! reads them and a Lance scan evaluates them.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::{RecordBatch, new_null_array};
use arrow_schema::{DataType, Field, FieldRef, Schema as ArrowSchema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_expr::{Expr, Volatility};
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::ROW_ID;
use lance::dataset::scanner::{MaterializationStyle, Scanner};
use lance_datafusion::planner::Planner;
use lancedb::materialized_view::{LateralSource, MaterializedViewDefinition, ViewProjection};
use lancedb::table::computed_columns::computed_column_from_field;
use tokio::sync::OnceCell;

use super::lancedb::SOURCE_ROW_ID;
use super::merge::Merge;
use super::unnest::{Unnest, flattened};
use super::{ViewInfo, grouped, output};
use crate::engine::error::{EngineError, Result};
use crate::engine::fingerprint::Reads;
use crate::engine::memory::Memory;
use crate::engine::partials::LARGEST;
use crate::engine::unit::Extent;
use crate::engine::{scan, width};

/// What the states of a part may take until it is seen that they are too many: what
/// is kept of them has indices besides.
const STATES: u64 = 4 * LARGEST as u64;

/// How a view's rows depend on its source's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each source row gives its view rows by itself: units can be computed one by one.
    RowWise,
    /// The first rows of the whole source.
    Limited(u64),
    /// Groups of the whole source.
    Grouped,
}

/// A SQL view planned over one version of its source.
#[derive(Clone, Debug)]
pub struct Planned {
    definition: MaterializedViewDefinition,
    unnest: Option<Arc<Unnest>>,
    /// The source's top-level columns that the view reads.
    columns: BTreeSet<String>,
    /// Whether there are blobs among them.
    blobs: bool,
    /// Whether the view holds the source's row ids.
    provenance: bool,
    /// The view's own schema, which every batch is brought to.
    schema: SchemaRef,
    /// How groups are merged from parts, where they can be.
    merge: Option<Merge>,
    /// What scans and groups may hold.
    memory: Memory,
    /// What the states of a part of the groups may.
    states: Memory,
    /// About how many bytes a source row has of what the view reads, once it is known.
    width: OnceCell<u64>,
}

impl Planned {
    /// Plans `view` over `source`. Errors: `DefinitionMismatch` where the
    /// definition cannot be evaluated or no longer gives the view's columns,
    /// `Unsupported` for functions whose result changes by itself.
    pub fn new(
        view: &ViewInfo,
        table: &Dataset,
        source: &Dataset,
        memory: &Memory,
    ) -> Result<Planned> {
        view.require_refreshable()?;
        let stored = view
            .definition
            .as_ref()
            .ok_or_else(|| EngineError::Internal("a SQL view without a definition".to_string()))?;
        let mismatch = |why: String| EngineError::DefinitionMismatch {
            view: view.name(),
            why,
        };
        let source_schema = Arc::new(ArrowSchema::from(source.schema()));
        let schema = Arc::new(ArrowSchema::from(table.schema()));
        let unnest = match stored.lateral.as_ref().map(|l| (&l.source, &l.alias)) {
            Some((LateralSource::Unnest { column }, alias)) => {
                if stored.limit.is_some() {
                    return Err(mismatch(
                        "LIMIT cannot be combined with UNNEST; drop one of them".to_string(),
                    ));
                }
                Some((column.clone(), alias.clone()))
            }
            _ => None,
        };
        let read_schema = match &unnest {
            Some((column, alias)) => flattened(&source_schema, column, alias).map_err(&mismatch)?,
            None => source_schema.clone(),
        };
        let mut definition = stored.clone();
        if definition.selects_star() {
            definition.projections = read_schema
                .fields()
                .iter()
                .map(|field| ViewProjection {
                    output: field.name().clone(),
                    expression: quoted(field.name()),
                })
                .collect();
        }

        let provenance = schema.field_with_name(SOURCE_ROW_ID).is_ok()
            && !definition
                .projections
                .iter()
                .any(|p| p.output == SOURCE_ROW_ID);
        let (types, mut columns) = if definition.is_grouped() {
            let planned = grouped::plan(&source_schema, &definition).map_err(&mismatch)?;
            refuse_changing(view, &planned.exprs)?;
            (planned.types, planned.columns)
        } else {
            let mut types = Vec::with_capacity(definition.projections.len());
            let mut columns = BTreeSet::new();
            for projection in &definition.projections {
                let (expr, data_type) =
                    typed(&read_schema, &projection.expression).map_err(|why| {
                        mismatch(format!(
                            "column '{}' cannot be computed from '{}' ({why}); restore the source \
                             column or recreate the view",
                            projection.output, definition.source_table
                        ))
                    })?;
                refuse_changing(view, std::slice::from_ref(&expr))?;
                columns.extend(roots(&read_schema, &expr));
                types.push((projection.output.clone(), data_type));
            }
            (types, columns)
        };
        let columns_given = columns.len();
        if let Some(filter) = &definition.filter {
            let unfit = |why: String| {
                mismatch(format!(
                    "its filter cannot be evaluated over '{}' ({why}); restore the source column \
                     or recreate the view",
                    definition.source_table,
                ))
            };
            let expr = Planner::new(read_schema.clone())
                .parse_filter(filter)
                .map_err(|e| unfit(crate::engine::words::first_line(&e.to_string())))?;
            known(&read_schema, &expr).map_err(unfit)?;
            refuse_changing(view, std::slice::from_ref(&expr))?;
            columns.extend(roots(&read_schema, &expr));
        }
        if columns_given == 0 && !provenance && !definition.is_grouped() && unnest.is_none() {
            return Err(mismatch(
                "none of its columns comes of the source; add one that does".to_string(),
            ));
        }
        let unnest = match unnest {
            None => None,
            Some((column, alias)) => {
                columns.remove(&alias);
                columns.insert(column.clone());
                let unnest = Unnest::new(&source_schema, &definition, &column, &alias);
                Some(Arc::new(unnest.map_err(&mismatch)?))
            }
        };

        let stored =
            output::computed(&schema).filter(|f| !(provenance && f.name() == SOURCE_ROW_ID));
        output::check(view, stored, &types, output::stores)?;
        let merge = match definition.is_grouped() {
            true => {
                let scanned = scanned(&source_schema, &columns, provenance);
                grouped::merge(&scanned, &definition, provenance).map_err(&mismatch)?
            }
            false => None,
        };
        let memory = match definition.is_grouped() {
            true => memory.beside_pool(1),
            false => memory.clone(),
        };
        let states = match merge {
            Some(_) => memory.apart(STATES)?,
            None => memory.clone(),
        };
        let read = source.schema().fields.iter();
        let mut read = read.filter(|field| columns.contains(&field.name));
        Ok(Planned {
            definition,
            unnest,
            blobs: read.any(scan::holds_blobs),
            provenance,
            schema,
            width: OnceCell::new(),
            columns,
            merge,
            memory,
            states,
        })
    }

    /// How the view's rows depend on the source's rows.
    pub fn shape(&self) -> Shape {
        if self.definition.is_grouped() {
            Shape::Grouped
        } else if let Some(limit) = self.definition.limit {
            Shape::Limited(limit)
        } else {
            Shape::RowWise
        }
    }

    /// Whether each of the view's rows comes of one row of the source, and no other
    /// does.
    pub fn is_by_rows(&self) -> bool {
        self.shape() == Shape::RowWise && self.unnest.is_none()
    }

    /// The view's filter.
    pub fn filter(&self) -> Option<&str> {
        self.definition.filter.as_deref()
    }

    /// Whether the view holds the source's row ids (the 0.38 to 0.40 form).
    pub fn provenance(&self) -> bool {
        self.provenance
    }

    /// The names of the view's columns that a refresh computes.
    pub fn computed_names(&self) -> impl Iterator<Item = &str> {
        output::computed(&self.schema).map(|f| f.name().as_str())
    }

    /// What the view reads of each source row.
    pub fn reads(&self, source: &Dataset) -> Reads {
        Reads::new(
            &format!("{}\n{:?}", self.definition.to_sql(), self.types()),
            source.schema(),
            &self.columns,
            self.provenance,
            source.manifest().uses_stable_row_ids(),
        )
    }

    fn types(&self) -> Vec<(&String, &DataType)> {
        self.schema
            .fields()
            .iter()
            .map(|f| (f.name(), f.data_type()))
            .collect()
    }

    /// The view's rows of `extent` of `source` (all, if `None`), in the view's
    /// schema. Groups are computed slowly and within whatever memory there is if
    /// `frugal`. Errors in the stream are of evaluation or of storage.
    pub async fn evaluate(
        &self,
        source: &Dataset,
        extent: Option<&Extent>,
        frugal: bool,
    ) -> lance::Result<SendableRecordBatchStream> {
        let schema = self.schema.clone();
        if self.definition.limit == Some(0) || extent.is_some_and(Extent::is_empty) {
            return Ok(Box::pin(RecordBatchStreamAdapter::new(
                schema,
                futures::stream::empty(),
            )));
        }
        let mut scanner = self.scan(source);
        if let Some(extent) = extent {
            extent.restrict(&mut scanner).await?;
        }
        if self.provenance {
            scanner.with_row_id();
        }
        if let (Some(filter), None) = (&self.definition.filter, &self.unnest) {
            scanner.filter(filter)?;
        }
        if self.definition.is_grouped() {
            let rows = self.grouped_rows(scanner).await?;
            let config = self.memory.session(self.width(source).await?, frugal);
            let context = SessionContext::new_with_config_rt(config, self.memory.runtime().clone());
            let groups =
                grouped::execute(&context, rows, &self.definition, self.provenance).await?;
            return Ok(self.conform(groups));
        }
        if let Some(unnest) = &self.unnest {
            scanner.project(unnest.inputs())?;
            let rows = self.stored(&mut scanner).await?;
            let unnest = unnest.clone();
            let expanded = rows
                .map(move |batch| unnest.clone().apply(batch?).map(futures::stream::iter))
                .try_flatten();
            let given = schema.clone();
            return Ok(self.conform(Box::pin(RecordBatchStreamAdapter::new(given, expanded))));
        }
        let transforms: Vec<(&str, &str)> = self
            .definition
            .projections
            .iter()
            .map(|p| (p.output.as_str(), p.expression.as_str()))
            .collect();
        scanner.project_with_transform(&transforms)?;
        if let Some(limit) = self.definition.limit {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            scanner.limit(Some(limit), None)?;
        }
        let rows = self.stored(&mut scanner).await?;
        Ok(self.conform(rows))
    }

    /// A scan within the bounds of memory. It asks no index which rows pass a filter:
    /// that would be read whole for each unit, and some find other rows than the
    /// filter does, such as one for words that leaves the most common ones out.
    fn scan(&self, source: &Dataset) -> Scanner {
        let mut scanner = source.scan();
        self.memory.bound(&mut scanner);
        scanner.materialization_style(MaterializationStyle::AllEarly);
        scanner.use_scalar_index(false);
        scanner
    }

    async fn stored(&self, scanner: &mut Scanner) -> lance::Result<SendableRecordBatchStream> {
        scan::stored(scanner, self.blobs.then_some(&self.memory)).await
    }

    /// The rows that groups are computed from, as `scanner` filters them.
    async fn grouped_rows(&self, mut scanner: Scanner) -> lance::Result<SendableRecordBatchStream> {
        let columns: Vec<&String> = self.columns.iter().collect();
        if columns.is_empty() {
            // Nothing is read, yet rows must be counted.
            scanner.with_row_id();
        }
        scanner.project(&columns)?;
        self.stored(&mut scanner).await
    }

    /// About how many bytes a row of `source`, which the view was planned over, has of
    /// what the view reads: at most, where that is little, or else by some of the rows.
    pub async fn width(&self, source: &Dataset) -> lance::Result<u64> {
        let look = async || {
            let most = width::most(source, |name| self.columns.contains(name));
            match self.memory.matters(most) {
                true => Ok(width::sampled(source, &self.columns).await?.unwrap_or(most)),
                false => Ok(most),
            }
        };
        self.width.get_or_try_init(look).await.copied()
    }

    /// How the view's groups are merged from parts; `None` if it has none, or
    /// they are to be computed whole.
    pub fn merge(&self) -> Option<&Merge> {
        self.merge.as_ref()
    }

    /// The states of the groups of `extent` of `source`.
    pub async fn states(
        &self,
        source: &Dataset,
        extent: &Extent,
    ) -> datafusion::common::Result<SendableRecordBatchStream> {
        let merge = self.merge.as_ref().ok_or_else(|| {
            DataFusionError::Internal("the view's groups cannot be merged".to_string())
        })?;
        let mut scanner = self.scan(source);
        extent.restrict(&mut scanner).await?;
        if self.provenance {
            scanner.with_row_id();
        }
        if let Some(filter) = &self.definition.filter {
            scanner.filter(filter)?;
        }
        let config = self.states.session(self.width(source).await?, false);
        let rows = self.grouped_rows(scanner).await?;
        merge.states(rows, config, self.states.runtime())
    }

    /// The view's rows that come of all the `states`, which are those of `source`.
    pub async fn merged(
        &self,
        source: &Dataset,
        merge: &Merge,
        states: SendableRecordBatchStream,
    ) -> datafusion::common::Result<SendableRecordBatchStream> {
        let config = self.memory.session(self.width(source).await?, false);
        Ok(self.conform(merge.merged(states, config, self.memory.runtime())?))
    }

    /// Brings each batch to the view's schema: row ids under their stored
    /// name, and columns that their own declaration computes as NULL.
    fn conform(&self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let schema = self.schema.clone();
        let provenance = self.provenance;
        let rows = rows.map(move |batch| conform(&batch?, &schema, provenance));
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows))
    }
}

fn conform(
    batch: &RecordBatch,
    schema: &SchemaRef,
    provenance: bool,
) -> datafusion::common::Result<RecordBatch> {
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        if computed_column_from_field(field).is_some() {
            columns.push(new_null_array(field.data_type(), batch.num_rows()));
            continue;
        }
        let name = if provenance && field.name() == SOURCE_ROW_ID {
            ROW_ID
        } else {
            field.name()
        };
        let column = batch.column_by_name(name).ok_or_else(|| {
            DataFusionError::Internal(format!("the scan gave no column '{name}'"))
        })?;
        columns.push(output::brought(column, field.data_type())?);
    }
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(
        schema.clone(),
        columns,
        &options,
    )?)
}

/// What a scan for groups gives: `columns` of `source`, and row ids where they
/// are asked for or nothing else is.
fn scanned(source: &SchemaRef, columns: &BTreeSet<String>, row_ids: bool) -> SchemaRef {
    let mut fields: Vec<FieldRef> = source
        .fields()
        .iter()
        .filter(|field| columns.contains(field.name()))
        .cloned()
        .collect();
    if row_ids || fields.is_empty() {
        fields.push(Arc::new(Field::new(ROW_ID, DataType::UInt64, true)));
    }
    Arc::new(ArrowSchema::new(fields))
}

/// `name` as lance's parser reads an identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// An expression over `schema` as it was written, and its type.
fn typed(schema: &SchemaRef, sql: &str) -> std::result::Result<(Expr, DataType), String> {
    let said = |e: lance::Error| crate::engine::words::first_line(&e.to_string());
    let planner = Planner::new(schema.clone());
    let parsed = planner.parse_expr(sql).map_err(said)?;
    known(schema, &parsed)?;
    let optimized = planner.optimize_expr(parsed.clone()).map_err(said)?;
    let physical = planner.create_physical_expr(&optimized).map_err(said)?;
    let data_type = physical
        .data_type(schema.as_ref())
        .map_err(|e| crate::engine::words::first_line(&e.to_string()))?;
    Ok((parsed, data_type))
}

/// Refuses an expression over columns that `schema` has not: the planner
/// leaves that to the scan, and a source without rows is not scanned.
fn known(schema: &ArrowSchema, expr: &Expr) -> std::result::Result<(), String> {
    match Planner::column_names_in_expr(expr)
        .iter()
        .find(|column| root(schema, column).is_none())
    {
        Some(column) => Err(format!("there is no column '{column}'")),
        None => Ok(()),
    }
}

/// The top-level columns of `schema` that `expr` reads.
pub(super) fn roots(schema: &ArrowSchema, expr: &Expr) -> BTreeSet<String> {
    Planner::column_names_in_expr(expr)
        .iter()
        .filter_map(|path| root(schema, path))
        .collect()
}

/// The top-level column that the dotted `path` starts with. Names may hold
/// dots themselves: the whole path is tried first, then ever shorter starts.
fn root(schema: &ArrowSchema, path: &str) -> Option<String> {
    let mut start = path;
    loop {
        if schema.field_with_name(start).is_ok() {
            return Some(start.to_string());
        }
        start = &start[..start.rfind('.')?];
    }
}

/// Refuses functions whose result changes by itself: no refresh could say
/// that the view equals its definition.
pub(super) fn refuse_changing(view: &ViewInfo, exprs: &[Expr]) -> Result<()> {
    for expr in exprs {
        let mut found = None;
        // The closure never fails.
        let _ = expr.apply(|e| {
            let (name, volatility) = match e {
                Expr::ScalarFunction(call) if is_by_batch(call) => {
                    found = Some(format!(
                        "{}() for words that are not the same for all rows, of which those of \
                         the first row of each batch would count; give them as a literal",
                        call.func.name()
                    ));
                    return Ok(TreeNodeRecursion::Stop);
                }
                Expr::ScalarFunction(call) => (call.func.name(), call.func.signature().volatility),
                Expr::AggregateFunction(call) => {
                    (call.func.name(), call.func.signature().volatility)
                }
                Expr::WindowFunction(call) => (call.fun.name(), call.fun.signature().volatility),
                Expr::ScalarVariable(_, names) => {
                    found = Some(format!(
                        "{}, whose result changes by itself; store the value in the source instead",
                        names.join(".")
                    ));
                    return Ok(TreeNodeRecursion::Stop);
                }
                _ => return Ok(TreeNodeRecursion::Continue),
            };
            if volatility != Volatility::Immutable {
                found = Some(format!(
                    "{name}(), whose result changes by itself; store the value in the source \
                     instead"
                ));
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        });
        if let Some(call) = found {
            return Err(EngineError::Unsupported {
                view: view.name(),
                kind: view.kind.in_words(),
                why: format!("its query calls {call}"),
            });
        }
    }
    Ok(())
}

/// Whether the result for a row depends on which others it is computed with:
/// lance's `contains_tokens` takes its words from the first row of a batch.
fn is_by_batch(call: &datafusion_expr::expr::ScalarFunction) -> bool {
    call.func.name() == "contains_tokens" && call.args.iter().skip(1).any(Expr::any_column_refs)
}
