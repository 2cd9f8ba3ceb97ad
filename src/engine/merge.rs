//! Which small claims a refresh puts together, so that a view of many small
//! appends does not become one of many small fragments.
//!
//! Claims are sorted into tiers by size: tier t holds sizes from 8^t to below
//! 8^(t+1). Eight claims of one tier become one claim, mostly of a higher tier. So
//! a row is rewritten about once a tier, which is log8 of the largest size
//! times in its life (7 for half a million rows), and of claims below an eighth of
//! the largest size a view is left with at most 7 a tier, and those that the refresh
//! adds. One refresh rewrites no more than one claim of the largest size so; what
//! would be more waits for the next.
//!
//! The size of a claim is the rows that it holds, or the source rows that it
//! stands for if those are more: a changed row costs computing all of these
//! again, and a claim must not become dearer than a large fragment. So the claims
//! of full units stay as they are, though few rows may have come of each.
//!
//! A compaction of the source joins claims to one, whose fragments stay as many
//! as they were ([`super::carry`]). Where they are many, and small beside what
//! they could be, the claim is put together by itself ([`scattered`]): once its
//! small fragments hold an eighth of its rows, so that a row is rewritten once
//! for each eighth that its claim grows by, or there are more than [`SCATTERED`].
//! One refresh rewrites no more rows so than [`ALONE`] claims of the largest size
//! have.

use super::carry::join;
use super::fingerprint::Fingerprint;
use super::ledger::Claim;

/// How many claims are put together.
pub const FAN_IN: usize = 8;

/// Most rows in a fragment that is put together, where the refresh does not say,
/// in units of full size: a claim of more would make a changed row dear, and
/// what full units leave is large enough already.
pub const MOST_UNITS: u64 = 4;

/// The most small fragments that a claim may have.
const SCATTERED: usize = 64;

/// The most rows of a claim that is put together by itself, as a multiple of
/// what a refresh puts together of several: it is as dear as it will be already,
/// and a source may have been compacted to fragments of more than a unit.
pub const ALONE: u64 = FAN_IN as u64;

/// Chooses the claims among `kept` to put together, each group into one
/// fragment of at most `most` rows. `size` tells a claim's size in rows.
pub fn choose(kept: &[Claim], size: impl Fn(&Claim) -> u64, most: u64) -> Vec<Vec<Claim>> {
    let mut tiers: Vec<Vec<(u64, &Claim)>> = Vec::new();
    for claim in kept.iter().filter(|claim| !claim.fragments.is_empty()) {
        let size = size(claim).max(1);
        // Eight such would be too much for one, and fewer are not put together: they
        // would but keep smaller ones from it.
        if size > most / FAN_IN as u64 {
            continue;
        }
        let tier = (size.ilog2() / FAN_IN.ilog2()) as usize;
        if tiers.len() <= tier {
            tiers.resize(tier + 1, Vec::new());
        }
        tiers[tier].push((size, claim));
    }
    let mut left = most;
    let mut chosen = Vec::new();
    for group in tiers.iter().flat_map(|tier| tier.chunks_exact(FAN_IN)) {
        let size = group
            .iter()
            .fold(0u64, |sum, (size, _)| sum.saturating_add(*size));
        if size <= left {
            left -= size;
            chosen.push(group.iter().map(|(_, claim)| (*claim).clone()).collect());
        }
    }
    chosen
}

/// The claims among `kept` of many small fragments, of at most `most` rows in
/// all. A fragment may have `full` rows.
pub fn scattered(kept: &[Claim], full: u64, most: u64) -> Vec<&Claim> {
    let mut left = most;
    let chosen = kept.iter().filter(|claim| {
        let chosen = is_scattered(claim, full) && claim.rows <= left;
        left -= if chosen { claim.rows } else { 0 };
        chosen
    });
    chosen.collect()
}

fn is_scattered(claim: &Claim, full: u64) -> bool {
    let fan_in = FAN_IN as u64;
    let rows = claim.fragments.iter().map(|f| f.physical_rows);
    let rows = rows.map(|rows| rows.unwrap_or(0) as u64);
    let least = claim.rows.min(full) / fan_in;
    let (small, held) = rows
        .filter(|rows| *rows <= least)
        .fold((0, 0), |(small, held), rows| (small + 1, held + rows));
    small >= FAN_IN && (held >= claim.rows / fan_in || small > SCATTERED)
}

/// What identifies the claim that `group` becomes.
pub fn id(group: &[Claim]) -> Fingerprint {
    join(group.to_vec()).map_or_else(|| Fingerprint::of_all([]), |claim| claim.id())
}

#[cfg(test)]
mod tests {
    use lance_table::format::Fragment;

    use super::*;
    use crate::engine::unit::TARGET_ROWS;

    const MOST_ROWS: u64 = MOST_UNITS * TARGET_ROWS;

    fn claim(rows: u64, name: u64) -> Claim {
        Claim {
            inputs: vec![Fingerprint::of_text(&name.to_string())],
            refresh: "r".into(),
            rows,
            bytes: rows,
            fragments: vec![Fragment::new(name)],
            of: Vec::new(),
        }
    }

    #[test]
    fn eight_of_a_kind_are_put_together_and_seven_are_not() {
        let claims: Vec<Claim> = (0..8).map(|i| claim(10, i)).collect();
        assert!(choose(&claims[..7], |c| c.rows, MOST_ROWS).is_empty());
        let all = vec![claims.clone()];
        assert_eq!(choose(&claims, |c| c.rows, MOST_ROWS), all);
        assert!(
            choose(&claims, |c| c.rows, 79).is_empty(),
            "larger than a fragment may be"
        );
        let mut mixed = claims;
        mixed[3] = claim(10_000, 3);
        assert!(choose(&mixed, |c| c.rows, MOST_ROWS).is_empty());
    }

    #[test]
    fn claims_too_large_to_be_put_together_do_not_keep_smaller_ones_from_it() {
        let most = 1 << 17;
        let mut view: Vec<Claim> = Vec::new();
        for n in 0..400u64 {
            for group in choose(&view, |c| c.rows, most) {
                view.retain(|c| !group.contains(c));
                view.extend(join(group));
            }
            view.push(claim([5_000, 30_000][(n % 2) as usize], n));
            let small = view.iter().filter(|c| c.rows < most / 8).count();
            assert!(small <= FAN_IN, "{small} after {n}");
        }
    }

    #[test]
    fn claims_without_rows_need_no_file() {
        let mut claims: Vec<Claim> = (0..8).map(|i| claim(10, i)).collect();
        claims[0].fragments.clear();
        assert!(choose(&claims, |c| c.rows, MOST_ROWS).is_empty());
    }

    /// A claim of fragments of these `rows`.
    fn joined(rows: &[u64]) -> Claim {
        let mut joined = claim(rows.iter().sum(), 0);
        let fragment = |rows: &u64| {
            let mut fragment = Fragment::new(0);
            fragment.physical_rows = Some(*rows as usize);
            fragment
        };
        joined.fragments = rows.iter().map(fragment).collect();
        joined
    }

    #[test]
    fn a_claim_of_many_small_fragments_is_put_together_by_itself() {
        let is_chosen = |rows: &[u64], full: u64| {
            let claim = joined(rows);
            !scattered(std::slice::from_ref(&claim), full, MOST_ROWS).is_empty()
        };
        assert!(is_chosen(&[10; 8], 1000));
        assert!(!is_chosen(&[10; 7], 1000));
        assert!(!is_chosen(&[10; 8], 10), "they can be no larger");
        assert!(!is_chosen(&[1000; 20], 1000));
        // Beside a large one: once they hold an eighth, or are very many.
        let beside = |count: usize| [vec![10_000], vec![10; count]].concat();
        assert!(!is_chosen(&beside(SCATTERED), 1 << 20));
        assert!(is_chosen(&beside(SCATTERED + 1), 1 << 20));
        assert!(is_chosen(&[vec![560], vec![10; 8]].concat(), 1 << 20));
        let all = [joined(&[10; 8]), joined(&[10; 9])];
        assert_eq!(scattered(&all, 1000, 169), [&all[0]]);
    }

    #[test]
    fn thousands_of_small_appends_leave_few_fragments_and_rewrite_each_row_few_times() {
        let most = 1 << 14;
        let mut view: Vec<Claim> = Vec::new();
        let mut rewritten = 0;
        let mut appended = 0;
        for n in 0..5_000u64 {
            for group in choose(&view, |c| c.rows, most) {
                rewritten += group.iter().map(|c| c.rows).sum::<u64>();
                view.retain(|c| !group.contains(c));
                view.extend(join(group));
            }
            view.push(claim(1 + n % 5, n));
            appended += 1 + n % 5;
        }
        let tiers = u64::from(most.ilog2() / FAN_IN.ilog2()) + 1;
        assert!(rewritten <= appended * tiers, "{rewritten} of {appended}");
        let small = view.iter().filter(|c| c.rows < most / 8).count() as u64;
        assert!(small <= (FAN_IN as u64) * tiers, "{small}");
    }
}
