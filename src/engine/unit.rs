//! How the source is cut: into pieces that have a fingerprint each, and those
//! into units that are computed one by one.
//!
//! A piece is a fragment, or a slice of a huge one, so that a change of a row of
//! it never costs more than a slice.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance::dataset::scanner::{FragmentSlice, Scanner};
use lance_table::format::Fragment;

use super::fingerprint::{Fingerprint, Reads};

/// Small neighbouring pieces are computed together up to this many rows: large
/// enough that a scan's and a file's fixed costs do not show, small enough
/// that one changed row costs little: twice as many make a full refresh no
/// faster, and a change of one row nearly twice as slow. Larger fragments are
/// sliced.
pub const TARGET_ROWS: u64 = 1 << 17;

/// Units of rows that are wide by their type, such as vectors, are cut shorter,
/// to about as many bytes.
const TARGET_BYTES: u64 = 1 << 28;

/// Lance's compaction leaves fragments of so many rows alone, and puts smaller
/// neighbours together until they have as many, where nobody says otherwise
/// (`CompactionOptions::target_rows_per_fragment`).
const COMPACTED_ROWS: u64 = 1 << 20;
/// The table's configuration that says otherwise.
const COMPACTED_ROWS_KEY: &str = "lance.compaction.target_rows_per_fragment";

/// How many deletion files are read at a time.
const READS: usize = 32;

/// A part of the source with a fingerprint of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The position of the fragment among the source version's.
    pub fragment: usize,
    /// The physical rows of a slice; `None` for the whole fragment.
    pub slice: Option<Range<u64>>,
    /// How many physical rows it has.
    pub rows: u64,
    /// Whether a compaction would begin here to put fragments together, or leaves
    /// this or the one before alone. A unit of parts of what is on both sides of that
    /// would be joined with the next one, and that with its next, to a claim without end.
    pub begins: bool,
    /// What the view reads of it.
    pub fingerprint: Fingerprint,
}

/// The pieces of `fragments`, which are fragments of `source` as it is or as
/// it was. Errors: those of reading the deletion files of huge fragments: which rows
/// are deleted from the others does not matter, since any is as dear as all.
pub async fn pieces(
    source: &Arc<Dataset>,
    reads: &Reads,
    fragments: &[Fragment],
) -> lance::Result<Vec<Piece>> {
    let target = target(reads);
    let is_cut = |f: &Fragment| is_sliceable(f) && f.physical_rows.unwrap_or(0) as u64 > target;
    let touched: Vec<FileFragment> = fragments
        .iter()
        .filter(|f| is_cut(f) && f.deletion_file.is_some())
        .map(|fragment| FileFragment::new(source.clone(), fragment.clone()))
        .collect();
    let deleted: HashMap<usize, Vec<u32>> = futures::stream::iter(touched)
        .map(|fragment| async move {
            let deleted = fragment.get_deletion_vector().await?;
            let offsets = deleted.map(|d| d.to_sorted_iter().collect::<Vec<u32>>());
            Ok::<_, lance::Error>((fragment.id(), offsets.unwrap_or_default()))
        })
        .buffer_unordered(READS)
        .try_collect()
        .await?;
    let most = source.manifest().config.get(COMPACTED_ROWS_KEY);
    let most = most
        .and_then(|rows| rows.parse().ok())
        .filter(|most| *most > 0);
    let mut compacted = Compacted::to(most.unwrap_or(COMPACTED_ROWS));
    let mut found = Vec::with_capacity(fragments.len());
    for (at, fragment) in fragments.iter().enumerate() {
        let rows = fragment.physical_rows.unwrap_or(0) as u64;
        let begins = compacted.begins(fragment);
        if !is_cut(fragment) {
            found.push(Piece {
                fragment: at,
                slice: None,
                rows,
                begins,
                fingerprint: reads.fragment(fragment),
            });
            continue;
        }
        let slices = slices(rows, target);
        let gone = deleted
            .get(&(fragment.id as usize))
            .map_or(&[][..], Vec::as_slice);
        let fingerprints = reads.slices(fragment, &slices, gone);
        for (slice, fingerprint) in slices.into_iter().zip(fingerprints) {
            found.push(Piece {
                fragment: at,
                rows: slice.end - slice.start,
                begins: begins && slice.start == 0,
                slice: Some(slice),
                fingerprint,
            });
        }
    }
    Ok(found)
}

/// How Lance's compaction would put fragments together, one after the other
/// (`CandidateBin::split_for_size`).
struct Compacted {
    /// To so many rows.
    most: u64,
    /// The rows that it would have put together so far.
    rows: u64,
    /// Whether it leaves the last one alone.
    alone: bool,
}

impl Compacted {
    fn to(most: u64) -> Compacted {
        Compacted {
            most,
            rows: 0,
            alone: false,
        }
    }

    /// Whether it would begin anew at the next `fragment`.
    fn begins(&mut self, fragment: &Fragment) -> bool {
        let rows = fragment.physical_rows.unwrap_or(0) as u64;
        let deleted = fragment.deletion_file.as_ref();
        let deleted = deleted.and_then(|file| file.num_deleted_rows).unwrap_or(0) as u64;
        let alone = rows >= self.most;
        let begins = alone || self.alone || self.rows >= self.most;
        let before = if begins { 0 } else { self.rows };
        self.rows = before + rows.saturating_sub(deleted);
        self.alone = alone;
        begins
    }
}

/// Files of Lance's first format have no row addresses to slice by.
fn is_sliceable(fragment: &Fragment) -> bool {
    fragment
        .files
        .iter()
        .all(|file| file.file_major_version >= 2)
}

/// How many rows a unit shall have of what `reads` reads.
pub fn target(reads: &Reads) -> u64 {
    let rows = TARGET_BYTES / reads.width().max(1);
    // The nearest below that is a power of two.
    (1 << rows.max(1).ilog2()).min(TARGET_ROWS)
}

/// Cuts `rows` into equal slices of at most `target`.
fn slices(rows: u64, target: u64) -> Vec<Range<u64>> {
    equal(rows, rows.div_ceil(target))
}

/// Cuts `rows` into `count` equal slices.
fn equal(rows: u64, count: u64) -> Vec<Range<u64>> {
    let count = count.max(1);
    (0..count)
        .map(|i| rows * i / count..rows * (i + 1) / count)
        .collect()
}

/// Groups what has to be computed into units: positions of pieces, each unit a
/// run of `missing` neighbours of at most `target` rows, or one larger piece. A unit
/// is of one group of those that a compaction puts together, or of several whole
/// ones; a large group is cut evenly, so that no small rest of it is left. Standing
/// claims are matched before, so that a small append never cuts again what an
/// earlier refresh has cut.
pub fn cut(pieces: &[Piece], missing: &[usize], target: u64) -> Vec<Vec<usize>> {
    let rows = |at: &usize| pieces.get(*at).map_or(0, |piece| piece.rows);
    let begins = |at: usize| at == 0 || pieces.get(at).is_none_or(|piece| piece.begins);
    let mut units: Vec<Vec<usize>> = Vec::new();
    // The rows of the last unit, if it is of whole groups.
    let mut whole: Option<u64> = None;
    for run in missing.chunk_by(|one, next| *next == one + 1 && !begins(*next)) {
        let all: u64 = run.iter().map(rows).sum();
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        let is_whole = begins(*first) && begins(last + 1);
        match (units.last_mut(), whole) {
            (Some(unit), Some(before))
                if is_whole
                    && unit.last().map(|at| at + 1) == Some(*first)
                    && before + all <= target =>
            {
                unit.extend(run);
                whole = Some(before + all);
            }
            _ if all <= target => {
                units.push(run.to_vec());
                whole = is_whole.then_some(all);
            }
            _ => {
                units.extend(evenly(run, rows, all, target));
                whole = None;
            }
        }
    }
    units
}

/// Cuts a run of pieces, of `all` rows, into units of about as many each.
fn evenly(run: &[usize], rows: impl Fn(&usize) -> u64, all: u64, target: u64) -> Vec<Vec<usize>> {
    let parts = u128::from(all.div_ceil(target));
    let mut units: Vec<Vec<usize>> = Vec::new();
    let (mut start, mut rows_in_last, mut last) = (0, 0, None);
    for at in run {
        let rows = rows(at);
        let part = u128::from(start + rows / 2) * parts / u128::from(all.max(1));
        start += rows;
        match units.last_mut() {
            Some(unit) if last == Some(part) && rows_in_last + rows <= target => {
                unit.push(*at);
                rows_in_last += rows;
            }
            _ => {
                units.push(vec![*at]);
                (rows_in_last, last) = (rows, Some(part));
            }
        }
    }
    units
}

/// Which rows of the source a scan shall read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extent {
    fragments: Vec<Fragment>,
    /// Physical rows; none if the fragments are read whole.
    slices: Vec<FragmentSlice>,
}

impl Extent {
    /// The rows of `pieces`, positions in `fragments` of theirs.
    pub fn new<'a>(fragments: &[Fragment], pieces: impl Iterator<Item = &'a Piece>) -> Extent {
        let places = pieces.map(|piece| (piece.fragment, piece.slice.clone()));
        Self::of_rows(fragments, places)
    }

    /// Of the `fragments` at these positions the physical rows of each slice, or all.
    pub fn of_rows(
        fragments: &[Fragment],
        places: impl Iterator<Item = (usize, Option<Range<u64>>)>,
    ) -> Extent {
        let mut extent = Extent::default();
        let mut sliced = false;
        for (at, slice) in places {
            let Some(fragment) = fragments.get(at) else {
                continue;
            };
            if extent.fragments.last().map(|f| f.id) != Some(fragment.id) {
                extent.fragments.push(fragment.clone());
            }
            sliced |= slice.is_some();
            let all = 0..fragment.physical_rows.unwrap_or(0) as u64;
            let rows = slice.unwrap_or(all);
            extent.slices.push(FragmentSlice {
                fragment_id: fragment.id as u32,
                row_offset: rows.start,
                row_count: rows.end - rows.start,
            });
        }
        if !sliced {
            extent.slices.clear();
        }
        extent
    }

    /// Whole fragments.
    pub fn of(fragments: Vec<Fragment>) -> Extent {
        Extent {
            fragments,
            slices: Vec::new(),
        }
    }

    /// How many physical rows these are.
    pub fn rows(&self) -> u64 {
        let whole = |f: &Fragment| f.physical_rows.unwrap_or(0) as u64;
        match self.slices.is_empty() {
            true => self.fragments.iter().map(whole).sum(),
            false => self.slices.iter().map(|slice| slice.row_count).sum(),
        }
    }

    /// The same rows in at most `parts` parts of about as many, one after the
    /// other; fewer, so that none is smaller than `least` rows.
    pub fn split(&self, parts: usize, least: u64) -> Vec<Extent> {
        let whole = |f: &Fragment| {
            let rows = f.physical_rows.filter(|_| is_sliceable(f))? as u64;
            Some(FragmentSlice {
                fragment_id: f.id as u32,
                row_offset: 0,
                row_count: rows,
            })
        };
        let slices = match self.slices.is_empty() {
            true => self.fragments.iter().map(whole).collect(),
            false => Some(self.slices.clone()),
        };
        let Some(slices) = slices else {
            return vec![self.clone()];
        };
        let rows: u64 = slices.iter().map(|slice| slice.row_count).sum();
        let parts = (parts as u64).min(rows / least.max(1));
        if parts <= 1 {
            return vec![self.clone()];
        }
        let parts = equal(rows, parts);
        parts
            .into_iter()
            .map(|part| self.part(&slices, part))
            .collect()
    }

    /// Those of `slices` that are in `part` of all their rows.
    fn part(&self, slices: &[FragmentSlice], part: Range<u64>) -> Extent {
        let mut extent = Extent::default();
        let mut start = 0;
        for slice in slices {
            let from = part.start.clamp(start, start + slice.row_count) - start;
            let to = part.end.clamp(start, start + slice.row_count) - start;
            start += slice.row_count;
            if from >= to {
                continue;
            }
            let fragment = self
                .fragments
                .iter()
                .find(|f| f.id as u32 == slice.fragment_id);
            let Some(fragment) = fragment else {
                continue;
            };
            if extent.fragments.last().map(|f| f.id) != Some(fragment.id) {
                extent.fragments.push(fragment.clone());
            }
            extent.slices.push(FragmentSlice {
                fragment_id: slice.fragment_id,
                row_offset: slice.row_offset + from,
                row_count: to - from,
            });
        }
        extent
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    /// Restricts `scanner` to these rows.
    pub async fn restrict(&self, scanner: &mut Scanner) -> lance::Result<()> {
        scanner.with_fragments(self.fragments.clone());
        if !self.slices.is_empty() {
            scanner.with_fragment_slices(&self.slices).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(rows: &[u64]) -> Vec<Piece> {
        rows.iter()
            .enumerate()
            .map(|(at, rows)| Piece {
                fragment: at,
                slice: None,
                rows: *rows,
                begins: false,
                fingerprint: Fingerprint::of_text(&at.to_string()),
            })
            .collect()
    }

    #[test]
    fn small_neighbours_share_a_unit_and_large_ones_do_not() {
        let big = TARGET_ROWS;
        let found = cut(&pieces(&[10, 10, big, 5, 5]), &[0, 1, 2, 3, 4], big);
        assert_eq!(found, [vec![0, 1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn pieces_with_a_standing_one_between_do_not_share_a_unit() {
        assert_eq!(cut(&pieces(&[10, 10, 10]), &[0, 2], 99), [vec![0], vec![2]]);
        assert!(cut(&pieces(&[]), &[], 99).is_empty());
    }

    #[test]
    fn units_end_where_a_compaction_would_begin_anew() {
        let mut found = pieces(&[10; 6]);
        found[2].begins = true;
        let units = cut(&found, &[0, 1, 2, 3, 5], 99);
        assert_eq!(units, [vec![0, 1], vec![2, 3], vec![5]]);
        // Whole ones may share a unit, as far as they fit.
        found[4].begins = true;
        let all = [0, 1, 2, 3, 4, 5];
        assert_eq!(cut(&found, &all, 99), [all]);
        assert_eq!(cut(&found, &all, 59), [vec![0, 1, 2, 3], vec![4, 5]]);
        let units = cut(&found, &all[1..], 99);
        assert_eq!(units, [vec![1], vec![2, 3, 4, 5]]);
    }

    #[test]
    fn a_group_of_more_than_a_unit_leaves_no_small_rest() {
        let mut found = pieces(&[10_000; 210]);
        (found[0].begins, found[105].begins) = (true, true);
        let all: Vec<usize> = (0..210).collect();
        let units = cut(&found, &all, TARGET_ROWS);
        let rows: Vec<usize> = units.iter().map(|unit| unit.len() * 10_000).collect();
        assert_eq!(rows.len(), 18);
        assert!(
            rows.iter().all(|rows| (110_000..=120_000).contains(rows)),
            "{rows:?}"
        );
        assert!(units.iter().any(|unit| unit.first() == Some(&105)));
        assert_eq!(units.concat(), all);
        // None has more than it may, whatever it takes.
        let units = cut(&pieces(&[100_000; 11]), &all[..11], TARGET_ROWS);
        assert_eq!(units.len(), 11);
    }

    #[test]
    fn a_compaction_puts_small_neighbours_together_and_leaves_large_ones_alone() {
        let fragment = |rows: u64| {
            let mut fragment = Fragment::new(0);
            fragment.physical_rows = Some(rows as usize);
            fragment
        };
        let begins = |rows: &[u64]| -> Vec<bool> {
            let mut compacted = Compacted::to(COMPACTED_ROWS);
            let each = rows.iter().map(|rows| compacted.begins(&fragment(*rows)));
            each.collect()
        };
        let (full, half) = (COMPACTED_ROWS, COMPACTED_ROWS / 2);
        assert_eq!(begins(&[1, half, 1, half]), [false; 4]);
        assert_eq!(begins(&[half, half, 5, half]), [false, false, true, false]);
        let around = begins(&[5, full, 5, 5]);
        assert_eq!(around, [false, true, true, false]);
        // 105 of 10,000 rows are one group.
        let many = begins(&[10_000; 300]);
        let at: Vec<usize> = (0..300).filter(|at| many[*at]).collect();
        assert_eq!(at, [105, 210]);
        // Rows that are deleted do not come along.
        let mut less = fragment(half);
        less.deletion_file = Some(lance_table::format::DeletionFile {
            read_version: 1,
            id: 1,
            file_type: lance_table::format::DeletionFileType::Array,
            num_deleted_rows: Some(100),
            base_id: None,
        });
        let mut compacted = Compacted::to(COMPACTED_ROWS);
        assert!(!compacted.begins(&less));
        assert!(!compacted.begins(&fragment(half)));
        assert!(!compacted.begins(&fragment(100)));
        assert!(compacted.begins(&fragment(1)));
    }

    #[test]
    fn slices_cover_a_fragment_without_gap_or_overlap() {
        for rows in [1, TARGET_ROWS, TARGET_ROWS + 1, 5 * TARGET_ROWS - 7] {
            let slices = slices(rows, TARGET_ROWS);
            assert_eq!(slices.first().unwrap().start, 0);
            assert_eq!(slices.last().unwrap().end, rows);
            assert!(slices.windows(2).all(|w| w[0].end == w[1].start));
            assert!(slices.iter().all(|s| s.end - s.start <= TARGET_ROWS));
        }
    }

    #[test]
    fn wide_rows_make_short_units() {
        assert_eq!(target_of(8), TARGET_ROWS);
        assert_eq!(target_of(0), TARGET_ROWS);
        assert_eq!(target_of(1536 * 4), 32_768);
        assert_eq!(target_of(1 << 30), 1);
    }

    fn target_of(width: i32) -> u64 {
        use std::collections::BTreeSet;

        use arrow_schema::{DataType, Field, Schema};

        let wide = DataType::FixedSizeBinary(width);
        let schema = Schema::new(vec![Field::new("wide", wide, true)]);
        let mut schema = lance_core::datatypes::Schema::try_from(&schema).unwrap();
        schema.set_field_id(None);
        let columns = BTreeSet::from(["wide".to_string()]);
        target(&Reads::new("", &schema, &columns, false, true))
    }

    #[test]
    fn an_extent_is_split_into_parts_that_are_all_of_it() {
        let fragments: Vec<Fragment> = [700usize, 300, 500]
            .iter()
            .enumerate()
            .map(|(id, rows)| {
                let mut fragment = Fragment::new(id as u64);
                fragment.physical_rows = Some(*rows);
                fragment
            })
            .collect();
        let all = Extent::of(fragments.clone());
        assert_eq!(all.split(4, 1000), std::slice::from_ref(&all));
        let rows = |extent: &Extent| -> Vec<(u32, u64)> {
            extent
                .slices
                .iter()
                .flat_map(|s| {
                    (s.row_offset..s.row_offset + s.row_count).map(|at| (s.fragment_id, at))
                })
                .collect()
        };
        for parts in 2..6 {
            let split = all.split(parts, 1);
            assert_eq!(split.len(), parts);
            let found: Vec<(u32, u64)> = split.iter().flat_map(rows).collect();
            let expected = [(0, 700), (1, 300), (2, 500)];
            let expected: Vec<(u32, u64)> = expected
                .iter()
                .flat_map(|(id, rows)| (0..*rows).map(|at| (*id, at)))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_extent_has_slices_only_where_a_piece_is_one() {
        let mut fragment = Fragment::new(3);
        fragment.physical_rows = Some(10);
        let fragments = [Fragment::new(1), fragment];
        let mut found = pieces(&[4, 10]);
        let whole = Extent::new(&fragments, found.iter());
        assert_eq!(whole, Extent::of(fragments.to_vec()));
        found[1].slice = Some(5..10);
        found[1].rows = 5;
        let sliced = Extent::new(&fragments, found[1..].iter());
        assert_eq!(sliced.slices.len(), 1);
        assert_eq!(
            (sliced.slices[0].fragment_id, sliced.slices[0].row_offset),
            (3, 5)
        );
    }
}
