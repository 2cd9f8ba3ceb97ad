//! Claims carried over compactions.
//!
//! A compaction gives the same rows other files: its transaction (Lance's
//! `Rewrite`) lists groups of fragments before and after. So a claim over the
//! fragments before is one over those after, and a claim whose view files were
//! rewritten holds the same rows in the new ones. Which fragment's rows went
//! into which is not known, only the group's; so the claims of a group are
//! carried together, as one, or not at all.
//!
//! The log alone tells it: what compaction read is what the transaction lists,
//! whatever else was committed meanwhile. Where transactions have been cleaned
//! up nothing is carried, and the rows are computed again.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::transaction::Operation;
use lance_table::format::Fragment;

use super::error::{EngineError, Result};
use super::fingerprint::Fingerprint;
use super::ledger::{Claim, Held};
use super::standing::Columns;
use super::store::{is_missing, storage};

/// How many versions back compactions are looked for. Further back it is
/// cheaper to compute again.
const SEARCHED: u64 = 10_000;

/// How many transactions are read at a time.
const READS: usize = 16;

/// Rows that moved: from what to what.
#[derive(Clone, Debug, PartialEq)]
pub struct Move<T> {
    /// What held the rows before.
    pub old: Vec<T>,
    /// What holds them after.
    pub new: Vec<T>,
}

/// The compactions among `versions` of `table`, in their order.
pub async fn rewrites(
    table: &Dataset,
    versions: RangeInclusive<u64>,
) -> Result<Vec<Move<Fragment>>> {
    let (from, to) = versions.into_inner();
    let from = from.max(to.saturating_sub(SEARCHED));
    let found: Vec<Vec<Move<Fragment>>> = futures::stream::iter(from..=to)
        .map(|version| async move {
            match table.read_transaction_by_version(version).await {
                Ok(Some(transaction)) => Ok(match transaction.operation {
                    Operation::Rewrite { groups, .. } => groups
                        .into_iter()
                        .map(|group| Move {
                            old: group.old_fragments,
                            new: group.new_fragments,
                        })
                        .collect(),
                    _ => Vec::new(),
                }),
                Ok(None) => Ok(Vec::new()),
                Err(error) if is_missing(&error) => Ok(Vec::new()),
                Err(error) => Err::<_, EngineError>(storage("the history of compactions", error)),
            }
        })
        .buffered(READS)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

/// The claims that `moves` of the source make of `claims`: each covers the
/// inputs of all the claims whose rows a group took in. `claims` themselves
/// are not among them.
pub fn over_source(claims: &[Claim], moves: &[Move<Fingerprint>]) -> Vec<Claim> {
    carry(
        claims,
        moves,
        |claim| claim.inputs.clone(),
        |claim, group| {
            for old in &group.old {
                let at = claim.inputs.iter().position(|input| input == old)?;
                claim.inputs.remove(at);
            }
            claim.inputs.extend(group.new.iter().cloned());
            Some(())
        },
    )
}

/// The claims that `moves` of the view make of `claims`: the files of each are
/// those that its rows were rewritten to. `columns` are the view's. A move of
/// rows that someone had touched is passed over.
pub fn over_view(claims: &[Claim], moves: &[Move<Fragment>], columns: &Columns) -> Vec<Claim> {
    let mut staged: HashMap<Held, Fragment> = HashMap::new();
    let held: Vec<Move<Held>> = moves
        .iter()
        .filter_map(|group| {
            let old = group.old.iter().map(|f| Some(columns.whole(f)?.1));
            let new = group.new.iter().map(|f| {
                let (file, held) = columns.whole(f)?;
                let mut fragment = Fragment::new(0);
                fragment.physical_rows = f.physical_rows;
                fragment.files = vec![file.clone()];
                staged.insert(held.clone(), fragment);
                held.less.is_none().then_some(held)
            });
            Some(Move {
                old: old.collect::<Option<_>>()?,
                new: new.collect::<Option<_>>()?,
            })
        })
        .collect();
    let holds = |claim: &Claim| claim.held().flatten().collect();
    carry(claims, &held, holds, |claim, group| {
        for old in &group.old {
            let mut held = claim.held();
            let at = held.position(|held| held.as_ref() == Some(old))?;
            drop(held);
            claim.fragments.remove(at);
        }
        for new in &group.new {
            claim.fragments.push(staged.get(new)?.clone());
        }
        Some(())
    })
}

/// Carries `claims`, which hold what `atoms` gives, over `moves`, one after
/// the other: all claims that hold what a move took are joined to one, in
/// which `replace` puts the new for the old. A move of something that no claim
/// holds is passed over.
fn carry<T: Clone + Eq + std::hash::Hash>(
    claims: &[Claim],
    moves: &[Move<T>],
    atoms: impl Fn(&Claim) -> Vec<T>,
    replace: impl Fn(&mut Claim, &Move<T>) -> Option<()>,
) -> Vec<Claim> {
    let mut pool: Vec<Option<Claim>> = claims.iter().cloned().map(Some).collect();
    let mut owner: HashMap<T, usize> = HashMap::new();
    for (at, claim) in claims.iter().enumerate() {
        for atom in atoms(claim) {
            // The newest claim comes first, and holds.
            owner.entry(atom).or_insert(at);
        }
    }
    for group in moves {
        let Some(owners) = group
            .old
            .iter()
            .map(|old| owner.get(old).copied())
            .collect::<Option<BTreeSet<usize>>>()
        else {
            continue;
        };
        let joined = owners
            .iter()
            .map(|at| pool[*at].clone())
            .collect::<Option<Vec<Claim>>>();
        let Some(mut joined) = joined.and_then(join) else {
            continue;
        };
        if replace(&mut joined, group).is_none() {
            continue;
        }
        for at in owners {
            pool[at] = None;
        }
        for atom in atoms(&joined) {
            owner.insert(atom, pool.len());
        }
        pool.push(Some(joined));
    }
    pool.drain(..claims.len());
    pool.into_iter().flatten().collect()
}

/// One claim that holds what `claims` hold; `None` of none.
pub fn join(claims: Vec<Claim>) -> Option<Claim> {
    claims.into_iter().reduce(|mut all, claim| {
        all.inputs.extend(claim.inputs);
        all.fragments.extend(claim.fragments);
        all.rows += claim.rows;
        all.bytes += claim.bytes;
        if all.refresh != claim.refresh {
            // What several refreshes computed is no single one's.
            all.refresh = String::new();
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use lance_file::version::ConcreteFileVersion;
    use lance_table::format::DataFile;

    use super::*;
    use crate::engine::standing::tests::{columns, file, less};

    fn inputs(names: &[&str]) -> Vec<Fingerprint> {
        names
            .iter()
            .map(|name| Fingerprint::of_text(name))
            .collect()
    }

    fn fragment(path: &str) -> Fragment {
        let mut fragment = Fragment::new(0);
        fragment.files = vec![file(path, &[0, 1])];
        fragment
    }

    fn claim(names: &[&str], paths: &[&str]) -> Claim {
        Claim {
            inputs: inputs(names),
            refresh: "r".into(),
            rows: 1,
            bytes: 1,
            fragments: paths.iter().map(|path| fragment(path)).collect(),
            of: Vec::new(),
        }
    }

    fn moved(old: &[&str], new: &[&str]) -> Move<Fingerprint> {
        Move {
            old: inputs(old),
            new: inputs(new),
        }
    }

    fn rewritten(old: &[Fragment], new: &[Fragment]) -> Move<Fragment> {
        Move {
            old: old.to_vec(),
            new: new.to_vec(),
        }
    }

    #[test]
    fn claims_of_one_compacted_fragment_become_one_claim_of_the_new() {
        let claims = [claim(&["a"], &["x"]), claim(&["b"], &["y"])];
        let carried = over_source(&claims, &[moved(&["a", "b"], &["c"])]);
        assert_eq!(carried.len(), 1);
        assert_eq!(carried[0].inputs, inputs(&["c"]));
        assert_eq!(carried[0].files().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(carried[0].rows, 2);
    }

    #[test]
    fn what_a_compaction_left_alone_stays_in_the_claim() {
        let claims = [claim(&["a", "b"], &["x"]), claim(&["c"], &["y"])];
        let carried = over_source(&claims, &[moved(&["b", "c"], &["d"])]);
        assert_eq!(carried[0].inputs, inputs(&["a", "d"]));
    }

    #[test]
    fn a_group_with_rows_that_no_claim_holds_is_not_carried() {
        let claims = [claim(&["a"], &["x"])];
        assert!(over_source(&claims, &[moved(&["a", "new"], &["c"])]).is_empty());
    }

    #[test]
    fn compactions_after_one_another_are_followed() {
        let claims = [
            claim(&["a"], &["x"]),
            claim(&["b"], &["y"]),
            claim(&["c"], &["z"]),
        ];
        let moves = [
            moved(&["a", "b"], &["ab"]),
            moved(&["ab", "c"], &["abc", "rest"]),
        ];
        let carried = over_source(&claims, &moves);
        assert_eq!(carried.len(), 1);
        assert_eq!(carried[0].inputs, inputs(&["abc", "rest"]));
    }

    #[test]
    fn a_compaction_that_was_undone_does_not_take_a_claim_twice() {
        let claims = [claim(&["a"], &["x"])];
        let moves = [moved(&["a"], &["b"]), moved(&["a"], &["c"])];
        // Whichever is in the source now, one claim at the most is right.
        assert_eq!(over_source(&claims, &moves).len(), 1);
    }

    #[test]
    fn a_tidied_view_keeps_its_claims_under_the_new_files() {
        let claims = [claim(&["a"], &["x"]), claim(&["b"], &["y", "z"])];
        let group = rewritten(&[fragment("x"), fragment("y")], &[fragment("n")]);
        let carried = over_view(&claims, &[group], &columns());
        assert_eq!(carried.len(), 1);
        assert_eq!(carried[0].inputs, inputs(&["a", "b"]));
        assert_eq!(carried[0].files().collect::<Vec<_>>(), ["z", "n"]);
    }

    #[test]
    fn a_tidied_view_with_foreign_or_deleted_rows_does_not() {
        let claims = [claim(&["a"], &["x"])];
        let foreign = rewritten(&[fragment("x"), fragment("f")], &[fragment("n")]);
        assert!(over_view(&claims, &[foreign], &columns()).is_empty());
        let touched = less(fragment("x"), 1);
        let deleted = rewritten(&[touched], &[fragment("n")]);
        assert!(over_view(&claims, &[deleted], &columns()).is_empty());
    }

    #[test]
    fn a_claim_less_some_rows_follows_a_compaction_that_left_just_these_out() {
        let mut trimmed = claim(&["a"], &["x"]);
        trimmed.fragments = vec![less(fragment("x"), 1)];
        let tidied = |id| rewritten(&[less(fragment("x"), id)], &[fragment("n")]);
        let carried = over_view(std::slice::from_ref(&trimmed), &[tidied(1)], &columns());
        assert_eq!(carried[0].fragments, [fragment("n")]);
        let more = over_view(std::slice::from_ref(&trimmed), &[tidied(2)], &columns());
        assert!(more.is_empty(), "others had taken out more");
        let back = rewritten(&[fragment("x")], &[fragment("n")]);
        assert!(over_view(&[trimmed], &[back], &columns()).is_empty());
    }

    #[test]
    fn a_column_that_others_added_moves_along() {
        let mut old = fragment("x");
        old.files.push(DataFile::new(
            "extra",
            vec![9],
            vec![0],
            ConcreteFileVersion::V2_0,
            None,
            None,
        ));
        let mut new = fragment("n");
        new.files[0] = file("n", &[0, 1, 9]);
        let carried = over_view(
            &[claim(&["a"], &["x"])],
            &[rewritten(&[old], &[new])],
            &columns(),
        );
        assert_eq!(carried[0].files().collect::<Vec<_>>(), ["n"]);
    }
}
