//! The parts that a plan's groups are merged from: computed, stored and read.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, ListArray, RecordBatch};
use arrow_schema::{DataType, SchemaRef};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use tokio::sync::watch;

use super::object::{MARK, Stored, decode, encode};
use super::{Chosen, LARGEST, SMALL, most};
use crate::engine::compute::AbortOnDrop;
use crate::engine::error::EngineError;
use crate::engine::execute::{UnitError, Workbench};
use crate::engine::fingerprint::Fingerprint;
use crate::engine::ledger::Claim;
use crate::engine::paths;
use crate::engine::request::{Progress, Request};
use crate::engine::store::Objects;
use crate::engine::unit::Extent;
use crate::engine::view::planned::Planned;
use crate::engine::width::bytes_of;
use crate::engine::work::Work;

/// How many parts are read ahead of the merge.
const AHEAD: usize = 2;

/// How many objects of one part are read at a time.
const READS: usize = 8;

/// Most objects of a part that are held at a time, each of [`LARGEST`] bytes or so.
const HELD: usize = 4;

type Batches = BoxStream<'static, datafusion::common::Result<RecordBatch>>;

/// What the groups of a view are merged from.
#[derive(Clone, Debug)]
pub struct Parts {
    objects: Objects,
    parts: Arc<Vec<Part>>,
}

#[derive(Clone, Debug)]
struct Part {
    paths: Vec<Path>,
    /// Whether a committed ledger says that its objects are there.
    kept: bool,
    /// What they were computed from.
    extent: Extent,
}

impl Parts {
    /// What `work`'s plan says; `None` if its groups are to be computed whole. So
    /// are they where another version made the plan: what that would take for its
    /// states is not written.
    pub fn of(work: &Work, objects: &Objects) -> Option<Parts> {
        let partials = &work.plan.partials;
        if partials.is_empty() || partials.iter().any(|p| p.large || !p.is_own()) {
            return None;
        }
        let pieces = work.mergeable()?;
        let source = work.bench.sources.first()?;
        let mut open = Chosen::new(pieces).open;
        let mut parts = Vec::with_capacity(partials.len());
        for partial in partials {
            let mut at = Vec::with_capacity(partial.inputs.len());
            for input in &partial.inputs {
                at.push(open.get_mut(input)?.pop()?);
            }
            at.sort_unstable();
            parts.push(Part {
                paths: partial
                    .objects
                    .iter()
                    .map(|object| paths::partial(objects.root(), object))
                    .collect(),
                kept: partial.kept,
                extent: Extent::new(source.fragments(), at.iter().map(|at| &pieces[*at])),
            });
        }
        // What is in no partial would be in no group.
        open.values().all(Vec::is_empty).then(|| Parts {
            objects: objects.clone(),
            parts: Arc::new(parts),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.parts.len()
    }

    /// Which parts this worker looks at, in this order: its own share, then
    /// those of the others. Those that a ledger lists are there.
    fn order(&self, index: u64, workers: u64) -> Vec<usize> {
        let (mine, others): (Vec<usize>, Vec<usize>) = (0..self.parts.len())
            .filter(|at| !self.parts[*at].kept)
            .partition(|at| *at as u64 % workers == index % workers);
        // From their ends: their workers start at the other.
        mine.into_iter().chain(others.into_iter().rev()).collect()
    }

    /// The states of all parts. Whatever is not there is computed.
    pub fn states(&self, bench: &Workbench, schema: SchemaRef) -> SendableRecordBatchStream {
        let (objects, bench) = (self.objects.clone(), bench.clone());
        let (given, parts) = (schema.clone(), self.parts.as_ref().clone());
        let batches = futures::stream::iter(parts)
            .map(move |part| load(objects.clone(), bench.clone(), part, given.clone()))
            .buffered(AHEAD)
            .try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(schema, batches))
    }
}

async fn load(
    objects: Objects,
    bench: Workbench,
    part: Part,
    schema: SchemaRef,
) -> datafusion::common::Result<Batches> {
    if part.paths.len() > HELD {
        return joined(objects, bench, part, schema).await;
    }
    let batches = held(objects, bench, part, schema).await?;
    Ok(futures::stream::iter(batches.into_iter().map(Ok)).boxed())
}

/// The states of a part that compactions have joined of many objects: all at once
/// where they are small, else one after the other.
async fn joined(
    objects: Objects,
    bench: Workbench,
    part: Part,
    schema: SchemaRef,
) -> datafusion::common::Result<Batches> {
    let there = &objects;
    let sizes: Vec<Option<u64>> = futures::stream::iter(part.paths.clone())
        .map(|path| async move { there.size(&path).await })
        .buffered(READS)
        .try_collect()
        .await
        .map_err(external)?;
    if !sizes
        .iter()
        .all(|size| size.is_some_and(|size| size > MARK))
    {
        tracing::info!("some partial aggregates are not there; computing their part again");
        return Ok(bench.states(&part.extent).await?.boxed());
    }
    let bytes = sizes.iter().flatten().sum::<u64>();
    // As they are stored, they are a fourth or so of what they come to.
    let most = LARGEST as u64;
    if bytes <= most {
        let batches = held(objects, bench, part, schema).await?;
        return Ok(futures::stream::iter(batches.into_iter().map(Ok)).boxed());
    }
    let largest = sizes.iter().flatten().max().copied().unwrap_or_default();
    let at_a_time = usize::try_from(most / largest.max(1)).unwrap_or(READS);
    let read = futures::stream::iter(part.paths).map(move |path| {
        let (objects, schema) = (objects.clone(), schema.clone());
        async move {
            let bytes = objects.read(&path).await.map_err(external)?;
            if let Some(Stored::States(batches)) = bytes.and_then(|b| decode(&b, &schema)) {
                return Ok(futures::stream::iter(batches.into_iter().map(Ok)));
            }
            // What came of those before it is merged already. Once it is gone, the
            // next try computes them all.
            objects.delete(vec![path]).await.map_err(external)?;
            Err(external(EngineError::Unavailable {
                what: "a partial aggregate of the view".to_string(),
                why: "it is damaged, and was deleted to be computed again".to_string(),
            }))
        }
    });
    let read = read.buffered(at_a_time.clamp(1, READS));
    Ok(read.try_flatten().boxed())
}

/// The states of a part of few objects.
async fn held(
    objects: Objects,
    bench: Workbench,
    part: Part,
    schema: SchemaRef,
) -> datafusion::common::Result<Vec<RecordBatch>> {
    let mut found = Vec::new();
    let objects = &objects;
    let mut read = futures::stream::iter(part.paths.clone())
        .map(|path| async move { (objects.read(&path).await, path) })
        .buffered(READS);
    while let Some((bytes, path)) = read.next().await {
        let bytes = bytes.map_err(external)?;
        match bytes.and_then(|bytes| decode(&bytes, &schema)) {
            Some(Stored::States(batches)) => found.extend(batches),
            other => {
                tracing::info!(%path, "a partial aggregate is not there; computing it again");
                let states = bench.states(&part.extent).await?;
                let states: Vec<RecordBatch> = states.try_collect().await?;
                if let ([path], None) = (part.paths.as_slice(), other) {
                    let bytes = encode(Some(&states), &schema).map_err(external)?;
                    objects.put_bytes(path, bytes).await.map_err(external)?;
                }
                return Ok(states);
            }
        }
    }
    Ok(found)
}

fn external(error: EngineError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Computes the parts that are not there, if `work`'s plan has any: this
/// worker's share, then what others left. Its groups are then merged from them;
/// unless one is too large to be kept, in which case they are computed whole,
/// and the plan keeps just the marks of those.
pub async fn compute(
    work: &mut Work,
    objects: &Objects,
    request: &Request,
    staged: &HashMap<Fingerprint, Claim>,
    progress: &watch::Sender<Progress>,
) -> std::result::Result<(), UnitError> {
    let computed = work.plan.units.iter().all(|unit| {
        let id = Fingerprint::of_all(&work.unit_inputs(unit));
        staged.contains_key(&id)
    });
    let (Some(parts), Some(schema), false) = (
        Parts::of(work, objects),
        work.bench.planned.states_schema(),
        computed,
    ) else {
        return Ok(());
    };
    let units = work.plan.units.len();
    let there = parts.parts.iter().filter(|part| part.kept).count();
    let mut now = Progress {
        units_done: work.plan.kept + there as u64,
        units_total: work.plan.kept + (parts.count() + units) as u64,
        ..Default::default()
    };
    progress.send_replace(now);
    let threads = request.threads();
    let workers = u64::from(request.workers.max(1));
    let mut results = futures::stream::iter(parts.order(u64::from(request.index), workers))
        .map(|at| {
            let (parts, bench, schema) = (parts.clone(), work.bench.clone(), schema.clone());
            async move {
                // A task of its own, so that units use several processors.
                let task = tokio::spawn(async move {
                    ensure(&parts.objects, &bench, &parts.parts[at], &schema).await
                });
                let kept = AbortOnDrop(task).await.unwrap_or_else(|error| {
                    Err(UnitError::Other(EngineError::Internal(format!(
                        "a unit's task ended early: {error}"
                    ))))
                })?;
                Ok::<_, UnitError>((at, kept))
            }
        })
        .buffer_unordered(threads);
    let mut large = None;
    while let Some(result) = results.next().await {
        let (at, kept) = result?;
        if !kept {
            large = Some(at);
            break;
        }
        now.units_done += 1;
        progress.send_replace(now);
    }
    drop(results);
    let Some(large) = large else {
        work.parts = Some(parts);
        return Ok(());
    };
    tracing::info!("the groups of a part are too large to be kept; computing the view whole");
    let mut marked = work.plan.partials.swap_remove(large);
    marked.large = true;
    work.plan.partials = vec![marked];
    Ok(())
}

/// The states of a part; `None` if they are too large to be kept.
async fn few(
    bench: &Workbench,
    part: &Part,
) -> std::result::Result<Option<Vec<RecordBatch>>, UnitError> {
    let mut states = bench
        .states(&part.extent)
        .await
        .map_err(|e| bench.sort(e.into()))?;
    let mut batches = Vec::new();
    let mut size = 0;
    while let Some(batch) = states.next().await {
        let batch = batch.map_err(|e| bench.sort(e.into()))?;
        size += bytes_of(&batch);
        if size > LARGEST {
            return Ok(None);
        }
        batches.push(compact(&batch).map_err(|e| bench.sort(e.into()))?);
    }
    if size > SMALL
        && let Planned::Sql(planned) = &*bench.planned
    {
        let width = planned.width(bench.source()?).await;
        let rows = part
            .extent
            .rows()
            .saturating_mul(width.map_err(|e| bench.sort(e))?);
        return Ok((size <= most(rows)).then_some(batches));
    }
    Ok(Some(batches))
}

/// `batch` without the values of others that views share with it, which would be
/// written with each.
fn compact(batch: &RecordBatch) -> datafusion::common::Result<RecordBatch> {
    let columns = batch.columns().iter().map(compact_column).collect();
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

fn compact_column(column: &ArrayRef) -> ArrayRef {
    let is_view = |of: &DataType| matches!(of, DataType::Utf8View | DataType::BinaryView);
    match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()),
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        DataType::List(item) if is_view(item.data_type()) => {
            let list = column.as_list::<i32>();
            let (first, last) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
            let values = list.values().slice(first as usize, (last - first) as usize);
            let offsets = list.value_offsets().iter().map(|at| at - first);
            let offsets = OffsetBuffer::new(offsets.collect());
            let nulls = list.nulls().cloned();
            let values = compact_column(&values);
            Arc::new(ListArray::new(item.clone(), offsets, values, nulls))
        }
        _ => column.clone(),
    }
}

/// Computes one part unless it is there. Returns whether it can be kept.
async fn ensure(
    objects: &Objects,
    bench: &Workbench,
    part: &Part,
    schema: &SchemaRef,
) -> std::result::Result<bool, UnitError> {
    let [path] = part.paths.as_slice() else {
        // Joined by a compaction; whatever is missing is computed at the merge.
        return Ok(true);
    };
    let mut damaged = false;
    if let Some(size) = objects.size(path).await.map_err(UnitError::Other)? {
        match size.cmp(&MARK) {
            Ordering::Equal => return Ok(false),
            Ordering::Greater => return Ok(true),
            // Not even a mark.
            Ordering::Less => damaged = true,
        }
    }
    let kept = match few(bench, part).await {
        Ok(kept) => kept,
        // It has just as much as what is kept may take.
        Err(UnitError::OutOfMemory(_)) => None,
        Err(error) => return Err(error),
    };
    let kept = kept.as_deref();
    let bytes = encode(kept, schema).map_err(UnitError::Other)?;
    if damaged {
        objects
            .put_bytes(path, bytes)
            .await
            .map_err(UnitError::Other)?;
        return Ok(kept.is_some());
    }
    // All are to tell the same of it, who may have had more memory than others.
    let there = objects.create_bytes(path, bytes).await;
    let there = there.map_err(UnitError::Other)?;
    Ok(there.map_or(kept.is_some(), |there| there.len() as u64 > MARK))
}

#[cfg(test)]
mod tests {
    use arrow_array::builder::{ListBuilder, StringViewBuilder};
    use arrow_array::{Int64Array, StringViewArray};

    use super::*;

    #[test]
    fn a_few_rows_of_many_are_written_without_the_others_values() {
        let texts: Vec<String> = (0..1000).map(|n| format!("{n:0>1000}")).collect();
        let mut lists = ListBuilder::new(StringViewBuilder::new());
        for text in &texts {
            lists.values().append_value(text);
            lists.append(true);
        }
        let columns: [(&str, ArrayRef); 3] = [
            ("n", Arc::new((0..1000).collect::<Int64Array>())),
            ("text", Arc::new(StringViewArray::from_iter_values(&texts))),
            ("list", Arc::new(lists.finish())),
        ];
        let all = RecordBatch::try_from_iter(columns).unwrap();
        let some = all.slice(500, 3);
        let few = compact(&some).unwrap();
        assert_eq!(few, some);
        // The numbers are still those of all.
        let views = few.project(&[1, 2]).unwrap();
        assert!(views.get_array_memory_size() < 10_000);
        assert_eq!(compact(&all.slice(0, 0)).unwrap().num_rows(), 0);
    }
}
