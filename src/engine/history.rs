//! What was committed to a view since a plan was made, told from its
//! transactions.
//!
//! It answers the questions that matter before a commit: has this refresh
//! committed already, is what it committed there, and were the files that are
//! about to be committed ever part of a version? A file that was can be cleaned up
//! at any time once it is dropped, and adding it again could double its rows.

use std::collections::HashSet;

use futures::StreamExt;
use lance::Dataset;
use lance::dataset::transaction::Operation;
use lance_table::format::Fragment;

use super::commit::{OUTCOME, READ_VERSION, REFRESH};
use super::error::Result;
use super::ledger::{Claim, data_path, deletions};
use super::outcome::Outcome;
use super::store::{Objects, is_missing, storage};
use super::young::absent;

/// How many versions back are looked at.
const SEARCHED: u64 = 10_000;

/// How many versions are read at a time: a store that is far away takes long to
/// answer each.
const READS: usize = 16;

/// What was committed to a view since some version.
#[derive(Debug, Default)]
pub struct History {
    /// What the refresh did that was asked about, if it has committed.
    pub outcome: Option<Outcome>,
    /// Whether nobody's commit came between what the refresh judged and its
    /// own: then what landed is what was meant, whoever may have verified it, as
    /// far as its files are there ([`History::is_robbed`]).
    pub settled: bool,
    /// The newest version since that could not be read: it was cleaned up, or is
    /// too far back.
    unread: Option<u64>,
    /// The data files and deletion files that these commits added, by their paths
    /// relative to the view's folder.
    added: HashSet<String>,
    /// Those of them that the refresh added that was asked about.
    brought: Vec<String>,
}

impl History {
    /// Walks back from `table` to version `since` (exclusive).
    pub async fn read(table: &Dataset, refresh: &str, since: u64) -> Result<History> {
        let latest = table.version().version;
        let floor = since.max(latest.saturating_sub(SEARCHED));
        let mut history = History::default();
        let mut read =
            futures::stream::iter(((floor + 1)..=latest).rev())
                .map(|version| async move {
                    (version, table.read_transaction_by_version(version).await)
                })
                .buffered(READS);
        while let Some((version, transaction)) = read.next().await {
            let transaction = match transaction {
                Ok(transaction) => transaction,
                Err(error) if is_missing(&error) => None,
                Err(error) => return Err(storage("the view's history", error)),
            };
            let Some(transaction) = transaction else {
                history.unread = history.unread.or(Some(version));
                continue;
            };
            let brought = files(&transaction.operation);
            history.added.extend(brought.iter().cloned());
            let Some(properties) = &transaction.transaction_properties else {
                continue;
            };
            if properties.get(REFRESH).map(String::as_str) != Some(refresh) {
                continue;
            }
            history.brought.extend(brought);
            // The newest counts: one that follows another of the same refresh was
            // made since that one's files were gone, or another's came with them.
            if history.outcome.is_none()
                && let Some(outcome) = properties
                    .get(OUTCOME)
                    .and_then(|json| serde_json::from_str::<Outcome>(json).ok())
            {
                let read = properties.get(READ_VERSION).and_then(|v| v.parse().ok());
                history.settled = read == Some(version - 1);
                history.outcome = Some(Outcome {
                    view_version: version,
                    ..outcome
                });
            }
        }
        if floor > since {
            history.unread = history.unread.or(Some(floor));
        }
        Ok(history)
    }

    /// The same, but for the commit of the refresh, which does not count if it made
    /// the version `robbed`: files of it are known to be gone.
    pub fn without(mut self, robbed: Option<u64>) -> History {
        let made = self.outcome.as_ref().map(|outcome| outcome.view_version);
        if made.is_some() && made == robbed {
            self.outcome = None;
            self.settled = false;
        }
        self
    }

    /// Whether every version since could be read; else it may have been one of
    /// those that could not.
    pub fn is_complete(&self) -> bool {
        self.unread.is_none()
    }

    /// Whether files that the refresh added are gone for all that `table`, the view
    /// as it is, has them: a clean-up took them from under its commit
    /// ([`super::young::Young`]), which counts as none then. No more than `most` are
    /// looked for. Errors: `Unavailable`.
    pub async fn is_robbed(&self, objects: &Objects, table: &Dataset, most: usize) -> Result<bool> {
        let now: HashSet<String> = paths(table.fragments()).collect();
        let brought = self.brought.iter().filter(|path| now.contains(*path));
        let brought = brought.take(most).cloned().collect();
        Ok(!absent(objects, brought).await?.is_empty())
    }

    /// Whether nothing that was written for the staged `claim`, after version
    /// `since` of the view, was ever part of a version.
    pub fn never_had(&self, claim: &Claim, since: u64) -> bool {
        self.unread.is_none_or(|unread| unread <= since) && !self.had(claim)
    }

    /// Whether something that was written for the staged `claim` is known to have
    /// been part of a version.
    pub fn had(&self, claim: &Claim) -> bool {
        let written = claim.written();
        written.iter().any(|path| self.added.contains(path))
    }
}

/// The files that `operation` brings into a view, by their paths relative to its
/// folder.
fn files(operation: &Operation) -> Vec<String> {
    match operation {
        Operation::Append { fragments }
        | Operation::Overwrite { fragments, .. }
        | Operation::Merge { fragments, .. } => paths(fragments).collect(),
        Operation::Update {
            new_fragments,
            updated_fragments,
            ..
        } => paths(new_fragments)
            .chain(paths(updated_fragments))
            .collect(),
        Operation::Delete {
            updated_fragments, ..
        } => paths(updated_fragments).collect(),
        Operation::Rewrite { groups, .. } => {
            let groups = groups.iter();
            groups
                .flat_map(|group| paths(&group.new_fragments))
                .collect()
        }
        // The others bring in no file that an earlier one has not.
        _ => Vec::new(),
    }
}

/// The data files and deletion files of `fragments`.
fn paths(fragments: &[Fragment]) -> impl Iterator<Item = String> {
    let data = fragments.iter().flat_map(|f| &f.files);
    data.map(|file| data_path(&file.path))
        .chain(fragments.iter().filter_map(deletions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::outcome::Mode;
    use crate::engine::standing::tests::claim;

    #[test]
    fn what_was_in_a_version_or_may_have_been_is_not_to_be_committed_again() {
        let known = claim("known");
        let history = |unread| History {
            added: known.written().into_iter().collect(),
            unread,
            ..History::default()
        };
        let all = history(None);
        assert!(all.is_complete() && all.had(&known) && !all.never_had(&known, 7));
        let other = claim("other");
        assert!(!all.had(&other) && all.never_had(&other, 7));
        // Version 9 could not be read: what was staged before may be in it.
        let some = history(Some(9));
        assert!(!some.is_complete() && !some.had(&other));
        assert!(!some.never_had(&other, 8) && some.never_had(&other, 9));
    }

    #[test]
    fn a_commit_that_is_known_to_be_robbed_is_none() {
        let history = || History {
            outcome: Some(Outcome {
                mode: Mode::Rebuild,
                source_version: 1,
                source_versions: Default::default(),
                view_version: 5,
                rows_written: 1,
                bytes_written: 1,
                units_total: 1,
                units_kept: 0,
                unindexed_rows: None,
            }),
            settled: true,
            ..History::default()
        };
        for (robbed, counts) in [(None, true), (Some(4), true), (Some(5), false)] {
            let history = history().without(robbed);
            assert_eq!(history.outcome.is_some(), counts, "{robbed:?}");
            assert_eq!(history.settled, counts, "{robbed:?}");
        }
    }
}
