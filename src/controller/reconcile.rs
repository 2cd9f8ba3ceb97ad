//! One pass over a refresh: ask [`decide`], do what it says, ask again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::controller::Action as Requeue;
use thiserror::Error;
use tracing::Instrument;

use super::context::Context;
use super::look;
use super::refresh::{
    Action, JobSeen, LOOK_AGAIN, LaunchRefused, Look, Observed, Pause, Step, Write, decide,
};
use super::{admission, apply};
use crate::launch::{job, state};
use crate::resources::{MaterializedViewRefresh, Phase, RefreshClusterSpec, reasons};
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
    /// `decide` asked for one step after another.
    #[error("refresh {0} does not come to rest; this is a bug")]
    Restless(String),
}

/// Takes a refresh that has not ended as far as it goes now. Once it has, it
/// is looked after elsewhere ([`super::ended`]).
pub async fn reconcile(
    refresh: Arc<MaterializedViewRefresh>,
    ctx: Arc<Context>,
) -> Result<Requeue, PassError> {
    let pause = pass(refresh, &ctx).await?;
    Ok(pause.map_or_else(Requeue::await_change, Requeue::requeue))
}

/// One pass over a refresh; how long until the next one, at most.
pub async fn pass(
    refresh: Arc<MaterializedViewRefresh>,
    ctx: &Arc<Context>,
) -> Result<Option<Duration>, PassError> {
    let span = telemetry::job_span(&refresh.name_any());
    passed(refresh, ctx).instrument(span).await
}

async fn passed(
    refresh: Arc<MaterializedViewRefresh>,
    ctx: &Arc<Context>,
) -> Result<Option<Duration>, PassError> {
    ctx.metrics.passes.inc();
    let uid = refresh.uid().unwrap_or_default();
    let refresh = ctx.newest(refresh);
    let mut pass = Pass::new(ctx, &refresh).await?;
    let ended = pass.run(ctx).await;
    drop(pass);
    let pause = match ended? {
        End::Gone | End::Wait(Pause::ForChange) => {
            ctx.forget(&uid);
            return Ok(None);
        }
        End::Conflict => AFTER_CONFLICT,
        End::Wait(Pause::BackOff) => return Ok(Some(ctx.put_off(&uid))),
        End::Wait(Pause::AtMost(pause)) => pause,
    };
    ctx.went_on(&uid);
    Ok(Some(pause))
}

/// How long to wait after a pass that broke off.
pub fn after_error(
    refresh: Arc<MaterializedViewRefresh>,
    error: &PassError,
    ctx: Arc<Context>,
) -> Requeue {
    Requeue::requeue(broke_off(&refresh, error, &ctx))
}

/// Tells of a pass that broke off; how long to wait until the next.
pub fn broke_off(refresh: &MaterializedViewRefresh, error: &PassError, ctx: &Context) -> Duration {
    ctx.metrics.errors.inc();
    let pause = ctx.put_off(&refresh.uid().unwrap_or_default());
    tracing::warn!(job_id = refresh.name_any(), %error, ?pause, "a pass broke off");
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
    turn: Option<admission::Reservation<'a>>,
    since: SystemTime,
}

impl<'a> Pass<'a> {
    async fn new(
        ctx: &'a Context,
        refresh: &MaterializedViewRefresh,
    ) -> Result<Pass<'a>, PassError> {
        let mut refresh = refresh.clone();
        let status = refresh.status.as_ref();
        let phase = status.map_or(Phase::Queued, |s| s.phase);
        let intent = status.and_then(|s| s.job.as_ref());
        if phase == Phase::Running
            && intent.is_some_and(|job| job.uid.is_none())
            && let Some(fresh) = ctx.refreshes.get_opt(&refresh.name_any()).await?
        {
            // Nothing is launched on an intent that a cache remembers.
            refresh = fresh;
        }
        let cluster = ctx.cluster(&refresh.spec.cluster);
        let cluster = cluster.map(|cluster| cluster.spec.clone());
        let deadline = cluster.clone().unwrap_or_default().active_deadline_seconds;
        let job_name = job::name(&refresh, &ctx.home);
        let job = phase.is_terminal().then(|| look::cached_job(ctx, &refresh));
        Ok(Pass {
            seen: Observed {
                now: Timestamp::now(),
                job_name,
                deadline: SignedDuration::from_secs(deadline),
                world: None,
                turn: None,
                job: job.flatten(),
                outcome: None,
                refused: None,
                progress: None,
                refresh,
            },
            cluster,
            turn: None,
            since: SystemTime::now(),
        })
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
                Action::DeleteJob { uid } => {
                    delete_job(ctx, &self.seen.job_name, &uid).await?;
                    self.seen.saw_job(None);
                    if self.phase().is_terminal() {
                        return Ok(End::Wait(Pause::AtMost(LOOK_AGAIN)));
                    }
                }
                Action::DeleteRefresh => {
                    delete_refresh(ctx, &self.seen.refresh).await?;
                    return Ok(End::Gone);
                }
                Action::Wait(pause) => return Ok(End::Wait(pause)),
            }
        }
        Err(PassError::Restless(self.seen.refresh.name_any()))
    }

    fn phase(&self) -> Phase {
        let status = self.seen.refresh.status.as_ref();
        status.map_or(Phase::Queued, |status| status.phase)
    }

    async fn look(&mut self, ctx: &'a Context, what: Look) -> Result<(), PassError> {
        let seen = &mut self.seen;
        match what {
            Look::World => {
                let (world, cluster) = look::world(ctx, &seen.refresh).await?;
                seen.world = Some(world);
                self.cluster = cluster.or(self.cluster.take());
            }
            Look::Turn => {
                let (turn, reservation) =
                    admission::turn(ctx, &seen.refresh, seen.world.as_ref()).await?;
                seen.turn = Some(turn);
                self.turn = reservation;
            }
            Look::Job => {
                let job = look::job(ctx, &seen.refresh, &seen.job_name).await?;
                seen.saw_job(Some(job));
            }
            Look::Outcome => seen.outcome = Some(look::outcome(ctx, &seen.refresh).await),
            Look::Progress => {
                let (progress, stuck) = look::progress(ctx, seen).await;
                if let Some(JobSeen::Ours(job)) = &mut seen.job
                    && job.stuck.is_none()
                {
                    job.stuck = stuck;
                }
                seen.progress = Some(progress);
            }
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
                self.seen.refresh = written;
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

    async fn create(&mut self, ctx: &Context) -> Result<(), PassError> {
        let refused = |reason: &str, permanent: bool, message: String| LaunchRefused {
            reason: reason.to_string(),
            permanent,
            message,
        };
        if self.cluster.is_none() {
            // The operator died after the intent; the cluster may be gone since.
            match look::cluster(ctx, &self.seen.refresh.spec.cluster).await? {
                Ok(cluster) => self.cluster = Some(cluster),
                Err(error) => {
                    self.seen.refused = Some(refused(error.reason(), true, error.to_string()));
                    return Ok(());
                }
            }
        }
        let cluster = self.cluster.clone().unwrap_or_default();
        let job = match job::job(&self.seen.refresh, &cluster, &ctx.home) {
            Ok(job) => job,
            Err(why) => {
                let why = format!(
                    "RefreshCluster '{}' makes no Job: {why}",
                    self.seen.refresh.spec.cluster
                );
                self.seen.refused = Some(refused(reasons::JOB_REJECTED, true, why));
                return Ok(());
            }
        };
        match ctx.jobs.create(&PostParams::default(), &job).await {
            Ok(job) => {
                ctx.metrics.launches.inc();
                self.seen.saw_job(Some(JobSeen::Ours(state::of(&job, []))));
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let found = look::job(ctx, &self.seen.refresh, &self.seen.job_name).await?;
                if found == JobSeen::Absent {
                    // It went in between.
                    let message = format!("Job {} comes and goes", self.seen.job_name);
                    self.seen.refused = Some(refused(reasons::JOB_REJECTED, false, message));
                } else {
                    self.seen.saw_job(Some(found));
                }
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                let message = format!(
                    "the API server refuses the Job: {}; mend the template of RefreshCluster '{}' and refresh again",
                    status.message, self.seen.refresh.spec.cluster
                );
                self.seen.refused = Some(refused(reasons::JOB_REJECTED, true, message));
            }
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let message = format!(
                    "the API server does not allow the Job now: {}; it is tried again",
                    status.message
                );
                self.seen.refused = Some(refused(reasons::JOB_REJECTED, false, message));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Deletes a Job; it stays, marked, until its pods are gone.
async fn delete_job(ctx: &Context, name: &str, uid: &str) -> Result<(), kube::Error> {
    let params = DeleteParams::foreground().preconditions(Preconditions {
        uid: Some(uid.to_string()),
        resource_version: None,
    });
    gone_or(ctx.jobs.delete(name, &params).await)
}

async fn delete_refresh(
    ctx: &Context,
    refresh: &MaterializedViewRefresh,
) -> Result<(), kube::Error> {
    // On this very version: a time to live that was just prolonged counts.
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: refresh.uid(),
        resource_version: refresh.resource_version(),
    });
    tracing::info!("its time to live is over");
    gone_or(ctx.refreshes.delete(&refresh.name_any(), &params).await)
}

/// What is gone, or is another by now, needs no deletion.
fn gone_or<T>(deleted: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match deleted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}
