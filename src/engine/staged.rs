//! Which staged claims a refresh may use: its own from an earlier attempt, and
//! those that a failed or cancelled refresh of the same view left.

use std::collections::HashSet;
use std::time::SystemTime;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;

use super::error::{EngineError, Result};
use super::fingerprint::Fingerprint;
use super::history::History;
use super::ledger::{Claim, STAGED_FOR};
use super::paths;
use super::plan::Plan;
use super::store::{HEADS, Objects};
use super::view::ViewInfo;

/// The folder of a table's write-ahead log.
const MEM_WAL: &str = "_mem_wal";

/// How many refreshes' leftovers are looked at.
const LEFTOVERS: usize = 64;

/// How many versions of the view ago another refresh may have planned for its
/// leftovers to be looked at: each version since is read.
const FAR_BACK: u64 = 500;

/// What a refresh has staged.
#[derive(Debug)]
pub struct Left {
    /// The view's version when it planned first: none of its files is older.
    since: u64,
    claims: Vec<Claim>,
}

/// What is staged in the `folders` of plans, whether or not it may be used on
/// `table`. With `own_only` other refreshes than `refresh` are left alone: a full
/// refresh takes nothing over.
pub async fn left(
    objects: &Objects,
    mut folders: Vec<String>,
    table: &Dataset,
    refresh: &str,
    own_only: bool,
) -> Result<Vec<Left>> {
    folders.retain(|name| !own_only || name == refresh);
    // Its own first: they are surest to be there still.
    folders.sort_by_key(|name| name != refresh);
    let latest = table.version().version;
    let mut found = Vec::new();
    for folder in folders.into_iter().take(LEFTOVERS) {
        let listed = objects
            .list(&paths::claims(objects.root(), &folder))
            .await?;
        if listed.is_empty() {
            continue;
        }
        let Some(plan) = objects
            .get::<Plan>(&paths::plan(objects.root(), &folder, 1))
            .await?
        else {
            continue;
        };
        let since = plan.view_version;
        if folder != refresh && latest.saturating_sub(since) > FAR_BACK {
            continue;
        }
        let claims: Vec<Option<Claim>> = futures::stream::iter(listed)
            .map(|l| async move { objects.get::<Claim>(&l.path).await })
            .buffer_unordered(HEADS)
            .try_collect()
            .await?;
        let claims = claims.into_iter().flatten().collect();
        found.push(Left { since, claims });
    }
    Ok(found)
}

/// Those of the staged claims that `refresh` may use on `table`: whose files were
/// never in a committed version; and those whose files are known to have been.
pub async fn usable(
    left: Vec<Left>,
    table: &Dataset,
    refresh: &str,
) -> Result<(Vec<Claim>, Vec<Claim>)> {
    let Some(since) = left.iter().map(|left| left.since).min() else {
        return Ok((Vec::new(), Vec::new()));
    };
    let history = History::read(table, refresh, since).await?;
    let (mut usable, mut had) = (Vec::new(), Vec::new());
    for Left { since, claims } in left {
        for claim in claims {
            if history.never_had(&claim, since) {
                usable.push(claim);
            } else if history.had(&claim) {
                had.push(claim);
            }
        }
    }
    Ok((usable, had))
}

/// When each file that was written for `claims` was, by the store's clock; `None`
/// for those that are not there.
pub async fn look(
    objects: &Objects,
    claims: impl Iterator<Item = &Claim>,
) -> Result<Vec<(Fingerprint, Option<SystemTime>)>> {
    let mut files = Vec::new();
    for claim in claims {
        let id = claim.id();
        let written = claim.written().into_iter();
        files.extend(written.map(|path| (id.clone(), objects.within(&path))));
    }
    objects.modified_each(files).await
}

/// The claims among those `looked` at whose files may not be committed at `now`
/// by the store's clock: gone, or older than [`STAGED_FOR`].
pub fn lost(
    looked: Vec<(Fingerprint, Option<SystemTime>)>,
    now: SystemTime,
) -> HashSet<Fingerprint> {
    let usable = |at: SystemTime| now.duration_since(at).unwrap_or_default() < STAGED_FOR;
    let lost = looked.into_iter().filter(|(_, at)| !at.is_some_and(usable));
    lost.map(|(id, _)| id).collect()
}

/// Refuses tables with a write-ahead log: a scan does not see the rows that
/// are in the log alone.
pub fn refuse_wal(view: &ViewInfo, logged: bool, what: &str) -> Result<()> {
    if !logged {
        return Ok(());
    }
    Err(EngineError::Unsupported {
        view: view.name(),
        kind: view.kind.in_words(),
        why: format!(
            "{what} has rows in a write-ahead log, which a scan does not see; compact the log first"
        ),
    })
}

/// Whether the table in whose folder `objects` are has a write-ahead log: a
/// folder for each of its shards, named by a UUID (Lance, MemWAL). Asked while
/// the table is opened, which takes longer.
pub async fn has_wal(objects: &Objects) -> Result<bool> {
    let shards = objects.folders(&objects.within(MEM_WAL)).await?;
    Ok(shards
        .iter()
        .any(|name| uuid::Uuid::parse_str(name).is_ok()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn claims_whose_files_are_gone_or_too_old_may_not_be_committed() {
        let now = SystemTime::UNIX_EPOCH + STAGED_FOR * 3;
        let id = |name: &str| Fingerprint::of_text(name);
        let second = Duration::from_secs(1);
        let looked = vec![
            (id("new"), Some(now)),
            (id("young"), Some(now - STAGED_FOR + second)),
            (id("old"), Some(now - STAGED_FOR)),
            (id("gone"), None),
            // Of two files one is.
            (id("half"), Some(now)),
            (id("half"), None),
            // By another clock it is yet to be written.
            (id("ahead"), Some(now + second)),
        ];
        let lost = lost(looked, now);
        assert_eq!(lost, HashSet::from(["old", "gone", "half"].map(id)));
    }
}
