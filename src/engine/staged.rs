//! Which staged claims a refresh may use: its own from an earlier attempt, and
//! those that a failed or cancelled refresh of the same view left.

use std::time::SystemTime;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::mem_wal::DatasetMemWalExt;

use super::error::{EngineError, Result};
use super::fingerprint::Fingerprint;
use super::history::History;
use super::ledger::{Claim, STAGED_FOR};
use super::paths;
use super::plan::Plan;
use super::store::{Objects, storage};
use super::view::ViewInfo;

/// How many refreshes' leftovers are looked at.
const LEFTOVERS: usize = 64;

/// The staged claims that `refresh` may use on `table`: whose files were never
/// in a committed version. With `own_only` those of other refreshes are left
/// alone: a full refresh takes nothing over.
pub async fn usable(
    objects: &Objects,
    table: &Dataset,
    refresh: &str,
    own_only: bool,
) -> Result<Vec<Claim>> {
    let mut found = Vec::new();
    let mut folders = objects.folders(&paths::plans(objects.root())).await?;
    folders.retain(|name| !own_only || name == refresh);
    // Its own first: they are surest to be there still.
    folders.sort_by_key(|name| name != refresh);
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
        // No file of a refresh is older than its first plan.
        let history = History::read(table, &folder, plan.view_version).await?;
        let claims: Vec<Option<Claim>> = futures::stream::iter(listed)
            .map(|l| async move { objects.get::<Claim>(&l.path).await })
            .buffer_unordered(16)
            .try_collect()
            .await?;
        found.extend(
            claims
                .into_iter()
                .flatten()
                .filter(|claim| history.never_had(claim.files())),
        );
    }
    Ok(found)
}

/// Those of `claims` whose files may not be committed: gone, or older than
/// [`STAGED_FOR`] at the time when `marker`, an object written just now, was
/// written by the store's own clock.
pub async fn lost(
    objects: &Objects,
    marker: &object_store::path::Path,
    claims: &[Claim],
) -> Result<Vec<Fingerprint>> {
    let Some(now) = objects.modified(marker).await? else {
        return Ok(claims.iter().map(Claim::id).collect());
    };
    let data = objects.root().clone().join("data");
    let files: Vec<(Fingerprint, object_store::path::Path)> = claims
        .iter()
        .flat_map(|claim| {
            let id = claim.id();
            claim
                .files()
                .map(|file| (id.clone(), data.clone().join(file)))
                .collect::<Vec<_>>()
        })
        .collect();
    let mut lost: Vec<Fingerprint> = futures::stream::iter(files)
        .map(|(id, path)| async move {
            let usable = objects
                .modified(&path)
                .await?
                .is_some_and(|at| now.duration_since(at).unwrap_or_default() < STAGED_FOR);
            Ok::<_, EngineError>((!usable).then_some(id))
        })
        .buffer_unordered(32)
        .try_filter_map(|id| async move { Ok(id) })
        .try_collect()
        .await?;
    lost.sort();
    lost.dedup();
    Ok(lost)
}

/// Removes the plans and staged claims of `refresh`, which has ended well, and
/// those that nobody can use any more at `now` by the store's clock.
pub async fn remove(objects: &Objects, refresh: &str, now: SystemTime) -> Result<()> {
    for folder in objects.folders(&paths::plans(objects.root())).await? {
        let listed = objects
            .list(&paths::plan_folder(objects.root(), &folder))
            .await?;
        let old = listed
            .iter()
            .all(|o| now.duration_since(o.modified).unwrap_or_default() > STAGED_FOR);
        if folder == refresh || old {
            objects
                .delete(listed.into_iter().map(|o| o.path).collect())
                .await?;
        }
    }
    Ok(())
}

/// Refuses tables with a write-ahead log: a scan does not see the rows that
/// are in the log alone.
pub async fn refuse_wal(view: &ViewInfo, table: &Dataset, what: &str) -> Result<()> {
    let shards = table
        .list_mem_wal_latest_shard_ids()
        .await
        .map_err(|e| storage(&format!("the write-ahead log of {what}"), e))?;
    if shards.is_empty() {
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
