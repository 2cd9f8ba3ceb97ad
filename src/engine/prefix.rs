//! How much of a source a view with `LIMIT` reads: the first fragments that
//! give so many rows, and no others.
//!
//! The rows of such a view are the first of its source, in the order of its
//! fragments and of the rows in them. A claim of as many rows as the limit asks
//! for, over the first `n` fragments, therefore says what the view is as long
//! as these stand first and unchanged, whatever comes after them. So only they
//! go into the view's inputs, and only they are scanned.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;

use super::fingerprint::Fingerprint;
use super::ledger::Claim;

/// How many fragments are counted at a time.
const COUNTS: usize = 4;

/// What the claims of earlier refreshes tell of the first rows.
#[derive(Debug, PartialEq)]
pub enum Known {
    /// So many inputs, the definition among them, give all rows that are asked for.
    Inputs(usize),
    /// There were fewer rows than are asked for: all inputs count.
    TooFew,
    /// Nothing.
    Nothing,
}

/// What `claims` tell of the first `limit` rows of `inputs`, the first of which
/// is the definition.
pub fn known<'a>(
    claims: impl Iterator<Item = &'a Claim>,
    inputs: &[Fingerprint],
    limit: u64,
) -> Known {
    let mut known = Known::Nothing;
    for claim in claims {
        if claim.inputs.first() != inputs.first() {
            continue;
        }
        if claim.rows < limit {
            known = Known::TooFew;
        } else if inputs.starts_with(&claim.inputs) {
            return Known::Inputs(claim.inputs.len());
        }
    }
    known
}

/// How many of the first fragments of `source` give `limit` rows that pass
/// `filter`; all if they give fewer.
pub async fn fragments(
    source: &Arc<Dataset>,
    filter: Option<&str>,
    limit: u64,
) -> lance::Result<usize> {
    let all = source.fragments();
    if limit == 0 {
        return Ok(0);
    }
    // Deletions are in the manifest; values are read as far as they must be.
    let ahead = filter.map_or(COUNTS, |_| 1);
    let mut counts = futures::stream::iter(all.iter().cloned())
        .map(|fragment| {
            let fragment = FileFragment::new(source.clone(), fragment);
            async move {
                let Some(filter) = filter else {
                    return fragment.count_rows(None).await.map(|rows| rows as u64);
                };
                let mut scan = fragment.scan();
                // As the rows themselves are found.
                scan.use_scalar_index(false);
                scan.project::<&str>(&[])?.with_row_id().filter(filter)?;
                scan.count_rows().await
            }
        })
        .buffered(ahead);
    let mut rows = 0;
    let mut read = 0;
    while let Some(count) = counts.try_next().await? {
        rows += count;
        read += 1;
        if rows >= limit {
            break;
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(names: &[&str]) -> Vec<Fingerprint> {
        names.iter().map(|n| Fingerprint::of_text(n)).collect()
    }

    fn claim(names: &[&str], rows: u64) -> Claim {
        Claim {
            inputs: inputs(names),
            refresh: "r".into(),
            rows,
            bytes: 1,
            fragments: Vec::new(),
            of: Vec::new(),
        }
    }

    #[test]
    fn a_full_claim_of_the_first_inputs_is_enough() {
        let now = inputs(&["q", "a", "b", "c"]);
        let of = |claims: &[Claim]| known(claims.iter(), &now, 5);
        assert_eq!(of(&[claim(&["q", "a", "b"], 5)]), Known::Inputs(3));
        assert_eq!(of(&[claim(&["q", "b"], 5)]), Known::Nothing);
        assert_eq!(of(&[claim(&["q", "a"], 4)]), Known::TooFew);
        assert_eq!(of(&[claim(&["other", "a"], 5)]), Known::Nothing);
        assert_eq!(
            of(&[claim(&["q", "x"], 2), claim(&["q", "a"], 5)]),
            Known::Inputs(2)
        );
    }
}
