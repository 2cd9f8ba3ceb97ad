//! How the source is cut into pieces that are computed one by one.

use lance_table::format::Fragment;

/// Small neighbouring fragments are computed together up to this many rows:
/// large enough that a scan's and a file's fixed costs do not show, small
/// enough that one changed row costs little.
pub const TARGET_ROWS: u64 = 1 << 18;

/// Groups what has to be computed into units: positions of source fragments,
/// each unit a run of `missing` neighbours of at most [`TARGET_ROWS`] rows, or
/// one larger fragment. Standing claims are matched before, so that a small
/// append never cuts again what an earlier refresh has cut.
pub fn cut(fragments: &[Fragment], missing: &[usize]) -> Vec<Vec<usize>> {
    let mut units: Vec<Vec<usize>> = Vec::new();
    let mut rows_in_last = 0u64;
    for &at in missing {
        let rows = fragments[at].physical_rows.unwrap_or(0) as u64;
        match units.last_mut() {
            Some(unit)
                if unit.last() == Some(&(at.wrapping_sub(1)))
                    && rows_in_last + rows <= TARGET_ROWS =>
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments(rows: &[u64]) -> Vec<Fragment> {
        rows.iter()
            .enumerate()
            .map(|(id, rows)| {
                let mut fragment = Fragment::new(id as u64);
                fragment.physical_rows = Some(*rows as usize);
                fragment
            })
            .collect()
    }

    #[test]
    fn small_neighbours_share_a_unit_and_large_ones_do_not() {
        let big = TARGET_ROWS;
        let found = cut(&fragments(&[10, 10, big, 5, 5]), &[0, 1, 2, 3, 4]);
        assert_eq!(found, [vec![0, 1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn fragments_with_a_standing_one_between_do_not_share_a_unit() {
        assert_eq!(cut(&fragments(&[10, 10, 10]), &[0, 2]), [vec![0], vec![2]]);
        assert!(cut(&fragments(&[]), &[]).is_empty());
    }
}
