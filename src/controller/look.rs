//! Looking at what [`decide`](super::refresh::decide) asks for: the world, the
//! Job, the view's history. How far the Job is, is [`super::progress`]'s.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;
use sha2::{Digest, Sha256};

use super::caller::{self, credential};
use super::context::Context;
use super::refresh::{JobSeen, Observed, OutcomeSeen, World, is_held, is_last};
use super::targets::Reach;
use crate::catalog::credential::Credential;
use crate::engine::catalog::{Catalog, DELIMITER};
use crate::engine::error::EngineError;
use crate::engine::freshness::{self, Freshness};
use crate::engine::outcome::{self, Known, Outcome};
use crate::launch::target::{Target, TargetError};
use crate::launch::{job, state};
use crate::lean::Lean;
use crate::resources::{MaterializedViewRefresh, RefreshClusterSpec, SecretRef, names, reasons};
use crate::world::{self, WorldError};

/// How long after its creation a refresh may lack the Secret that it names:
/// the Secret is owned by the refresh, so it can only be made after it.
const SECRET_PATIENCE: i64 = 60;

/// For how long the history of a refresh whose caller the catalog denies must
/// not open to relance itself either, at any look, before nobody waits for it.
const SHUT_FOR_GOOD: Duration = Duration::from_secs(120);

/// The view and the cluster of a refresh.
pub async fn world(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<(World, Option<RefreshClusterSpec>), kube::Error> {
    let cluster = match cluster(ctx, &refresh.spec.cluster).await? {
        Ok(cluster) => cluster,
        Err(error) => return Ok((refused(&error), None)),
    };
    if let Some(wrong) = unreachable(ctx, refresh, &cluster).await {
        return Ok((wrong, Some(cluster)));
    }
    if let Some(wrong) = manifest(ctx, refresh, &cluster).await? {
        return Ok((wrong, Some(cluster)));
    }
    let caller = match caller::of(ctx, refresh, &cluster).await? {
        Ok(caller) => caller,
        Err(wrong) => return Ok((wrong, Some(cluster))),
    };
    let world = match view(ctx, refresh, caller.as_ref()).await {
        Ok(world) => world,
        Err(error) => {
            if let WorldError::View(error) = &error {
                count_bug(ctx, error);
            }
            refused(&error)
        }
    };
    Ok((world, Some(cluster)))
}

/// What stands against launching anything in another cluster.
async fn unreachable(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    cluster: &RefreshClusterSpec,
) -> Option<World> {
    if !cluster.is_remote() {
        return None;
    }
    let name = &refresh.spec.cluster;
    let refused = |reason: &str, message: String| World::Refused {
        reason: reason.to_string(),
        message,
    };
    match ctx.targets.reach(name, Some(cluster)).await {
        Reach::By(_) => None,
        Reach::Missing(why) | Reach::Unread(why) => {
            Some(World::Unavailable(format!("Waiting: {why}")))
        }
        Reach::Gone(why) => Some(refused(
            reasons::KUBECONFIG_NOT_FOUND,
            format!("{why}; make it and refresh again"),
        )),
        Reach::Refused(why) => Some(refused(
            reasons::KUBECONFIG_REFUSED,
            format!("RefreshCluster '{name}': {why}"),
        )),
    }
}

/// A look that met a bug is a pass that broke off, though it is known why.
fn count_bug(ctx: &Context, error: &EngineError) {
    if matches!(error, EngineError::Internal(_)) {
        ctx.metrics.errors.inc();
    }
}

async fn view(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    caller: Option<&Credential>,
) -> Result<World, WorldError> {
    let catalog = ctx.catalog.seen_by(caller).await?;
    let spec = Arc::new(refresh.spec.clone());
    let look = move |catalog| {
        let spec = spec.clone();
        async move {
            let (view, table) = world::view(&catalog, &spec).await?;
            if spec.full {
                return Ok((view.uri, None));
            }
            let version = spec.src_version.and_then(|v| u64::try_from(v).ok());
            let current = match freshness::check(&catalog, &view, &table, version).await? {
                Freshness::Current(current) => Some(current),
                Freshness::Stale { .. } => None,
            };
            Ok::<_, WorldError>((view.uri, current))
        }
    };
    let (uri, current) = ctx.catalog.look(catalog, look).await??;
    Ok(World::Ready { uri, current })
}

pub(super) fn refused(error: &WorldError) -> World {
    match error {
        error if error.retryable() => World::Unavailable(format!("Waiting: {error}")),
        error => World::Refused {
            reason: error.reason().to_string(),
            message: error.to_string(),
        },
    }
}

/// The cluster that a refresh names. A watch may be late: before it is called
/// unknown, the API server is asked.
pub async fn cluster(
    ctx: &Context,
    name: &str,
) -> Result<Result<RefreshClusterSpec, WorldError>, kube::Error> {
    if let Some(cluster) = ctx.cluster(name) {
        return Ok(Ok(cluster.spec.clone()));
    }
    if let Some(cluster) = ctx.clusters.get_opt(name).await? {
        return Ok(Ok(cluster.spec));
    }
    let list = ctx.clusters.list_metadata(&ListParams::default()).await?;
    let known: Vec<String> = list.iter().map(ResourceExt::name_any).collect();
    let known = known.iter().map(|known| (known.as_str(), ()));
    Ok(world::cluster(name, known).map(|()| RefreshClusterSpec::default()))
}

/// What is wrong with the Secret that holds a refresh's Geneva manifest.
async fn manifest(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    cluster: &RefreshClusterSpec,
) -> Result<Option<World>, kube::Error> {
    let spec = &refresh.spec;
    let Some(secret) = &spec.manifest_secret_ref else {
        return Ok(None);
    };
    if let Err(error) = world::may_bring_manifest(&spec.cluster, cluster, []) {
        return Ok(Some(refused(&error)));
    }
    if let Some(wrong) = unnamable(secret) {
        return Ok(Some(wrong));
    }
    let found = ctx.secrets.get_opt(&secret.name).await?;
    let data = found.and_then(|secret| secret.data?.remove(names::MANIFEST_KEY));
    let message = match data {
        Some(data) => {
            let sum = hex::encode(Sha256::digest(&data.0));
            if spec.manifest_checksum.as_ref().is_none_or(|c| *c == sum) {
                let images = world::images_of_manifest(&data.0);
                let images = images.iter().map(String::as_str);
                let allowed = world::may_bring_manifest(&spec.cluster, cluster, images);
                return Ok(allowed.err().map(|error| refused(&error)));
            }
            format!(
                "Secret '{}' does not hold the Geneva manifest that spec.manifestChecksum speaks of; refresh again with the right one",
                secret.name
            )
        }
        None => {
            if let Some(wait) = is_young(refresh, &secret.name) {
                return Ok(Some(wait));
            }
            format!(
                "there is no Secret '{}' with a Geneva manifest under the key '{}'; create it and refresh again",
                secret.name,
                names::MANIFEST_KEY
            )
        }
    };
    Ok(Some(World::Refused {
        reason: reasons::MANIFEST_MISMATCH.to_string(),
        message,
    }))
}

/// What is wrong with a reference to what no Secret can be called, from before a
/// rule forbade it: no request can be made of it, and so none that is answered.
fn unnamable(secret: &SecretRef) -> Option<World> {
    let message = format!(
        "spec.manifestSecretRef.name is '{}', which no Secret can be called; refresh again with the right one",
        secret.name
    );
    (!names::is_secret_name(&secret.name)).then(|| World::Refused {
        reason: reasons::MANIFEST_MISMATCH.to_string(),
        message,
    })
}

/// While a refresh is young, its Secrets may be on their way.
pub(super) fn is_young(refresh: &MaterializedViewRefresh, secret: &str) -> Option<World> {
    let created = refresh.metadata.creation_timestamp.as_ref();
    let age = created.map(|at| Timestamp::now().duration_since(at.0).as_secs());
    let young = age.is_some_and(|age| age < SECRET_PATIENCE);
    young.then(|| World::Unavailable(format!("Waiting for Secret '{secret}'")))
}

/// How to reach the cluster that a refresh's Job is in, or would be made in
/// now: another one only where the refresh is held for it.
pub async fn reach(ctx: &Context, refresh: &MaterializedViewRefresh) -> Result<Reach, kube::Error> {
    if !is_held(refresh) {
        return Ok(Reach::By(ctx.targets.home().clone()));
    }
    let name = &refresh.spec.cluster;
    let spec = match ctx.cluster(name) {
        Some(cluster) => Some(cluster.spec.clone()),
        // A watch may be late.
        None => ctx.clusters.get_opt(name).await?.map(|found| found.spec),
    };
    Ok(ctx.targets.reach(name, spec.as_ref()).await)
}

/// A refresh's Job, with its pods as a watch showed them. The Job itself is
/// asked of the API server, but for one that is known to be made and that its
/// watch shows: what is under way is looked at often. A watch may be behind what
/// this pass `changed` itself.
pub async fn job(target: &Target, seen: &Observed, changed: bool) -> Result<JobSeen, TargetError> {
    let (refresh, name) = (&seen.refresh, &seen.job_name);
    let status = refresh.status.as_ref();
    let made = status.and_then(|status| status.job.as_ref()?.uid.clone());
    let known = target.known_job(name);
    let known = known.filter(|job| !changed && made.is_some() && job.uid() == made);
    let found = match known {
        Some(known) => known,
        None => match target.ask(target.jobs.get_opt(name)).await? {
            Some(Lean(found)) => Arc::new(found),
            None => {
                // Another one may be launched beside them: their claims are the
                // same. That it is over is said only once it is.
                let Some(uid) = made.filter(|_| is_last(seen)) else {
                    return Ok(JobSeen::Absent);
                };
                // A watch may show too many, and one that has just begun none.
                let pods = listed_pods(target, refresh).await?;
                let survivors = state::of_survivors(&uid, &pods);
                return Ok(survivors.map_or(JobSeen::Absent, JobSeen::Ours));
            }
        },
    };
    if !job::is_of(&found, refresh) {
        return Ok(JobSeen::Foreign);
    }
    let uid = found.uid().unwrap_or_default();
    let pods = target.pods_of(&uid);
    let mut state = state::of(&found, pods.iter().map(AsRef::as_ref));
    if state.lacks_last_word() || state.is_lost(seen.now) {
        // The watch of pods may be behind, and their last word is the message,
        // or all that is left of the result; or they are at work still.
        let pods = listed_pods(target, refresh).await?;
        state = state::of(&found, &pods);
    }
    Ok(JobSeen::Ours(state))
}

/// A refresh's pods, by the API server.
async fn listed_pods(
    target: &Target,
    refresh: &MaterializedViewRefresh,
) -> Result<Vec<Pod>, TargetError> {
    let ours = format!("{}={}", names::REFRESH_UID_LABEL, refresh_uid(refresh));
    let ours = ListParams::default().labels(&ours);
    let pods = target.ask(target.pods.list(&ours)).await?;
    Ok(pods.items.into_iter().map(|Lean(pod)| pod).collect())
}

/// What a call to a target that failed says of a refresh's Job: another
/// cluster that does not answer, or does not allow it, keeps the Job out of sight.
pub fn out_of_sight(target: &Target, error: TargetError) -> Result<JobSeen, kube::Error> {
    match error {
        TargetError::Away(why) => Ok(JobSeen::Away(why)),
        TargetError::Kube(error) if target.is_remote() => Ok(JobSeen::Away(error.to_string())),
        TargetError::Kube(error) => Err(error),
    }
}

/// A refresh's Job in this cluster as the watch showed it last.
pub fn cached_job(ctx: &Context, refresh: &MaterializedViewRefresh) -> Option<JobSeen> {
    let home = ctx.targets.home();
    let name = job::name(refresh, &ctx.home);
    let found = home.known_job(&name)?;
    job::is_of(&found, refresh).then(|| JobSeen::Ours(state::of(&found, [])))
}

pub(super) fn refresh_uid(refresh: &MaterializedViewRefresh) -> String {
    refresh.metadata.uid.clone().unwrap_or_default()
}

/// What the view's history says of a refresh.
pub async fn outcome(ctx: &Context, refresh: &MaterializedViewRefresh) -> OutcomeSeen {
    let uri = refresh.status.as_ref().and_then(|s| s.view_uri.as_ref());
    let found = found(ctx, refresh).await;
    if let Err(error) = &found {
        count_bug(ctx, error);
    }
    match (found, uri) {
        // A token that has expired meanwhile: the place of the view is known.
        (Err(denied @ EngineError::CatalogDenied { .. }), Some(uri)) => {
            found_without_caller(ctx, refresh, uri, &denied).await
        }
        (found, _) => {
            ctx.is_not_shut(&refresh_uid(refresh));
            told(found)
        }
    }
}

fn told(found: Result<Option<Outcome>, EngineError>) -> OutcomeSeen {
    match found {
        Ok(Some(outcome)) => OutcomeSeen::Found(outcome),
        // A view that is gone took its history along.
        Ok(None) | Err(EngineError::ViewNotFound { .. } | EngineError::NotAView { .. }) => {
            OutcomeSeen::NotFound
        }
        Err(error) if !error.retryable() => shut_for_good(&error),
        Err(error) => OutcomeSeen::Unavailable(error.to_string()),
    }
}

fn shut_for_good(error: &EngineError) -> OutcomeSeen {
    OutcomeSeen::Denied {
        reason: error.reason(),
        why: error.to_string(),
    }
}

/// What the history says to whoever asked for the refresh.
async fn found(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<Option<Outcome>, EngineError> {
    let caller = match refresh.spec.forwarded_credential {
        true => {
            let found = credential(ctx, refresh).await;
            let found = found.map_err(|error| EngineError::Unavailable {
                what: "the caller's credential".to_string(),
                why: error.to_string(),
            })?;
            Some(found.ok_or_else(|| without_credential(refresh))?)
        }
        false => None,
    };
    let catalog = ctx.catalog.seen_by(caller.as_ref()).await?;
    let view = Arc::new(refresh.spec.view.clone());
    let uid = Arc::new(refresh_uid(refresh));
    let recorded = {
        let (view, uid) = (view.clone(), uid.clone());
        move |catalog: Catalog| {
            let (view, uid) = (view.clone(), uid.clone());
            async move { outcome::known(&catalog, &view, &uid).await }
        }
    };
    match ctx.catalog.look(catalog.clone(), recorded).await?? {
        Known::Outcome(found) => Ok(found),
        Known::Planned(uri) => {
            let found = async move { outcome::find_at(catalog.store(), &uri, &view, &uid).await };
            ctx.catalog.look_long(found).await?
        }
    }
}

/// What it means that there is no credential of a refresh's caller: no wait
/// brings one that was there before.
fn without_credential(refresh: &MaterializedViewRefresh) -> EngineError {
    let secret = names::credential_secret(&refresh.name_any());
    match is_young(refresh, &secret) {
        Some(_) => EngineError::Unavailable {
            what: format!("Secret '{secret}' with the caller's credential"),
            why: "it may be on its way".to_string(),
        },
        None => EngineError::CatalogDenied {
            table: refresh.spec.view.join(DELIMITER),
            why: format!("there is none any more in Secret '{secret}'"),
        },
    }
}

/// What the history of the view at `uri` says to relance itself, since the
/// catalog has `denied` the caller.
async fn found_without_caller(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    uri: &str,
    denied: &EngineError,
) -> OutcomeSeen {
    let uid = refresh_uid(refresh);
    let (found, has_way) = found_by_relance(ctx, refresh, uri).await;
    let shut = match (has_way, found.is_err()) {
        (false, true) => Some(ctx.is_shut(&uid)),
        _ => {
            ctx.is_not_shut(&uid);
            None
        }
    };
    told_without_caller(found, shut, denied)
}

/// The same, and whether relance has a way of its own to the view: what fails
/// then is a fault that passes.
async fn found_by_relance(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
    uri: &str,
) -> (Result<Option<Outcome>, EngineError>, bool) {
    let (view, uid) = (refresh.spec.view.clone(), refresh_uid(refresh));
    let uri = uri.to_string();
    let mut has_way = false;
    let found = async {
        let catalog = ctx.catalog.get().await?;
        // The catalog may vend to relance what it takes to reach the view; where
        // it does not, the store may be open to relance all the same.
        let locate = {
            let (catalog, view) = (catalog.clone(), view.clone());
            async move { catalog.locate(&view).await }
        };
        let located = ctx.catalog.look_long(locate).await;
        has_way = matches!(located, Ok(Ok(_))) && catalog.store().is_vended(&uri);
        let recorded = {
            let (catalog, uri, uid) = (catalog.clone(), uri.clone(), uid.clone());
            async move { outcome::known_at(catalog.store(), &uri, &uid).await }
        };
        let known = ctx.catalog.look_long(recorded).await??;
        has_way = true;
        match known {
            Known::Outcome(found) => Ok(found),
            Known::Planned(uri) => {
                let found =
                    async move { outcome::find_at(catalog.store(), &uri, &view, &uid).await };
                ctx.catalog.look_long(found).await?
            }
        }
    };
    (found.await, has_way)
}

/// What that means, where the history has been `shut` to relance too for so
/// long. It is said to stay so only after a while: what a store answers to one
/// that may not read it is not to be told from what it answers while it is away.
fn told_without_caller(
    found: Result<Option<Outcome>, EngineError>,
    shut: Option<Duration>,
    denied: &EngineError,
) -> OutcomeSeen {
    match told(found) {
        OutcomeSeen::Unavailable(why) if shut.is_some_and(|shut| shut >= SHUT_FOR_GOOD) => {
            tracing::debug!(why, "nor does the view's history open to relance itself");
            shut_for_good(denied)
        }
        OutcomeSeen::Unavailable(why) => {
            OutcomeSeen::Unavailable(format!("{denied}; and to relance itself {why}"))
        }
        told => told,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::SignedDuration;

    use super::*;

    fn denied() -> EngineError {
        EngineError::CatalogDenied {
            table: "v".into(),
            why: "the token has expired".into(),
        }
    }

    fn away() -> Result<Option<Outcome>, EngineError> {
        Err(EngineError::Unavailable {
            what: "the object o".into(),
            why: "503".into(),
        })
    }

    #[test]
    fn a_history_that_relance_cannot_read_now_is_shut_for_good_only_after_a_while() {
        let told = |shut| told_without_caller(away(), shut, &denied());
        let a_moment = SHUT_FOR_GOOD - Duration::from_secs(1);
        // None: relance has a way of its own to it.
        for shut in [None, Some(Duration::ZERO), Some(a_moment)] {
            let OutcomeSeen::Unavailable(why) = told(shut) else {
                panic!("{shut:?}: no wait is taken to mend it");
            };
            assert!(why.contains("expired") && why.ends_with("503"), "{why}");
        }
        assert_eq!(told(Some(SHUT_FOR_GOOD)), shut_for_good(&denied()));
        assert_eq!(
            told_without_caller(Ok(None), Some(SHUT_FOR_GOOD), &denied()),
            OutcomeSeen::NotFound
        );
    }

    #[test]
    fn a_history_that_no_wait_makes_readable_is_not_waited_for() {
        let newer = EngineError::InvalidInput("the view cannot be used: please upgrade".into());
        let expected = OutcomeSeen::Denied {
            reason: "InvalidInput",
            why: newer.to_string(),
        };
        assert_eq!(told(Err(newer)), expected);
        assert!(matches!(told(away()), OutcomeSeen::Unavailable(_)));
    }

    #[test]
    fn a_look_that_met_a_bug_ends_no_refresh_at_once() {
        let world = refused(&EngineError::Internal("it panicked".into()).into());
        let World::Unavailable(why) = world else {
            panic!("{world:?}");
        };
        assert!(why.contains("it panicked"), "{why}");
    }

    #[test]
    fn what_no_secret_can_be_called_fails_a_refresh_and_is_not_asked_for() {
        let named = |name: &str| unnamable(&SecretRef { name: name.into() });
        assert_eq!(named("manifest.v1"), None);
        for name in ["my secret", "100%"] {
            let Some(World::Refused { reason, message }) = named(name) else {
                panic!("'{name}' is asked for");
            };
            assert_eq!(reason, reasons::MANIFEST_MISMATCH);
            assert!(message.contains(&format!("'{name}'")), "{message}");
        }
    }

    #[test]
    fn a_credential_that_is_not_there_is_denied_unless_it_may_be_on_its_way() {
        let made = |ago: i64| {
            let spec = serde_json::json!({"view": ["n", "v"], "forwardedCredential": true});
            let mut refresh =
                MaterializedViewRefresh::new("r", serde_json::from_value(spec).unwrap());
            let at = Timestamp::now() - SignedDuration::from_secs(ago);
            refresh.metadata.creation_timestamp = Some(Time(at));
            without_credential(&refresh)
        };
        assert!(matches!(made(5), EngineError::Unavailable { .. }));
        let gone = made(SECRET_PATIENCE + 1);
        assert!(matches!(gone, EngineError::CatalogDenied { .. }));
        assert!(
            gone.to_string()
                .contains("for 'n$v': there is none any more"),
            "{gone}"
        );
    }
}
