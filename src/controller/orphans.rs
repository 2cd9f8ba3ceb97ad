//! Jobs that no refresh speaks of any more: their refresh was deleted while its
//! cluster could not be reached, or a create landed after all was over. In this
//! cluster an ownerReference sees to it; in others nobody does before the Job's
//! own deadline, so now and then the operator looks.
//!
//! It looks here too for those that work, or wait to: a refresh that was deleted
//! with `--cascade=orphan` leaves its Job without an owner, and its view is busy
//! with that, for ever if something holds it.
//!
//! Only Jobs of this home are looked at, by their label: another home's in the
//! same cluster are that home's.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use super::context::Context;
use super::refresh::is_held;
use crate::launch::target::{Target, TargetError};
use crate::launch::{job, state};
use crate::lean::Lean;
use crate::resources::{MaterializedViewRefresh, Phase, names};

/// How often it is looked.
const SWEEP: Duration = Duration::from_secs(15);

/// How old a Job must be: a younger one's refresh may be on its way here.
const AGE: SignedDuration = SignedDuration::from_secs(15);

/// How long the refresh of a Job that has ended is taken to be there still, if
/// no watch shows that it has gone: such Jobs stay for a day, and each would
/// be asked after with every sweep.
const SEEN: Duration = Duration::from_secs(600);

/// As many refreshes are asked for one by one; where there are more, all of
/// the namespace are listed, a page at a time.
const ONE_BY_ONE: usize = 20;

/// Refreshes in a page.
const PAGE: u32 = 500;

/// Sweeps until it is dropped.
pub async fn run(ctx: &Context) {
    loop {
        tokio::time::sleep(SWEEP).await;
        sweep_all(ctx).await;
    }
}

/// Looks at the Jobs of all targets that answer.
pub(super) async fn sweep_all(ctx: &Context) {
    ctx.lasting.begin(Instant::now());
    let others = ctx.targets.connected().into_iter();
    for target in others.chain([ctx.targets.home().clone()]) {
        if target.silent().is_none()
            && let Err(error) = sweep(ctx, &target).await
        {
            tracing::debug!(%error, "orphans cannot be looked for");
        }
    }
}

/// Refreshes that were there when their ended Jobs were looked at, by UID.
#[derive(Debug, Default)]
pub struct Lasting(Mutex<Round>);

#[derive(Debug, Default)]
struct Round {
    since: Option<Instant>,
    refreshes: HashSet<String>,
}

impl Lasting {
    /// Begins anew after [`SEEN`], for those whose end no watch showed.
    fn begin(&self, now: Instant) {
        let mut round = self.round();
        let since = *round.since.get_or_insert(now);
        if now.duration_since(since) >= SEEN {
            *round = Round {
                since: Some(now),
                refreshes: HashSet::new(),
            };
        }
    }

    /// It has gone: its Jobs are looked at with the next sweep.
    pub fn forget(&self, refresh: &str) {
        self.round().refreshes.remove(refresh);
    }

    fn note(&self, refresh: &str) {
        self.round().refreshes.insert(refresh.to_string());
    }

    fn has(&self, refresh: &str) -> bool {
        self.round().refreshes.contains(refresh)
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the Jobs of a target.
async fn sweep(ctx: &Context, target: &Target) -> Result<(), kube::Error> {
    let now = Timestamp::now();
    let known = target.known_jobs.state();
    let watched = |found: &&Arc<Job>| is_watched(ctx, found);
    let known = known.iter().filter(|found| !watched(found));
    let (mut ended, running) = to_ask_for(known, &ctx.lasting, now);
    if !target.is_remote() {
        // They stand in nobody's way, and go with their owner or in a day.
        ended.clear();
    }
    for found in running {
        // The API server is asked before one is taken for an orphan.
        let refresh = match refresh_of(found) {
            Some(name) => ctx.refreshes.get_opt(name).await?,
            None => continue,
        };
        let refresh = refresh.map(|Lean(refresh)| refresh);
        if is_orphan(found, refresh.as_ref(), now) && !delete(target, found).await {
            return Ok(());
        }
    }
    let there = there(&ctx.refreshes, &ended).await?;
    for found in ended {
        match uid_of(found).filter(|uid| there.contains(*uid)) {
            Some(refresh) => ctx.lasting.note(refresh),
            None if delete(target, found).await => {}
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Whether its refresh is shown by the watch of those that have not ended.
fn is_watched(ctx: &Context, found: &Job) -> bool {
    let namespace = ctx.refreshes.namespace().unwrap_or_default();
    let Some(refresh) = refresh_of(found) else {
        return false;
    };
    let known = ObjectRef::new(refresh).within(namespace);
    let known = ctx.known.refreshes.get(&known);
    known.is_some_and(|known| job::is_of(found, &known))
}

fn refresh_of(found: &Job) -> Option<&String> {
    found.labels().get(names::REFRESH_LABEL)
}

fn uid_of(found: &Job) -> Option<&String> {
    found.labels().get(names::REFRESH_UID_LABEL)
}

/// Those Jobs whose refreshes must be asked for: such as have ended, of which it
/// only counts whether their refresh is there, and such as run.
fn to_ask_for<'a>(
    known: impl Iterator<Item = &'a Arc<Job>>,
    lasting: &Lasting,
    now: Timestamp,
) -> (Vec<&'a Job>, Vec<&'a Job>) {
    let known = known.map(|found| &**found);
    let old = known.filter(|found| refresh_of(found).is_some() && may_be_orphan(found, now));
    let (mut ended, running): (Vec<_>, Vec<_>) =
        old.partition(|found| state::of(found, []).end.is_some());
    ended.retain(|found| uid_of(found).is_none_or(|uid| !lasting.has(uid)));
    (ended, running)
}

/// The UIDs of refreshes that are there, those of all these Jobs among them.
async fn there(
    refreshes: &Api<Lean<MaterializedViewRefresh>>,
    ended: &[&Job],
) -> Result<HashSet<String>, kube::Error> {
    let wanted: HashSet<&String> = ended.iter().filter_map(|found| refresh_of(found)).collect();
    let mut there = HashSet::new();
    if wanted.len() <= ONE_BY_ONE {
        for name in wanted {
            let found = refreshes.get_metadata_opt(name).await?;
            there.extend(found.and_then(|found| found.uid()));
        }
        return Ok(there);
    }
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = refreshes.list_metadata(&params).await?;
        there.extend(page.iter().filter_map(ResourceExt::uid));
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(there);
        }
    }
}

/// Deletes an orphan. False: its cluster does not answer.
async fn delete(target: &Target, found: &Job) -> bool {
    let name = found.name_any();
    tracing::info!(job = name, "deleting a Job whose refresh is gone or over");
    let params = DeleteParams::foreground().preconditions(Preconditions {
        uid: found.uid(),
        resource_version: None,
    });
    match target.ask(target.jobs.delete(&name, &params)).await {
        Ok(_) => {}
        Err(TargetError::Away(_)) => return false,
        Err(error) => tracing::debug!(job = name, %error, "an orphan stays"),
    }
    true
}

/// Whether a Job is old enough, and not on its way out.
fn may_be_orphan(found: &Job, now: Timestamp) -> bool {
    let created = found.creation_timestamp();
    let is_old = created.is_some_and(|at| now.duration_since(at.0) >= AGE);
    is_old && found.metadata.deletion_timestamp.is_none()
}

/// Whether a Job does nothing for the refresh that is stored under the name it
/// was made for. One that has ended stays for its logs while its refresh does.
fn is_orphan(found: &Job, refresh: Option<&MaterializedViewRefresh>, now: Timestamp) -> bool {
    if !may_be_orphan(found, now) {
        return false;
    }
    let Some(refresh) = refresh.filter(|refresh| job::is_of(found, refresh)) else {
        return true;
    };
    let status = refresh.status.clone().unwrap_or_default();
    let runs = state::of(found, []).end.is_none();
    // One that succeeded may have done so before its UID was written, by an operator
    // that took over from one that died.
    let succeeded = status.phase == Phase::Succeeded;
    let its_own = status.job.is_some_and(|job| match job.uid {
        Some(uid) => Some(uid) == found.uid(),
        None => succeeded,
    });
    runs && status.phase.is_terminal() && !is_held(refresh) && !its_own
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn job(age: i64) -> Job {
        serde_json::from_value(json!({
            "metadata": {
                "name": "r-0", "uid": "job",
                "creationTimestamp": Timestamp::from_second(NOW - age).unwrap(),
                "labels": {names::REFRESH_UID_LABEL: "uid"},
            },
        }))
        .unwrap()
    }

    fn refresh(uid: &str, phase: &str, job: &str) -> MaterializedViewRefresh {
        serde_json::from_value(json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "MaterializedViewRefresh",
            "metadata": {"name": "r", "uid": uid},
            "spec": {"view": ["v"]},
            "status": {"phase": phase, "job": {"name": "r-0", "namespace": "n", "cluster": "c", "uid": job}},
        }))
        .unwrap()
    }

    fn orphan(job: &Job, refresh: Option<&MaterializedViewRefresh>) -> bool {
        is_orphan(job, refresh, Timestamp::from_second(NOW).unwrap())
    }

    /// Jobs that have ended, each of a refresh of its own.
    fn ended(count: usize) -> Vec<Arc<Job>> {
        let ended = (0..count).map(|n| {
            let mut ended = job(60);
            let labels = ended.metadata.labels.get_or_insert_default();
            labels.insert(names::REFRESH_LABEL.into(), format!("r{n}"));
            labels.insert(names::REFRESH_UID_LABEL.into(), format!("uid{n}"));
            ended.status = serde_json::from_value(json!({
                "conditions": [{"type": "Failed", "status": "True"}],
            }))
            .unwrap();
            Arc::new(ended)
        });
        ended.collect()
    }

    /// Refreshes of an API server that has `count` of them in pages, and how
    /// often it was asked.
    fn refreshes(count: usize) -> (Api<Lean<MaterializedViewRefresh>>, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let meta = |n: usize| {
            json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": format!("r{n}"), "uid": format!("uid{n}")},
            })
        };
        let answer = move |request: Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let (path, query) = (request.uri().path(), request.uri().query().unwrap_or(""));
            let answer = match path.rsplit_once("/r") {
                Some((_, n)) if n.parse::<usize>().is_ok() => meta(n.parse().unwrap()),
                _ => {
                    let from = query
                        .rsplit_once("continue=")
                        .map_or(0, |(_, n)| n.parse().unwrap());
                    let to = count.min(from + PAGE as usize);
                    let more = (to < count).then(|| to.to_string());
                    json!({
                        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                        "metadata": {"continue": more}, "items": (from..to).map(meta).collect::<Vec<_>>(),
                    })
                }
            };
            let answer = Response::new(Body::from(answer.to_string().into_bytes()));
            std::future::ready(Ok::<_, std::convert::Infallible>(answer))
        };
        let client = Client::new(tower::service_fn(answer), "ns");
        (Api::namespaced(client, "ns"), asked)
    }

    #[tokio::test]
    async fn ended_jobs_cost_a_few_pages_and_then_nothing_for_a_while() {
        let (jobs, lasting) = (ended(500), Lasting::default());
        let (refreshes, asked) = refreshes(1_200);
        let now = Timestamp::from_second(NOW).unwrap();
        let began = Instant::now();
        let sweep = async |after: Duration| {
            lasting.begin(began + after);
            let (ended, running) = to_ask_for(jobs.iter(), &lasting, now);
            assert!(running.is_empty());
            let there = there(&refreshes, &ended).await.unwrap();
            for found in ended {
                let uid = uid_of(found).unwrap();
                assert!(there.contains(uid));
                lasting.note(uid);
            }
            asked.swap(0, Ordering::Relaxed)
        };
        assert_eq!(sweep(Duration::ZERO).await, 3);
        assert_eq!(sweep(SWEEP).await, 0);
        // One is deleted, and a watch shows it.
        lasting.forget("uid7");
        assert_eq!(sweep(SWEEP * 2).await, 1);
        assert_eq!(sweep(SEEN).await, 3);
    }

    #[test]
    fn a_job_that_runs_is_asked_after_with_each_sweep() {
        let lasting = Lasting::default();
        lasting.note("uid");
        let mut runs = job(60);
        let labels = runs.metadata.labels.get_or_insert_default();
        labels.insert(names::REFRESH_LABEL.into(), "r".into());
        let jobs = [Arc::new(runs), Arc::new(job(60))];
        let now = Timestamp::from_second(NOW).unwrap();
        let (ended, running) = to_ask_for(jobs.iter(), &lasting, now);
        // The other one is nobody's.
        assert_eq!((ended.len(), running.len()), (0, 1));
    }

    #[test]
    fn a_job_whose_refresh_is_gone_or_is_another_of_that_name_is_an_orphan() {
        assert!(orphan(&job(60), None));
        assert!(orphan(&job(60), Some(&refresh("other", "Running", "job"))));
    }

    #[test]
    fn a_young_job_and_one_that_is_being_deleted_are_left_alone() {
        assert!(!orphan(&job(5), None));
        let mut deleting = job(60);
        deleting.metadata.deletion_timestamp = deleting.metadata.creation_timestamp.clone();
        assert!(!orphan(&deleting, None));
    }

    #[test]
    fn the_job_of_a_refresh_that_runs_or_of_a_success_that_was_seen_early_is_none() {
        assert!(!orphan(&job(60), Some(&refresh("uid", "Running", "job"))));
        assert!(!orphan(&job(60), Some(&refresh("uid", "Succeeded", "job"))));
        let unwritten = |phase| {
            let mut refresh = refresh("uid", phase, "job");
            let job = refresh.status.as_mut().and_then(|s| s.job.as_mut());
            job.unwrap().uid = None;
            refresh
        };
        assert!(!orphan(&job(60), Some(&unwritten("Succeeded"))));
        assert!(orphan(&job(60), Some(&unwritten("Failed"))));
    }

    #[test]
    fn a_job_that_landed_after_its_refresh_was_over_is_one() {
        assert!(orphan(
            &job(60),
            Some(&refresh("uid", "Cancelled", "before"))
        ));
        let mut held = refresh("uid", "Cancelled", "before");
        held.metadata.finalizers = Some(vec![names::REMOTE_FINALIZER.into()]);
        assert!(!orphan(&job(60), Some(&held)), "its pass sees to it");
    }

    #[test]
    fn a_job_that_has_ended_stays_while_its_refresh_does() {
        let mut ended = job(60);
        ended.status = serde_json::from_value(json!({
            "conditions": [{"type": "Failed", "status": "True"}],
        }))
        .unwrap();
        assert!(!orphan(&ended, Some(&refresh("uid", "Failed", "before"))));
        assert!(orphan(&ended, None));
    }
}
