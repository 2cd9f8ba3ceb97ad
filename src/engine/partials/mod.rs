//! Partial aggregates of `GROUP BY` views, so that a small change costs a small
//! part of the source and a merge.
//!
//! A [`Partial`] says: "these objects hold the states of exactly the groups of
//! these inputs". The ledger of each commit lists those that its groups came
//! of, and a plan those that its will. A refresh takes over every partial whose
//! inputs are in its source version, cuts what is left into units as for a
//! row-wise view, computes the states of those ([`compute`]: each worker its
//! share, then what others left), and merges all states into the view's one
//! claim.
//!
//! The objects are a cache. They are named by what they were computed from, so
//! whoever writes one writes the same; each starts with a checksum; one that is
//! missing or damaged is computed again, wherever that is noticed. A unit whose
//! states are larger than [`LARGEST`], or than half of the rows that they are of, is
//! remembered as such by a mark, and the view is then computed whole, which needs no
//! such objects.
//!
//! States mean something to the version that made them alone. A partial says which
//! that was, and any other computes it again.

mod object;
mod parts;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::parts::{Parts, compute};
use super::error::Result;
use super::fingerprint::{ENGINE_VERSION, Fingerprint};
use super::ledger::{Claim, Known, Ledger, Ledgers, STAGED_FOR};
use super::plan::{self, Plan};
use super::request::Request;
use super::store::Objects;
use super::unit::{self, Piece, TARGET_ROWS};
use super::work::Work;
use super::{carry, paths};

/// The most bytes of states that are kept for one unit.
pub const LARGEST: usize = 16 << 20;

/// So many are kept whatever the rows have that they are of.
const SMALL: usize = 1 << 20;

/// The most bytes of states that are kept of rows of so many bytes. More would be no
/// longer small beside the rows themselves.
fn most(bytes: u64) -> usize {
    let half = usize::try_from(bytes / 2).unwrap_or(usize::MAX);
    half.clamp(SMALL, LARGEST)
}

/// How the objects are written.
const FORMAT: &str = "partial 2";

/// Small partials are put together when there are more of all than this, and
/// than twice as many as units of full size; and the objects of one that
/// compactions joined when there are more of them.
const MANY: usize = 32;

/// How many ledgers, and plans of refreshes that did not end, are searched.
const LEDGERS: usize = 2;
const PLANS: usize = 64;

/// "These objects hold the states of exactly the groups of these inputs."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Partial {
    /// The fingerprints of the source's pieces.
    pub inputs: Vec<Fingerprint>,
    /// The names of the objects.
    pub objects: Vec<Fingerprint>,
    /// Whether a committed ledger lists it.
    #[serde(default)]
    pub kept: bool,
    /// Whether its states are too large to be kept.
    #[serde(default)]
    pub large: bool,
    /// Whose states they are ([`maker`]). Empty: older than those that say so.
    #[serde(default)]
    pub made_by: String,
}

impl Partial {
    /// A partial yet to be computed. Another `salt` makes it another object.
    fn new(inputs: Vec<Fingerprint>, salt: &str) -> Partial {
        let made_by = maker();
        let made = Fingerprint::of_text(&format!("{made_by}, {salt}"));
        Partial {
            objects: vec![Fingerprint::of_all(inputs.iter().chain([&made]))],
            inputs,
            kept: false,
            large: false,
            made_by,
        }
    }

    /// Whether its states mean to this version what they say.
    pub(super) fn is_own(&self) -> bool {
        self.made_by == maker()
    }
}

/// Whose states this version computes and reads: how it writes them, and whose
/// aggregates they are of.
fn maker() -> String {
    let version = datafusion::DATAFUSION_VERSION;
    format!("{FORMAT}, engine {ENGINE_VERSION}, DataFusion {version}")
}

/// The partials that `work`'s groups come of; none where they cannot be merged.
/// Those that are too large are returned alone. Unless `units` are to be
/// computed, nothing is cut: only what was there is kept. `plans` are the
/// folders of plans that are under way, or were left.
pub async fn choose(
    work: &Work,
    objects: &Objects,
    ledgers: &mut Ledgers,
    plans: &[String],
    request: &Request,
    units: bool,
) -> Result<Vec<Partial>> {
    let Some(pieces) = work.mergeable() else {
        return Ok(Vec::new());
    };
    // A full refresh computes every row: from objects of its own.
    let salt = if request.full { &request.refresh } else { "" };
    let mut chosen = Chosen::new(pieces);
    if !request.full {
        let ledgers = ledgers.newest(LEDGERS).await?;
        let kept = ledgers.iter().flat_map(|ledger| ledger.partials.clone());
        let kept = kept.filter(Partial::is_own).map(|partial| Partial {
            kept: true,
            ..partial
        });
        let rest = chosen.take(kept.collect());
        if !chosen.is_complete() {
            let since = work.since(ledgers.iter().map(|ledger| &ledger.outcome));
            let moves = work.moves(&since).await?;
            let claims: Vec<Claim> = rest.into_iter().map(as_claim).collect();
            let carried = carry::over_source(&claims, moves);
            chosen.take(carried.into_iter().map(of_claim).collect());
        }
        if units && !chosen.is_complete() {
            chosen.take(left(objects, plans).await?);
        }
    }
    if units && chosen.partials.iter().any(|p| p.large) {
        chosen.partials.retain(|p| p.large);
    } else if units {
        chosen.tidy();
        chosen.cut(salt);
    }
    Ok(chosen.partials)
}

/// The partials of plans whose refreshes did not end.
async fn left(objects: &Objects, plans: &[String]) -> Result<Vec<Partial>> {
    let mut found = Vec::new();
    for folder in plans.iter().take(PLANS) {
        let path = paths::plan(objects.root(), folder, 1);
        if let Some(plan) = objects.get::<Plan>(&path).await? {
            let left = plan.partials.into_iter();
            found.extend(left.filter(|p| !p.kept && p.is_own()));
        }
    }
    Ok(found)
}

/// Claims are carried over compactions; so are partials of this version, as if
/// their objects were files, and those that are too large rows: what is joined
/// from one of them has no states that could be merged either.
fn as_claim(partial: Partial) -> Claim {
    let fragments = partial.objects.iter().map(|object| {
        let mut fragment = lance_table::format::Fragment::new(0);
        fragment.files = vec![lance_table::format::DataFile::new(
            object.to_string(),
            Vec::new(),
            Vec::<i32>::new(),
            lance_file::version::ConcreteFileVersion::V2_0,
            None,
            None,
        )];
        fragment
    });
    Claim {
        fragments: fragments.collect(),
        inputs: partial.inputs,
        refresh: String::new(),
        rows: partial.large.into(),
        bytes: 0,
        of: Vec::new(),
    }
}

fn of_claim(claim: Claim) -> Partial {
    Partial {
        objects: claim.files().map(Fingerprint::named).collect(),
        inputs: claim.inputs,
        kept: true,
        large: claim.rows > 0,
        made_by: maker(),
    }
}

/// Pieces of the source covered by partials, each once.
struct Chosen<'a> {
    pieces: &'a [Piece],
    open: HashMap<&'a Fingerprint, Vec<usize>>,
    partials: Vec<Partial>,
}

impl<'a> Chosen<'a> {
    fn new(pieces: &'a [Piece]) -> Chosen<'a> {
        Chosen {
            pieces,
            open: plan::open(pieces.iter().map(|piece| &piece.fingerprint)),
            partials: Vec::new(),
        }
    }

    fn is_complete(&self) -> bool {
        self.open.values().all(Vec::is_empty)
    }

    /// Takes those of `found` whose inputs are all open, and returns the others.
    fn take(&mut self, found: Vec<Partial>) -> Vec<Partial> {
        let mut rest = Vec::new();
        for partial in found {
            if plan::take(&mut self.open, &partial.inputs) {
                self.partials.push(partial);
            } else {
                rest.push(partial);
            }
        }
        rest
    }

    /// Gives small partials back where there are many, to be cut anew as units
    /// of full size: what that computes again is less than what has been
    /// computed for as many small changes. And those of many objects, each of
    /// which is read for every merge: what they cost is shared by as many changes.
    fn tidy(&mut self) {
        let rows: HashMap<&Fingerprint, u64> = self
            .pieces
            .iter()
            .map(|piece| (&piece.fingerprint, piece.rows))
            .collect();
        let all: u64 = self.pieces.iter().map(|piece| piece.rows).sum();
        let full = usize::try_from(all.div_ceil(TARGET_ROWS)).unwrap_or(usize::MAX);
        let objects: usize = self.partials.iter().map(|p| p.objects.len()).sum();
        let many = objects > MANY.max(full.saturating_mul(2));
        let rows = |partial: &Partial| -> u64 {
            let rows = partial.inputs.iter().filter_map(|i| rows.get(i));
            rows.sum()
        };
        let small = |partial: &Partial| rows(partial) < TARGET_ROWS / 4;
        // Full ones that a compaction joined are as few as there can be.
        let worn = |partial: &Partial| {
            let full = usize::try_from(rows(partial).div_ceil(TARGET_ROWS)).unwrap_or(usize::MAX);
            partial.objects.len() > MANY.max(full.saturating_mul(2))
        };
        let before = self.partials.len();
        self.partials.retain(|p| !(worn(p) || many && small(p)));
        if self.partials.len() == before {
            return;
        }
        // Which of equal pieces is given back does not matter.
        let mut open = Chosen::new(self.pieces).open;
        for partial in &self.partials {
            plan::take(&mut open, &partial.inputs);
        }
        self.open = open;
    }

    /// Cuts what no partial covers.
    fn cut(&mut self, salt: &str) {
        let mut missing: Vec<usize> = self.open.drain().flat_map(|(_, at)| at).collect();
        missing.sort_unstable();
        for unit in unit::cut(self.pieces, &missing, TARGET_ROWS) {
            let inputs = unit.iter().map(|at| self.pieces[*at].fingerprint.clone());
            self.partials.push(Partial::new(inputs.collect(), salt));
        }
    }
}

/// Deletes objects that no kept ledger lists, once there are many more of them
/// than `work` needs; or all, where it needs none and the ledgers `known` say that
/// the view did before it was redefined. What another refresh under way may need
/// stays for as long as what it has staged.
pub async fn prune(objects: &Objects, work: &Work, refresh: &str, known: &Known) -> Result<()> {
    let needs = work.mergeable().is_some();
    if needs && work.plan.units.is_empty() {
        // Nothing has come to be of no use: there is no need to list them.
        return Ok(());
    }
    if !needs && known.values().all(|ledger| ledger.partials.is_empty()) {
        return Ok(());
    }
    let listed = objects.list(&paths::partials(objects.root())).await?;
    let used: usize = work.plan.partials.iter().map(|p| p.objects.len()).sum();
    if needs && listed.len() <= MANY + 2 * used {
        return Ok(());
    }
    let mut needed: HashSet<String> = HashSet::new();
    let mut name = |partials: &[Partial]| {
        let names = partials.iter().flat_map(|p| &p.objects);
        needed.extend(names.map(paths::partial_name));
    };
    name(&work.plan.partials);
    let ledgers = match needs {
        true => objects.list(&paths::ledgers(objects.root())).await?,
        false => Vec::new(),
    };
    for object in ledgers {
        if let Some(ledger) = objects.get::<Ledger>(&object.path).await? {
            name(&ledger.partials);
        }
    }
    let plans = objects.folders(&paths::plans(objects.root())).await?;
    let alone = plans.iter().all(|plan| plan == refresh);
    let now = listed.iter().map(|l| l.modified).max();
    let old = |modified| {
        now.and_then(|now| now.duration_since(modified).ok())
            .unwrap_or(Duration::ZERO)
            > STAGED_FOR
    };
    let dead = listed
        .into_iter()
        .filter(|l| !needed.contains(&l.name) && (alone || old(l.modified)))
        .map(|l| l.path)
        .collect();
    objects.delete(dead).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(names: &[&str], rows: u64) -> Vec<Piece> {
        names
            .iter()
            .enumerate()
            .map(|(fragment, name)| Piece {
                fragment,
                slice: None,
                rows,
                begins: false,
                fingerprint: Fingerprint::of_text(name),
            })
            .collect()
    }

    fn partial(names: &[&str]) -> Partial {
        Partial::new(names.iter().map(|n| Fingerprint::of_text(n)).collect(), "")
    }

    #[test]
    fn states_are_kept_that_are_small_beside_their_rows_or_altogether() {
        assert_eq!(most(0), SMALL);
        assert_eq!(most(6 << 20), 3 << 20);
        assert_eq!(most(u64::MAX), LARGEST);
    }

    #[test]
    fn what_is_there_is_taken_and_the_rest_is_cut() {
        let pieces = pieces(&["a", "b", "c", "d"], 10);
        let mut chosen = Chosen::new(&pieces);
        let rest = chosen.take(vec![partial(&["b"]), partial(&["x"]), partial(&["b", "c"])]);
        assert_eq!(rest, [partial(&["x"]), partial(&["b", "c"])]);
        chosen.tidy();
        chosen.cut("");
        assert_eq!(
            chosen.partials,
            [partial(&["b"]), partial(&["a"]), partial(&["c", "d"])]
        );
    }

    #[test]
    fn many_small_partials_are_put_together() {
        let names: Vec<String> = (0..=MANY).map(|i| i.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let pieces = pieces(&names, 10);
        let mut chosen = Chosen::new(&pieces);
        chosen.take(names.iter().map(|name| partial(&[name])).collect());
        assert!(chosen.is_complete());
        chosen.tidy();
        chosen.cut("");
        assert_eq!(chosen.partials, [partial(&names)]);
    }

    #[test]
    fn equal_pieces_are_covered_each() {
        let pieces = pieces(&["a", "a"], 10);
        let mut chosen = Chosen::new(&pieces);
        assert_eq!(chosen.take(vec![partial(&["a", "a", "a"])]).len(), 1);
        chosen.take(vec![partial(&["a"])]);
        chosen.cut("");
        assert_eq!(chosen.partials.len(), 2);
    }

    #[test]
    fn a_full_refresh_has_objects_of_its_own() {
        let inputs = vec![Fingerprint::of_text("a")];
        let one = Partial::new(inputs.clone(), "one");
        assert_ne!(one.objects, Partial::new(inputs, "").objects);
    }

    #[test]
    fn partials_of_another_version_or_of_none_are_not_taken_for_own_ones() {
        let own = partial(&["a"]);
        assert!(own.is_own());
        let mut stored = serde_json::to_value(&own).unwrap();
        let stored = stored.as_object_mut().unwrap();
        let read = |stored: &serde_json::Map<String, serde_json::Value>| -> Partial {
            serde_json::from_value(stored.clone().into()).unwrap()
        };
        assert_eq!(read(stored), own);
        let other = own.made_by.replace("DataFusion ", "DataFusion 1");
        stored.insert("madeBy".into(), other.into());
        assert!(!read(stored).is_own());
        stored.remove("madeBy");
        assert!(!read(stored).is_own());
    }

    #[test]
    fn partials_follow_compactions_as_claims_do() {
        let moved = carry::Move {
            old: vec![Fingerprint::of_text("a"), Fingerprint::of_text("b")],
            new: vec![Fingerprint::of_text("c")],
        };
        let claims = [as_claim(partial(&["a"])), as_claim(partial(&["b"]))];
        let carried = carry::over_source(&claims, &[moved]);
        let [joined] = carried.as_slice() else {
            panic!("{carried:?}");
        };
        let joined = of_claim(joined.clone());
        assert_eq!(joined.inputs, [Fingerprint::of_text("c")]);
        let both = [partial(&["a"]).objects, partial(&["b"]).objects].concat();
        assert_eq!(joined.objects, both);
    }

    #[test]
    fn what_is_joined_from_states_that_are_too_large_is_too_large() {
        let moved = carry::Move {
            old: vec![Fingerprint::of_text("a"), Fingerprint::of_text("b")],
            new: vec![Fingerprint::of_text("c")],
        };
        let large = Partial {
            large: true,
            ..partial(&["b"])
        };
        let claims = [as_claim(partial(&["a"])), as_claim(large)];
        let carried = carry::over_source(&claims, &[moved]);
        let joined: Vec<Partial> = carried.into_iter().map(of_claim).collect();
        assert_eq!(joined.len(), 1);
        assert!(joined[0].large);
    }

    #[test]
    fn a_partial_of_many_objects_is_cut_anew() {
        let large = pieces(&["a", "b"], TARGET_ROWS);
        let of_objects = |count: usize| {
            let names = (0..count).map(|n| Fingerprint::of_text(&n.to_string()));
            Partial {
                objects: names.collect(),
                ..partial(&["a"])
            }
        };
        for (count, stays) in [(MANY, true), (MANY + 1, false)] {
            let mut chosen = Chosen::new(&large);
            chosen.take(vec![partial(&["b"]), of_objects(count)]);
            chosen.tidy();
            chosen.cut("");
            let anew = [partial(&["b"]), partial(&["a"])];
            let kept = [partial(&["b"]), of_objects(count)];
            assert_eq!(chosen.partials, if stays { kept } else { anew });
        }
    }
}
