//! What one plan works on: the view, its sources at one version each, and the
//! pieces.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::FutureExt;
use lance::Dataset;
use lance_table::format::Fragment;
use tokio::sync::OnceCell;
use tracing::debug;

use super::carry::{self, Move};
use super::catalog::{Catalog, DELIMITER};
use super::error::{EngineError, Result};
use super::execute::Workbench;
use super::fingerprint::{Fingerprint, Reads};
use super::freshness::open_source;
use super::guess::Guess;
use super::ledger::Claim;
use super::memory::Memory;
use super::merge;
use super::outcome::{Mode, Outcome};
use super::partials::Parts;
use super::plan::{Inputs, Judgement, Pinned, Plan};
use super::prefix::{self, Known};
use super::request::Request;
use super::scan;
use super::staged;
use super::standing::{Columns, Standing};
use super::store::{is_missing, storage};
use super::unit::{self, Extent, Piece, TARGET_ROWS};
use super::view::general::cut::Cut;
use super::view::planned::Planned;
use super::view::sql::Shape;
use super::view::{self, ViewInfo};

/// A unit that is split for idle processors is not split into parts of fewer
/// source rows: each leaves a fragment of its own in the view.
const LEAST_PART: u64 = TARGET_ROWS / 4;

/// What one plan works on.
pub struct Work {
    /// The plan.
    pub plan: Plan,
    /// The view as it was when the work was opened.
    pub view: ViewInfo,
    /// What units are computed from and written to.
    pub bench: Workbench,
    /// What the view is computed from.
    pub inputs: Inputs,
    /// What groups are merged from, once they are computed in parts.
    pub parts: Option<Parts>,
    /// Which of the plan's units others have committed since it was fixed.
    pub standing_units: HashSet<usize>,
    /// How that is cut.
    pieces: Pieces,
    /// How many of the source's fragments are read; `None` for all.
    prefix: Option<usize>,
    /// How the source was compacted since some version, once it was looked at.
    moves: OnceCell<Vec<Move<Fingerprint>>>,
}

/// The pieces that a view is cut into.
enum Pieces {
    /// Those of its sole source.
    OfSource {
        pieces: Vec<Piece>,
        /// What the view reads of each row.
        reads: Reads,
    },
    /// Those of the branches of a general query.
    OfBranches(Cut),
}

/// Opens source `at` of `view` as [`Work::of`] does.
async fn source(
    catalog: &Catalog,
    request: &Request,
    view: &ViewInfo,
    at: usize,
    fixed: Option<&Plan>,
    guess: &Guess,
) -> Result<Option<Arc<Dataset>>> {
    let pinned = fixed.and_then(|plan| plan.sources.get(at));
    let wanted = pinned.map(|p| p.version).or(request.src_version);
    let fits = |source: &Dataset| pinned.is_none_or(|pinned| *pinned == Pinned::of(source));
    if let Some(source) = guess.get(&view.sources[at], wanted)
        && fits(&source)
    {
        return Ok(Some(source));
    }
    let source = match open_source(catalog, view, &view.sources[at], wanted).await {
        Err(EngineError::SourceVersionGone { .. })
            if fixed.is_some() && request.src_version.is_none() =>
        {
            return Ok(None);
        }
        other => other?,
    };
    if !fits(&source) {
        // The source was re-created since.
        return Ok(None);
    }
    let objects = catalog.store().objects(source.uri()).await?;
    let logged = staged::has_wal(&objects).await?;
    staged::refuse_wal(view, logged, "its source table")?;
    Ok(Some(Arc::new(source)))
}

/// What a unit is computed from.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which branch of a general query; 0 for other views.
    pub branch: usize,
    /// Which rows of the source; `None` for all.
    pub extent: Option<Extent>,
    /// What its groups are merged from, where they are.
    pub parts: Option<Parts>,
    /// Whether its rows come of nothing but those of the extent, one by one.
    pub by_rows: bool,
}

impl Task {
    /// What it is computed in by at most `threads` at a time, in the rows' order. None
    /// or one: it is not split.
    pub fn parts(&self, threads: usize) -> Vec<Extent> {
        match &self.extent {
            Some(extent) if self.by_rows => extent.split(threads, LEAST_PART),
            _ => Vec::new(),
        }
    }
}

impl Work {
    /// As [`Work::of`], of the view as it is now.
    pub async fn open(
        catalog: &Catalog,
        request: &Request,
        fixed: Option<&Plan>,
    ) -> Result<Option<Work>> {
        let (view, table) = view::open(catalog, &request.view).await?;
        let objects = catalog.store().objects(&view.uri).await?;
        let logged = staged::has_wal(&objects).await?;
        staged::refuse_wal(&view, logged, "the view")?;
        Self::of(catalog, request, (view, table), fixed, &Guess::default()).await
    }

    /// Opens the sources of `view`, which has no write-ahead log, at the versions
    /// that were `fixed`, or asked for, or the latest, where they are not among
    /// those that were guessed. The plan has no units yet. `Ok(None)`: what was fixed
    /// cannot be carried out any more. Errors: those of the view, of its source,
    /// and of a definition that no longer fits.
    pub async fn of(
        catalog: &Catalog,
        request: &Request,
        (view, table): (ViewInfo, Dataset),
        fixed: Option<&Plan>,
        guess: &Guess,
    ) -> Result<Option<Work>> {
        view.require_refreshable()?;
        view.require_incarnation(request.expected_incarnation.as_deref())?;
        view.require_sole_source(request.src_version)?;
        if fixed.is_some_and(|plan| plan.sources.len() != view.sources.len()) {
            return Ok(None);
        }
        let sources = (0..view.sources.len())
            .map(|at| source(catalog, request, &view, at, fixed, guess).boxed());
        // At once: a store that is far away takes long to answer each.
        let sources = futures::future::try_join_all(sources).await?;
        let Some(sources) = sources.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let memory = Memory::new(request.threads(), request.query_memory)?;
        let planned = Planned::new(&view, &table, &sources, &memory).await?;
        let unread = |e| storage("the deletion files of the source table", e);
        let (cut, inputs) = match &planned {
            Planned::Sql(planned) => {
                let source = &sources[0];
                let reads = planned.reads(source);
                let pieces = unit::pieces(source, &reads, source.fragments()).await;
                let pieces = pieces.map_err(unread)?;
                let whole = planned.shape() != Shape::RowWise;
                let definition = whole.then(|| reads.definition().clone());
                let fingerprints = pieces.iter().map(|piece| piece.fingerprint.clone());
                let inputs = Inputs {
                    fingerprints: definition.into_iter().chain(fingerprints).collect(),
                    whole,
                };
                (Pieces::OfSource { pieces, reads }, inputs)
            }
            Planned::General(general) => {
                let cut = Cut::new(general, &sources).await.map_err(unread)?;
                let inputs = Inputs {
                    fingerprints: cut.fingerprints.clone(),
                    whole: false,
                };
                (Pieces::OfBranches(cut), inputs)
            }
        };
        let plan = Plan {
            sources: sources.iter().map(|s| Pinned::of(s)).collect(),
            // Before what a LIMIT does not read is left out, which each worker
            // may tell otherwise.
            inputs: Some(Fingerprint::of_all(&inputs.fingerprints)),
            view_version: table.version().version,
            units: Vec::new(),
            trims: Vec::new(),
            merges: Vec::new(),
            kept: 0,
            partials: Vec::new(),
        };
        let bench = Workbench {
            view_name: view.name(),
            sources,
            table: Arc::new(table),
            planned: Arc::new(planned),
            memory,
            refresh: request.refresh.clone(),
            max_rows_per_fragment: request.max_rows_per_fragment,
        };
        Ok(Some(Work {
            plan,
            view,
            bench,
            parts: None,
            standing_units: HashSet::new(),
            pieces: cut,
            prefix: None,
            inputs,
            moves: OnceCell::new(),
        }))
    }

    /// The sources' names and the versions they are pinned at.
    pub fn source_versions(&self) -> impl Iterator<Item = (String, u64)> {
        let names = self.view.sources.iter().map(|id| id.join(DELIMITER));
        names.zip(self.plan.sources.iter().map(|pinned| pinned.version))
    }

    /// An outcome that wrote nothing, at the plan's source versions and with
    /// the view at `view_version`.
    pub fn unchanged(&self, units: u64, view_version: u64) -> Outcome {
        let versions: BTreeMap<String, u64> = self.source_versions().collect();
        Outcome {
            mode: Mode::NoOp,
            source_version: self.plan.sources.first().map_or(0, |s| s.version),
            source_versions: if versions.len() > 1 {
                versions
            } else {
                BTreeMap::new()
            },
            view_version,
            rows_written: 0,
            bytes_written: 0,
            units_total: units,
            units_kept: units,
            unindexed_rows: None,
        }
    }

    /// Whether `outcome` is of the versions of the sources that this works on.
    pub fn is_of(&self, outcome: &Outcome) -> bool {
        let own = self.unchanged(0, outcome.view_version);
        (own.source_version, own.source_versions)
            == (outcome.source_version, outcome.source_versions.clone())
    }

    /// The view's columns that a refresh computes, in `table`.
    pub fn columns(&self, table: &Dataset) -> Columns {
        let names = self.bench.planned.computed_names();
        Columns::new(table.schema(), names.into_iter())
    }

    /// Which of the view's files are whole in `table`.
    pub fn standing(&self, table: &Dataset) -> Standing {
        Standing::new(table.fragments(), &self.columns(table))
    }

    /// The oldest version of each source that one of `outcomes` speaks of.
    pub fn since<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> Vec<u64> {
        let since = self.source_versions().map(|(name, now)| {
            let version = |outcome: &Outcome| match outcome.source_versions.is_empty() {
                true => Some(outcome.source_version),
                false => outcome.source_versions.get(&name).copied(),
            };
            outcomes.clone().filter_map(version).min().unwrap_or(now)
        });
        since.collect()
    }

    /// How the sources were compacted after the versions `since`. Nothing where
    /// that changes what the view's rows are: where it holds row ids that are
    /// addresses, or takes the first rows.
    pub async fn moves(&self, since: &[u64]) -> Result<&[Move<Fingerprint>]> {
        let moves = self.moves.get_or_try_init(|| async {
            let mut found = Vec::new();
            match (&self.pieces, &*self.bench.planned) {
                (Pieces::OfSource { reads, .. }, Planned::Sql(planned))
                    if !matches!(planned.shape(), Shape::Limited(_)) =>
                {
                    found.extend(self.moves_of(0, reads, since, None).await?);
                }
                (Pieces::OfBranches(_), Planned::General(general)) => {
                    for branch in general.branches() {
                        if let Some(probe) = &branch.probe {
                            let (at, besides) = (probe.source, Some(&branch.besides));
                            found.extend(self.moves_of(at, &probe.reads, since, besides).await?);
                        }
                    }
                }
                _ => {}
            }
            Ok(found)
        });
        moves.await.map(Vec::as_slice)
    }

    /// How source `at` was compacted, of which the view reads what `reads`
    /// says, and something `besides`.
    async fn moves_of(
        &self,
        at: usize,
        reads: &Reads,
        since: &[u64],
        besides: Option<&Fingerprint>,
    ) -> Result<Vec<Move<Fingerprint>>> {
        let mut found = Vec::new();
        let (Some(source), Some(since)) = (self.bench.sources.get(at), since.get(at)) else {
            return Ok(found);
        };
        if !reads.survives_moving() {
            return Ok(found);
        }
        let fingerprint = |piece: Piece| match besides {
            Some(besides) => Fingerprint::of_all([&piece.fingerprint, besides]),
            None => piece.fingerprint,
        };
        for group in carry::rewrites(source, since + 1..=source.version().version).await? {
            // A column that was dropped when the group was compacted, and
            // is there again, has other values now.
            let held: Vec<_> = group.new.iter().map(|f| reads.held(f)).collect();
            let lost = |old: &Fragment| {
                let before = reads.held(old);
                held.iter().any(|after| !before.is_subset(after))
            };
            if group.old.iter().any(lost) {
                continue;
            }
            let old = unit::pieces(source, reads, &group.old).await;
            let new = unit::pieces(source, reads, &group.new).await;
            match (old, new) {
                (Ok(old), Ok(new)) => found.push(Move {
                    old: old.into_iter().map(fingerprint).collect(),
                    new: new.into_iter().map(fingerprint).collect(),
                }),
                // What was deleted before the compaction was cleaned up.
                (Err(error), _) | (_, Err(error)) if is_missing(&error) => {}
                (Err(error), _) | (_, Err(error)) => {
                    return Err(storage("the deletion files of the source table", error));
                }
            }
        }
        Ok(found)
    }

    /// Cuts the inputs that are `missing` into units.
    pub fn cut(&self, missing: &[usize]) -> Vec<Vec<usize>> {
        if self.inputs.whole {
            return (!missing.is_empty()).then(Vec::new).into_iter().collect();
        }
        let units = match &self.pieces {
            Pieces::OfSource { pieces, reads } => unit::cut(pieces, missing, unit::target(reads)),
            Pieces::OfBranches(cut) => cut.units(missing),
        };
        // A file that is in the source twice is two equal pieces, and units of
        // equal inputs would be one claim.
        let mut at: HashMap<Fingerprint, usize> = HashMap::new();
        let mut distinct: Vec<Vec<usize>> = Vec::with_capacity(units.len());
        for unit in units {
            match at.entry(self.unit_id(&unit)) {
                Entry::Occupied(same) => distinct[*same.get()].extend(unit),
                Entry::Vacant(new) => {
                    new.insert(distinct.len());
                    distinct.push(unit);
                }
            }
        }
        distinct
    }

    /// Whether the view holds blobs. What they take is in no count of bytes.
    pub fn has_blobs(&self) -> bool {
        let mut fields = self.bench.table.schema().fields.iter();
        fields.any(scan::holds_blobs)
    }

    /// The claims among those that `now` keeps to put together.
    pub fn merges(&self, now: &Judgement) -> Vec<Vec<Claim>> {
        if self.inputs.whole || self.has_blobs() || now.is_done() {
            return Vec::new();
        }
        let rows: HashMap<&Fingerprint, u64> = match &self.pieces {
            Pieces::OfSource { pieces, .. } => {
                pieces.iter().map(|p| (&p.fingerprint, p.rows)).collect()
            }
            Pieces::OfBranches(cut) => cut.rows().collect(),
        };
        let size = |claim: &Claim| {
            let source = claim.inputs.iter().filter_map(|input| rows.get(input));
            claim
                .rows
                .max(source.fold(0, |sum, rows| sum.saturating_add(*rows)))
        };
        let target = match &self.pieces {
            Pieces::OfSource { reads, .. } => unit::target(reads),
            Pieces::OfBranches(_) => TARGET_ROWS,
        };
        let full = self.bench.max_rows_per_fragment;
        let most = target * merge::MOST_UNITS;
        let mut chosen = merge::choose(&now.kept, size, full.unwrap_or(most));
        // What full units leave is large enough.
        let full = full.map_or(target, |full| full.min(target));
        for claim in merge::scattered(&now.kept, full, most * merge::ALONE) {
            if !chosen
                .iter()
                .flatten()
                .any(|c| c.fragments == claim.fragments)
            {
                chosen.push(vec![claim.clone()]);
            }
        }
        chosen
    }

    /// What identifies the claims that the plan puts together.
    pub fn merged(&self) -> HashSet<Fingerprint> {
        let groups = self.plan.merges.iter();
        groups.map(|group| merge::id(group)).collect()
    }

    /// The pieces of the source, if the view's groups can be merged from parts.
    pub fn mergeable(&self) -> Option<&[Piece]> {
        match (&self.pieces, &*self.bench.planned) {
            (Pieces::OfSource { pieces, .. }, Planned::Sql(planned)) => {
                planned.merge().map(|_| pieces.as_slice())
            }
            _ => None,
        }
    }

    /// The pieces of the source and what is read of them, if each row of the view
    /// comes of one row of the source, and no other does.
    pub fn by_rows(&self) -> Option<(&[Piece], &Reads)> {
        match (&self.pieces, &*self.bench.planned) {
            (Pieces::OfSource { pieces, reads }, Planned::Sql(planned)) => {
                planned.is_by_rows().then_some((pieces.as_slice(), reads))
            }
            _ => None,
        }
    }

    /// Whether the view is the first rows of its source.
    pub fn is_limited(&self) -> bool {
        matches!(&*self.bench.planned,
            Planned::Sql(planned) if matches!(planned.shape(), Shape::Limited(_)))
    }

    /// Leaves out of the inputs of a view with LIMIT what it does not read, as
    /// far as that is told by `claims` or by counting.
    pub async fn narrow(&mut self, claims: impl Iterator<Item = &Claim>) {
        let (Pieces::OfSource { pieces, .. }, Planned::Sql(planned), [source]) = (
            &self.pieces,
            &*self.bench.planned,
            self.bench.sources.as_slice(),
        ) else {
            return;
        };
        let Shape::Limited(limit) = planned.shape() else {
            return;
        };
        let inputs = &self.inputs.fingerprints;
        // The definition is the first input.
        let (inputs, fragments) = match prefix::known(claims, inputs, limit) {
            Known::TooFew => return,
            Known::Inputs(count) => {
                let last = pieces[..count.saturating_sub(1)].last();
                (count, last.map_or(0, |piece| piece.fragment + 1))
            }
            Known::Nothing => match prefix::fragments(source, planned.filter(), limit).await {
                Ok(fragments) => {
                    let read = pieces.iter().filter(|piece| piece.fragment < fragments);
                    (read.count() + 1, fragments)
                }
                // Whoever scans for the rows will say what is wrong.
                Err(error) => {
                    debug!(%error, "the first rows could not be counted");
                    return;
                }
            },
        };
        self.inputs.fingerprints.truncate(inputs);
        self.prefix = Some(fragments);
    }

    /// What a unit is computed from.
    pub fn task(&self, unit: &[usize]) -> Task {
        let (branch, extent) = match &self.pieces {
            Pieces::OfSource { .. } if self.inputs.whole => {
                let first = |n| self.bench.sources.first()?.fragments().get(..n);
                let extent = self.prefix.and_then(first);
                (0, extent.map(|first| Extent::of(first.to_vec())))
            }
            Pieces::OfSource { pieces, .. } => {
                let pieces = unit.iter().filter_map(|at| pieces.get(*at));
                let source = self.bench.sources.first();
                let all = source.map_or(&[][..], |s| s.fragments());
                (0, Some(Extent::new(all, pieces)))
            }
            Pieces::OfBranches(cut) => cut.task(unit),
        };
        Task {
            branch,
            extent,
            parts: self.parts.clone(),
            by_rows: matches!(self.pieces, Pieces::OfSource { .. }) && !self.inputs.whole,
        }
    }

    /// The fingerprints that a unit covers.
    pub fn unit_inputs(&self, unit: &[usize]) -> Vec<Fingerprint> {
        let all = &self.inputs.fingerprints;
        if self.inputs.whole {
            return all.clone();
        }
        unit.iter().filter_map(|at| all.get(*at)).cloned().collect()
    }

    /// What identifies a unit, and its claim.
    pub fn unit_id(&self, unit: &[usize]) -> Fingerprint {
        Fingerprint::of_all(&self.unit_inputs(unit))
    }

    /// What a commit of `judgement` on top of `table` does.
    pub fn outcome(&self, judgement: &Judgement, table: &Dataset, full: bool) -> Outcome {
        // What is written of a view with groups is all of them; what is
        // computed of it are its parts.
        let partials = &self.plan.partials;
        let parts = partials.len() as u64;
        let parts_kept = partials.iter().filter(|p| p.kept).count() as u64;
        let by_parts = parts > 0 && partials.iter().all(|p| !p.large && p.is_own());
        if by_parts && !judgement.added.is_empty() {
            return Outcome {
                mode: match parts_kept {
                    0 => Mode::Rebuild,
                    _ => Mode::Incremental,
                },
                rows_written: judgement.added.iter().map(|c| c.rows).sum(),
                bytes_written: judgement.added.iter().map(|c| c.bytes).sum(),
                units_kept: parts_kept,
                ..self.unchanged(parts, table.version().version + 1)
            };
        }
        let merged = self.merged();
        let computed = judgement.added.iter().filter(|c| !merged.contains(&c.id()));
        let nothing_kept = judgement.kept.is_empty()
            && judgement.trimmed.is_empty()
            && computed.clone().count() == judgement.added.len();
        Outcome {
            mode: if full || nothing_kept {
                Mode::Rebuild
            } else {
                Mode::Incremental
            },
            rows_written: computed.map(|c| c.rows).sum(),
            bytes_written: judgement.added.iter().map(|c| c.bytes).sum(),
            units_kept: judgement.kept.len() as u64,
            ..self.unchanged(
                judgement.claims().count() as u64,
                table.version().version + 1,
            )
        }
    }
}
