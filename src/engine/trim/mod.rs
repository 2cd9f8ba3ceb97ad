//! Rows taken out of a unit that stands, where computing it again would be dear.
//!
//! A row that is deleted from the source (an update deletes it, and writes it
//! elsewhere) changes the fingerprint of its piece, and so the claim over it is
//! worth nothing as it is. But what it claims is almost right: its rows less
//! those that came of the deleted ones. What these were says the source as it was
//! when the claim was made: the deleted rows are evaluated there. Rows equal to them
//! are found in the view by one narrow column of it or, where that tells too little, by
//! their place: in the source's order, so many rows that pass the view's filter come
//! before. A deletion file then takes them out of the view's fragment, in the same
//! commit as all else, whatever their width and that of the rest.
//!
//! A view is a multiset of rows, so any row equal to the one that is looked for will
//! do. Where none is found, where the old version of the source was cleaned up, or
//! where so many rows are gone that tidying is due, the unit is computed as any other.

mod find;
mod take;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance_core::utils::address::RowAddress;
use lance_table::format::Fragment;
use serde::{Deserialize, Serialize};

use super::error::Result;
use super::fingerprint::{Fingerprint, Reads};
use super::ledger::Claim;
use super::plan::Pinned;
use super::store::{is_missing, storage};
use super::unit::{self, Piece};
use super::view::planned::Planned;
use super::work::Work;

/// Most source rows that are taken out of one claim: each is looked up by itself.
const MOST_ROWS: usize = 4096;

/// Most source rows that are taken out of all claims of a plan, which names each.
const MOST_OF_ALL: usize = 1 << 17;

/// Most bytes of the view's rows that are compared for one claim, by the mean.
const MOST_BYTES: u64 = 16 << 20;

/// When more than one in so many of a claim's rows would be gone, it is computed
/// again: a scan of the view reads them all, and a row is so computed again at most
/// once for each [`SHARE`]th of its unit that is deleted.
const SHARE: u64 = 8;

/// How many deletion files are read at a time.
const READS: usize = 32;

/// A unit that can be had by taking rows out of a claim that stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trim {
    /// Which of the plan's units.
    pub unit: usize,
    /// The claim.
    pub claim: Claim,
    /// The source's version that the claim is true of.
    pub source: Pinned,
    /// The pieces of that version that it covers, in its order.
    pub pieces: Vec<OldPiece>,
    /// The addresses of their rows that are deleted now, in the same order.
    pub gone: Vec<u64>,
}

/// A piece of an older version of the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OldPiece {
    /// The id of its fragment.
    pub fragment: u64,
    /// Its physical rows; `None` for all of the fragment.
    pub slice: Option<Range<u64>>,
}

/// The units among the `missing` pieces of `work` that can be had from `loose`
/// claims: those that stand, and are as they are of no use. They are true of version
/// `since` of the source. Errors: `Unavailable`.
pub async fn choose(
    work: &Work,
    missing: &[usize],
    loose: &[Claim],
    since: u64,
) -> Result<Vec<(Vec<usize>, Trim)>> {
    let Some((pieces, reads)) = work.by_rows() else {
        return Ok(Vec::new());
    };
    let (Planned::Sql(planned), [source]) = (&*work.bench.planned, work.bench.sources.as_slice())
    else {
        return Ok(Vec::new());
    };
    let few = |claim: &&Claim| !claim.fragments.is_empty();
    let loose: Vec<&Claim> = loose.iter().filter(few).collect();
    let nothing = loose.is_empty() || missing.is_empty();
    if nothing || since >= source.version().version || work.has_blobs() {
        return Ok(Vec::new());
    }
    let unread = |error| storage("an older version of the source table", error);
    let old = match source.checkout_version(since).await {
        Ok(old) => old,
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(unread(error)),
    };
    let changes = Changes::between(&old, source.fragments(), &planned.reads(&old), reads).await;
    let changes = match changes {
        Ok(changes) => changes,
        // The deletion files of that time were cleaned up.
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(unread(error)),
    };
    let mut open = Open::new(pieces, missing, source.fragments());
    let mut matched = Vec::new();
    for claim in loose {
        let found = changes.places(claim, &open);
        let Some(places) = found.filter(|places| open.take(places)) else {
            continue;
        };
        matched.push((claim, places));
    }
    let deleted = match changes.deleted(&matched, &old, source).await {
        Ok(deleted) => deleted,
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(unread(error)),
    };
    let mut left = MOST_OF_ALL;
    let trims = matched.into_iter().filter_map(|(claim, places)| {
        let gone = gone(claim, &places, &deleted)?;
        left = left.checked_sub(gone.len())?;
        let unit: Vec<usize> = places.iter().filter_map(|place| place.now).collect();
        let trim = Trim {
            unit: 0,
            claim: claim.clone(),
            source: Pinned::of(&old),
            pieces: places.into_iter().map(|place| place.piece).collect(),
            gone,
        };
        Some((unit, trim))
    });
    Ok(trims.collect())
}

/// Where a piece of the old version of the source is now.
#[derive(Clone, Debug)]
struct Place {
    /// Its position among the old version's fragments.
    at: usize,
    piece: OldPiece,
    /// Its physical rows.
    rows: Range<u64>,
    /// The position among the pieces of the one that it has become; `None` if it
    /// is no more.
    now: Option<usize>,
    /// Whether rows of it are gone.
    touched: bool,
}

/// The pieces that no claim covers as it is.
struct Open<'a> {
    by_fingerprint: HashMap<&'a Fingerprint, Vec<(OldPiece, usize)>>,
    by_place: HashMap<OldPiece, usize>,
    free: HashSet<usize>,
}

impl<'a> Open<'a> {
    fn new(pieces: &'a [Piece], missing: &[usize], fragments: &[Fragment]) -> Open<'a> {
        let mut open = Open {
            by_fingerprint: HashMap::new(),
            by_place: HashMap::new(),
            free: HashSet::new(),
        };
        for at in missing {
            let Some((piece, fragment)) = pieces
                .get(*at)
                .and_then(|piece| Some((piece, fragments.get(piece.fragment)?)))
            else {
                continue;
            };
            let place = OldPiece {
                fragment: fragment.id,
                slice: piece.slice.clone(),
            };
            let same = open.by_fingerprint.entry(&piece.fingerprint).or_default();
            same.push((place.clone(), *at));
            open.by_place.insert(place, *at);
            open.free.insert(*at);
        }
        open
    }

    /// Takes the positions of all `places`, or none.
    fn take(&mut self, places: &[Place]) -> bool {
        let wanted: Vec<usize> = places.iter().filter_map(|place| place.now).collect();
        let each: BTreeSet<&usize> = wanted.iter().collect();
        let free = each.len() == wanted.len() && each.iter().all(|at| self.free.contains(at));
        if free {
            self.free.retain(|at| !each.contains(at));
        }
        free && !wanted.is_empty()
    }
}

/// What has become of the old version's fragments.
struct Changes {
    /// By fragment id: the position among the old version's fragments, and how many
    /// physical rows it has.
    old: HashMap<u64, (usize, u64)>,
    /// By fingerprint: the pieces of old fragments that are not there as they were,
    /// and whether each is there with other deletions.
    changed: HashMap<Fingerprint, Vec<(OldPiece, bool)>>,
}

impl Changes {
    async fn between(
        old: &Dataset,
        now: &[Fragment],
        reads_then: &Reads,
        reads_now: &Reads,
    ) -> lance::Result<Changes> {
        let now: HashMap<u64, &Fragment> = now.iter().map(|f| (f.id, f)).collect();
        let is_changed = |f: &&Fragment| now.get(&f.id) != Some(f);
        let changed: Vec<Fragment> = old.fragments().iter().filter(is_changed).cloned().collect();
        let remains = |f: &Fragment| {
            let same = |now: &&Fragment| {
                reads_then.fragment(&undeleted(f)) == reads_now.fragment(&undeleted(now))
            };
            now.get(&f.id).is_some_and(same)
        };
        let remain: Vec<bool> = changed.iter().map(remains).collect();
        let pieces = unit::pieces(&std::sync::Arc::new(old.clone()), reads_then, &changed).await?;
        let mut by_fingerprint: HashMap<Fingerprint, Vec<(OldPiece, bool)>> = HashMap::new();
        for piece in pieces {
            let old = OldPiece {
                fragment: changed[piece.fragment].id,
                slice: piece.slice,
            };
            let same = by_fingerprint.entry(piece.fingerprint).or_default();
            same.push((old, remain[piece.fragment]));
        }
        let rows = |f: &Fragment| f.physical_rows.unwrap_or(0) as u64;
        let fragments = old.fragments().iter().enumerate();
        Ok(Changes {
            old: fragments.map(|(at, f)| (f.id, (at, rows(f)))).collect(),
            changed: by_fingerprint,
        })
    }

    /// Where the pieces of `claim` are now; `None` if that is not known of all, or
    /// they are not in the old version's order.
    fn places(&self, claim: &Claim, open: &Open) -> Option<Vec<Place>> {
        let mut used: HashSet<OldPiece> = HashSet::new();
        let mut places: Vec<Place> = Vec::with_capacity(claim.inputs.len());
        for input in &claim.inputs {
            // Unchanged ones first: a piece can be both where another has its files.
            let unchanged = open.by_fingerprint.get(input).into_iter().flatten();
            let unchanged = unchanged.map(|(piece, at)| (piece.clone(), Some(*at), false));
            let changed = self.changed.get(input).into_iter().flatten();
            let changed = changed.map(|(piece, remains)| {
                let now = remains.then(|| open.by_place.get(piece).copied()).flatten();
                (piece.clone(), now, true)
            });
            let mut found = unchanged.chain(changed);
            let (piece, now, touched) = found.find(|(piece, ..)| !used.contains(piece))?;
            let (at, rows) = *self.old.get(&piece.fragment)?;
            used.insert(piece.clone());
            places.push(Place {
                at,
                rows: piece.slice.clone().unwrap_or(0..rows),
                piece,
                now,
                touched,
            });
        }
        let order = |place: &Place| (place.at, place.rows.start);
        let in_order = places.windows(2).all(|two| order(&two[0]) < order(&two[1]));
        let gone = places.iter().filter(|place| place.now.is_none());
        let lost: u64 = gone.map(|place| place.rows.end - place.rows.start).sum();
        // What was deleted before is among these rows.
        (in_order && lost <= 2 * MOST_ROWS as u64).then_some(places)
    }

    /// The offsets of the deleted rows of each fragment that is touched: then and now.
    async fn deleted(
        &self,
        matched: &[(&Claim, Vec<Place>)],
        old: &Dataset,
        now: &Dataset,
    ) -> lance::Result<HashMap<u64, (Vec<u32>, Option<Vec<u32>>)>> {
        let places = matched.iter().flat_map(|(_, places)| places);
        let touched = places.filter(|place| place.touched);
        let mut ids: HashMap<u64, bool> = HashMap::new();
        for place in touched {
            *ids.entry(place.piece.fragment).or_default() |= place.now.is_some();
        }
        futures::stream::iter(ids)
            .map(|(id, remains)| async move {
                let then = old.get_fragment(id as usize);
                let now = remains.then(|| now.get_fragment(id as usize)).flatten();
                let then = async {
                    match then {
                        Some(fragment) => offsets(&fragment).await,
                        None => Ok(Vec::new()),
                    }
                };
                let now = async {
                    match now {
                        Some(fragment) => offsets(&fragment).await.map(Some),
                        None => Ok(None),
                    }
                };
                let (then, now) = futures::try_join!(then, now)?;
                Ok::<_, lance::Error>((id, (then, now)))
            })
            .buffer_unordered(READS)
            .try_collect()
            .await
    }
}

fn undeleted(fragment: &Fragment) -> Fragment {
    let mut fragment = fragment.clone();
    fragment.deletion_file = None;
    fragment
}

/// The offsets of the deleted rows of `fragment`, ascending.
async fn offsets(fragment: &FileFragment) -> lance::Result<Vec<u32>> {
    let deleted = fragment.get_deletion_vector().await?;
    Ok(deleted.map_or_else(Vec::new, |d| d.to_sorted_iter().collect()))
}

/// Those of the ascending `offsets` that are in `rows`.
fn within<'a>(offsets: &'a [u32], rows: &Range<u64>) -> &'a [u32] {
    let from = offsets.partition_point(|at| u64::from(*at) < rows.start);
    let to = offsets.partition_point(|at| u64::from(*at) < rows.end);
    &offsets[from..to]
}

/// The addresses of the rows that `claim` was made of and that are no more;
/// `None` if they are too many, or rows are there again that were not.
fn gone(
    claim: &Claim,
    places: &[Place],
    deleted: &HashMap<u64, (Vec<u32>, Option<Vec<u32>>)>,
) -> Option<Vec<u64>> {
    let mut gone = Vec::new();
    for place in places.iter().filter(|place| place.touched) {
        let (then, now) = deleted.get(&place.piece.fragment)?;
        let then = within(then, &place.rows);
        let before: HashSet<u32> = then.iter().copied().collect();
        let newly: Vec<u32> = match (place.now, now) {
            (Some(_), Some(now)) => {
                let now = within(now, &place.rows);
                let newly: Vec<u32> = now
                    .iter()
                    .copied()
                    .filter(|at| !before.contains(at))
                    .collect();
                if newly.len() + before.len() != now.len() {
                    return None;
                }
                newly
            }
            _ => (place.rows.start as u32..place.rows.end as u32)
                .filter(|at| !before.contains(at))
                .collect(),
        };
        let fragment = u32::try_from(place.piece.fragment).ok()?;
        let addresses = newly
            .iter()
            .map(|at| u64::from(RowAddress::new_from_parts(fragment, *at)));
        gone.extend(addresses);
        if gone.len() > MOST_ROWS {
            return None;
        }
    }
    let rows = gone.len() as u64;
    let bytes = claim.bytes / claim.rows.max(1);
    let physical: u64 = claim
        .fragments
        .iter()
        .map(|f| f.physical_rows.unwrap_or(0) as u64)
        .sum();
    let gone_then = physical.saturating_sub(claim.rows) + rows;
    let worth = bytes.saturating_mul(rows) <= MOST_BYTES && gone_then * SHARE <= physical;
    worth.then_some(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(fragment: u64, rows: Range<u64>, now: Option<usize>) -> Place {
        Place {
            at: fragment as usize,
            piece: OldPiece {
                fragment,
                slice: None,
            },
            rows,
            now,
            touched: true,
        }
    }

    fn claim(rows: u64) -> Claim {
        let mut fragment = Fragment::new(0);
        fragment.physical_rows = Some(rows as usize);
        Claim {
            inputs: Vec::new(),
            refresh: "r".into(),
            rows,
            bytes: rows,
            fragments: vec![fragment],
            of: Vec::new(),
        }
    }

    fn address(fragment: u32, offset: u32) -> u64 {
        u64::from(RowAddress::new_from_parts(fragment, offset))
    }

    #[test]
    fn what_is_deleted_since_is_gone_and_all_of_what_is_no_more() {
        let places = [place(1, 0..10, Some(0)), place(4, 0..3, None)];
        let deleted = HashMap::from([(1, (vec![2], Some(vec![2, 5, 7]))), (4, (vec![0], None))]);
        let found = gone(&claim(100), &places, &deleted);
        let expected = [address(1, 5), address(1, 7), address(4, 1), address(4, 2)];
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn rows_that_are_there_again_and_too_many_are_left_to_computing() {
        let places = [place(1, 0..10, Some(0))];
        let again = HashMap::from([(1, (vec![2, 3], Some(vec![3, 5])))]);
        assert_eq!(gone(&claim(100), &places, &again), None);
        let one = HashMap::from([(1, (vec![], Some(vec![3])))]);
        assert!(gone(&claim(8), &places, &one).is_some());
        assert_eq!(gone(&claim(7), &places, &one), None);
        // Those that were taken out before count too.
        let mut trimmed = claim(16);
        trimmed.rows = 14;
        assert_eq!(gone(&trimmed, &places, &one), None);
        // A slice's deletions are its own.
        let places = [place(1, 4..10, Some(0))];
        assert_eq!(gone(&claim(100), &places, &one), Some(Vec::new()));
    }
}
