//! SQL views that go beyond lancedb's grammar: joins, several sources, common
//! table expressions, unions, `DISTINCT`, windows, `ORDER BY` with `LIMIT`,
//! subqueries.
//!
//! DataFusion plans the query over the sources, each at the plan's version
//! ([`source`]). What the optimized plan's scans read goes into the
//! fingerprints. Branches that come row by row from one table are cut into
//! units ([`branch`]); every other branch is one unit, computed again whole
//! when any fingerprint of any of its sources has changed.
//!
//! What is promised: the rows of the view are what the query gives, as a
//! multiset. Where the query leaves a choice, any of its results is right, and
//! the view keeps the one it has while the sources stay as they are: which of
//! the rows that tie at the end of an `ORDER BY … LIMIT` are in it, how a
//! window numbers rows that tie, in what order an array was aggregated, and
//! the last bits of floating-point sums.
//!
//! Names are taken as they are written; where the query cannot be planned so,
//! unquoted ones are taken in lower case, as SQL servers do.

pub mod branch;
pub mod cut;
mod exchanges;
mod loops;
pub mod names;
pub mod source;
mod windows;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow_schema::{DataType, Schema, SchemaRef};
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider,
};
use datafusion::datasource::provider_as_source;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_expr::{ExprSchemable, JoinType, LogicalPlan, TableScan};
use futures::StreamExt;
use lance::Dataset;
use lance_table::format::Fragment;
use tokio::sync::{OnceCell, RwLock};

use self::names::Query;
use self::source::{Scans, SourceTable};
use super::ViewInfo;
use super::output;
use super::sql::refuse_changing;
use crate::engine::error::{EngineError, Result};
use crate::engine::fingerprint::{Fingerprint, Reads};
use crate::engine::memory::{BLOBS, Memory};
use crate::engine::scan::holds_blobs;
use crate::engine::unit::Extent;
use crate::engine::width;
use crate::engine::words::first_line;

/// Where names of one and two parts are looked up. No table has such a name.
const CATALOG: &str = "\u{1}catalog";
const SCHEMA: &str = "\u{1}schema";

/// A general query planned over one version of each of its sources.
#[derive(Debug)]
pub struct General {
    /// The view's own schema, which every batch is brought to.
    schema: SchemaRef,
    branches: Vec<Branch>,
    /// Whether unquoted names are taken in lower case.
    lower: bool,
    memory: Memory,
    /// Whose turn it is to compute rows: many's, or that of one alone.
    turns: Arc<RwLock<()>>,
}

/// Rows of the view that are computed by themselves.
#[derive(Debug)]
pub struct Branch {
    plan: LogicalPlan,
    /// The scan by whose fragments it is cut; `None`: it is computed whole.
    pub probe: Option<Probe>,
    /// What it reads besides: all its scans, or those of the sides that the
    /// probe's rows are joined with.
    pub besides: Fingerprint,
    /// How many rows that is, as far as the manifests know.
    pub rows_besides: u64,
    /// Whether it reads blobs.
    blobs: bool,
    /// About how many bytes its widest rows have, once it is known.
    width: OnceCell<u64>,
}

/// A scan by whose fragments a branch is cut.
#[derive(Debug)]
pub struct Probe {
    path: branch::Path,
    /// Which of the view's sources it is.
    pub source: usize,
    /// What the branch reads of it.
    pub reads: Reads,
}

impl General {
    /// Plans `view` over `sources`, which are those of the view in their
    /// order. Errors: `DefinitionMismatch` where the query cannot be planned
    /// or does not give the view's columns, `Unsupported` for functions whose
    /// result changes by itself.
    pub async fn new(
        view: &ViewInfo,
        table: &Dataset,
        sources: &[Arc<Dataset>],
        memory: &Memory,
    ) -> Result<General> {
        view.require_refreshable()?;
        let query = view.query.as_ref().ok_or_else(|| {
            EngineError::Internal("a general SQL view without a query".to_string())
        })?;
        let schema = Arc::new(Schema::from(table.schema()));
        let as_written = Self::planned(view, query, &schema, sources, memory, false).await;
        match as_written {
            Err(EngineError::DefinitionMismatch { .. }) => {
                match Self::planned(view, query, &schema, sources, memory, true).await {
                    Ok(general) => Ok(general),
                    // The first says what is wrong of the query as it is written.
                    Err(_) => as_written,
                }
            }
            other => other,
        }
    }

    async fn planned(
        view: &ViewInfo,
        query: &Query,
        schema: &SchemaRef,
        sources: &[Arc<Dataset>],
        memory: &Memory,
        lower: bool,
    ) -> Result<General> {
        let said = |e: datafusion::error::DataFusionError| EngineError::DefinitionMismatch {
            view: view.name(),
            why: format!(
                "its query cannot be planned ({}); restore the sources or recreate the view",
                first_line(&e.strip_backtrace())
            ),
        };
        let mut general = General {
            schema: schema.clone(),
            branches: Vec::new(),
            lower,
            memory: memory.clone(),
            turns: Arc::default(),
        };
        let context = general.context(SessionConfig::new(), false, false, Scans::default());
        let tables: Vec<Arc<SourceTable>> = sources
            .iter()
            .enumerate()
            .map(|(at, dataset)| Arc::new(SourceTable::new(at, dataset.clone(), memory.clone())))
            .collect();
        register(&context, query, &tables, lower).map_err(said)?;
        let state = context.state();
        let plan = state
            .statement_to_plan(query.statement.clone())
            .await
            .map_err(said)?;
        let mut exprs = Vec::new();
        plan.apply_with_subqueries(|node| {
            exprs.extend(node.expressions());
            Ok(TreeNodeRecursion::Continue)
        })
        .map_err(said)?;
        refuse_changing(view, &exprs)?;
        // What types a union has is told only by the optimized plan.
        let optimized = state.optimize(&plan).map_err(said)?;
        let types: Vec<(String, DataType)> = optimized
            .schema()
            .fields()
            .iter()
            .map(|f| (f.name().clone(), f.data_type().clone()))
            .collect();
        output::check(view, output::computed(schema), &types, output::stores)?;

        let types: Vec<_> = schema
            .fields()
            .iter()
            .map(|f| (f.name(), f.data_type()))
            .collect();
        // The plan's words alone are those of other queries too: they lack
        // brackets, and rows of VALUES.
        let definition = format!("{}\n{}\n{types:?}", query.statement, plan.display_indent());
        let branches = branch::split(&optimized).map_err(said)?;
        let count = branches.len();
        for (at, plan) in branches.into_iter().enumerate() {
            let definition = format!("{definition}\nbranch {at} of {count}");
            general
                .branches
                .push(Branch::new(plan, &definition, sources).map_err(said)?);
        }
        Ok(general)
    }

    /// The branches, whose rows together are the view's.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The names of the view's columns that a refresh computes.
    pub fn computed_names(&self) -> impl Iterator<Item = &str> {
        output::computed(&self.schema).map(|f| f.name().as_str())
    }

    /// The rows of branch `at`, of this extent of its probe or of all, in the
    /// view's schema. A hash join holds one side in memory, and the first rows
    /// of an order are held too; if `frugal` all of these are sorted instead,
    /// which can spill, and no other rows are computed meanwhile, so that none
    /// hold what that needs. Some joins stay as they are
    /// all the same ([`is_by_hashes_alone`]).
    pub async fn evaluate(
        &self,
        at: usize,
        extent: Option<&Extent>,
        frugal: bool,
    ) -> datafusion::common::Result<SendableRecordBatchStream> {
        let branch = self.branches.get(at).ok_or_else(|| {
            datafusion::error::DataFusionError::Internal("no such branch".to_string())
        })?;
        // Until the rows' stream is dropped.
        let turn: Box<dyn Send + Sync> = match frugal {
            true => Box::new(self.turns.clone().write_owned().await),
            false => Box::new(self.turns.clone().read_owned().await),
        };
        let sorted = frugal && !is_by_hashes_alone(&branch.plan)?;
        // Units run beside each other; what is computed whole has all threads.
        let width = branch.width(&self.memory).await?;
        let mut config = self.memory.session(width, frugal);
        let mut plan = branch.plan.clone();
        if let (Some(probe), Some(extent)) = (&branch.probe, extent) {
            config = config.with_target_partitions(1);
            plan = branch::with_scan(&plan, &probe.path, &|scan: &TableScan| {
                let table = source::of(scan)?.ok_or_else(branch::lost)?;
                Ok(TableScan {
                    source: provider_as_source(Arc::new(table.restricted(extent.clone()))),
                    ..scan.clone()
                })
            })?;
        }
        if sorted {
            // Rows that are not parted are joined by their hashes all the same.
            config = config.with_target_partitions(2);
        }
        let scans = Scans::of(&plan)?;
        let context = self.context(config, sorted, branch.blobs, scans);
        let mut physical = context.state().create_physical_plan(&plan).await?;
        if frugal {
            physical = exchanges::by_one(sorted_whole(physical)?)?;
            let kept_back = self.memory.kept_back(sorts_of(&physical)?);
            let state = context.state_ref();
            let mut state = state.write();
            let execution = &mut state.config_mut().options_mut().execution;
            execution.sort_spill_reservation_bytes = kept_back;
        }
        physical = windows::by_groups(loops::whole(physical, frugal)?)?;
        let rows = execute_stream(physical, context.task_ctx())?;
        let schema = self.schema.clone();
        let rows = rows.map(move |batch| {
            let _held = &turn;
            output::conform(&batch?, &schema)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema.clone(),
            rows,
        )))
    }

    fn context(
        &self,
        config: SessionConfig,
        sorted: bool,
        blobs: bool,
        scans: Scans,
    ) -> SessionContext {
        let mut config = config
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(true)
            .with_information_schema(false)
            .with_extension(Arc::new(scans));
        let options = config.options_mut();
        options.sql_parser.enable_ident_normalization = self.lower;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.optimizer.prefer_hash_join = !sorted;
        if blobs {
            // Operators would put together again what scans give a few rows at a time.
            options.execution.batch_size = BLOBS;
        }
        let context = SessionContext::new_with_config_rt(config, self.memory.runtime().clone());
        lance_datafusion::udf::register_functions(&context);
        context
    }
}

impl Branch {
    fn new(
        plan: LogicalPlan,
        definition: &str,
        sources: &[Arc<Dataset>],
    ) -> datafusion::common::Result<Branch> {
        let mut best: Option<(u64, branch::Path, usize)> = None;
        for path in branch::probes(&plan)? {
            let Some(scan) = branch::scan_at(&plan, &path) else {
                continue;
            };
            let Some(SourceTable { index, .. }) = source::of(scan)? else {
                continue;
            };
            // The largest table is worth cutting; of equals the first named.
            let rows = sources.get(index).map_or(0, |s| rows_of(s));
            if best.as_ref().is_none_or(|(most, ..)| rows > *most) {
                best = Some((rows, path, index));
            }
        }
        let definition = match &best {
            Some((_, path, _)) => format!("{definition}, along {path:?}"),
            None => definition.to_string(),
        };
        let reads = |index: usize, scan: &TableScan| {
            let dataset = &sources[index];
            let stable = dataset.manifest().uses_stable_row_ids();
            let columns = columns(scan);
            Reads::new(&definition, dataset.schema(), &columns, false, stable)
        };
        let probe = best.and_then(|(_, path, source)| {
            Some(Probe {
                reads: reads(source, branch::scan_at(&plan, &path)?),
                path,
                source,
            })
        });
        let mut blobs = false;
        for scan in branch::other_scans(&plan, None)? {
            let read = columns(&scan);
            if let Some(SourceTable { index, .. }) = source::of(&scan)? {
                let mut fields = sources[index].schema().fields.iter();
                blobs |= fields.any(|field| read.contains(&field.name) && holds_blobs(field));
            }
        }
        let mut parts = vec![Fingerprint::of_text(&definition)];
        let mut rows_besides = 0;
        let path = probe.as_ref().map(|p| p.path.as_slice());
        for scan in branch::other_scans(&plan, path)? {
            let Some(SourceTable { index, .. }) = source::of(&scan)? else {
                continue;
            };
            let reads = reads(index, &scan);
            parts.push(reads.definition().clone());
            let fragments = sources[index].fragments().iter();
            parts.extend(fragments.map(|fragment| reads.fragment(fragment)));
            rows_besides += rows_of(&sources[index]);
        }
        Ok(Branch {
            width: OnceCell::new(),
            plan,
            probe,
            besides: Fingerprint::of_all(&parts),
            rows_besides,
            blobs,
        })
    }

    /// About how many bytes its widest rows have: at most, where that is little, or else
    /// by some of the rows.
    async fn width(&self, memory: &Memory) -> datafusion::common::Result<u64> {
        let look = async || {
            let mut read: HashMap<Read, Arc<Dataset>> = HashMap::new();
            for scan in branch::other_scans(&self.plan, None)? {
                if let Some(table) = source::of(&scan)? {
                    read.insert((table.index, columns(&scan)), table.dataset().clone());
                }
            }
            let most = read.iter().map(|(read, dataset)| {
                let most = width::most(dataset, |name| read.1.contains(name));
                (read.clone(), most)
            });
            let mut widths: HashMap<Read, u64> = most.collect();
            if memory.matters(width_of(&self.plan, &widths)?) {
                for (read, dataset) in read {
                    if let Some(width) = width::sampled(&dataset, &read.1).await? {
                        widths.insert(read, width);
                    }
                }
            }
            width_of(&self.plan, &widths)
        };
        self.width.get_or_try_init(look).await.copied()
    }
}

/// Whether a join of `plan` must stay one by hashes. That of a `NOT IN` whose
/// sides may hold NULL: only it knows that nothing is said to be outside of a set
/// with a NULL, and a NULL outside of none but the empty one. And one that asks
/// for a match alone: by keys that DataFusion's sorted join cannot compare, or by a
/// condition besides, since of a key's rows that are spilled a few at a time only the
/// last are found again (apache/datafusion#24056).
fn is_by_hashes_alone(plan: &LogicalPlan) -> datafusion::common::Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Join(join) = node {
            let types = join
                .on
                .iter()
                .map(|(key, _)| key.get_type(join.left.schema()));
            let types = types.collect::<datafusion::common::Result<Vec<_>>>()?;
            found |= join.null_aware
                || (asks_for_a_match(join.join_type)
                    && (join.filter.is_some() || !types.iter().all(is_compared)));
        }
        Ok(match found {
            true => TreeNodeRecursion::Stop,
            false => TreeNodeRecursion::Continue,
        })
    })?;
    Ok(found)
}

fn asks_for_a_match(join: JoinType) -> bool {
    !matches!(
        join,
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full
    )
}

/// Whether sorted joins that ask for a match compare keys of this type as joins
/// by hashes do: no floating-point ones, whose zeros are two, and of the others
/// not all.
fn is_compared(key: &DataType) -> bool {
    key.is_integer()
        || matches!(
            key,
            DataType::Boolean
                | DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
                | DataType::FixedSizeBinary(_)
                | DataType::Decimal128(..)
                | DataType::Date32
                | DataType::Date64
                | DataType::Timestamp(_, None)
        )
}

/// `plan` with sorts that keep all rows, and limits after them, for those that
/// keep the first rows only: these cannot spill.
fn sorted_whole(
    plan: Arc<dyn ExecutionPlan>,
) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some((sort, fetch)) = node
            .downcast_ref::<SortExec>()
            .and_then(|sort| Some((sort, sort.fetch()?)))
        else {
            return Ok(Transformed::no(node));
        };
        let sort: Arc<dyn ExecutionPlan> = Arc::new(sort.with_fetch(None));
        Ok(Transformed::yes(Arc::new(LocalLimitExec::new(sort, fetch))))
    })
    .map(|changed| changed.data)
}

/// The columns of its table that `scan` reads.
fn columns(scan: &TableScan) -> BTreeSet<String> {
    let schema = scan.source.schema();
    match &scan.projection {
        Some(positions) => positions
            .iter()
            .map(|at| schema.field(*at).name().clone())
            .collect(),
        None => schema.fields().iter().map(|f| f.name().clone()).collect(),
    }
}

/// How many sorts `plan` has under way at a time, at the most.
fn sorts_of(plan: &Arc<dyn ExecutionPlan>) -> datafusion::common::Result<usize> {
    let mut sorts = 0;
    plan.apply(|node| {
        if let Some(sort) = node.downcast_ref::<SortExec>() {
            let input = sort.input().properties();
            sorts += input.output_partitioning().partition_count();
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(sorts)
}

/// What is read of one table.
type Read = (usize, BTreeSet<String>);

/// How many bytes the widest rows of `plan` have, by those of what it reads.
fn width_of(plan: &LogicalPlan, widths: &HashMap<Read, u64>) -> datafusion::common::Result<u64> {
    if let LogicalPlan::TableScan(scan) = plan {
        let read = source::of(scan)?.map(|table| (table.index, columns(scan)));
        return Ok(read
            .and_then(|read| widths.get(&read).copied())
            .unwrap_or(0));
    }
    let inputs = plan.inputs().into_iter();
    let inputs = inputs.map(|input| width_of(input, widths));
    let inputs = inputs.collect::<datafusion::common::Result<Vec<u64>>>()?;
    Ok(match plan {
        LogicalPlan::Join(_) => inputs.into_iter().fold(0, u64::saturating_add),
        _ => inputs.into_iter().max().unwrap_or_default(),
    })
}

fn rows_of(dataset: &Dataset) -> u64 {
    let rows = |f: &Fragment| f.physical_rows.unwrap_or(0) as u64;
    dataset.fragments().iter().map(rows).sum()
}

/// Makes the sources known to `context` by the names that `query` has for them.
fn register(
    context: &SessionContext,
    query: &Query,
    tables: &[Arc<SourceTable>],
    lower: bool,
) -> datafusion::common::Result<()> {
    // As they are written first: a name in lower case may be another table's own.
    let spellings: &[fn(&str) -> String] = match lower {
        true => &[|name| name.to_string(), |name| name.to_lowercase()],
        false => &[|name| name.to_string()],
    };
    for spelled in spellings {
        for (reference, at) in &query.tables {
            let Some(table) = tables.get(*at) else {
                continue;
            };
            let name = reference.clone().resolve(CATALOG, SCHEMA);
            let (catalog, schema) = (spelled(&name.catalog), spelled(&name.schema));
            let name = spelled(&name.table);
            let found = context.catalog(&catalog).unwrap_or_else(|| {
                let new: Arc<dyn CatalogProvider> = Arc::new(MemoryCatalogProvider::new());
                context.register_catalog(&catalog, new.clone());
                new
            });
            let found = match found.schema(&schema) {
                Some(schema) => schema,
                None => {
                    let new: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
                    found.register_schema(&schema, new.clone())?;
                    new
                }
            };
            if !found.table_exist(&name) {
                found.register_table(name, table.clone())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow_schema::{Schema, TimeUnit};
    use datafusion::datasource::empty::EmptyTable;

    use super::*;

    #[tokio::test]
    async fn what_sorted_joins_do_not_compare_as_those_by_hashes_do_is_joined_by_hashes() {
        let by_hashes = async |key: DataType, sql: &str| {
            let context = SessionContext::new();
            for name in ["a", "b"] {
                let schema = Schema::new(vec![arrow_schema::Field::new("k", key.clone(), true)]);
                let table = EmptyTable::new(Arc::new(schema));
                context.register_table(name, Arc::new(table)).unwrap();
            }
            let plan = context.sql(sql).await.unwrap().into_optimized_plan();
            is_by_hashes_alone(&plan.unwrap()).unwrap()
        };
        let (among, beside) = (
            "SELECT k FROM a WHERE k IN (SELECT k FROM b)",
            "SELECT a.k FROM a LEFT JOIN b ON a.k = b.k",
        );
        let zoned = DataType::Timestamp(TimeUnit::Second, Some("UTC".into()));
        for key in [DataType::Int64, DataType::Utf8] {
            assert!(!by_hashes(key.clone(), among).await, "{key}");
        }
        for key in [DataType::Float64, zoned] {
            assert!(by_hashes(key.clone(), among).await, "{key}");
            assert!(!by_hashes(key.clone(), beside).await, "{key}");
        }
        let outside = "SELECT k FROM a WHERE k NOT IN (SELECT k FROM b)";
        assert!(by_hashes(DataType::Int64, outside).await);
    }
}
