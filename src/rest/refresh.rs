//! `POST /v1/materialized_view/{id}/refresh` and its alias for tables.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde::Serialize;

use super::auth::credential::Caller;
use super::body::JsonBody;
use super::error::ApiError;
use super::id::PathId;
use super::manifest::GenevaManifest;
use super::store::{Origin, Secrets};
use super::{Api, fields, idempotency};
use crate::telemetry::{self, trace};
use crate::world;

/// The spec's `RefreshMaterializedViewResponse`.
#[derive(Debug, Serialize)]
pub struct RefreshResponse {
    job_id: String,
}

/// Takes a refresh. 202 once the Kubernetes API has stored it.
pub async fn refresh(
    State(api): State<Arc<Api>>,
    PathId(view): PathId,
    headers: HeaderMap,
    known: Option<Extension<Caller>>,
    trace: Option<Extension<trace::Context>>,
    body: JsonBody,
) -> Result<(StatusCode, Json<RefreshResponse>), ApiError> {
    let caller = Caller::of(known.map(|known| known.0), &headers, &body)?;
    let key = idempotency::key(&headers)?;
    let manifest = body
        .string("manifest")?
        .map(GenevaManifest::parse)
        .transpose()?;
    let checksum = manifest.as_ref().map(GenevaManifest::checksum);
    // Shape comes first: a request that can never be right makes no calls.
    let unnamed = uuid::Uuid::now_v7().to_string();
    let forwarded = api.forwarded(&caller)?;
    let asked = |name: &str| {
        let mut spec = fields::spec(name, &view, &body, checksum)?;
        spec.forwarded_credential = forwarded.is_some();
        Ok::<_, ApiError>(spec)
    };
    let mut spec = asked(&unnamed)?;
    // Before anybody looks what is there: the answer must not tell.
    api.access.may_use(&caller, &spec.cluster).await?;
    let keyed = key.is_some();
    let job_id = match key {
        None => unnamed,
        Some(key) => {
            let name = idempotency::name(&api.store.salt().await?, &caller, &key);
            telemetry::is_about(&name);
            spec = asked(&name)?;
            if let Some(found) = api.store.get(&name).await? {
                let completing = {
                    let (api, spec) = (api.clone(), spec.clone());
                    let (manifest, credential) = (manifest.clone(), forwarded.cloned());
                    async move {
                        let secrets = Secrets {
                            manifest: manifest.as_ref(),
                            credential: credential.as_ref(),
                        };
                        api.store.complete(&found, &spec, secrets).await
                    }
                };
                api.store_whole(completing).await?;
                return Ok(accepted(name));
            }
            name
        }
    };
    let looked = async {
        let catalog = api.catalog_of(&caller).await?;
        let (spec, known) = (Arc::new(spec.clone()), api.views.clone());
        let look = move |catalog| {
            let (spec, known) = (spec.clone(), known.clone());
            async move { world::is_refreshable(&catalog, &known, &spec).await }
        };
        Ok::<_, ApiError>(api.catalog.look(catalog, look).await?)
    };
    let cluster = async {
        let name = &spec.cluster;
        Ok::<_, ApiError>(match manifest.is_some() || forwarded.is_some() {
            // What it allows is asked of it as it is now.
            true => api.store.cluster(name).await?.map(Some),
            false => api.store.has_cluster(name).await?.then_some(None),
        })
    };
    let (cluster, looked) = tokio::join!(cluster, looked);
    let cluster = cluster?;
    if let (Some(Some(cluster)), Some(_)) = (&cluster, forwarded) {
        world::may_take_credential(&spec.cluster, &cluster.spec)?;
    }
    match (cluster, &manifest) {
        (None, _) => {
            let known = api.store.clusters().await?;
            world::cluster(&spec.cluster, known.iter().map(|name| (name.as_str(), ())))?;
        }
        (Some(Some(cluster)), Some(manifest)) => {
            let images = world::images_of_manifest(manifest.text().as_bytes());
            let images = images.iter().map(String::as_str);
            world::may_bring_manifest(&spec.cluster, &cluster.spec, images)?;
        }
        (Some(_), _) => {}
    }
    looked??;
    let origin = Origin {
        user: caller.user().map(|user| user.name.clone()),
        trace: trace.map(|trace| trace.0),
    };
    let storing = {
        let (api, name, spec) = (api.clone(), job_id.clone(), spec.clone());
        let (manifest, credential) = (manifest.clone(), forwarded.cloned());
        async move {
            let secrets = Secrets {
                manifest: manifest.as_ref(),
                credential: credential.as_ref(),
            };
            let stored = api.store.create(&name, &spec, secrets, keyed, origin);
            stored.await
        }
    };
    api.store_whole(storing).await?;
    telemetry::is_about(&job_id);
    tracing::info!(
        view = view.join("$"),
        cluster = spec.cluster,
        "refresh accepted"
    );
    Ok(accepted(job_id))
}

fn accepted(job_id: String) -> (StatusCode, Json<RefreshResponse>) {
    (StatusCode::ACCEPTED, Json(RefreshResponse { job_id }))
}
