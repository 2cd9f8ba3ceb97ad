//! One pass over a refresh: ask [`decide`], do what it says, ask again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams, Preconditions};
use thiserror::Error;
use tracing::Instrument;

use super::caller;
use super::context::Context;
use super::look;
use super::places::Asked;
use super::progress::Sampled;
use super::refresh::{
    Action, CannotAsk, JobSeen, LOOK_AGAIN, LaunchRefused, Look, Observed, Pause, Step, World,
    Write, decide, is_held,
};
use super::targets::Reach;
use super::{admission, apply, progress};
use crate::launch::target::{Target, TargetError};
use crate::launch::{job, state};
use crate::lean::Lean;
use crate::panics::{self, Panicked};
use crate::resources::{JobRef, MaterializedViewRefresh, Phase, RefreshClusterSpec, reasons};
use crate::telemetry;

/// More steps than any pass needs: a pass that takes more would never end.
const MOST_STEPS: usize = 64;

/// After a write that met a newer resource: the watch brings it about then.
const AFTER_CONFLICT: Duration = Duration::from_millis(100);

/// Why a pass broke off; it is repeated later.
#[derive(Debug, Error)]
pub enum PassError {
    /// The Kubernetes API did not answer as it should.
    #[error("the Kubernetes API: {0}")]
    Kube(#[from] kube::Error),
    /// A bug in it.
    #[error("the pass {0}; this is a bug")]
    Panicked(#[from] Panicked),
    /// `decide` asked for one step after another.
    #[error("refresh {0} does not come to rest; this is a bug")]
    Restless(String),
}

impl PassError {
    /// Whether it is of this refresh alone, and not for the API server to be away
    /// or busy: the same pass would break off again.
    fn is_its_own(&self) -> bool {
        match self {
            PassError::Kube(kube::Error::Api(status)) => {
                let passes = matches!(status.code, 401 | 408 | 409 | 429);
                (400..500).contains(&status.code) && !passes
            }
            PassError::Kube(error) => matches!(error, kube::Error::BuildRequest(_)),
            PassError::Panicked(_) | PassError::Restless(_) => true,
        }
    }
}

/// Takes a refresh that has not ended as far as it goes now; how long until
/// the next pass, at most. Once it has ended, it is looked after elsewhere
/// ([`super::ended`]).
pub async fn reconcile(
    refresh: Arc<MaterializedViewRefresh>,
    ctx: Arc<Context>,
) -> Option<Duration> {
    let passed = pass(refresh.clone(), &ctx).await;
    passed.unwrap_or_else(|error| Some(broke_off(&refresh, &error, &ctx)))
}

/// One pass over a refresh; how long until the next one, at most.
pub async fn pass(
    refresh: Arc<MaterializedViewRefresh>,
    ctx: &Arc<Context>,
) -> Result<Option<Duration>, PassError> {
    let span = telemetry::job_span(&refresh.name_any());
    // A panic would end the controller, and with it the passes of all others.
    panics::caught(passed(refresh, ctx))
        .instrument(span)
        .await?
}

async fn passed(
    refresh: Arc<MaterializedViewRefresh>,
    ctx: &Arc<Context>,
) -> Result<Option<Duration>, PassError> {
    ctx.metrics.passes.inc();
    let uid = refresh.uid().unwrap_or_default();
    let refresh = ctx.newest(refresh);
    let Some(mut pass) = Pass::new(ctx, &refresh).await? else {
        ctx.forget(&uid);
        return Ok(None);
    };
    let ended = pass.run(ctx).await;
    let phase = pass.phase();
    let cannot_ask = pass.seen.cannot_ask();
    let began = pass.began;
    drop(pass);
    if phase.is_terminal() {
        ctx.at_rest(&uid);
    }
    let pause = match ended? {
        End::Gone | End::Wait(Pause::ForChange) => {
            ctx.forget(&uid);
            return Ok(None);
        }
        End::Conflict => AFTER_CONFLICT,
        End::Wait(Pause::BackOff) => {
            match cannot_ask {
                Some(CannotAsk::History) => ctx.places.steps_aside(&uid),
                Some(CannotAsk::World) => ctx.places.stalls(&uid, began),
                None => {}
            }
            return Ok(Some(ctx.put_off(&uid)));
        }
        End::Wait(Pause::ForProgress) => ctx.between_looks(),
        End::Wait(Pause::AtMost(pause)) => pause,
    };
    // One that waits has not come through: it may be put off at its next turn.
    if phase != Phase::Queued {
        ctx.went_on(&uid);
    }
    Ok(Some(pause))
}

/// Tells of a pass that broke off; how long to wait until the next.
pub fn broke_off(refresh: &MaterializedViewRefresh, error: &PassError, ctx: &Context) -> Duration {
    ctx.metrics.errors.inc();
    let uid = refresh.uid().unwrap_or_default();
    let pause = ctx.put_off(&uid);
    if error.is_its_own() && refresh.phase() == Phase::Queued {
        // It may never come to ask for its turn.
        ctx.places.steps_aside(&uid);
    }
    let job_id = refresh.name_any();
    match error {
        PassError::Kube(_) => tracing::warn!(job_id, %error, ?pause, "a pass broke off"),
        _ => tracing::error!(job_id, %error, ?pause, "a pass broke off"),
    }
    pause
}

enum End {
    Wait(Pause),
    Conflict,
    Gone,
}

/// One pass. A turn that it was given is kept for it until it is dropped.
struct Pass<'a> {
    seen: Observed,
    cluster: Option<RefreshClusterSpec>,
    turn: Option<Asked<'a>>,
    /// Where the view was that the turn was asked for.
    turn_at: Option<String>,
    /// It has deleted a Job.
    has_deleted: bool,
    since: SystemTime,
    began: Instant,
}

impl<'a> Pass<'a> {
    /// `None`: the refresh is gone.
    async fn new(
        ctx: &'a Context,
        refresh: &MaterializedViewRefresh,
    ) -> Result<Option<Pass<'a>>, PassError> {
        let mut refresh = refresh.clone();
        let status = refresh.status.as_ref();
        let phase = refresh.phase();
        let intent = status.and_then(|s| s.job.as_ref());
        if phase == Phase::Running && intent.is_some_and(|job| job.uid.is_none()) {
            // Nothing is launched on an intent that a cache remembers.
            match ctx.refreshes.get_opt(&refresh.name_any()).await? {
                Some(Lean(fresh)) if fresh.uid() == refresh.uid() => refresh = fresh,
                _ => return Ok(None),
            }
        }
        let cluster = ctx.cluster(&refresh.spec.cluster);
        let cluster = cluster.map(|cluster| cluster.spec.clone());
        let job_name = job::name(&refresh, &ctx.home);
        let job = phase.is_terminal() && !is_held(&refresh);
        let job = job.then(|| look::cached_job(ctx, &refresh));
        let known = cluster.clone().unwrap_or_default();
        let made = refresh.status.as_ref().and_then(|s| s.job.clone());
        let (namespace, server) = made.map(|job| (job.namespace, job.server)).unzip();
        Ok(Some(Pass {
            seen: Observed {
                now: Timestamp::now(),
                job_name,
                job_namespace: namespace.unwrap_or_default(),
                job_server: server.flatten(),
                remote: known.is_remote(),
                deadline: deadline(&refresh, &known),
                world: None,
                turn: None,
                job: job.flatten(),
                outcome: None,
                refused: None,
                credential: None,
                progress: None,
                unexplained: false,
                refresh,
            },
            cluster,
            turn: None,
            turn_at: None,
            has_deleted: false,
            since: SystemTime::now(),
            began: Instant::now(),
        }))
    }

    async fn run(&mut self, ctx: &'a Context) -> Result<End, PassError> {
        for _ in 0..MOST_STEPS {
            match decide(&self.seen) {
                Action::Look(what) => self.look(ctx, what).await?,
                Action::Write(write) => {
                    if let Some(end) = self.write(ctx, &write).await? {
                        return Ok(end);
                    }
                }
                Action::CreateJob => self.create(ctx).await?,
                Action::Hold => {
                    let held = apply::hold(ctx, &self.seen.refresh).await?;
                    let Some(held) = held else {
                        return Ok(End::Conflict);
                    };
                    self.seen.refresh = held;
                }
                Action::Release(step) => {
                    let released = apply::release(ctx, &self.seen.refresh, step.as_ref()).await?;
                    match released {
                        Some(released) => self.seen.refresh = released,
                        None if self.seen.is_deleted() => return Ok(End::Gone),
                        None => return Ok(End::Conflict),
                    }
                }
                Action::DeleteJob { uid } => {
                    self.delete_job(ctx, &uid).await?;
                    if self.phase().is_terminal() {
                        return Ok(End::Wait(Pause::AtMost(LOOK_AGAIN)));
                    }
                }
                Action::DeleteCredential => {
                    let found = caller::delete_credential(ctx, &self.seen.refresh).await?;
                    self.seen.credential = Some(found);
                }
                Action::DeleteRefresh => {
                    apply::delete_refresh(ctx, &self.seen.refresh).await?;
                    return Ok(End::Gone);
                }
                Action::Wait(pause) => return Ok(End::Wait(pause)),
            }
        }
        Err(PassError::Restless(self.seen.refresh.name_any()))
    }

    /// Whether it is not the first attempt to create its Job.
    fn is_late(&self) -> bool {
        let status = self.seen.refresh.status.as_ref();
        let start = status.and_then(|s| s.start_time.as_ref());
        start.is_some_and(|start| self.seen.now.duration_since(start.0).as_secs() >= 1)
    }

    fn phase(&self) -> Phase {
        self.seen.refresh.phase()
    }

    async fn look(&mut self, ctx: &'a Context, what: Look) -> Result<(), PassError> {
        match what {
            Look::World => self.look_at_world(ctx).await?,
            Look::Turn => {
                // Nothing is let in or launched by what a watch showed of a
                // RefreshCluster before it was changed.
                let cluster = &self.seen.refresh.spec.cluster;
                ctx.ask_for_cluster(cluster, self.began).await?;
                let cluster = ctx.cluster(cluster);
                self.turn_at = match &self.seen.world {
                    Some(World::Ready { uri, .. }) => Some(uri.clone()),
                    _ => self.seen.status().view_uri,
                };
                let (turn, reservation) =
                    admission::turn(ctx, &self.seen.refresh, self.seen.world.as_ref()).await?;
                if cluster.as_ref().map(|cluster| &cluster.spec) != self.cluster.as_ref() {
                    self.seen.world = None;
                }
                self.seen.turn = Some(turn);
                self.turn = reservation;
                self.look_past_one_that_stalls(ctx).await?;
            }
            Look::Job => {
                let job = match self.target(ctx).await? {
                    Ok(target) => self.look_at_job(&target).await?,
                    Err(unseen) => unseen,
                };
                self.seen.saw_job(Some(job));
            }
            Look::Outcome => {
                self.seen.outcome = Some(look::outcome(ctx, &self.seen.refresh).await);
            }
            Look::Progress => {
                let sampled = match self.target(ctx).await? {
                    Ok(target) => progress::progress(ctx, &target, &self.seen).await,
                    Err(_) => Sampled::default(),
                };
                let seen = &mut self.seen;
                if let Some(JobSeen::Ours(job)) = &mut seen.job
                    && job.stuck.is_none()
                {
                    job.stuck = sampled.stuck;
                }
                seen.unexplained = sampled.unexplained;
                seen.progress = Some(sampled.progress);
            }
        }
        Ok(())
    }

    async fn look_at_world(&mut self, ctx: &Context) -> Result<(), PassError> {
        let (world, cluster) = look::world(ctx, &self.seen.refresh).await?;
        let uid = self.seen.refresh.uid().unwrap_or_default();
        match &world {
            World::Ready { uri, .. } => {
                ctx.places.can_look(&uid);
                if self.turn_at.as_ref().is_some_and(|at| at != uri) {
                    // The view was made anew elsewhere, and the turn was for
                    // the place where it was.
                    self.seen.turn = None;
                    self.turn = None;
                }
            }
            World::Unavailable(_) if self.turn.is_some() => ctx.places.stalls(&uid, self.began),
            _ => {}
        }
        self.seen.world = Some(world);
        self.cluster = cluster.or(self.cluster.take());
        if let Some(cluster) = &self.cluster {
            self.seen.remote = cluster.is_remote();
            self.seen.deadline = deadline(&self.seen.refresh, cluster);
            let (namespace, server) = self.place(ctx, cluster).await;
            self.seen.job_namespace = namespace;
            self.seen.job_server = server;
        }
        Ok(())
    }

    /// Who waits for one that cannot look at their view sees whether it can itself:
    /// only then is it the other's own fault, and no outage, after which each comes
    /// in its order.
    async fn look_past_one_that_stalls(&mut self, ctx: &Context) -> Result<(), PassError> {
        let uid = self.seen.refresh.uid().unwrap_or_default();
        let Some(before) = ctx.places.held_up_by(&uid) else {
            return Ok(());
        };
        if self.seen.world.is_none() {
            self.look_at_world(ctx).await?;
        }
        if matches!(self.seen.world, Some(World::Ready { .. })) {
            ctx.places.is_awaited(&before);
        }
        Ok(())
    }

    /// None: go on.
    async fn write(&mut self, ctx: &Context, write: &Write) -> Result<Option<End>, PassError> {
        // What is no step may wait; steps may not.
        if write.step.is_none() && !ctx.updates.take() {
            return Ok(Some(End::Wait(Pause::AtMost(LOOK_AGAIN))));
        }
        match apply::status(ctx, &self.seen.refresh, write).await? {
            Some(written) => {
                self.seen.wrote(written);
                if let Some(step) = &write.step {
                    self.trace(step);
                }
                Ok(None)
            }
            None => Ok(Some(End::Conflict)),
        }
    }

    /// Adds a step to the refresh's trace: what led to it began with the pass,
    /// or with the step before it.
    fn trace(&mut self, step: &Step) {
        let began = std::mem::replace(&mut self.since, SystemTime::now());
        let origin = job::origin(&self.seen.refresh);
        let span = match step.reason.as_str() {
            reasons::JOB_CREATED => origin.launch(began),
            _ => origin.step("reconcile", began),
        };
        if let Some(span) = span {
            span.with("job_id", self.seen.refresh.name_any())
                .with("view", self.seen.refresh.spec.view.join("$"))
                .with("cluster", &self.seen.refresh.spec.cluster)
                .with("phase", format!("{:?}", self.phase()))
                .with("reason", &step.reason)
                .end(self.phase() == Phase::Failed);
        }
    }

    /// The cluster that the Job is in, or would be made in; else why it cannot be seen.
    async fn target(&mut self, ctx: &Context) -> Result<Result<Arc<Target>, JobSeen>, PassError> {
        Ok(match look::reach(ctx, &self.seen.refresh).await? {
            Reach::By(target) => match self.left_in(&target).await? {
                Some(unseen) => Err(unseen),
                None => Ok(target),
            },
            Reach::Missing(why) | Reach::Unread(why) | Reach::Refused(why) => {
                Err(JobSeen::Away(why))
            }
            Reach::Gone(why) => Err(JobSeen::Lost(why)),
        })
    }

    /// What is to be said of its Job if that is elsewhere than its
    /// RefreshCluster points now: in another cluster or another namespace.
    async fn left_in(&mut self, target: &Target) -> Result<Option<JobSeen>, PassError> {
        // Where no Job of it is there, the next one may be anywhere.
        if !target.is_remote() || !self.seen.has_begun() {
            return Ok(None);
        }
        let Some(made) = self.seen.status().job else {
            return Ok(None);
        };
        let server = target.server().filter(|server| made.is_elsewhere(server));
        if let Some(server) = server {
            if let Some(unseen) = self.left_in_cluster(&made, target).await? {
                return Ok(Some(unseen));
            }
            self.seen.job_server = Some(server.to_string());
        }
        self.left_in_namespace(&made, target).await
    }

    /// The same where the kubeconfig gives another address than the Job was made
    /// at. That it is found there shows that it is another name of one cluster.
    async fn left_in_cluster(
        &self,
        made: &JobRef,
        target: &Target,
    ) -> Result<Option<JobSeen>, PassError> {
        match target.has_job(&made.namespace, &made.name).await {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            // It answers that this namespace is none of relance's there.
            Err(error) if error.code().is_some() => {}
            Err(error) => return Ok(Some(look::out_of_sight(target, error)?)),
        }
        Ok(Some(JobSeen::Lost(format!(
            "it was made in another cluster than RefreshCluster '{}' points to now",
            self.seen.refresh.spec.cluster
        ))))
    }

    /// The same of the namespace. One that was not seen yet is looked for there;
    /// where it is not, it is to be made in the namespace that is named.
    async fn left_in_namespace(
        &mut self,
        made: &JobRef,
        target: &Target,
    ) -> Result<Option<JobSeen>, PassError> {
        if made.namespace == target.namespace {
            return Ok(None);
        }
        if made.uid.is_none() {
            match target.has_job(&made.namespace, &made.name).await {
                Ok(true) => {}
                Ok(false) => {
                    self.seen.job_namespace = target.namespace.clone();
                    return Ok(None);
                }
                Err(error) => return Ok(Some(look::out_of_sight(target, error)?)),
            }
        }
        Ok(Some(JobSeen::Lost(format!(
            "it was made in namespace '{}', and RefreshCluster '{}' names '{}' now",
            made.namespace, self.seen.refresh.spec.cluster, target.namespace
        ))))
    }

    /// The namespace of a Job that would be made now, and by what its cluster is
    /// known again.
    async fn place(&self, ctx: &Context, cluster: &RefreshClusterSpec) -> (String, Option<String>) {
        let home = || ctx.targets.home().namespace.clone();
        if !cluster.is_remote() {
            return (home(), None);
        }
        let name = &self.seen.refresh.spec.cluster;
        match ctx.targets.reach(name, Some(cluster)).await {
            Reach::By(target) => (
                target.namespace.clone(),
                target.server().map(str::to_string),
            ),
            _ => (cluster.namespace.clone().unwrap_or_else(home), None),
        }
    }

    async fn look_at_job(&self, target: &Target) -> Result<JobSeen, PassError> {
        let job = look::job(target, &self.seen, self.has_deleted).await;
        Ok(match job {
            Ok(job) => job,
            Err(error) => look::out_of_sight(target, error)?,
        })
    }

    async fn create(&mut self, ctx: &Context) -> Result<(), PassError> {
        let refused = |reason: &str, permanent: bool, message: String| LaunchRefused {
            reason: reason.to_string(),
            permanent,
            message,
        };
        let name = self.seen.refresh.spec.cluster.clone();
        if self.is_late() {
            // A watch may be behind what mended the cluster.
            let found = ctx.clusters.get_opt(&name).await?;
            self.cluster = found.map(|cluster| cluster.spec).or(self.cluster.take());
        }
        if self.cluster.is_none() && !self.seen.is_held() {
            // The operator died after the intent; the cluster may be gone since.
            match look::cluster(ctx, &name).await? {
                Ok(cluster) => self.cluster = Some(cluster),
                Err(error) => {
                    self.seen.refused = Some(refused(error.reason(), true, error.to_string()));
                    return Ok(());
                }
            }
        }
        let target = match self.target(ctx).await? {
            Ok(target) => target,
            Err(unseen) => {
                self.seen.saw_job(Some(unseen));
                return Ok(());
            }
        };
        let cluster = self.cluster.clone().unwrap_or_default();
        let place = job::Place {
            namespace: &target.namespace,
            remote: target.is_remote(),
        };
        let job = match job::job(&self.seen.refresh, &cluster, &ctx.home, place) {
            Ok(job) => job,
            Err(why) => {
                let why = format!("RefreshCluster '{name}' makes no Job: {why}");
                self.seen.refused = Some(refused(reasons::JOB_REJECTED, true, why));
                return Ok(());
            }
        };
        let params = PostParams::default();
        let created = target.ask(target.jobs.create(&params, &Lean(job))).await;
        let error = match created {
            Ok(Lean(job)) => {
                ctx.metrics.launches.inc();
                self.seen.saw_job(Some(JobSeen::Ours(state::of(&job, []))));
                return Ok(());
            }
            // It may have been created all the same.
            Err(TargetError::Away(why)) => {
                self.seen.saw_job(Some(JobSeen::Away(why)));
                return Ok(());
            }
            Err(TargetError::Kube(error)) => error,
        };
        match error {
            kube::Error::Api(status) if status.is_already_exists() => {
                let found = self.look_at_job(&target).await?;
                if found == JobSeen::Absent {
                    // It went in between.
                    let message = format!("Job {} comes and goes", self.seen.job_name);
                    self.seen.refused = Some(refused(reasons::JOB_REJECTED, false, message));
                } else {
                    self.seen.saw_job(Some(found));
                }
            }
            kube::Error::Api(status) if matches!(status.code, 400 | 422) => {
                let message = format!(
                    "the API server refuses the Job: {}; mend the template of RefreshCluster '{name}' and refresh again",
                    status.message
                );
                self.seen.refused = Some(refused(reasons::JOB_REJECTED, true, message));
            }
            // A quota that is used up, or an admission webhook that does not answer;
            // in another cluster, its namespace is perhaps to come.
            kube::Error::Api(status)
                if matches!(status.code, 403 | 500)
                    || (status.code == 404 && target.is_remote()) =>
            {
                let message = format!(
                    "the API server does not allow the Job now: {}; it is tried again",
                    status.message
                );
                self.seen.refused = Some(refused(reasons::JOB_REJECTED, false, message));
            }
            error => return Err(error.into()),
        }
        Ok(())
    }

    /// Deletes the Job; it stays, marked, until its pods are gone.
    async fn delete_job(&mut self, ctx: &Context, uid: &str) -> Result<(), PassError> {
        self.seen.saw_job(None);
        let target = match self.target(ctx).await? {
            Ok(target) => target,
            Err(unseen) => {
                self.seen.saw_job(Some(unseen));
                return Ok(());
            }
        };
        let params = DeleteParams::foreground().preconditions(Preconditions {
            uid: Some(uid.to_string()),
            resource_version: None,
        });
        let name = &self.seen.job_name;
        self.has_deleted = true;
        match target.ask(target.jobs.delete(name, &params)).await {
            Ok(_) => {}
            Err(error) if matches!(error.code(), Some(404 | 409)) => {}
            Err(error) => {
                let unseen = look::out_of_sight(&target, error)?;
                self.seen.saw_job(Some(unseen));
            }
        }
        Ok(())
    }
}

/// How long a refresh may take through a cluster.
fn deadline(refresh: &MaterializedViewRefresh, cluster: &RefreshClusterSpec) -> SignedDuration {
    SignedDuration::from_secs(cluster.deadline_seconds(refresh.spec.active_deadline_seconds))
}
