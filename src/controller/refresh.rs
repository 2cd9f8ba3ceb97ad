//! [`decide`]: what to do next about one refresh, from what is known of it.
//!
//! Pure. The caller looks at what `decide` asks for, adds it to [`Observed`],
//! and calls again; it carries out a write or a launch, adds the answer, and
//! calls again; until `decide` says [`Action::Wait`]. Nothing is remembered
//! between two passes but the resource itself, so that an operator which dies
//! after any write finds its way from there.
//!
//! The order of its questions is its safety:
//! - a terminal phase is final;
//! - a Job is created only after the intent is in the status, and only after
//!   the view's history was asked for this refresh's UID;
//! - Failed and Cancelled are said only once no Job can be doing the work, and
//!   the history was asked again.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::status;
use crate::engine::freshness::Current;
use crate::engine::outcome::Outcome;
pub use crate::launch::state::{JobEnd, JobState};
use crate::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshSpec, MaterializedViewRefreshStatus, Phase,
    Progress, reasons,
};

/// What is known of one refresh. `None` in an optional field: not looked at in this pass.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Home's clock.
    pub now: Timestamp,
    /// The resource as last read or written.
    pub refresh: MaterializedViewRefresh,
    /// What its Job is called, or would be.
    pub job_name: String,
    /// How long it may take from its start.
    pub deadline: SignedDuration,
    /// Its view and cluster.
    pub world: Option<World>,
    /// Whether it is its turn.
    pub turn: Option<Turn>,
    /// Its Job; set by [`Observed::saw_job`]. For a terminal refresh: as a
    /// watch last showed it, perhaps late.
    pub job: Option<JobSeen>,
    /// What the view's history says of it.
    pub outcome: Option<OutcomeSeen>,
    /// Why the Job could not be created in this pass.
    pub refused: Option<LaunchRefused>,
    /// How far the Job is, if it is time to ask.
    pub progress: Option<ProgressSeen>,
}

/// A refresh's view and cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum World {
    /// It can never run as it is written.
    Refused {
        /// A stable reason.
        reason: String,
        /// The sentence that REST gives too.
        message: String,
    },
    /// Catalog or store did not answer.
    Unavailable(String),
    /// It can run.
    Ready {
        /// The view's resolved table URI.
        uri: String,
        /// What the view equals, where it is current already.
        current: Option<Current>,
    },
}

/// Whether it is a refresh's turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// Nothing stands before it.
    Now,
    /// It waits, for what the sentence says.
    Behind(String),
}

/// A refresh's Job.
#[derive(Clone, Debug, PartialEq)]
pub enum JobSeen {
    /// There is none of that name.
    Absent,
    /// One of that name belongs to something else.
    Foreign,
    /// It is this refresh's.
    Ours(JobState),
}

/// What a view's history says of a refresh.
#[derive(Clone, Debug, PartialEq)]
pub enum OutcomeSeen {
    /// Its commit is there.
    Found(Outcome),
    /// There is none.
    NotFound,
    /// The history could not be read.
    Unavailable(String),
}

/// Why a Job could not be created.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchRefused {
    /// A stable reason.
    pub reason: String,
    /// Whether the same Job would be refused again.
    pub permanent: bool,
    /// The API server's words, and what to do.
    pub message: String,
}

/// What a look at a running Job's progress gave.
#[derive(Clone, Debug, PartialEq)]
pub enum ProgressSeen {
    /// It is not time to look, or the budget is spent, or nothing could be read.
    Nothing,
    /// What a worker said last.
    At(Progress),
}

/// What to look at next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The view and the cluster: fill [`Observed::world`].
    World,
    /// The queue: fill [`Observed::turn`].
    Turn,
    /// The Job: fill [`Observed::job`].
    Job,
    /// The view's history: fill [`Observed::outcome`].
    Outcome,
    /// The workers' log: fill [`Observed::progress`].
    Progress,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Look, fill the field, and decide again.
    Look(Look),
    /// Write this status, and decide again with the resource as it is then.
    Write(Box<Write>),
    /// Create the Job, fill [`Observed::job`] or [`Observed::refused`], and decide again.
    CreateJob,
    /// Delete the Job with this UID and its pods, forget [`Observed::job`], and decide again.
    DeleteJob {
        /// The UID that it must have.
        uid: String,
    },
    /// Delete the refresh: its time to live is over.
    DeleteRefresh,
    /// Nothing more now.
    Wait(Pause),
}

/// A status to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The whole status.
    pub status: MaterializedViewRefreshStatus,
    /// A step in the refresh's life, to be told as an Event. None: a mere update.
    pub step: Option<Step>,
}

/// A step in a refresh's life.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// A stable reason.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// Whether something is wrong.
    pub warning: bool,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pause {
    /// Until something changes.
    ForChange,
    /// Until something changes, and no longer than this.
    AtMost(Duration),
    /// A little longer each time.
    BackOff,
}

/// How long a Job may outlive its deadline before the controller stops it itself.
const DEADLINE_MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// How often a running Job is looked at though nothing was heard of it.
pub const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What to do next about a refresh.
pub fn decide(seen: &Observed) -> Action {
    if seen.refresh.metadata.deletion_timestamp.is_some() {
        // Its Job is deleted with it, by the ownerReference.
        return Action::Wait(Pause::ForChange);
    }
    match seen.phase() {
        Phase::Succeeded | Phase::Failed | Phase::Cancelled => after_the_end(seen),
        Phase::Running => running(seen),
        Phase::Queued | Phase::Suspended => waiting(seen),
    }
}

impl Observed {
    /// Notes what a look at the Job showed, or that it must be looked at again.
    ///
    /// What the history said before that is forgotten: the Job may have
    /// committed and ended in between.
    pub fn saw_job(&mut self, job: Option<JobSeen>) {
        self.job = job;
        self.outcome = None;
    }

    fn status(&self) -> MaterializedViewRefreshStatus {
        self.refresh.status.clone().unwrap_or_default()
    }

    fn phase(&self) -> Phase {
        self.refresh
            .status
            .as_ref()
            .map_or(Phase::Queued, |s| s.phase)
    }

    /// Whether a Job may ever have been created for it.
    fn was_started(&self) -> bool {
        let status = self.refresh.status.as_ref();
        status.is_some_and(|s| s.job.is_some())
    }

    fn recorded_uid(&self) -> Option<&str> {
        let job = self.refresh.status.as_ref()?.job.as_ref()?;
        job.uid.as_deref()
    }

    fn overdue(&self, margin: SignedDuration) -> bool {
        let start = self
            .refresh
            .status
            .as_ref()
            .and_then(|s| s.start_time.as_ref());
        start.is_some_and(|start| self.now.duration_since(start.0) > self.deadline + margin)
    }

    fn to_be_stopped(&self) -> bool {
        self.refresh.spec.cancel || self.refresh.spec.suspend || self.overdue(DEADLINE_MARGIN)
    }
}

/// Queued or Suspended: no Job of it exists.
fn waiting(seen: &Observed) -> Action {
    let spec = &seen.refresh.spec;
    // A Job that was stopped may have committed before it was gone.
    if seen.was_started() {
        match &seen.outcome {
            None => return Action::Look(Look::Outcome),
            Some(OutcomeSeen::Found(outcome)) => return succeed(seen, outcome),
            Some(OutcomeSeen::Unavailable(why)) => return say(seen, why, Pause::BackOff),
            Some(OutcomeSeen::NotFound) => {}
        }
    }
    if spec.cancel {
        return end(status::cancelled(seen));
    }
    if spec.suspend {
        if seen.phase() == Phase::Suspended {
            return keep(seen, Pause::ForChange);
        }
        return step(status::suspended(seen), reasons::SUSPENDED_BY_SPEC, false);
    }
    if seen.phase() == Phase::Suspended {
        return step(status::resumed(seen), reasons::RESUMED, false);
    }
    queued(seen)
}

/// Queued: its view's URI first, then its turn, then a fresh look at the world.
fn queued(seen: &Observed) -> Action {
    let accepted = seen.status().view_uri.is_some();
    if !accepted && seen.world.is_none() {
        return Action::Look(Look::World);
    }
    let uri = match &seen.world {
        Some(World::Refused { reason, message }) => {
            return end(status::failed(seen, reason, message));
        }
        Some(World::Unavailable(why)) => return say(seen, why, Pause::BackOff),
        Some(World::Ready {
            current: Some(current),
            ..
        }) if !leaves_work(&seen.refresh.spec, current) => {
            return end(status::already_current(seen, current));
        }
        Some(World::Ready { uri, .. }) => Some(uri.clone()),
        None => None,
    };
    match (&seen.turn, uri) {
        (None, _) => Action::Look(Look::Turn),
        (Some(Turn::Behind(why)), uri) => {
            let status = status::queued(seen, uri, why);
            if Some(&status) == seen.refresh.status.as_ref() {
                return Action::Wait(Pause::AtMost(Duration::from_secs(30)));
            }
            if accepted {
                update(status)
            } else {
                step(status, reasons::QUEUED, false)
            }
        }
        // The view may have become current while this waited for its turn.
        (Some(Turn::Now), None) => Action::Look(Look::World),
        (Some(Turn::Now), Some(uri)) => step(status::intent(seen, uri), reasons::LAUNCHING, false),
    }
}

/// Whether a refresh of a view that is current has something to do all the same.
fn leaves_work(spec: &MaterializedViewRefreshSpec, current: &Current) -> bool {
    spec.full || (spec.optimize_indices && current.unindexed_rows.is_some_and(|rows| rows > 0))
}

/// Running: the intent to create its Job is written, or its UID is.
fn running(seen: &Observed) -> Action {
    match &seen.job {
        Some(JobSeen::Ours(job)) => with_job(seen, job),
        Some(JobSeen::Foreign) => {
            let message = format!(
                "a Job '{}' of something else stands where this refresh's Job would be; delete it and refresh again",
                seen.job_name
            );
            resolve(seen, |seen| {
                end(status::failed(seen, reasons::JOB_NAME_TAKEN, &message))
            })
        }
        Some(JobSeen::Absent) => resolve(seen, without_job),
        // Creating it tells as much as looking for it.
        None if seen.recorded_uid().is_none() && !seen.to_be_stopped() => resolve(seen, launch),
        None => Action::Look(Look::Job),
    }
}

/// Asks the view's history, and goes on with `otherwise` if it knows of no commit.
fn resolve(seen: &Observed, otherwise: impl Fn(&Observed) -> Action) -> Action {
    match &seen.outcome {
        None => Action::Look(Look::Outcome),
        Some(OutcomeSeen::Found(outcome)) => succeed(seen, outcome),
        Some(OutcomeSeen::NotFound) => otherwise(seen),
        // Nobody may wait for ever for a catalog that does not come back.
        Some(OutcomeSeen::Unavailable(_)) if seen.overdue(DEADLINE_MARGIN) => otherwise(seen),
        Some(OutcomeSeen::Unavailable(why)) => say(seen, why, Pause::BackOff),
    }
}

/// No Job, no commit.
fn without_job(seen: &Observed) -> Action {
    if seen.refresh.spec.cancel {
        return end(status::cancelled(seen));
    }
    if seen.overdue(SignedDuration::ZERO) {
        return end(status::overdue(seen));
    }
    if seen.refresh.spec.suspend {
        return step(status::suspended(seen), reasons::SUSPENDED_BY_SPEC, false);
    }
    if seen.recorded_uid().is_some() {
        return step(status::vanished(seen), reasons::JOB_VANISHED, true);
    }
    launch(seen)
}

fn launch(seen: &Observed) -> Action {
    match &seen.refused {
        None => Action::CreateJob,
        Some(refused) if refused.permanent => {
            end(status::failed(seen, &refused.reason, &refused.message))
        }
        Some(_) if seen.overdue(SignedDuration::ZERO) => end(status::overdue(seen)),
        Some(refused) => say(seen, &refused.message, Pause::BackOff),
    }
}

/// Its Job is there.
fn with_job(seen: &Observed, job: &JobState) -> Action {
    match &job.end {
        Some(JobEnd::Succeeded(said)) => match (&seen.outcome, said) {
            (None, _) => Action::Look(Look::Outcome),
            (Some(OutcomeSeen::Found(outcome)), _) => succeed(seen, outcome),
            // The history may have been cleaned up since; the worker saw its commit.
            (Some(_), Some(said)) => succeed(seen, said),
            (Some(OutcomeSeen::Unavailable(why)), None) if !seen.overdue(DEADLINE_MARGIN) => {
                say(seen, why, Pause::BackOff)
            }
            (Some(_), None) => end(status::failed(
                seen,
                reasons::OUTCOME_MISSING,
                "the Job ended well, and the view's history knows no commit of it; look at the view and refresh again",
            )),
        },
        Some(JobEnd::Failed { reason, message }) => resolve(seen, |seen| {
            if seen.refresh.spec.cancel {
                return end(status::cancelled(seen));
            }
            end(status::failed(seen, reason, message))
        }),
        // A node that is lost keeps its pods, and they their Job, for ever.
        None if job.deleting && seen.overdue(DEADLINE_MARGIN) => resolve(seen, without_job),
        None if job.deleting => {
            // Its pods may still run: nothing is said of the end before they are gone.
            say(
                seen,
                &format!("Job {} is being deleted", seen.job_name),
                Pause::AtMost(Duration::from_secs(5)),
            )
        }
        None if seen.to_be_stopped() => Action::DeleteJob {
            uid: job.uid.clone(),
        },
        None if seen.recorded_uid() != Some(&job.uid) => {
            step(status::launched(seen, job), reasons::JOB_CREATED, false)
        }
        None => match &seen.progress {
            None => Action::Look(Look::Progress),
            Some(progress) => {
                let status = status::running(seen, job, progress);
                if Some(&status) == seen.refresh.status.as_ref() {
                    return Action::Wait(Pause::AtMost(LOOK_AGAIN));
                }
                update(status)
            }
        },
    }
}

/// A terminal phase: nothing of it changes any more.
fn after_the_end(seen: &Observed) -> Action {
    if let Some(JobSeen::Ours(job)) = &seen.job
        && job.end.is_none()
        && !job.deleting
        && (seen.phase() != Phase::Succeeded || seen.recorded_uid() != Some(&job.uid))
    {
        // A create that an operator sent before it died has landed late.
        return Action::DeleteJob {
            uid: job.uid.clone(),
        };
    }
    let ended = seen.status().completion_time.map(|time| time.0);
    let (Some(ended), Some(ttl)) = (ended, seen.refresh.spec.ttl_seconds_after_finished) else {
        return keep(seen, Pause::ForChange);
    };
    let left = SignedDuration::from_secs(ttl.max(0)) - seen.now.duration_since(ended);
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => keep(seen, Pause::AtMost(left)),
        _ => Action::DeleteRefresh,
    }
}

fn succeed(seen: &Observed, outcome: &Outcome) -> Action {
    end(status::succeeded(seen, outcome))
}

/// Writes a status that ends the refresh.
fn end(status: MaterializedViewRefreshStatus) -> Action {
    let last = status.conditions.iter().rev().find(|c| c.status == "True");
    let reason = last
        .map_or(reasons::REFRESHED, |c| c.reason.as_str())
        .to_string();
    let warning = status.phase == Phase::Failed;
    step(status, &reason, warning)
}

fn step(status: MaterializedViewRefreshStatus, reason: &str, warning: bool) -> Action {
    let step = Some(Step {
        reason: reason.to_string(),
        message: status.message.clone().unwrap_or_default(),
        warning,
    });
    Action::Write(Box::new(Write { status, step }))
}

fn update(status: MaterializedViewRefreshStatus) -> Action {
    Action::Write(Box::new(Write { status, step: None }))
}

/// Says why nothing moves, and waits.
fn say(seen: &Observed, message: &str, pause: Pause) -> Action {
    let status = status::said(seen, message);
    if Some(&status) == seen.refresh.status.as_ref() {
        return Action::Wait(pause);
    }
    update(status)
}

/// Waits, with the status speaking of the resource's present generation.
fn keep(seen: &Observed, pause: Pause) -> Action {
    let status = status::observed(seen);
    if Some(&status) == seen.refresh.status.as_ref() {
        return Action::Wait(pause);
    }
    update(status)
}
