//! Which files of a view a clean-up may still take ([`Young`]), and which it took.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use lance_table::io::deletion::DELETIONS_DIR;
use serde::{Deserialize, Serialize};

use super::error::Result;
use super::ledger::{Claim, DATA_FOLDER};
use super::store::Objects;

/// How long a cleanup may take.
pub(super) const CLEANUP: Duration = Duration::from_secs(24 * 3600);

/// How exactly a ledger says when its claims were brought in.
const HOUR: Duration = Duration::from_secs(3600);

/// When more files are to be looked at, the folder is listed: a thousand in one
/// call, but of files that nobody needs as well.
pub(super) const MANY: usize = 2048;

/// Where the names of a table's files are cut for that: lance's data files begin with
/// 24 random bits, its deletion files with the number of their fragment.
const STARTS: [(&str, &[&str]); 2] = [
    (
        DATA_FOLDER,
        &[
            "0001", "0010", "0011", "0100", "0101", "0110", "0111", "1000", "1001", "1010", "1011",
            "1100", "1101", "1110", "1111",
        ],
    ),
    (
        DELETIONS_DIR,
        &["1", "2", "3", "4", "5", "6", "7", "8", "9"],
    ),
];

/// Claims that stand one after the other in a ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Brought {
    /// No later than this they were brought in, in seconds since the epoch.
    pub at: u64,
    /// How many there are.
    pub claims: usize,
}

/// The files of a view that may still be taken from it: when each was brought
/// in, by its path relative to the view's folder.
///
/// Lance's own cleanup, told to delete unverified files, looks at the versions of
/// a table, then at its files, and deletes those that no version has. What a
/// commit brought in meanwhile goes with them, and the commit stands. A refresh
/// looks once more when it has committed, and computes anew what is gone by then.
/// A clean-up that takes longer takes it later. So what
/// was brought in is looked at, until that has been done once when no such
/// cleanup can be left; and each ledger says which of its claims are that young,
/// for the next commit lands before the cleanup deletes as well as after.
#[derive(Clone, Debug, Default)]
pub struct Young(HashMap<String, SystemTime>);

impl Young {
    /// Notes that `paths` came into the view no later than `at`; gives those that
    /// were not known.
    pub(super) fn note(
        &mut self,
        paths: impl Iterator<Item = String>,
        at: SystemTime,
    ) -> Vec<String> {
        let note = |path: &String| match self.0.entry(path.clone()) {
            Entry::Occupied(mut known) => {
                let latest = at.max(*known.get());
                known.insert(latest);
                false
            }
            Entry::Vacant(new) => {
                new.insert(at);
                true
            }
        };
        paths.filter(note).collect()
    }

    /// Notes that `paths` have just been found in the view.
    pub fn found(&mut self, paths: impl Iterator<Item = String>) {
        let now = SystemTime::now();
        for path in paths {
            self.0.entry(path).or_insert(now);
        }
    }

    /// The claims that a view keeps, in the order of a ledger, and which of them
    /// are young. Those that are not any more have been looked at.
    pub fn sort<'a>(&self, kept: &'a [Claim]) -> (Vec<&'a Claim>, Vec<Brought>) {
        let now = SystemTime::now();
        let hour = |at: &SystemTime| {
            // A time to come, by this clock, is young.
            let age = now.duration_since(*at).unwrap_or_default();
            let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            (age <= CLEANUP).then(|| since.as_secs().next_multiple_of(HOUR.as_secs()))
        };
        let latest = |claim: &Claim| match self.0.is_empty() {
            true => None,
            false => claim
                .paths()
                .filter_map(|path| hour(self.0.get(&path)?))
                .max(),
        };
        let mut kept: Vec<_> = kept.iter().map(|claim| (latest(claim), claim)).collect();
        kept.sort_by_key(|(at, _)| *at);
        let young = kept.chunk_by(|(a, _), (b, _)| a == b).filter_map(|same| {
            let (at, claims) = (same.first()?.0?, same.len());
            Some(Brought { at, claims })
        });
        let young = young.collect();
        (kept.into_iter().map(|(_, claim)| claim).collect(), young)
    }
}

/// Those of `paths`, relative to the view's folder, that are not there.
pub(super) async fn absent(objects: &Objects, paths: Vec<String>) -> Result<Vec<String>> {
    let there = written(objects, paths.iter().cloned().collect()).await?;
    let gone = paths.into_iter().filter(|path| !there.contains_key(path));
    Ok(gone.collect())
}

/// When the files of these `paths` were written, relative to the view's folder
/// like them, of those that are there.
pub(super) async fn written(
    objects: &Objects,
    paths: HashSet<String>,
) -> Result<HashMap<String, SystemTime>> {
    if paths.len() <= MANY {
        let paths = paths.into_iter().map(|path| {
            let at = objects.within(&path);
            (path, at)
        });
        let looked = objects.modified_each(paths.collect()).await?;
        let there = looked.into_iter();
        return Ok(there.filter_map(|(path, at)| Some((path, at?))).collect());
    }
    let mut there = HashMap::new();
    for (folder, starts) in STARTS {
        let inside = format!("{folder}/");
        if !paths.iter().any(|path| path.starts_with(&inside)) {
            continue;
        }
        let folder = objects.within(folder);
        for listed in objects.list_many(&folder, starts).await? {
            let path = format!("{inside}{}", listed.name);
            if paths.contains(&path) {
                there.insert(path, listed.modified);
            }
        }
    }
    let lacked = paths.iter().filter(|path| !there.contains_key(*path));
    let lacked: Vec<_> = lacked
        .map(|path| (path.clone(), objects.within(path)))
        .collect();
    if lacked.len() <= MANY {
        // Mostly none, and what is found to be gone costs more than to look again.
        let looked = objects.modified_each(lacked).await?.into_iter();
        there.extend(looked.filter_map(|(path, at)| Some((path, at?))));
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::ledger::Ledger;
    use crate::engine::outcome::{Mode, Outcome};
    use crate::engine::standing::tests::claim;

    #[test]
    fn a_ledger_says_which_of_its_claims_are_young_and_since_when() {
        let hour = 3600;
        let now = SystemTime::now();
        let ago = |hours: u64| now - Duration::from_secs(hours * hour);
        let files = |claims: &[Claim]| -> Vec<String> {
            claims
                .iter()
                .flat_map(|c| c.files())
                .map(String::from)
                .collect()
        };
        let mut young = Young::default();
        for (path, hours) in [("data/x", 3), ("data/y", 30), ("data/z", 1), ("data/w", 3)] {
            let new = young.note([path.to_string()].into_iter(), ago(hours));
            assert_eq!(new, [path]);
        }
        // Older knowledge of the same is nothing new.
        assert!(
            young
                .note(["data/z".to_string()].into_iter(), ago(9))
                .is_empty()
        );
        young.found(["data/v".to_string(), "data/x".to_string()].into_iter());
        let kept = ["x", "y", "z", "w", "u", "v"].map(claim);
        let (kept, runs) = young.sort(&kept);
        let mut claims: Vec<Claim> = kept.into_iter().cloned().collect();
        assert_eq!(files(&claims), ["y", "u", "x", "w", "z", "v"]);
        assert_eq!(runs.iter().map(|r| r.claims).collect::<Vec<_>>(), [2, 1, 1]);

        claims.push(claim("new"));
        let ledger = Ledger {
            refresh: "r".into(),
            read_version: 1,
            outcome: Outcome {
                mode: Mode::Incremental,
                source_version: 1,
                source_versions: BTreeMap::new(),
                view_version: 2,
                rows_written: 1,
                bytes_written: 1,
                units_total: 7,
                units_kept: 6,
                unindexed_rows: None,
            },
            claims,
            young: runs,
            added: 1,
            partials: Vec::new(),
        };
        let lately: Vec<_> = ledger.lately(now).map(|(at, c)| (at, files(c))).collect();
        let names: Vec<_> = lately.iter().map(|(_, files)| files.clone()).collect();
        assert_eq!(names, [vec!["new"], vec!["v"], vec!["z"], vec!["x", "w"]]);
        for ((at, _), hours) in lately[1..].iter().zip([0, 1, 3]) {
            let late = at.duration_since(ago(hours)).unwrap();
            assert!(late <= HOUR, "{late:?}");
        }
    }
}
