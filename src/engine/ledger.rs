//! Claims and their ledger.
//!
//! A [`Claim`] says: "these files hold exactly the rows that come of these
//! inputs". That stays true for ever; whether the files may be used does not.
//!
//! - A *committed* claim is in a [`Ledger`], an object written just before the
//!   commit that made its files part of the view. It stands while its files
//!   are in the view's current Lance manifest, whole ([`super::standing`]).
//! - A *staged* claim is an object of its own while its refresh runs. It may be
//!   used if its files were never in a committed version (one that was can be
//!   cleaned up at any time), are younger than [`STAGED_FOR`] by the store's
//!   own clock (lance deletes unreferenced files after seven days), and are
//!   there when looked at just before the commit.
//!
//! Even a committed file can be lost: see [`Young`].
//!
//! A claim may hold a file less some rows: its fragment then names the deletion
//! file that takes them out, as the view's Lance manifest does. Rows that were
//! taken out of a committed claim ([`super::trim`]) are staged as one that is
//! [`Claim::of`] the other: only the deletion files are new.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lance_table::format::{DataFile, Fragment};
use lance_table::io::deletion::relative_deletion_file_path;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::error::Result;
use super::fingerprint::Fingerprint;
use super::freshness;
use super::outcome::Outcome;
use super::partials::Partial;
use super::paths;
use super::standing::Standing;
use super::store::{Listed, Objects};
use super::young::{Brought, CLEANUP, Young, absent};

/// How long a staged file may be used.
pub const STAGED_FOR: Duration = Duration::from_secs(5 * 24 * 3600);

/// How many ledgers are kept. More than one, so that claims revive when a
/// user restores an earlier version of the view.
pub const LEDGERS_KEPT: usize = 16;

/// How many claims ledgers may have together before what older ones repeat is left
/// out: it is held no longer than it takes to read it.
const HELD: usize = 1 << 14;

/// The folder of a table's data files in its own.
pub(super) const DATA_FOLDER: &str = "data";

/// "These files hold exactly the rows of these inputs."
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The fingerprints of the source fragments it was computed from, in order.
    pub inputs: Vec<Fingerprint>,
    /// UID of the refresh that computed it.
    pub refresh: String,
    /// How many rows it holds.
    pub rows: u64,
    /// How many bytes its files have.
    pub bytes: u64,
    /// The view's fragments as they were staged: without the ids and row ids
    /// that a commit gives them. None where no row came out. A fragment less
    /// some rows has its id in the view, and their deletion file.
    pub fragments: Vec<Fragment>,
    /// Of a staged claim whose rows are in the view but for those to be taken
    /// out: its fragments as they stand there until its commit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<Fragment>,
}

/// What a claim may hold of a view's fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// The path of its data file, relative to the view's data folder.
    pub file: String,
    /// The path of the deletion file that takes rows out of it, relative to the
    /// view's folder.
    pub less: Option<String>,
}

impl Held {
    /// What `fragment`, as staged or in a manifest, holds of its data file `file`.
    pub(super) fn new(fragment: &Fragment, file: &DataFile) -> Held {
        Held {
            file: file.path.clone(),
            less: deletions(fragment),
        }
    }
}

/// The path of the deletion file of `fragment`, relative to its table's folder.
pub fn deletions(fragment: &Fragment) -> Option<String> {
    let file = fragment.deletion_file.as_ref()?;
    Some(relative_deletion_file_path(fragment.id, file))
}

impl Claim {
    /// What identifies the claim among those of one view.
    pub fn id(&self) -> Fingerprint {
        Fingerprint::of_all(&self.inputs)
    }

    /// The paths of its data files, relative to the view's data folder.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.fragments
            .iter()
            .flat_map(|fragment| fragment.files.iter().map(|file| file.path.as_str()))
    }

    /// What it holds of each of its fragments; `None` of one that is not of one file.
    pub fn held(&self) -> impl Iterator<Item = Option<Held>> {
        self.fragments.iter().map(held)
    }

    /// The paths of all its files, relative to the view's folder.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        let data = self.files().map(data_path);
        data.chain(self.fragments.iter().filter_map(deletions))
    }

    /// Of a staged claim, the paths of what was written for it, relative to the
    /// view's folder.
    pub fn written(&self) -> Vec<String> {
        let before: HashSet<String> = self.of.iter().filter_map(deletions).collect();
        let data = self.files().filter(|_| self.of.is_empty()).map(data_path);
        let deletions = self.fragments.iter().filter_map(deletions);
        data.chain(deletions.filter(|path| !before.contains(path)))
            .collect()
    }

    /// The claim once it is committed.
    pub fn committed(mut self) -> Claim {
        self.of.clear();
        self
    }
}

pub(super) fn held(fragment: &Fragment) -> Option<Held> {
    match fragment.files.as_slice() {
        [file] => Some(Held::new(fragment, file)),
        _ => None,
    }
}

/// The path of a data file, relative to its table's folder.
pub fn data_path(file: &str) -> String {
    format!("{DATA_FOLDER}/{file}")
}

/// The claims of one commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// UID of the refresh.
    pub refresh: String,
    /// The view version that the commit was made on top of.
    pub read_version: u64,
    /// What the refresh did; its view version is a guess until the commit landed.
    pub outcome: Outcome,
    /// Every claim that the view consists of after the commit: those that are
    /// not [`Young`] first, then those that are, and last those that it brought in.
    pub claims: Vec<Claim>,
    /// The young ones, by when they were brought in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub young: Vec<Brought>,
    /// How many it brought in.
    #[serde(default)]
    pub added: usize,
    /// What the groups of a view with GROUP BY were merged from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partials: Vec<Partial>,
}

impl Ledger {
    /// The claims that its commit brought in.
    pub fn brought(&self) -> &[Claim] {
        let kept = self.claims.len().saturating_sub(self.added);
        &self.claims[kept..]
    }

    /// Those that it brought in at `written`, and those that were young then, by
    /// when they were brought in.
    pub(super) fn lately(
        &self,
        written: SystemTime,
    ) -> impl Iterator<Item = (SystemTime, &[Claim])> {
        let young = self.young.iter().rev();
        let young = young.scan(self.added, move |after, brought| {
            let until = self.claims.len().saturating_sub(*after);
            *after += brought.claims;
            let from = self.claims.len().saturating_sub(*after);
            let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(brought.at));
            Some((at.unwrap_or(written), &self.claims[from..until]))
        });
        std::iter::once((written, self.brought())).chain(young)
    }
}

/// Ledgers that were read, by their paths: each is written once, and stays as
/// it is until it is deleted.
pub type Known = HashMap<Path, Arc<Ledger>>;

/// A view's ledgers, the newest first, as far as they have been read.
#[derive(Clone, Debug)]
pub struct Ledgers {
    objects: Objects,
    read: Vec<Arc<Ledger>>,
    known: Known,
    /// The files that those read say were brought in lately.
    young: Young,
    /// Those of them that are not there.
    gone: HashSet<String>,
    /// How many claims those read have, and which they are, by what identifies them
    /// and by ledger and place, of the first so many ledgers.
    claims: usize,
    places: HashMap<Fingerprint, Vec<(usize, usize)>>,
    placed: usize,
    /// Those yet to be read, the newest last.
    rest: Vec<Listed>,
    /// The refresh whose claims' files alone are looked for; `None`: all are.
    only: Option<String>,
    /// The newest, if its files are there and will stay.
    settled: Option<String>,
    /// Whether the newest does not account for all of the view.
    apart: bool,
}

impl Ledgers {
    /// Lists those of a view and reads the newest, which is mostly all that is
    /// needed. What the view itself is need not be known yet. Of a full refresh,
    /// which takes nothing over, `only` its own claims' files are looked for.
    /// Those that are `known` are not read again.
    pub async fn open(objects: &Objects, only: Option<&str>, known: Known) -> Result<Ledgers> {
        let (listed, settled) = futures::try_join!(list(objects), freshness::settled(objects))?;
        Self::among(objects, listed, settled, only, known).await
    }

    /// As [`Ledgers::open`], of those that are `listed`, of which the record says
    /// that `settled` is.
    pub(super) async fn among(
        objects: &Objects,
        listed: Vec<Listed>,
        settled: Option<String>,
        only: Option<&str>,
        known: Known,
    ) -> Result<Ledgers> {
        let mut rest = listed;
        rest.drain(..rest.len().saturating_sub(LEDGERS_KEPT));
        let mut ledgers = Ledgers {
            objects: objects.clone(),
            read: Vec::new(),
            known,
            young: Young::default(),
            gone: HashSet::new(),
            claims: 0,
            places: HashMap::new(),
            placed: 0,
            only: only.map(str::to_string),
            settled: settled.filter(|name| rest.last().is_some_and(|l| l.name == *name)),
            apart: false,
            rest,
        };
        ledgers.next().await?;
        Ok(ledgers)
    }

    /// The name of the newest ledger, if the files that it brought in are there
    /// and nothing that ran beside its commit can still take them. Once the view was
    /// asked for ([`Ledgers::of`]): and if it holds all of the view.
    pub fn settled(&self) -> Option<&str> {
        self.settled.as_deref()
    }

    /// Whether the newest does not account for all of the view that was asked for
    /// ([`Ledgers::of`]).
    pub fn is_apart(&self) -> bool {
        self.apart
    }

    /// Whether a file that `fragments` of the view have is gone, as far as those
    /// that have been read tell.
    pub fn lacks(&self, fragments: &[Fragment]) -> bool {
        let mut files = fragments.iter().flat_map(|f| &f.files);
        let lost = |path: String| self.gone.contains(&path);
        !self.gone.is_empty()
            && (files.any(|file| lost(data_path(&file.path)))
                || fragments.iter().filter_map(deletions).any(lost))
    }

    /// The files that were brought in lately, by those that have been read.
    pub fn into_young(self) -> Young {
        self.young
    }

    /// What has been read, for the next look.
    pub fn into_known(self) -> Known {
        self.known
    }

    /// Reads until one accounts for every fragment of the view (or all are
    /// read). Their claims are returned as they are: the caller judges which of
    /// them stand.
    ///
    /// What has files that are gone is no longer `standing` then: see [`Young`].
    /// Claims that the view's manifest does not refer to any more stay even so: a
    /// compaction may have taken their rows elsewhere, and a clean-up their files.
    pub async fn of(&mut self, standing: &mut Standing) -> Result<&[Arc<Ledger>]> {
        loop {
            standing.lose(&self.gone);
            let accounted = self.read.iter().flat_map(|l| l.claims.iter());
            if standing.unaccounted(accounted).is_empty() || !self.next().await? {
                break;
            }
        }
        if self.read.len() > 1 {
            // It may be of a commit that never landed.
            let newest = self.read.iter().take(1).flat_map(|l| l.claims.iter());
            self.apart = !standing.unaccounted(newest).is_empty();
            if self.apart {
                self.settled = None;
            }
        }
        Ok(&self.read)
    }

    /// Reads until those that have been read hold all `fragments` of the view, or all
    /// are read. Returns whether they do.
    pub async fn hold(&mut self, fragments: &[Fragment]) -> Result<bool> {
        // Which one each is, by what a claim may hold of it: others may have added files
        // with columns of theirs.
        let fragments_of = fragments.iter().enumerate().flat_map(|(at, fragment)| {
            let files = fragment.files.iter();
            files.map(move |file| (Held::new(fragment, file), at))
        });
        let fragments_of: HashMap<Held, usize> = fragments_of.collect();
        let mut left: HashSet<usize> = (0..fragments.len()).collect();
        let mut searched = 0;
        loop {
            let claims = self.read[searched..].iter().flat_map(|l| l.claims.iter());
            for held in claims.flat_map(Claim::held).flatten() {
                if let Some(at) = fragments_of.get(&held) {
                    left.remove(at);
                }
            }
            searched = self.read.len();
            if left.is_empty() || !self.next().await? {
                return Ok(left.is_empty());
            }
        }
    }

    /// The newest, at most `count` of them.
    pub async fn newest(&mut self, count: usize) -> Result<&[Arc<Ledger>]> {
        while self.read.len() < count && self.next().await? {}
        Ok(&self.read[..count.min(self.read.len())])
    }

    /// Reads one more. Returns whether there was one.
    async fn next(&mut self) -> Result<bool> {
        while let Some(listed) = self.rest.pop() {
            let known = match self.known.get(&listed.path) {
                Some(known) => Some(known.clone()),
                None => self.objects.get(&listed.path).await?.map(Arc::new),
            };
            let Some(mut ledger) = known else {
                continue;
            };
            self.claims += ledger.claims.len();
            let repeats = !self.read.is_empty() && self.claims > HELD;
            if !repeats {
                self.known.insert(listed.path, ledger.clone());
            }
            // What an older one brought in is its own to tell: the newest may be of a
            // commit that never landed, and have nothing of it.
            if self.settled.is_none() || !self.read.is_empty() {
                let mut paths = Vec::new();
                for (at, claims) in ledger.lately(listed.modified) {
                    let only = self.only.as_ref();
                    let mine = |claim: &&Claim| only.is_none_or(|only| claim.refresh == *only);
                    let new = claims.iter().filter(mine).flat_map(Claim::paths);
                    paths.extend(self.young.note(new, at));
                }
                self.gone.extend(absent(&self.objects, paths).await?);
                let age = SystemTime::now().duration_since(listed.modified);
                if self.only.is_none()
                    && self.gone.is_empty()
                    && self.read.is_empty()
                    && age.is_ok_and(|age| age > CLEANUP)
                {
                    self.settled = Some(listed.name);
                }
            }
            if repeats {
                ledger = Arc::new(self.news(Arc::unwrap_or_clone(ledger)));
            }
            self.read.push(ledger);
            return Ok(true);
        }
        Ok(false)
    }

    /// `ledger`, which is older than those that have been read, without the claims
    /// that these have as well. Of a view of very many units nearly all are the same
    /// in each, and all ledgers together would be larger than memory.
    fn news(&mut self, mut ledger: Ledger) -> Ledger {
        for (at, read) in self.read.iter().enumerate().skip(self.placed) {
            for (place, claim) in read.claims.iter().enumerate() {
                self.places.entry(claim.id()).or_default().push((at, place));
            }
        }
        self.placed = self.read.len();
        let is_new = |claim: &Claim| {
            let mut same = self.places.get(&claim.id()).into_iter().flatten();
            !same.any(|(at, place)| self.read[*at].claims[*place] == *claim)
        };
        ledger.claims.retain(is_new);
        ledger.claims.shrink_to_fit();
        // What was said of their order is true no longer.
        ledger.young.clear();
        ledger.added = 0;
        ledger
    }
}

/// A view's ledgers, the newest last: by the version of the view that each is of,
/// and those of one version, which refreshes that wrote no row left, by when they
/// were written.
pub async fn list(objects: &Objects) -> Result<Vec<Listed>> {
    let mut listed = objects.list(&paths::ledgers(objects.root())).await?;
    listed.sort_by(|a, b| {
        let versions = paths::ledger_version(&a.name).cmp(paths::ledger_version(&b.name));
        let times = versions.then(a.modified.cmp(&b.modified));
        times.then_with(|| a.name.cmp(&b.name))
    });
    Ok(listed)
}

/// All but the newest ledgers.
pub async fn surplus(objects: &Objects) -> Result<Vec<Path>> {
    let listed = list(objects).await?;
    let surplus = listed.len().saturating_sub(LEDGERS_KEPT);
    Ok(listed.into_iter().take(surplus).map(|o| o.path).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::outcome::Mode;
    use crate::engine::standing::tests::claim;
    use crate::engine::store::Store;

    fn ledger(version: u64, claims: Vec<Claim>) -> Ledger {
        Ledger {
            refresh: "r".into(),
            read_version: version,
            outcome: Outcome {
                mode: Mode::Incremental,
                source_version: version,
                source_versions: BTreeMap::new(),
                view_version: version + 1,
                rows_written: 1,
                bytes_written: 1,
                units_total: claims.len() as u64,
                units_kept: 0,
                unindexed_rows: None,
            },
            added: claims.len(),
            claims,
            young: Vec::new(),
            partials: Vec::new(),
        }
    }

    /// The claims of three ledgers of `count` claims, of which each has some, and one
    /// of other rows, that the next has not; the newest first, as they are read.
    async fn read(count: usize) -> Vec<Vec<Claim>> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(&BTreeMap::new());
        let objects = store
            .objects(folder.path().to_str().unwrap())
            .await
            .unwrap();
        for version in 1..=3 {
            let named = (version..version + count).map(|n| claim(&n.to_string()));
            let mut claims: Vec<Claim> = named.collect();
            claims[count - 1].rows += version as u64;
            let path = paths::ledger(objects.root(), version as u64, "r", "x");
            let ledger = ledger(version as u64, claims);
            objects.put(&path, &ledger).await.unwrap();
        }
        // Twice: what is known by then is the same.
        let mut known = Known::new();
        let mut found = Vec::new();
        for _ in 0..2 {
            let mut ledgers = Ledgers::open(&objects, None, known).await.unwrap();
            let read = ledgers.newest(3).await.unwrap();
            let claims: Vec<Vec<Claim>> = read.iter().map(|l| l.claims.clone()).collect();
            assert!(found.is_empty() || found == claims);
            found = claims;
            known = ledgers.into_known();
        }
        found
    }

    #[tokio::test]
    async fn of_very_many_claims_an_older_ledger_keeps_those_that_newer_ones_have_not() {
        let few = read(10).await;
        assert!(few.iter().all(|claims| claims.len() == 10));
        let count = HELD / 2 + 1;
        let many = read(count).await;
        let files = |claims: &[Claim]| -> Vec<String> {
            let files = claims.iter().flat_map(Claim::files);
            files.map(str::to_string).collect()
        };
        assert_eq!(many[0].len(), count);
        // Its first, and its last, which is of other rows in each.
        let last = |version: usize| (version + count - 1).to_string();
        assert_eq!(files(&many[1]), ["2".to_string(), last(2)]);
        assert_eq!(files(&many[2]), ["1".to_string(), last(1)]);
    }
}
