//! One attempt to commit, and the check of what landed.
//!
//! The whole commit is a loop in [`super::refresh`]: reopen the view, judge
//! the claims against its current manifest, commit from exactly that version,
//! verify, and start over whenever anything differs. A handle that planned is
//! never committed from: stale handles have doubled rows and buried re-created
//! views.
//!
//! Two refreshes of one view, ours or lancedb's own, never both land: each
//! carries the same key in the same field as rows that it "inserted", and Lance
//! lets only one of such commits on one version through.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction, TransactionBuilder};
use lance::dataset::write::merge_insert::inserted_rows::{KeyExistenceFilterBuilder, KeyValue};
use lance::dataset::{CommitBuilder, WriteDestination};
use lance_table::format::Fragment;

use super::error::{EngineError, Result};
use super::plan::Judgement;
use super::view::lancedb::SOURCE_ROW_ID;
use super::words::first_line;

/// Transaction property: the UID of the refresh that committed.
pub const REFRESH: &str = "relance.refresh";
/// Transaction property: the id of the job that the refresh was, if it was one.
pub const JOB: &str = "relance.job";
/// Transaction property: the view version that the commit was judged on. If the
/// next one is the commit's own, nothing came between, and it is as it was meant,
/// as far as its files are there.
pub const READ_VERSION: &str = "relance.readVersion";
/// Transaction property: the [`super::outcome::Outcome`] as JSON.
pub const OUTCOME: &str = "relance.outcome";

/// How long one attempt may take before its fate counts as unknown.
const TIMEOUT: Duration = Duration::from_secs(120);

/// How an attempt ended.
#[derive(Debug)]
pub enum Attempt {
    /// This version landed, as Lance wrote it. To be verified.
    Landed(Box<Dataset>),
    /// Someone else was there first, or its fate is unknown: look again.
    Again(String),
}

/// Makes `judgement` true in one commit on top of `table`, which must have
/// been opened just now. Errors: those that no further attempt would mend.
pub async fn attempt(
    table: &Dataset,
    judgement: &Judgement,
    properties: BTreeMap<String, String>,
) -> Result<Attempt> {
    let new_fragments: Vec<Fragment> = judgement
        .added
        .iter()
        .flat_map(|claim| claim.fragments.iter().cloned())
        .collect();
    let operation = Operation::Update {
        removed_fragment_ids: judgement.dropped.clone(),
        updated_fragments: trimmed(table, judgement),
        new_fragments,
        fields_modified: Vec::new(),
        compacted_sstables: Vec::new(),
        fields_for_preserving_frag_bitmap: Vec::new(),
        update_mode: None,
        inserted_rows_filter: Some(conflict_key(table)?),
        updated_fragment_offsets: None,
    };
    let transaction: Transaction = TransactionBuilder::new(table.version().version, operation)
        .transaction_properties(Some(Arc::new(
            properties.into_iter().collect::<HashMap<_, _>>(),
        )))
        .build();
    let committed = CommitBuilder::new(WriteDestination::Dataset(Arc::new(table.clone())))
        .with_timeout(Some(TIMEOUT))
        .with_skip_auto_cleanup(true)
        .execute(transaction)
        .await;
    match committed {
        Ok(dataset) => Ok(Attempt::Landed(Box::new(dataset))),
        Err(
            error @ (lance::Error::InvalidInput { .. }
            | lance::Error::SchemaMismatch { .. }
            | lance::Error::Schema { .. }
            | lance::Error::NotSupported { .. }),
        ) => Err(EngineError::Internal(format!(
            "lance refused the commit: {}",
            first_line(&error.to_string())
        ))),
        // Conflicts, timeouts and storage errors alike: whether it landed is
        // for the next look to tell.
        Err(error) => Ok(Attempt::Again(first_line(&error.to_string()))),
    }
}

/// The fragments of `table` that rows are taken out of, without them.
fn trimmed(table: &Dataset, judgement: &Judgement) -> Vec<Fragment> {
    let less = judgement.trimmed.iter().flat_map(|claim| &claim.fragments);
    let less: HashMap<u64, &Fragment> = less
        .filter(|fragment| fragment.deletion_file.is_some())
        .map(|fragment| (fragment.id, fragment))
        .collect();
    let touched = table.fragments().iter().filter_map(|fragment| {
        let less = less.get(&fragment.id)?;
        (less.deletion_file != fragment.deletion_file).then(|| Fragment {
            deletion_file: less.deletion_file.clone(),
            ..fragment.clone()
        })
    });
    touched.collect()
}

/// The key that all refreshes of one view share: lancedb 0.41's is in the first
/// field, that of 0.38 to 0.40 in the column of source row ids.
fn conflict_key(
    table: &Dataset,
) -> Result<lance::dataset::write::merge_insert::inserted_rows::KeyExistenceFilter> {
    let fields = &table.schema().fields;
    let field = fields
        .iter()
        .find(|f| f.name == SOURCE_ROW_ID)
        .or(fields.first())
        .ok_or_else(|| EngineError::Internal("a view without columns".to_string()))?;
    let mut key = KeyExistenceFilterBuilder::new(vec![field.id]);
    key.insert(KeyValue::UInt64(u64::MAX))
        .map_err(|e| EngineError::Internal(format!("the conflict key could not be made: {e}")))?;
    Ok(key.build())
}

/// Whether `fragments` (of the version that landed) are exactly what
/// `judgement` said: the kept ones untouched, the added ones once, no others.
pub fn verify(
    fragments: &[Fragment],
    standing: &super::standing::Standing,
    judgement: &Judgement,
) -> bool {
    let mut expected = HashSet::new();
    for claim in judgement.claims() {
        match standing.fragments_of(claim) {
            Some(ids) => expected.extend(ids),
            None => return false,
        }
    }
    expected.len() == fragments.len() && fragments.iter().all(|f| expected.contains(&f.id))
}
