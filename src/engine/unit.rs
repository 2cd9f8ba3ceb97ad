//! How the source is cut: into pieces that have a fingerprint each, and those
//! into units that are computed one by one.
//!
//! A piece is a fragment, or a slice of a huge one, so that a row deleted from
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
    /// What the view reads of it.
    pub fingerprint: Fingerprint,
}

/// The pieces of `fragments`, which are fragments of `source` as it is or as
/// it was. Errors: those of reading the deletion files of huge fragments.
pub async fn pieces(
    source: &Arc<Dataset>,
    reads: &Reads,
    fragments: &[Fragment],
) -> lance::Result<Vec<Piece>> {
    let touched: Vec<FileFragment> = fragments
        .iter()
        .filter(|f| sliceable(f) && f.deletion_file.is_some())
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
    let mut found = Vec::with_capacity(fragments.len());
    for (at, fragment) in fragments.iter().enumerate() {
        let rows = fragment.physical_rows.unwrap_or(0) as u64;
        if !sliceable(fragment) {
            found.push(Piece {
                fragment: at,
                slice: None,
                rows,
                fingerprint: reads.fragment(fragment),
            });
            continue;
        }
        let slices = slices(rows);
        let gone = deleted
            .get(&(fragment.id as usize))
            .map_or(&[][..], Vec::as_slice);
        let fingerprints = reads.slices(fragment, &slices, gone);
        for (slice, fingerprint) in slices.into_iter().zip(fingerprints) {
            found.push(Piece {
                fragment: at,
                rows: slice.end - slice.start,
                slice: Some(slice),
                fingerprint,
            });
        }
    }
    Ok(found)
}

/// Files of Lance's first format have no row addresses to slice by.
fn sliceable(fragment: &Fragment) -> bool {
    fragment
        .files
        .iter()
        .all(|file| file.file_major_version >= 2)
}

/// Cuts `rows` into equal slices of at most [`TARGET_ROWS`].
fn slices(rows: u64) -> Vec<Range<u64>> {
    let count = rows.div_ceil(TARGET_ROWS).max(1);
    (0..count)
        .map(|i| rows * i / count..rows * (i + 1) / count)
        .collect()
}

/// Groups what has to be computed into units: positions of pieces, each unit a
/// run of `missing` neighbours of at most [`TARGET_ROWS`] rows, or one larger
/// piece. Standing claims are matched before, so that a small append never
/// cuts again what an earlier refresh has cut.
pub fn cut(pieces: &[Piece], missing: &[usize]) -> Vec<Vec<usize>> {
    cut_to(pieces, missing, TARGET_ROWS)
}

/// As [`cut`], with units of at most `target` rows.
pub fn cut_to(pieces: &[Piece], missing: &[usize], target: u64) -> Vec<Vec<usize>> {
    let mut units: Vec<Vec<usize>> = Vec::new();
    let mut rows_in_last = 0u64;
    for &at in missing {
        let rows = pieces.get(at).map_or(0, |piece| piece.rows);
        match units.last_mut() {
            Some(unit)
                if unit.last() == Some(&(at.wrapping_sub(1))) && rows_in_last + rows <= target =>
            {
                unit.push(at);
                rows_in_last += rows;
            }
            _ => {
                units.push(vec![at]);
                rows_in_last = rows;
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
        let mut extent = Extent::default();
        let mut sliced = false;
        for piece in pieces {
            let Some(fragment) = fragments.get(piece.fragment) else {
                continue;
            };
            if extent.fragments.last().map(|f| f.id) != Some(fragment.id) {
                extent.fragments.push(fragment.clone());
            }
            sliced |= piece.slice.is_some();
            let rows = piece.slice.clone().unwrap_or(0..piece.rows);
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
                fingerprint: Fingerprint::of_text(&at.to_string()),
            })
            .collect()
    }

    #[test]
    fn small_neighbours_share_a_unit_and_large_ones_do_not() {
        let big = TARGET_ROWS;
        let found = cut(&pieces(&[10, 10, big, 5, 5]), &[0, 1, 2, 3, 4]);
        assert_eq!(found, [vec![0, 1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn pieces_with_a_standing_one_between_do_not_share_a_unit() {
        assert_eq!(cut(&pieces(&[10, 10, 10]), &[0, 2]), [vec![0], vec![2]]);
        assert!(cut(&pieces(&[]), &[]).is_empty());
    }

    #[test]
    fn slices_cover_a_fragment_without_gap_or_overlap() {
        for rows in [1, TARGET_ROWS, TARGET_ROWS + 1, 5 * TARGET_ROWS - 7] {
            let slices = slices(rows);
            assert_eq!(slices.first().unwrap().start, 0);
            assert_eq!(slices.last().unwrap().end, rows);
            assert!(slices.windows(2).all(|w| w[0].end == w[1].start));
            assert!(slices.iter().all(|s| s.end - s.start <= TARGET_ROWS));
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
