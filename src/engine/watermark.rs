//! The watermark of lancedb 0.38 to 0.40, in the schema metadata of views of
//! their form, so that those clients can go on refreshing the view themselves.
//!
//! It is a second commit, because a data commit of Lance carries no metadata;
//! relance's own truth is under `_relance/`, so nothing depends on it here.

use std::time::{SystemTime, UNIX_EPOCH};

use lance::Dataset;

use super::catalog::Catalog;
use super::error::Result;
use super::plan::Pinned;
use super::view::ViewInfo;
use super::view::lancedb::{
    INCARNATION, REFRESHED_AT_MS, SOURCE_VERSION, SOURCE_VERSION_TS, VIEW_VERSION,
};
use super::words::first_line;

const ATTEMPTS: u32 = 4;

/// Writes the watermark for `source` on `view`, whose rows are those of
/// `right`. Returns the view after it; `Ok(None)` if the rows are others by
/// now, or others kept committing.
pub async fn stamp(
    catalog: &Catalog,
    view: &ViewInfo,
    right: &Dataset,
    source: &Dataset,
) -> Result<Option<Dataset>> {
    for _ in 0..ATTEMPTS {
        let Some(mut table) = catalog.store().open(&view.uri, None).await? else {
            return Ok(None);
        };
        if table.fragments() != right.fragments() {
            return Ok(None);
        }
        let now = table.version().version;
        let wanted = [
            (SOURCE_VERSION, source.version().version.to_string()),
            (SOURCE_VERSION_TS, Pinned::of(source).timestamp.to_string()),
        ];
        let metadata = &table.schema().metadata;
        if wanted.iter().all(|(k, v)| metadata.get(*k) == Some(v))
            && metadata.get(VIEW_VERSION) == Some(&now.to_string())
        {
            return Ok(Some(table));
        }
        let incarnation = metadata
            .get(INCARNATION)
            .cloned()
            .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let refreshed_at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let mut updates: Vec<(String, Option<String>)> = wanted
            .into_iter()
            .map(|(k, v)| (k.to_string(), Some(v)))
            .collect();
        updates.push((INCARNATION.to_string(), Some(incarnation)));
        updates.push((REFRESHED_AT_MS.to_string(), Some(refreshed_at.to_string())));
        updates.push((VIEW_VERSION.to_string(), Some((now + 1).to_string())));
        match table.update_schema_metadata(updates).await {
            // The version is guessed and then checked: had another commit come
            // between, the watermark would speak of that one, so write again.
            Ok(_) if table.version().version == now + 1 => return Ok(Some(table)),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(
                    error = first_line(&error.to_string()),
                    "the watermark did not land"
                );
            }
        }
    }
    Ok(None)
}
