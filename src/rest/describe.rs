//! What stock LanceDB clients ask before they refresh a view:
//! `POST /v1/table/{id}/describe` and `POST /v1/materialized_view/{id}/describe`.

use std::sync::Arc;

use arrow_schema::Schema;
use axum::Json;
use axum::extract::State;
use lance::arrow::json::JsonSchema;
use serde_json::{Value, json};

use super::Api;
use super::auth::credential::Asked;
use super::body::wrong_type;
use super::error::ApiError;
use super::id::{DELIMITER, PathId};
use crate::engine::view;

/// A table's version, schema and place.
pub async fn table(
    State(api): State<Arc<Api>>,
    PathId(id): PathId,
    Asked { caller, body }: Asked,
) -> Result<Json<Value>, ApiError> {
    for field in ["tag", "branch"] {
        if body.get(field).is_some() {
            return Err(ApiError::InvalidInput(format!(
                "{field} cannot be described here; leave it out, or give a version"
            )));
        }
    }
    let version = match body.get("version") {
        None => None,
        Some(version) => Some(
            version
                .as_u64()
                .ok_or_else(|| wrong_type("version", version, "an integer of at least 0"))?,
        ),
    };
    let catalog = api.catalog_of(&caller).await?;
    let described = {
        let (catalog, id) = (catalog.clone(), id.clone());
        async move { catalog.describe_table(&id).await }
    };
    let mut table = api.catalog.look_long(described).await??;
    if let Some(version) = version.filter(|version| *version != table.version) {
        let missing = || {
            ApiError::VersionNotFound(format!(
                "table '{}' has no version {version}, or no longer; leave it out to describe the latest ({})",
                id.join(DELIMITER),
                table.version
            ))
        };
        if version == 0 || version > table.version {
            return Err(missing());
        }
        let opened = {
            let id = id.clone();
            async move { catalog.open(&id, Some(version)).await }
        };
        let opened = api.catalog.look_long(opened).await??.ok_or_else(missing)?;
        table.schema = Schema::from(opened.schema());
        table.version = version;
    }
    let schema = JsonSchema::try_from(&table.schema).map_err(|error| {
        ApiError::Unsupported(format!(
            "the table's schema cannot be told as JSON: {error}"
        ))
    })?;
    Ok(Json(json!({
        "version": table.version,
        "schema": schema,
        "location": table.uri,
    })))
}

/// A view's definition, as SQL.
pub async fn view(
    State(api): State<Arc<Api>>,
    PathId(id): PathId,
    Asked { caller, .. }: Asked,
) -> Result<Json<Value>, ApiError> {
    let catalog = api.catalog_of(&caller).await?;
    let inspected = {
        let id = id.clone();
        async move { view::inspect(&catalog, &id).await }
    };
    let info = api.catalog.look_long(inspected).await??;
    let Some(sql) = info.sql else {
        return Err(ApiError::Unsupported(format!(
            "'{}' is no SQL view, and only those can be described here",
            id.join(DELIMITER)
        )));
    };
    let source = info.sources.first().map(Vec::as_slice).unwrap_or_default();
    let (table, namespace) = source
        .split_last()
        .map_or(("", Vec::new()), |(table, namespace)| {
            (table.as_str(), namespace.to_vec())
        });
    Ok(Json(json!({
        "source_table": table,
        "source_namespace": namespace,
        "projections": [],
        "query": sql,
        "incarnation": info.incarnation,
    })))
}
