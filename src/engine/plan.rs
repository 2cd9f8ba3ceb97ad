//! What a refresh keeps, what it computes, and what it drops.
//!
//! [`judge`] is the one judgement: a refresh makes it to see what is left to
//! compute, and makes it again on a freshly opened view just before each
//! commit. It is pure; [`super::refresh`] brings it what it looks at.

use std::collections::{HashMap, HashSet};

use lance::Dataset;
use lance_table::format::Fragment;
use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::ledger::Claim;
use super::partials::Partial;
use super::standing::Standing;
use super::trim::Trim;

/// What an attempt of a refresh set out to do: the first worker to write it
/// fixes it for the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The version of each source that the view is brought to, in the order of
    /// [`ViewInfo::sources`](super::view::ViewInfo::sources). A plan of another
    /// number of sources cannot be carried out: a new one is made.
    #[serde(default)]
    pub sources: Vec<Pinned>,
    /// Of what the units are positions: all inputs, as one. The view may have been
    /// redefined since, and another build may cut it otherwise. A plan that was
    /// made of others, or does not say, cannot be carried out.
    #[serde(default)]
    pub inputs: Option<Fingerprint>,
    /// The view's version when the plan was made. No commit of this refresh
    /// is older.
    pub view_version: u64,
    /// The units to compute, as positions among the inputs; a unit without any
    /// is the whole source.
    pub units: Vec<Vec<usize>>,
    /// How some of the units can be had more cheaply than by computing them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trims: Vec<Trim>,
    /// Claims whose rows, small fragments of the view, are put together.
    #[serde(default)]
    pub merges: Vec<Vec<Claim>>,
    /// How many units were right already.
    pub kept: u64,
    /// What the groups of a view with GROUP BY are merged from; none if they
    /// are computed whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partials: Vec<Partial>,
}

/// One version of a source table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// Its number.
    pub version: u64,
    /// The timestamp of its manifest, in nanoseconds since 1970: a re-created
    /// table uses numbers again, and never timestamps.
    pub timestamp: u64,
}

impl Pinned {
    /// The version that `dataset` is open at.
    pub fn of(dataset: &Dataset) -> Pinned {
        Pinned {
            version: dataset.version().version,
            timestamp: dataset.manifest().timestamp_nanos as u64,
        }
    }
}

/// What a view is computed from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// What it reads of each piece, in the source's order.
    pub fingerprints: Vec<Fingerprint>,
    /// Whether its rows come of all of them together, so that a claim of some
    /// of them is worth nothing. The definition is then the first input, so
    /// that there is one even of an empty source.
    pub whole: bool,
}

/// The judgement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// Claims whose files are in the view already.
    pub kept: Vec<Claim>,
    /// Claims whose files are staged, and will be in the view.
    pub added: Vec<Claim>,
    /// Claims whose files are in the view, and some rows of them to be taken out.
    pub trimmed: Vec<Claim>,
    /// Positions of inputs that no claim covers.
    pub missing: Vec<usize>,
    /// Ids of the view's fragments that no kept claim accounts for.
    pub dropped: Vec<u64>,
}

impl Judgement {
    /// Whether the view is right as it is.
    pub fn is_done(&self) -> bool {
        self.missing.is_empty()
            && self.added.iter().all(|c| c.fragments.is_empty())
            && self.trimmed.is_empty()
            && self.dropped.is_empty()
    }

    /// Every claim that the view consists of once the judgement is true of it,
    /// those that its commit brings in last.
    pub fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.kept.iter().chain(self.brought())
    }

    /// The claims that its commit brings in.
    pub fn brought(&self) -> impl Iterator<Item = &Claim> {
        self.trimmed.iter().chain(&self.added)
    }
}

/// Covers `inputs` by claims: staged ones that were `merged`, then `committed`
/// ones that stand, then other `staged` ones. A claim counts only as a whole,
/// and each input is covered once. A staged claim that is of another counts as
/// long as that one's files stand; where it stands itself, it is a kept one.
pub fn judge(
    inputs: &Inputs,
    standing: &Standing,
    merged: &[Claim],
    committed: &[Claim],
    staged: &[Claim],
) -> Judgement {
    let whole = inputs.whole;
    let inputs = inputs.fingerprints.as_slice();
    let fits = |claim: &Claim| !whole || claim.inputs.len() == inputs.len();
    let mut open = open(inputs.iter());
    let mut judgement = Judgement::default();
    let mut used: HashSet<&str> = HashSet::new();
    let mut accounted: HashSet<u64> = HashSet::new();

    let candidates = merged
        .iter()
        .map(|claim| (claim, false))
        .chain(committed.iter().map(|claim| (claim, true)))
        .chain(staged.iter().map(|claim| (claim, false)));
    for (claim, is_committed) in candidates {
        let is_trimmed = !claim.of.is_empty();
        let there = (is_committed || is_trimmed).then(|| standing.fragments_of(claim));
        let (fragments, part) = match there {
            None => (Vec::new(), &mut judgement.added),
            Some(Some(there)) => (there, &mut judgement.kept),
            Some(None) => match is_trimmed.then(|| standing.ids(&claim.of)).flatten() {
                Some(before) if is_numbered(claim, &before) => {
                    (remaining(claim, before), &mut judgement.trimmed)
                }
                _ => continue,
            },
        };
        if !fits(claim)
            || claim.files().any(|file| used.contains(file))
            || !take(&mut open, &claim.inputs)
        {
            continue;
        }
        used.extend(claim.files());
        accounted.extend(fragments);
        part.push(claim.clone());
    }
    judgement.missing = open.into_values().flatten().collect();
    judgement.missing.sort_unstable();
    judgement.dropped = standing
        .fragments()
        .iter()
        .filter(|id| !accounted.contains(id))
        .copied()
        .collect();
    judgement.dropped.sort_unstable();
    judgement
}

/// Whether the fragments that `claim` takes rows out of have the ids that they
/// had when it was staged: a deletion file is one fragment's, and an Overwrite
/// numbers all anew.
fn is_numbered(claim: &Claim, before: &[u64]) -> bool {
    let mut less = claim.fragments.iter().filter(|f| f.deletion_file.is_some());
    less.all(|less| {
        let mut before = claim.of.iter().zip(before);
        before.any(|(fragment, id)| fragment.files == less.files && *id == less.id)
    })
}

/// Those of the ids `before`, which the fragments that `claim` is of have, whose
/// fragments it still has.
fn remaining(claim: &Claim, before: Vec<u64>) -> Vec<u64> {
    let stays = |fragment: &Fragment| claim.fragments.iter().any(|f| f.files == fragment.files);
    let before = claim.of.iter().zip(before);
    let left = before.filter(|(fragment, _)| stays(fragment));
    left.map(|(_, id)| id).collect()
}

/// The positions of `inputs` that are still to be covered. Two equal inputs
/// (the same file twice in a source) are two pieces.
pub(super) fn open<'a>(
    inputs: impl ExactSizeIterator<Item = &'a Fingerprint> + DoubleEndedIterator,
) -> HashMap<&'a Fingerprint, Vec<usize>> {
    let mut open: HashMap<&Fingerprint, Vec<usize>> = HashMap::new();
    for (at, input) in inputs.enumerate().rev() {
        open.entry(input).or_default().push(at);
    }
    open
}

/// Takes one open position for each of `wanted`, or none at all.
pub(super) fn take(open: &mut HashMap<&Fingerprint, Vec<usize>>, wanted: &[Fingerprint]) -> bool {
    if wanted.is_empty() {
        return false;
    }
    let mut counts: HashMap<&Fingerprint, usize> = HashMap::new();
    for input in wanted {
        *counts.entry(input).or_default() += 1;
    }
    if counts
        .iter()
        .any(|(input, count)| open.get(*input).map_or(0, Vec::len) < *count)
    {
        return false;
    }
    for input in wanted {
        if let Some(positions) = open.get_mut(input) {
            positions.pop();
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use arrow_schema::{DataType, Field, Schema as ArrowSchema};
    use lance_core::datatypes::Schema;
    use lance_file::version::ConcreteFileVersion;
    use lance_table::format::{DataFile, Fragment};

    use super::*;
    use crate::engine::standing::Columns;
    use crate::engine::standing::tests::less;

    fn input(name: &str) -> Fingerprint {
        Fingerprint::of_text(name)
    }

    fn inputs(names: &[&str]) -> Vec<Fingerprint> {
        names.iter().map(|name| input(name)).collect()
    }

    fn pieces(names: &[&str]) -> Inputs {
        Inputs {
            fingerprints: inputs(names),
            whole: false,
        }
    }

    fn fragment(id: u64, path: &str) -> Fragment {
        let mut fragment = Fragment::new(id);
        fragment.files = vec![DataFile::new(
            path,
            vec![0],
            vec![0],
            ConcreteFileVersion::V2_0,
            None,
            None,
        )];
        fragment
    }

    fn claim(names: &[&str], path: &str) -> Claim {
        Claim {
            inputs: inputs(names),
            refresh: "r".into(),
            rows: 1,
            bytes: 1,
            fragments: vec![fragment(0, path)],
            of: Vec::new(),
        }
    }

    fn view(fragments: &[Fragment]) -> Standing {
        let mut schema = Schema::try_from(&ArrowSchema::new(vec![Field::new(
            "a",
            DataType::Int64,
            true,
        )]))
        .unwrap();
        schema.set_field_id(None);
        Standing::new(fragments, &Columns::new(&schema, ["a"].into_iter()))
    }

    #[test]
    fn an_append_keeps_what_stands_and_misses_the_rest() {
        let view = view(&[fragment(1, "x")]);
        let now = judge(&pieces(&["a", "b"]), &view, &[], &[claim(&["a"], "x")], &[]);
        assert_eq!(now.kept.len(), 1);
        assert_eq!(now.missing, [1]);
        assert!(now.dropped.is_empty());
        assert!(!now.is_done());
    }

    #[test]
    fn an_unchanged_source_needs_nothing() {
        let view = view(&[fragment(1, "x")]);
        let now = judge(&pieces(&["a"]), &view, &[], &[claim(&["a"], "x")], &[]);
        assert!(now.is_done());
    }

    #[test]
    fn a_fragment_that_the_source_lost_is_dropped() {
        let view = view(&[fragment(1, "x"), fragment(2, "y")]);
        let claims = [claim(&["a"], "x"), claim(&["b"], "y")];
        let now = judge(&pieces(&["b"]), &view, &[], &claims, &[]);
        assert_eq!(now.dropped, [1]);
        assert_eq!(now.kept, [claims[1].clone()]);
    }

    #[test]
    fn rows_that_others_put_into_the_view_are_dropped() {
        let view = view(&[fragment(1, "x"), fragment(9, "foreign")]);
        let now = judge(&pieces(&["a"]), &view, &[], &[claim(&["a"], "x")], &[]);
        assert_eq!(now.dropped, [9]);
        assert!(!now.is_done());
    }

    #[test]
    fn a_claim_of_several_inputs_counts_only_as_a_whole() {
        let view = view(&[fragment(1, "x")]);
        let now = judge(
            &pieces(&["a", "c"]),
            &view,
            &[],
            &[claim(&["a", "b"], "x")],
            &[],
        );
        assert!(now.kept.is_empty());
        assert_eq!(now.missing, [0, 1]);
        assert_eq!(now.dropped, [1]);
    }

    #[test]
    fn a_staged_claim_covers_what_no_committed_one_does() {
        let view = view(&[fragment(1, "x")]);
        let staged = [claim(&["a"], "again"), claim(&["b"], "y")];
        let now = judge(
            &pieces(&["a", "b"]),
            &view,
            &[],
            &[claim(&["a"], "x")],
            &staged,
        );
        assert_eq!(now.added, [staged[1].clone()]);
        assert!(now.missing.is_empty());
    }

    #[test]
    fn two_claims_of_one_input_never_both_count() {
        let view = view(&[fragment(1, "x"), fragment(2, "y")]);
        let claims = [claim(&["a"], "x"), claim(&["a"], "y")];
        let now = judge(&pieces(&["a"]), &view, &[], &claims, &[]);
        assert_eq!(now.kept.len(), 1);
        assert_eq!(now.dropped, [2]);
        // One file never counts for two inputs either.
        let doubled = [claim(&["a"], "x"), claim(&["b"], "x")];
        let now = judge(&pieces(&["a", "b"]), &view, &[], &doubled, &[]);
        assert_eq!(now.kept.len(), 1);
        assert_eq!(now.missing, [1]);
    }

    #[test]
    fn a_claim_less_some_rows_takes_the_place_of_the_one_that_it_is_of() {
        let before = view(&[fragment(1, "x"), fragment(2, "y")]);
        let committed = [claim(&["a"], "x"), claim(&["b"], "y")];
        let mut trimmed = claim(&["a less some"], "x");
        trimmed.of = vec![fragment(1, "x")];
        trimmed.fragments = vec![less(fragment(1, "x"), 7)];
        let inputs = pieces(&["a less some", "b"]);
        let staged = std::slice::from_ref(&trimmed);
        let now = judge(&inputs, &before, &[], &committed, staged);
        assert_eq!(now.trimmed, staged);
        assert_eq!(now.kept, committed[1..]);
        assert!(now.missing.is_empty() && now.dropped.is_empty() && !now.is_done());
        // Once it has landed.
        let after = view(&[less(fragment(1, "x"), 7), fragment(2, "y")]);
        assert!(judge(&inputs, &after, &[], &committed, staged).is_done());
        // Somebody took other rows out meanwhile: it is worth nothing.
        let foreign = view(&[less(fragment(1, "x"), 8), fragment(2, "y")]);
        let now = judge(&inputs, &foreign, &[], &committed, staged);
        assert_eq!((now.missing, now.dropped), (vec![0], vec![1]));
        // Or the fragment has another number by now.
        let anew = view(&[fragment(2, "x"), fragment(1, "y")]);
        let now = judge(&inputs, &anew, &[], &committed, staged);
        assert_eq!((now.missing, now.dropped), (vec![0], vec![2]));
        // All rows of it are taken out: the fragment goes.
        trimmed.fragments.clear();
        let now = judge(&inputs, &before, &[], &committed, &[trimmed]);
        assert_eq!(now.dropped, [1]);
        assert!(now.missing.is_empty());
    }

    #[test]
    fn equal_inputs_are_pieces_of_their_own() {
        let view = view(&[]);
        let now = judge(&pieces(&["a", "a"]), &view, &[], &[], &[claim(&["a"], "x")]);
        assert_eq!(now.missing, [1]);
    }

    #[test]
    fn a_view_of_the_whole_source_is_kept_whole_or_not_at_all() {
        let view = view(&[fragment(1, "x")]);
        let claims = [claim(&["definition", "a"], "x")];
        let mut inputs = pieces(&["definition", "a", "b"]);
        inputs.whole = true;
        let now = judge(&inputs, &view, &[], &claims, &[]);
        assert!(now.kept.is_empty());
        assert_eq!(now.dropped, [1]);
        inputs.fingerprints.pop();
        assert!(judge(&inputs, &view, &[], &claims, &[]).is_done());
    }

    #[test]
    fn what_was_merged_takes_the_place_of_what_it_was_merged_from() {
        let view = view(&[fragment(1, "x"), fragment(2, "y")]);
        let claims = [claim(&["a"], "x"), claim(&["b"], "y")];
        let merged = [claim(&["a", "b"], "xy")];
        let now = judge(&pieces(&["a", "b"]), &view, &merged, &claims, &[]);
        assert_eq!(now.added, merged);
        assert_eq!(now.dropped, [1, 2]);
        // It is worth nothing where one of its inputs has changed.
        let now = judge(&pieces(&["a", "c"]), &view, &merged, &claims, &[]);
        assert_eq!(now.kept, [claims[0].clone()]);
        assert_eq!(now.missing, [1]);
    }
}
