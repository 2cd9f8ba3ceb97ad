//! Claims and their ledger.
//!
//! A [`Claim`] says: "these files hold exactly the rows that come of these
//! inputs". That stays true for ever; whether the files may be used does not.
//!
//! - A *committed* claim is in a [`Ledger`], an object written just before the
//!   commit that made its files part of the view. It stands while its files
//!   are in the view's current Lance manifest, whole ([`Standing`]).
//! - A *staged* claim is an object of its own while its refresh runs. It may be
//!   used if its files were never in a committed version (one that was can be
//!   cleaned up at any time), are younger than [`STAGED_FOR`] by the store's
//!   own clock (lance deletes unreferenced files after seven days), and are
//!   there when looked at just before the commit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lance_core::datatypes::Schema;
use lance_table::format::{DataFile, Fragment};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::error::Result;
use super::fingerprint::Fingerprint;
use super::freshness;
use super::outcome::Outcome;
use super::partials::Partial;
use super::paths;
use super::store::{Listed, Objects};

/// How long a staged file may be used.
pub const STAGED_FOR: Duration = Duration::from_secs(5 * 24 * 3600);

/// How many ledgers are kept. More than one, so that claims revive when a
/// user restores an earlier version of the view.
pub const LEDGERS_KEPT: usize = 16;

/// When more files are to be looked at, the folder is listed: a thousand in one
/// call.
const MANY: usize = 512;

/// How long a cleanup may take.
const CLEANUP: Duration = Duration::from_secs(24 * 3600);

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
    /// that a commit gives them. None where no row came out.
    pub fragments: Vec<Fragment>,
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
    /// Every claim that the view consists of after the commit, those that it
    /// brought in last.
    pub claims: Vec<Claim>,
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
}

/// The columns of a view that a refresh computes, as its files know them.
#[derive(Clone, Debug)]
pub struct Columns {
    /// Field ids that hold values.
    fields: HashSet<i32>,
}

impl Columns {
    /// The columns of these `names` in a view's `schema`.
    pub fn new<'a>(schema: &Schema, names: impl Iterator<Item = &'a str>) -> Columns {
        let mut fields = HashSet::new();
        for name in names {
            if let Some(field) = schema.fields.iter().find(|f| f.name == name) {
                collect(field, &mut fields);
            }
        }
        Columns { fields }
    }

    /// The file of `fragment` that is *whole*: without deletions or overlays,
    /// every field of the columns live in it. Nobody took or changed a value.
    pub fn whole<'a>(&self, fragment: &'a Fragment) -> Option<&'a DataFile> {
        if fragment.deletion_file.is_some() || !fragment.overlays.is_empty() {
            return None;
        }
        fragment
            .files
            .iter()
            .find(|file| self.fields.iter().all(|id| file.fields.contains(id)))
    }
}

/// Which of a view's files are whole, in one of its Lance manifests.
pub struct Standing {
    /// For each file that is whole and there once: the id of its fragment.
    whole: HashMap<String, u64>,
    fragments: HashSet<u64>,
}

impl Standing {
    /// Looks at the fragments of a view whose `columns` a refresh computes.
    pub fn new(fragments: &[Fragment], columns: &Columns) -> Standing {
        let mut whole: HashMap<String, u64> = HashMap::new();
        let mut seen: HashSet<&str> = HashSet::new();
        let mut twice: HashSet<&str> = HashSet::new();
        for fragment in fragments {
            for file in &fragment.files {
                if !seen.insert(&file.path) {
                    twice.insert(&file.path);
                }
            }
            if let Some(file) = columns.whole(fragment) {
                whole.insert(file.path.clone(), fragment.id);
            }
        }
        whole.retain(|path, _| !twice.contains(path.as_str()));
        Standing {
            whole,
            fragments: fragments.iter().map(|f| f.id).collect(),
        }
    }

    /// The ids of the fragments that `claim`'s files are in now, if all of
    /// them are whole.
    pub fn fragments_of(&self, claim: &Claim) -> Option<Vec<u64>> {
        claim
            .fragments
            .iter()
            .map(|fragment| match fragment.files.as_slice() {
                [file] => self.whole.get(&file.path).copied(),
                _ => None,
            })
            .collect()
    }

    /// The ids of all fragments.
    pub fn fragments(&self) -> &HashSet<u64> {
        &self.fragments
    }

    /// The ids of the fragments that none of `claims` accounts for.
    pub fn unaccounted<'a>(&self, claims: impl Iterator<Item = &'a Claim>) -> Vec<u64> {
        let accounted: HashSet<u64> = claims
            .filter_map(|claim| self.fragments_of(claim))
            .flatten()
            .collect();
        let mut rest: Vec<u64> = self.fragments.difference(&accounted).copied().collect();
        rest.sort_unstable();
        rest
    }
}

/// Field ids that hold values: leaves, and lists and structs for their own validity.
fn collect(field: &lance_core::datatypes::Field, ids: &mut HashSet<i32>) {
    // Data files of version 2 list the leaves alone or every level, by
    // encoding; the leaves are in both.
    if field.children.is_empty() {
        ids.insert(field.id);
    }
    for child in &field.children {
        collect(child, ids);
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
    /// The files of the newest that are not there.
    gone: HashSet<String>,
    /// Those yet to be read, the newest last.
    rest: Vec<Listed>,
    /// Whether files are looked for.
    look: bool,
    /// The newest, if its files are there and will stay.
    settled: Option<String>,
}

impl Ledgers {
    /// Lists those of a view and reads the newest, which is mostly all that is
    /// needed. What the view itself is need not be known yet. With `trusted`
    /// the files of claims are taken to be there. Those that are `known` are not
    /// read again.
    pub async fn open(objects: &Objects, trusted: bool, known: Known) -> Result<Ledgers> {
        let folder = paths::ledgers(objects.root());
        let (mut rest, settled) =
            futures::try_join!(objects.list(&folder), freshness::settled(objects))?;
        rest.drain(..rest.len().saturating_sub(LEDGERS_KEPT));
        let mut ledgers = Ledgers {
            objects: objects.clone(),
            read: Vec::new(),
            known,
            gone: HashSet::new(),
            look: !trusted,
            settled: settled.filter(|name| rest.last().is_some_and(|l| l.name == *name)),
            rest,
        };
        ledgers.next().await?;
        Ok(ledgers)
    }

    /// The name of the newest ledger, if the files that it brought in are there
    /// and nothing that ran beside its commit can still take them.
    pub fn settled(&self) -> Option<&str> {
        self.settled.as_deref()
    }

    /// What has been read, for the next look.
    pub fn into_known(self) -> Known {
        self.known
    }

    /// Reads until one accounts for every fragment of the view (or all are
    /// read). Their claims are returned as they are: the caller judges which of
    /// them stand.
    ///
    /// Only those whose files are gone are left out. Lance's own cleanup, told to
    /// delete unverified files, may take them from under a commit: it looks, the
    /// commit lands, it deletes. So what the newest ledger brought in is looked
    /// at, until that has been done once when no such cleanup can be left.
    pub async fn of(&mut self, standing: &Standing) -> Result<&[Arc<Ledger>]> {
        loop {
            let accounted = self.read.iter().flat_map(|l| l.claims.iter());
            if standing.unaccounted(accounted).is_empty() || !self.next().await? {
                return Ok(&self.read);
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
            self.known.insert(listed.path, ledger.clone());
            if self.read.is_empty() && self.look && self.settled.is_none() {
                self.gone = absent(&self.objects, ledger.brought()).await?;
                let age = SystemTime::now().duration_since(listed.modified);
                if self.gone.is_empty() && age.is_ok_and(|age| age > CLEANUP) {
                    self.settled = Some(listed.name);
                }
            }
            if !self.gone.is_empty() {
                let claims = &mut Arc::make_mut(&mut ledger).claims;
                claims.retain(|claim| !claim.files().any(|file| self.gone.contains(file)));
            }
            self.read.push(ledger);
            return Ok(true);
        }
        Ok(false)
    }
}

/// The files of `claims` that are not there.
async fn absent(objects: &Objects, claims: &[Claim]) -> Result<HashSet<String>> {
    let there = written(objects, claims).await?;
    let files = claims.iter().flat_map(Claim::files);
    let gone = files.filter(|file| !there.contains_key(*file));
    Ok(gone.map(str::to_string).collect())
}

/// When the files of `claims` were written, of those that are there.
pub(super) async fn written(
    objects: &Objects,
    claims: &[Claim],
) -> Result<HashMap<String, SystemTime>> {
    let data = objects.root().clone().join("data");
    let files: HashSet<&str> = claims.iter().flat_map(Claim::files).collect();
    if files.len() > MANY {
        let listed = objects.list(&data).await?.into_iter();
        let ours = listed.filter(|listed| files.contains(listed.name.as_str()));
        return Ok(ours.map(|listed| (listed.name, listed.modified)).collect());
    }
    let files = files.into_iter().map(|file| {
        let path = data.clone().join(file);
        (file.to_string(), path)
    });
    let looked = objects.modified_each(files.collect()).await?;
    let there = looked.into_iter();
    Ok(there.filter_map(|(file, at)| Some((file, at?))).collect())
}

/// All but the newest ledgers.
pub async fn surplus(objects: &Objects) -> Result<Vec<Path>> {
    let listed = objects.list(&paths::ledgers(objects.root())).await?;
    let surplus = listed.len().saturating_sub(LEDGERS_KEPT);
    Ok(listed.into_iter().take(surplus).map(|o| o.path).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use arrow_schema::{DataType, Field, Schema as ArrowSchema};
    use lance_file::version::ConcreteFileVersion;
    use lance_table::format::{DeletionFile, DeletionFileType};

    use super::*;

    pub fn columns() -> Columns {
        Columns::new(&schema(), ["a", "b"].into_iter())
    }

    fn schema() -> Schema {
        let mut schema = Schema::try_from(&ArrowSchema::new(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("b", DataType::Utf8, true),
        ]))
        .unwrap();
        schema.set_field_id(None);
        schema
    }

    pub fn file(path: &str, fields: &[i32]) -> DataFile {
        let columns: Vec<i32> = (0..fields.len() as i32).collect();
        DataFile::new(
            path,
            fields.to_vec(),
            columns,
            ConcreteFileVersion::V2_0,
            None,
            None,
        )
    }

    fn fragment(id: u64, files: Vec<DataFile>) -> Fragment {
        let mut fragment = Fragment::new(id);
        fragment.files = files;
        fragment
    }

    fn claim(path: &str) -> Claim {
        Claim {
            inputs: vec![Fingerprint::of_text(path)],
            refresh: "r".into(),
            rows: 1,
            bytes: 1,
            fragments: vec![fragment(0, vec![file(path, &[0, 1])])],
        }
    }

    fn standing(fragments: &[Fragment]) -> Standing {
        Standing::new(fragments, &columns())
    }

    #[test]
    fn a_file_in_the_manifest_once_and_untouched_is_whole() {
        let now = standing(&[fragment(4, vec![file("x", &[0, 1])])]);
        assert_eq!(now.fragments_of(&claim("x")), Some(vec![4]));
        assert_eq!(now.fragments_of(&claim("y")), None);
        assert_eq!(now.unaccounted([claim("y")].iter()), [4]);
        assert!(now.unaccounted([claim("x")].iter()).is_empty());
    }

    #[test]
    fn a_foreign_column_beside_it_does_not_matter() {
        let now = standing(&[fragment(4, vec![file("x", &[0, 1]), file("z", &[9])])]);
        assert_eq!(now.fragments_of(&claim("x")), Some(vec![4]));
    }

    #[test]
    fn deleted_rows_rewritten_columns_and_doubled_files_are_not_whole() {
        let mut deleted = fragment(4, vec![file("x", &[0, 1])]);
        deleted.deletion_file = Some(DeletionFile {
            read_version: 1,
            id: 1,
            file_type: DeletionFileType::Array,
            num_deleted_rows: None,
            base_id: None,
        });
        assert_eq!(standing(&[deleted]).fragments_of(&claim("x")), None);
        let rewritten = fragment(4, vec![file("x", &[0, -2]), file("z", &[1])]);
        assert_eq!(standing(&[rewritten]).fragments_of(&claim("x")), None);
        let doubled = [
            fragment(4, vec![file("x", &[0, 1])]),
            fragment(5, vec![file("x", &[0, 1])]),
        ];
        assert_eq!(standing(&doubled).fragments_of(&claim("x")), None);
    }

    #[test]
    fn a_claim_without_rows_always_stands() {
        let mut empty = claim("x");
        empty.fragments.clear();
        assert_eq!(standing(&[]).fragments_of(&empty), Some(vec![]));
    }
}
