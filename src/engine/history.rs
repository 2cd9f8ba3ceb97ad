//! What was committed to a view since a plan was made, told from its
//! transactions.
//!
//! It answers the two questions that matter before a commit: has this refresh
//! committed already, and were the files that are about to be committed ever
//! part of a version? A file that was can be cleaned up at any time once it is
//! dropped, and adding it again could double its rows.

use std::collections::HashSet;

use futures::StreamExt;
use lance::Dataset;
use lance::dataset::transaction::Operation;
use lance_table::format::Fragment;

use super::commit::{OUTCOME, READ_VERSION, REFRESH};
use super::error::Result;
use super::ledger::{Claim, data_path, deletions};
use super::outcome::Outcome;
use super::store::{is_missing, storage};

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
    /// own: then what landed is what was meant, whoever may have verified it.
    pub settled: bool,
    /// The newest version since that could not be read: it was cleaned up, or is
    /// too far back.
    unread: Option<u64>,
    /// The data files and deletion files that these commits added, by their paths
    /// relative to the view's folder.
    added: HashSet<String>,
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
            history.add(&transaction.operation);
            let Some(properties) = &transaction.transaction_properties else {
                continue;
            };
            if properties.get(REFRESH).map(String::as_str) == Some(refresh)
                && !history.settled
                && let Some(outcome) = properties
                    .get(OUTCOME)
                    .and_then(|json| serde_json::from_str::<Outcome>(json).ok())
            {
                let read = properties.get(READ_VERSION).and_then(|v| v.parse().ok());
                history.settled = read == Some(version - 1);
                if history.settled || history.outcome.is_none() {
                    history.outcome = Some(Outcome {
                        view_version: version,
                        ..outcome
                    });
                }
            }
        }
        if floor > since {
            history.unread = history.unread.or(Some(floor));
        }
        Ok(history)
    }

    /// Whether every version since could be read; else it may have been one of
    /// those that could not.
    pub fn is_complete(&self) -> bool {
        self.unread.is_none()
    }

    fn add(&mut self, operation: &Operation) {
        match operation {
            Operation::Append { fragments }
            | Operation::Overwrite { fragments, .. }
            | Operation::Merge { fragments, .. } => self.add_files(fragments),
            Operation::Update {
                new_fragments,
                updated_fragments,
                ..
            } => {
                self.add_files(new_fragments);
                self.add_files(updated_fragments);
            }
            Operation::Delete {
                updated_fragments, ..
            } => self.add_files(updated_fragments),
            Operation::Rewrite { groups, .. } => {
                for group in groups {
                    self.add_files(&group.new_fragments);
                }
            }
            // The others bring in no file that an earlier one has not.
            _ => {}
        }
    }

    fn add_files(&mut self, fragments: &[Fragment]) {
        let data = fragments.iter().flat_map(|f| &f.files);
        self.added.extend(data.map(|file| data_path(&file.path)));
        self.added.extend(fragments.iter().filter_map(deletions));
    }

    /// Whether nothing that was written for the staged `claim`, after version
    /// `since` of the view, was ever part of a version.
    pub fn never_had(&self, claim: &Claim, since: u64) -> bool {
        self.unread.is_none_or(|unread| unread <= since)
            && !claim.written().iter().any(|path| self.added.contains(path))
    }
}
