//! Storing refreshes with the Kubernetes API.
//!
//! The resource is stored first and the Secrets with its Geneva manifest and
//! its caller's credential then, with the resource as their owner: whoever dies
//! in between leaves no Secret behind that nobody owns. The refresh that such a
//! death leaves without its Secrets was not accepted (nobody was told its
//! name); a retry under the same idempotency key adds them, else the controller
//! ends it as Failed. The controller deletes the credential at the end. A
//! create that was not answered is looked for before it is tried again, under
//! the same name.
//!
//! What it needs of RBAC, in its own namespace: create, get, list, patch and
//! delete `materializedviewrefreshes`; get and list `refreshclusters`; create `secrets`, and
//! get the one called [`names::IDEMPOTENCY_SECRET`].

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{
    DeleteParams, ListParams, ObjectList, Patch, PatchParams, PostParams, Preconditions,
};
use kube::core::ObjectMeta;
use kube::{Api, Client, Resource, ResourceExt};
use moka::future::Cache;
use rand::TryRngCore;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::error::ApiError;
use super::idempotency::SALT_BYTES;
use super::manifest::GenevaManifest;
use crate::catalog::credential::{Credential, Place};
use crate::lean::Lean;
use crate::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshSpec, Phase, RefreshCluster, names,
};
use crate::telemetry::trace;

/// How long one answer of the Kubernetes API may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often a create is tried whose fate is unknown. With [`PATIENCE`] it says how
/// late a credential may come: the controller looks for it for longer.
const ATTEMPTS: u32 = 3;

/// How often a change is tried that another one came before.
const STEERINGS: u32 = 8;

/// How long a RefreshCluster is taken to be there, and how many are remembered.
const THERE: Duration = Duration::from_secs(1);
const MOST_THERE: u64 = 1_000;

/// Where a refresh comes from; kept in its annotations.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The user who asked for it, where users are known.
    pub user: Option<String>,
    /// The request's trace.
    pub trace: Option<trace::Context>,
}

/// What a refresh brings along that belongs in Secrets of its own.
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'a> {
    /// Its Geneva manifest.
    pub manifest: Option<&'a GenevaManifest>,
    /// Its caller's credential for the catalog.
    pub credential: Option<&'a Credential>,
}

/// The resources of one namespace.
#[derive(Clone)]
pub struct Store {
    refreshes: Api<Lean<MaterializedViewRefresh>>,
    /// With who has written what of them.
    whole: Api<MaterializedViewRefresh>,
    clusters: Api<RefreshCluster>,
    secrets: Api<Secret>,
    salt: std::sync::Arc<OnceCell<[u8; SALT_BYTES]>>,
    /// RefreshClusters that were there.
    there: Cache<String, ()>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// The resources of `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            refreshes: Api::namespaced(client.clone(), namespace),
            whole: Api::namespaced(client.clone(), namespace),
            clusters: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client, namespace),
            salt: Default::default(),
            there: Cache::builder()
                .max_capacity(MOST_THERE)
                .time_to_live(THERE)
                .build(),
        }
    }

    /// The refresh called `name`, if there is one.
    pub async fn get(&self, name: &str) -> Result<Option<MaterializedViewRefresh>, ApiError> {
        in_time(self.whole.get_opt(name)).await
    }

    /// At most `limit` refreshes, in the order of their names, that
    /// `phases`, a field selector, selects; from `token` on, which comes from
    /// the page before. `Ok(None)`: the token has expired, or was never one.
    pub async fn page(
        &self,
        phases: &str,
        limit: u32,
        token: Option<&str>,
    ) -> Result<Option<ObjectList<Lean<MaterializedViewRefresh>>>, ApiError> {
        let mut token = token.map(str::to_string);
        for _ in 0..ATTEMPTS {
            let mut params = ListParams::default().fields(phases).limit(limit);
            params.continue_token.clone_from(&token);
            let listed = in_time(async { Ok(self.refreshes.list(&params).await) }).await?;
            match listed {
                Ok(page) => return Ok(Some(page)),
                // The API server remembers the list as it was for minutes
                // only, and then gives a token to go on from there as it is now.
                Err(kube::Error::Api(status)) if status.code == 410 && token.is_some() => {
                    let metadata = status.metadata.as_ref();
                    match metadata.and_then(|metadata| metadata.continue_.clone()) {
                        Some(fresh) => token = Some(fresh),
                        None => return Ok(None),
                    }
                }
                Err(kube::Error::Api(status)) if status.code == 400 && token.is_some() => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Changes the spec of refresh `name` by what `change` says about it as it
    /// is at that very moment. What `change` gives as `None` is left as it is.
    /// `Ok(None)`: there is no such refresh.
    pub async fn steer<T>(
        &self,
        name: &str,
        change: impl Fn(&MaterializedViewRefresh) -> Result<(Option<Value>, T), ApiError>,
    ) -> Result<Option<T>, ApiError> {
        let patched = PatchParams {
            field_manager: Some(names::REST_MANAGER.to_string()),
            ..Default::default()
        };
        for attempt in 1..=STEERINGS {
            let Some(refresh) = self.get(name).await? else {
                return Ok(None);
            };
            let (spec, answer) = change(&refresh)?;
            let Some(spec) = spec else {
                return Ok(Some(answer));
            };
            let patch = Patch::Merge(json!({
                "metadata": {"resourceVersion": refresh.resource_version()},
                "spec": spec,
            }));
            let patching = self.refreshes.patch(name, &patched, &patch);
            match in_time(async { Ok(patching.await) }).await? {
                Ok(_) => return Ok(Some(answer)),
                // The controller has written to it meanwhile.
                Err(kube::Error::Api(status)) if status.code == 409 => pause(attempt).await,
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Err(ApiError::Unavailable(format!(
            "the refresh changed {STEERINGS} times while it was to be changed; try again"
        )))
    }

    /// The RefreshCluster called `name`, if there is one. Asked by name: a list
    /// that must be current waits until the API server's cache has caught up,
    /// which takes it up to 100 ms while other resources are written (KEP-2340).
    pub async fn cluster(&self, name: &str) -> Result<Option<RefreshCluster>, ApiError> {
        in_time(self.clusters.get_opt(name)).await
    }

    /// Whether there is a RefreshCluster called `name`, or was within the last
    /// second: who comes with many others does not ask once more. If it has
    /// gone since, the controller says so.
    pub async fn has_cluster(&self, name: &str) -> Result<bool, ApiError> {
        let ask = async {
            match self.cluster(name).await {
                Ok(found) => found.map(drop).ok_or(None),
                Err(error) => Err(Some(error)),
            }
        };
        let there = self.there.try_get_with(name.to_string(), ask).await;
        match there.as_ref().map_err(|error| error.as_ref()) {
            Ok(()) => Ok(true),
            Err(None) => Ok(false),
            Err(Some(error)) => Err(error.clone()),
        }
    }

    /// The names of the RefreshClusters.
    pub async fn clusters(&self) -> Result<Vec<String>, ApiError> {
        let list = in_time(self.clusters.list_metadata(&ListParams::default())).await?;
        Ok(list.iter().map(ResourceExt::name_any).collect())
    }

    /// Stores a refresh and its Secrets. `name` must be
    /// this request's alone, unless it is `shared` by the requests under one
    /// idempotency key: then a refresh that another one of them made for the
    /// same is as good.
    pub async fn create(
        &self,
        name: &str,
        spec: &MaterializedViewRefreshSpec,
        secrets: Secrets<'_>,
        shared: bool,
        origin: Origin,
    ) -> Result<(), ApiError> {
        let refresh = self.create_refresh(name, spec, origin).await?;
        let done = self.complete(&refresh, spec, secrets).await;
        // A shared one may be another request's, who was told 202: a retry
        // adds the Secrets, or the controller ends it.
        if done.is_err() && !shared {
            self.take_back(&refresh).await;
        }
        done
    }

    /// Answers a request from the refresh that an earlier one made.
    pub async fn complete(
        &self,
        found: &MaterializedViewRefresh,
        spec: &MaterializedViewRefreshSpec,
        secrets: Secrets<'_>,
    ) -> Result<(), ApiError> {
        if !found.spec.asks_the_same(spec) {
            return Err(ApiError::Conflict(
                "Idempotency-Key was used with another request; use a new key for a new request"
                    .into(),
            ));
        }
        if found.meta().deletion_timestamp.is_some() {
            return Err(ApiError::Unavailable(
                "the refresh of this Idempotency-Key is being deleted; try again".into(),
            ));
        }
        let name = found.name_any();
        if let Some(manifest) = secrets.manifest
            && !found.phase().is_terminal()
        {
            let held = (names::MANIFEST_KEY, manifest.text());
            self.create_owned(found, names::manifest_secret(&name), held)
                .await?;
        }
        if let Some(credential) = secrets.credential
            // Later on it is there, or has been deleted for good. One that is
            // held may be so since before it was there.
            && matches!(found.phase(), Phase::Queued | Phase::Suspended)
        {
            let held = (Place::SECRET.of(credential), credential.secret());
            self.create_owned(found, names::credential_secret(&name), held)
                .await?;
        }
        Ok(())
    }

    /// The refresh of that name, as it is stored now.
    async fn create_refresh(
        &self,
        name: &str,
        spec: &MaterializedViewRefreshSpec,
        origin: Origin,
    ) -> Result<MaterializedViewRefresh, ApiError> {
        let mut refresh = MaterializedViewRefresh::asked(name, spec.clone());
        let trace = origin.trace.map(|trace| trace.to_string());
        for (annotation, value) in [
            (names::TRACEPARENT, trace),
            (names::REQUESTED_BY, origin.user),
        ] {
            let value = value.map(|value| (annotation.to_string(), value));
            refresh.annotations_mut().extend(value);
        }
        let post = PostParams {
            field_manager: Some(names::REST_MANAGER.to_string()),
            ..Default::default()
        };
        let refresh = Lean(refresh);
        let mut attempt = 1;
        loop {
            let error = match answered(self.refreshes.create(&post, &refresh)).await {
                Ok(Some(Lean(stored))) => return Ok(stored),
                Ok(None) => ApiError::Unavailable("the refresh is being deleted; try again".into()),
                Err(error @ ApiError::Unavailable(_)) => error,
                Err(error) => return Err(error),
            };
            // It may have been stored for all that.
            match self.get(name).await {
                Ok(Some(found)) => return Ok(found),
                _ if attempt == ATTEMPTS => return Err(error),
                _ => {}
            }
            pause(attempt).await;
            attempt += 1;
        }
    }

    /// Creates a Secret that `owner` owns, unless there is one of that name.
    async fn create_owned(
        &self,
        owner: &MaterializedViewRefresh,
        name: String,
        (key, value): (&str, &str),
    ) -> Result<(), ApiError> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name),
                owner_references: Some(owner.owner_ref(&()).into_iter().collect()),
                labels: Some(labels(Some(&owner.name_any()))),
                ..Default::default()
            },
            data: Some(BTreeMap::from([(
                key.to_string(),
                ByteString(value.as_bytes().to_vec()),
            )])),
            immutable: Some(true),
            ..Default::default()
        };
        self.create_secret(&secret).await.map(|_| ())
    }

    /// Whether the Secret was not there before, as far as can be told.
    async fn create_secret(&self, secret: &Secret) -> Result<bool, ApiError> {
        let mut attempt = 1;
        loop {
            match answered(self.secrets.create(&PostParams::default(), secret)).await {
                Ok(created) => return Ok(created.is_some()),
                Err(ApiError::Unavailable(_)) if attempt < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
            pause(attempt).await;
            attempt += 1;
        }
    }

    /// Deletes a refresh that nobody was told of.
    async fn take_back(&self, refresh: &MaterializedViewRefresh) {
        let this_one = DeleteParams {
            preconditions: Some(Preconditions {
                uid: refresh.uid(),
                resource_version: None,
            }),
            ..Default::default()
        };
        if let Err(error) = in_time(self.refreshes.delete(&refresh.name_any(), &this_one)).await {
            tracing::warn!(job_id = refresh.name_any(), %error, "a refresh without its manifest could not be taken back");
        }
    }

    /// The namespace's salt, made by whoever needs it first.
    pub async fn salt(&self) -> Result<[u8; SALT_BYTES], ApiError> {
        self.salt
            .get_or_try_init(|| async {
                if let Some(salt) = self.stored_salt().await? {
                    return Ok(salt);
                }
                let mut salt = [0; SALT_BYTES];
                rand::rngs::OsRng
                    .try_fill_bytes(&mut salt)
                    .map_err(|error| ApiError::Internal(format!("no random numbers: {error}")))?;
                let secret = Secret {
                    metadata: ObjectMeta {
                        name: Some(names::IDEMPOTENCY_SECRET.to_string()),
                        labels: Some(labels(None)),
                        ..Default::default()
                    },
                    data: Some(BTreeMap::from([(
                        names::SALT_KEY.to_string(),
                        ByteString(salt.to_vec()),
                    )])),
                    immutable: Some(true),
                    ..Default::default()
                };
                if self.create_secret(&secret).await? {
                    return Ok(salt);
                }
                self.stored_salt().await?.ok_or_else(|| {
                    ApiError::Unavailable("the salt of idempotency keys vanished; try again".into())
                })
            })
            .await
            .copied()
    }

    async fn stored_salt(&self) -> Result<Option<[u8; SALT_BYTES]>, ApiError> {
        let Some(secret) = in_time(self.secrets.get_opt(names::IDEMPOTENCY_SECRET)).await? else {
            return Ok(None);
        };
        secret
            .data
            .as_ref()
            .and_then(|data| {
                <[u8; SALT_BYTES]>::try_from(data.get(names::SALT_KEY)?.0.as_slice()).ok()
            })
            .map(Some)
            .ok_or_else(|| {
                ApiError::Internal(format!(
                    "Secret '{}' holds no salt of {SALT_BYTES} bytes; delete it",
                    names::IDEMPOTENCY_SECRET
                ))
            })
    }
}

fn labels(refresh: Option<&str>) -> BTreeMap<String, String> {
    let (managed_by, relance) = names::MANAGED_BY;
    let mut labels = BTreeMap::from([(managed_by.to_string(), relance.to_string())]);
    if let Some(refresh) = refresh {
        labels.insert(names::REFRESH_LABEL.to_string(), refresh.to_string());
    }
    labels
}

/// The object that was created, or nothing if one of its name is there.
async fn answered<T>(create: impl Future<Output = kube::Result<T>>) -> Result<Option<T>, ApiError> {
    match in_time(async { Ok(create.await) }).await? {
        Ok(created) => Ok(Some(created)),
        // A 409 may also be somebody's change of a quota that came in between;
        // then nothing is there.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(100 * u64::from(attempt))).await;
}

/// What the Kubernetes API answers, if it does so soon enough.
pub(super) async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::Unavailable(format!(
            "the Kubernetes API did not answer within {} seconds; try again",
            PATIENCE.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use kube::client::Body;

    use super::*;
    use crate::resources::MaterializedViewRefreshStatus;

    /// What an API server is asked, in order.
    type Asked = Arc<Mutex<Vec<String>>>;

    /// A store over an API server that refuses creates for these reasons, one
    /// after the other, and takes all others.
    fn store(refusals: &[&'static str]) -> (Store, Asked) {
        let refusals = Mutex::new(VecDeque::from(refusals.to_vec()));
        let asked = Asked::default();
        let noted = asked.clone();
        let answer = move |request: Request<Body>| {
            let resource = request.uri().path().rsplit('/').next().unwrap_or_default();
            let asked = format!("{} {resource}", request.method());
            noted.lock().unwrap().push(asked);
            let answer = match refusals.lock().unwrap().pop_front() {
                Some(reason) => {
                    let status = json!({
                        "apiVersion": "v1", "kind": "Status", "status": "Failure",
                        "reason": reason, "message": "no", "code": 409,
                    });
                    (409, status)
                }
                None => (
                    201,
                    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}}),
                ),
            };
            let (status, body) = answer;
            let body = Body::from(body.to_string().into_bytes());
            let answer = Response::builder().status(status).body(body).unwrap();
            std::future::ready(Ok::<_, Infallible>(answer))
        };
        let client = Client::new(tower::service_fn(answer), "ns");
        (Store::new(client, "ns"), asked)
    }

    #[tokio::test]
    async fn a_secret_is_stored_only_where_the_api_server_says_so() {
        let secret = Secret::default();
        let created = async |refusals: &[&'static str]| {
            let (store, asked) = store(refusals);
            let created = store.create_secret(&secret).await;
            let asked = asked.lock().unwrap().len();
            (created.map_err(|error| error.status_and_code().1), asked)
        };
        assert_eq!(created(&[]).await, (Ok(true), 1));
        assert_eq!(created(&["AlreadyExists"]).await, (Ok(false), 1));
        // As the admission of a quota that changes says it.
        assert_eq!(created(&["Conflict"]).await, (Ok(true), 2));
        assert_eq!(created(&["Conflict"; 3]).await, (Err(17), 3));
    }

    #[tokio::test]
    async fn a_retry_brings_the_credential_to_what_may_still_lack_it() {
        let credential = Credential::Key("hush".into());
        let secrets = Secrets {
            manifest: None,
            credential: Some(&credential),
        };
        let spec = MaterializedViewRefreshSpec::of(["v"]);
        let brought = async |phase: Phase| {
            let mut found = MaterializedViewRefresh::new("r", spec.clone());
            found.status = Some(MaterializedViewRefreshStatus {
                phase,
                ..Default::default()
            });
            let (store, asked) = store(&[]);
            store.complete(&found, &spec, secrets).await.unwrap();
            asked.lock().unwrap().join(", ")
        };
        for phase in [Phase::Queued, Phase::Suspended] {
            assert_eq!(brought(phase).await, "POST secrets", "{phase:?}");
        }
        for phase in [Phase::Running].into_iter().chain(Phase::TERMINAL) {
            assert_eq!(brought(phase).await, "", "{phase:?}");
        }
    }
}
