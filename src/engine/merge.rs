//! Which small claims a refresh puts together, so that a view of many small
//! appends does not become one of many small fragments.
//!
//! Claims are sorted into tiers by size: tier t holds sizes from 8^t to below
//! 8^(t+1). Eight claims of one tier become one claim of a higher tier. So a
//! row is rewritten at most once a tier, which is log8 of the largest size
//! times in its life (7 for half a million rows), and a view of n rows has at most
//! 7 small fragments a tier. One refresh rewrites no more rows than one
//! fragment may have.
//!
//! The size of a claim is the rows that it holds, or the source rows that it
//! stands for if those are more: a changed row costs computing all of these
//! again, and a claim must not become dearer than a large fragment.

use super::carry::join;
use super::fingerprint::Fingerprint;
use super::ledger::Claim;

/// How many claims are put together.
pub const FAN_IN: usize = 8;

/// Most rows in a fragment that is put together, where the refresh does not say,
/// in units of full size: a claim of more would make a changed row dear, and
/// what full units leave is large enough already.
pub const MOST_UNITS: u64 = 4;

/// Chooses the claims among `kept` to put together, each group into one
/// fragment of at most `most` rows. `size` tells a claim's size in rows.
pub fn choose(kept: &[Claim], size: impl Fn(&Claim) -> u64, most: u64) -> Vec<Vec<Claim>> {
    let mut tiers: Vec<Vec<(u64, &Claim)>> = Vec::new();
    for claim in kept.iter().filter(|claim| !claim.fragments.is_empty()) {
        let size = size(claim).max(1);
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
    fn claims_without_rows_need_no_file() {
        let mut claims: Vec<Claim> = (0..8).map(|i| claim(10, i)).collect();
        claims[0].fragments.clear();
        assert!(choose(&claims, |c| c.rows, MOST_ROWS).is_empty());
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
