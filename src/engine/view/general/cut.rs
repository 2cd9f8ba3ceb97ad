//! How a general view is cut into pieces with a fingerprint each, and those
//! into units.

use std::ops::Range;
use std::sync::Arc;

use lance::Dataset;

use super::General;
use crate::engine::fingerprint::Fingerprint;
use crate::engine::unit::{self, Extent, Piece, TARGET_ROWS};

/// The pieces of a general view's branches, one branch after the other.
#[derive(Debug)]
pub struct Cut {
    parts: Vec<Part>,
    /// The fingerprint of each piece.
    pub fingerprints: Vec<Fingerprint>,
}

/// The pieces of one branch.
#[derive(Debug)]
struct Part {
    /// Where they stand among all.
    range: Range<usize>,
    /// `None` for a branch that is computed whole, and is one piece.
    probe: Option<(Arc<Dataset>, Vec<Piece>)>,
    /// The most rows of a unit.
    target: u64,
}

impl Cut {
    /// Cuts `general` along its `sources`. Errors: those of reading the
    /// deletion files of huge fragments.
    pub async fn new(general: &General, sources: &[Arc<Dataset>]) -> lance::Result<Cut> {
        let mut cut = Cut {
            parts: Vec::new(),
            fingerprints: Vec::new(),
        };
        for branch in general.branches() {
            let start = cut.fingerprints.len();
            let probe = match &branch.probe {
                None => {
                    cut.fingerprints.push(branch.besides.clone());
                    None
                }
                Some(probe) => {
                    let source = sources[probe.source].clone();
                    let pieces = unit::pieces(&source, &probe.reads, source.fragments()).await?;
                    cut.fingerprints.extend(
                        pieces
                            .iter()
                            .map(|p| Fingerprint::of_all([&p.fingerprint, &branch.besides])),
                    );
                    Some((source, pieces))
                }
            };
            cut.parts.push(Part {
                range: start..cut.fingerprints.len(),
                probe,
                // Each unit reads what its rows are joined with: of that no
                // more in all than of the rows themselves.
                target: TARGET_ROWS.max(branch.rows_besides),
            });
        }
        Ok(cut)
    }

    /// How many source rows each piece stands for. One that is computed whole
    /// stands for more than any claim should.
    pub fn rows(&self) -> impl Iterator<Item = (&Fingerprint, u64)> {
        let rows = self.parts.iter().flat_map(|part| match &part.probe {
            None => vec![u64::MAX >> 8],
            Some((_, pieces)) => pieces.iter().map(|piece| piece.rows).collect(),
        });
        self.fingerprints.iter().zip(rows)
    }

    /// Groups the pieces that are `missing` into units, each of one branch.
    pub fn units(&self, missing: &[usize]) -> Vec<Vec<usize>> {
        let mut units = Vec::new();
        for part in &self.parts {
            let start = part.range.start;
            let within: Vec<usize> = missing
                .iter()
                .filter(|at| part.range.contains(at))
                .map(|at| at - start)
                .collect();
            match &part.probe {
                None => units.extend(within.into_iter().map(|at| vec![at + start])),
                Some((_, pieces)) => units.extend(
                    unit::cut(pieces, &within, part.target)
                        .into_iter()
                        .map(|unit| unit.into_iter().map(|at| at + start).collect()),
                ),
            }
        }
        units
    }

    /// Which branch a unit is of, and which rows of its probe it has; `None`
    /// for all that the branch reads.
    pub fn task(&self, unit: &[usize]) -> (usize, Option<Extent>) {
        let of = |part: &Part| unit.first().is_some_and(|at| part.range.contains(at));
        let Some(branch) = self.parts.iter().position(of) else {
            return (0, None);
        };
        let part = &self.parts[branch];
        let extent = part.probe.as_ref().map(|(source, pieces)| {
            let pieces = unit
                .iter()
                .filter_map(|at| pieces.get(at - part.range.start));
            Extent::new(source.fragments(), pieces)
        });
        (branch, extent)
    }
}
