//! The indices that a view has.
//!
//! Fragments that a refresh keeps stay covered by them, and queries are right
//! at any time: what no index covers yet is scanned. So bringing the indices up
//! to date is a wish that can wait, and never makes a refresh fail.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_table::system_index::is_system_index;
use tracing::{debug, info};

use super::catalog::Catalog;
use super::error::Result;
use super::store::storage;
use super::words::first_line;

/// How often indices are tried to be brought up to date.
const ATTEMPTS: u32 = 3;

/// How long a worker leaves the indices to the one that committed.
pub(super) const LEFT_FOR: Duration = Duration::from_secs(60);

/// How long worker `index` leaves them to it.
pub(super) fn left_for(index: u32) -> Duration {
    LEFT_FOR * (1 << index.min(6))
}

/// How many rows of `view` one of its indices does not cover yet; `None` where
/// it has no index. Errors: `Unavailable`.
pub async fn unindexed_rows(view: &Dataset) -> Result<Option<u64>> {
    let segments = view
        .load_indices()
        .await
        .map_err(|e| storage("the view's indices", e))?;
    // An index is all segments of its name.
    let mut indices: HashMap<&str, HashSet<u64>> = HashMap::new();
    for segment in segments.iter().filter(|segment| !is_system_index(segment)) {
        let covered = segment.fragment_bitmap.iter().flatten().map(u64::from);
        indices.entry(&segment.name).or_default().extend(covered);
    }
    if indices.is_empty() {
        return Ok(None);
    }
    let rows = view
        .fragments()
        .iter()
        .filter(|f| indices.values().any(|covered| !covered.contains(&f.id)))
        .map(|f| f.num_rows().unwrap_or(0) as u64)
        .sum();
    Ok(Some(rows))
}

/// Brings the indices of the view at `uri` up to date, whose rows are those of
/// `right`. Returns the view after it; `Ok(None)` if its rows are others by
/// now, or it could not be done: the next refresh may. Errors: `Unavailable`.
pub async fn optimize(catalog: &Catalog, uri: &str, right: &Dataset) -> Result<Option<Dataset>> {
    for _ in 0..ATTEMPTS {
        let Some(mut view) = catalog.store().open(uri, None).await? else {
            return Ok(None);
        };
        if view.fragments() != right.fragments() {
            return Ok(None);
        }
        let Some(rows @ 1..) = unindexed_rows(&view).await? else {
            return Ok(Some(view));
        };
        info!(rows, "bringing the view's indices up to date");
        match view.optimize_indices(&Default::default()).await {
            // Another's commit may have come between.
            Ok(()) if view.fragments() == right.fragments() => return Ok(Some(view)),
            Ok(()) => return Ok(None),
            Err(error) => debug!(
                error = first_line(&error.to_string()),
                "the indices' commit did not land"
            ),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_leaves_the_indices_alone_twice_as_long_as_the_one_before() {
        assert_eq!(left_for(0), LEFT_FOR);
        assert!((0..6).all(|index| left_for(index + 1) == 2 * left_for(index)));
        assert_eq!(left_for(1000), left_for(6));
    }
}
