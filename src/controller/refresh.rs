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
//!
//! Two clocks see to it that each refresh ends: a Job's, from its turn to its
//! deadline; and one as long while what must be looked at before that is out of
//! reach. Neither runs while it waits for its turn, or is held.
//!
//! A Job in another cluster is held by a finalizer of the refresh, which is
//! there before the intent and goes once no such Job runs. That cluster may be
//! out of reach, for a time or for ever: then only the view's history can tell
//! of a success, and home's clock says when to give up.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;

pub use super::observed::*;
use super::status;
use crate::engine::freshness::Current;
use crate::engine::outcome::Outcome;
use crate::resources::{
    JobRef, MaterializedViewRefreshSpec, MaterializedViewRefreshStatus, Phase, reasons,
};

/// How long a Job may outlive its deadline before the controller stops it itself.
const DEADLINE_MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// How often a running Job is looked at though nothing was heard of it, where
/// not too many run.
pub const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How often a cluster that is out of reach is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What to do next about a refresh.
pub fn decide(seen: &Observed) -> Action {
    if seen.is_deleted() && seen.is_held() {
        return deleted(seen);
    }
    match seen.phase() {
        Phase::Succeeded | Phase::Failed | Phase::Cancelled => after_the_end(seen),
        Phase::Running => running(seen),
        Phase::Queued | Phase::Suspended => waiting(seen),
    }
}

/// Whether it is to end. One that is being deleted is there only because
/// somebody's finalizer keeps it: nothing else ends its Job while it is.
fn is_unwanted(seen: &Observed) -> bool {
    seen.refresh.spec.cancel || seen.is_deleted()
}

fn to_be_stopped(seen: &Observed) -> bool {
    is_unwanted(seen) || seen.refresh.spec.suspend || seen.overdue(DEADLINE_MARGIN)
}

/// Whether no other Job follows one that is gone.
pub(super) fn is_last(seen: &Observed) -> bool {
    to_be_stopped(seen) || seen.overdue(SignedDuration::ZERO)
}

/// Queued or Suspended: no Job of it exists.
fn waiting(seen: &Observed) -> Action {
    let spec = &seen.refresh.spec;
    // A Job that was stopped may have committed before it was gone.
    if seen.was_started() {
        match &seen.outcome {
            None => return Action::Look(Look::Outcome),
            Some(OutcomeSeen::Found(outcome)) => return succeed(seen, outcome),
            // The history was asked when its Job was gone.
            Some(OutcomeSeen::Unavailable(_)) if is_unwanted(seen) => return cancel(seen),
            Some(OutcomeSeen::Unavailable(why)) if spec.suspend => return held_unread(seen, why),
            Some(OutcomeSeen::Unavailable(why)) => {
                return unavailable(seen, &waiting_for_history(why));
            }
            Some(OutcomeSeen::NotFound | OutcomeSeen::Denied { .. }) => {}
        }
    }
    if is_unwanted(seen) {
        return cancel(seen);
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
        Some(World::Unavailable(why)) => return unavailable(seen, why),
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
        // Of what was out of reach at the last look, time goes by only if it still is.
        (Some(Turn::Behind(_)), None) if seen.status().unavailable_since.is_some() => {
            Action::Look(Look::World)
        }
        (Some(Turn::Behind(why)), uri) => wait(seen, accepted, status::queued(seen, uri, why)),
        (Some(Turn::Closed(why)), _) if seen.waited_in_vain() > seen.deadline => {
            end(status::never_available(seen, why))
        }
        (Some(Turn::Closed(why)), uri) => wait(seen, accepted, status::closed(seen, uri, why)),
        // The view may have become current while this waited for its turn.
        (Some(Turn::Now), None) => Action::Look(Look::World),
        (Some(Turn::Now), Some(_)) if seen.remote && !seen.is_held() => Action::Hold,
        (Some(Turn::Now), Some(_)) if seen.is_held() && !seen.remote => Action::Release(None),
        (Some(Turn::Now), Some(uri)) => step(status::intent(seen, uri), reasons::LAUNCHING, false),
    }
}

/// Waits for its turn, with this status.
fn wait(seen: &Observed, accepted: bool, status: MaterializedViewRefreshStatus) -> Action {
    if Some(&status) == seen.refresh.status.as_ref() {
        return Action::Wait(Pause::AtMost(Duration::from_secs(30)));
    }
    match accepted {
        true => update(status),
        false => step(status, reasons::QUEUED, false),
    }
}

/// What must be looked at before it can begin is out of reach. The clock of a Job
/// does not run yet, so this has one of its own, which runs as long: nobody may wait
/// for ever for what does not come back, or is never shown to whoever asks.
fn unavailable(seen: &Observed, why: &str) -> Action {
    match seen.waited_in_vain() > seen.deadline {
        true => end(status::never_available(seen, why)),
        false => tell(seen, status::unavailable(seen, why), Pause::BackOff),
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
        Some(JobSeen::Away(why)) => resolve(seen, |seen| out_of_reach(seen, why)),
        Some(JobSeen::Lost(why)) => resolve(seen, |seen| lost(seen, why)),
        // Creating it tells as much as looking for it.
        None if seen.recorded_uid().is_none() && !to_be_stopped(seen) => resolve(seen, launch),
        None => Action::Look(Look::Job),
    }
}

/// Asks the view's history, and goes on with `otherwise` if it knows of no
/// commit, or will never be read.
fn resolve(seen: &Observed, otherwise: impl Fn(&Observed) -> Action) -> Action {
    match &seen.outcome {
        None => Action::Look(Look::Outcome),
        Some(OutcomeSeen::Found(outcome)) => succeed(seen, outcome),
        Some(OutcomeSeen::NotFound | OutcomeSeen::Denied { .. }) => otherwise(seen),
        // Nobody may wait for ever for a catalog that does not come back.
        Some(OutcomeSeen::Unavailable(_)) if seen.overdue(DEADLINE_MARGIN) => otherwise(seen),
        Some(OutcomeSeen::Unavailable(why)) => unread(seen, why),
    }
}

/// It is to be held, and the view's history cannot be read now. No clock of it runs.
fn held_unread(seen: &Observed, why: &str) -> Action {
    let status = MaterializedViewRefreshStatus {
        unavailable_since: None,
        ..status::said(seen, &waiting_for_history(why))
    };
    tell(seen, status, Pause::BackOff)
}

/// The view's history cannot be read now.
fn unread(seen: &Observed, why: &str) -> Action {
    say(seen, &waiting_for_history(why), Pause::BackOff)
}

fn waiting_for_history(why: &str) -> String {
    format!("Waiting for the view's history: {why}")
}

/// It ends as it was asked to; whether the view is as it was is said only
/// where its history says so.
fn cancel(seen: &Observed) -> Action {
    match &seen.outcome {
        Some(OutcomeSeen::Unavailable(why) | OutcomeSeen::Denied { why, .. }) => {
            end(status::cancelled_unread(seen, why))
        }
        _ => end(status::cancelled(seen)),
    }
}

/// Its Job's cluster does not answer, and there is no commit yet: the Job may
/// run on, and only its deadline is sure to end it.
fn out_of_reach(seen: &Observed, why: &str) -> Action {
    if !seen.overdue(DEADLINE_MARGIN) {
        return say(
            seen,
            &format!("Its Job is out of sight: {why}; it may run on, and its commit counts"),
            Pause::AtMost(TRY_AGAIN),
        );
    }
    if is_unwanted(seen) {
        return cancel(seen);
    }
    let message = format!(
        "its Job was out of sight until its deadline: {why}; see to that cluster and refresh again: what was finished is kept"
    );
    end(status::failed(seen, reasons::CLUSTER_LOST, &message))
}

/// Nobody can ask after its Job, nor stop it.
fn lost(seen: &Observed, why: &str) -> Action {
    if is_unwanted(seen) {
        return end(status::cancelled_unseen(seen, why));
    }
    if !seen.overdue(DEADLINE_MARGIN) {
        return say(
            seen,
            &format!(
                "Its Job is lost: {why}; if it still commits, that counts; cancel the refresh to let others go at once"
            ),
            Pause::AtMost(TRY_AGAIN),
        );
    }
    out_of_reach(seen, why)
}

/// It is being deleted, and its Job is in another cluster.
fn deleted(seen: &Observed) -> Action {
    if matches!(seen.phase(), Phase::Queued | Phase::Suspended) {
        // It has no Job.
        return Action::Release(None);
    }
    // It stays when it is released, and its end is told: what became of its Job
    // is to be seen for as long.
    if seen.phase() == Phase::Running && seen.is_held_by_others() {
        return running(seen);
    }
    match &seen.job {
        None => Action::Look(Look::Job),
        Some(JobSeen::Absent | JobSeen::Foreign) => Action::Release(None),
        // Its own cluster ends its pods now.
        Some(JobSeen::Ours(job)) if job.deleting => Action::Release(None),
        Some(JobSeen::Ours(job)) => delete_job(seen, job),
        Some(JobSeen::Lost(why)) => Action::Release(Some(left(seen, why))),
        Some(JobSeen::Away(_)) if !seen.has_begun() => Action::Release(None),
        Some(JobSeen::Away(why)) if seen.overdue(DEADLINE_MARGIN) => {
            Action::Release(Some(left(seen, why)))
        }
        Some(JobSeen::Away(why)) => say(
            seen,
            &format!("It is deleted once its Job is: {why}"),
            Pause::AtMost(TRY_AGAIN),
        ),
    }
}

/// It has ended, and its Job was in another cluster: the finalizer goes once
/// that Job does no work any more. The Job itself is kept for its logs.
fn release_after_the_end(seen: &Observed) -> Action {
    let over = seen.overdue(DEADLINE_MARGIN);
    match &seen.job {
        None => Action::Look(Look::Job),
        Some(JobSeen::Absent | JobSeen::Foreign) => Action::Release(None),
        Some(JobSeen::Ours(job)) if job.end.is_some() || job.deleting => Action::Release(None),
        Some(JobSeen::Ours(job)) if over || !is_ending(seen, job) => delete_job(seen, job),
        Some(JobSeen::Ours(_)) => keep(seen, Pause::AtMost(TRY_AGAIN)),
        Some(JobSeen::Lost(why)) => Action::Release(Some(left(seen, why))),
        // It never ran, or was held and its Job gone: no Job of it is there.
        Some(JobSeen::Away(_)) if !seen.has_begun() => Action::Release(None),
        Some(JobSeen::Away(why)) if over => Action::Release(Some(left(seen, why))),
        Some(JobSeen::Away(_)) => keep(seen, Pause::AtMost(TRY_AGAIN)),
    }
}

/// Deletes its Job, once it is written where it is.
fn delete_job(seen: &Observed, job: &JobState) -> Action {
    if seen.has_moved() {
        return update(status::moved(seen));
    }
    Action::DeleteJob {
        uid: job.uid.clone(),
    }
}

fn left(seen: &Observed, why: &str) -> Step {
    Step {
        reason: reasons::REMOTE_JOB_LEFT.to_string(),
        message: format!(
            "Job {} in namespace {} could not be asked after any more: {why}; its deadline and its time to live clean it up",
            seen.job_name, seen.job_namespace
        ),
        warning: true,
    }
}

/// No Job, no commit.
fn without_job(seen: &Observed) -> Action {
    if is_unwanted(seen) {
        return cancel(seen);
    }
    if seen.overdue(SignedDuration::ZERO) {
        return end(status::overdue(seen));
    }
    if seen.refresh.spec.suspend {
        return step(status::suspended(seen), reasons::SUSPENDED_BY_SPEC, false);
    }
    if seen.recorded_uid().is_some() && !is_denied(seen) {
        return step(status::vanished(seen), reasons::JOB_VANISHED, true);
    }
    launch(seen)
}

/// Whether nothing that is made for its caller is let into the catalog any more.
fn is_denied(seen: &Observed) -> bool {
    matches!(seen.outcome, Some(OutcomeSeen::Denied { .. }))
}

fn launch(seen: &Observed) -> Action {
    if let Some(OutcomeSeen::Denied { reason, why }) = &seen.outcome {
        return match &seen.job {
            // An operator that died may have created it.
            None => Action::Look(Look::Job),
            Some(_) => end(status::failed(seen, reason, why)),
        };
    }
    match &seen.refused {
        None => Action::CreateJob,
        // What refuses a Job may do so before it would be said that the Job is
        // there already: an operator that died may have created it.
        Some(_) if seen.job.is_none() => Action::Look(Look::Job),
        Some(refused) if refused.permanent => {
            end(status::failed(seen, &refused.reason, &refused.message))
        }
        Some(_) if seen.overdue(SignedDuration::ZERO) => end(status::overdue(seen)),
        Some(refused) => say(seen, &refused.message, Pause::BackOff),
    }
}

/// Its Job is there.
fn with_job(seen: &Observed, job: &JobState) -> Action {
    // It shows that another address is that of the same cluster, but only for as
    // long as it is there; and that it has gone is to be seen there too.
    if seen.has_moved() {
        return update(status::moved(seen));
    }
    match &job.end {
        Some(JobEnd::Succeeded(said)) => match (&seen.outcome, said) {
            (None, _) => Action::Look(Look::Outcome),
            (Some(OutcomeSeen::Found(outcome)), _) => succeed(seen, outcome),
            // The history may have been cleaned up since; the worker saw its commit.
            (Some(_), Some(said)) => succeed(seen, said),
            (Some(OutcomeSeen::Unavailable(why)), None) if !seen.overdue(DEADLINE_MARGIN) => {
                unread(seen, why)
            }
            (Some(OutcomeSeen::Denied { why, .. }), None) => {
                let message = format!(
                    "the Job ended well, and what it did cannot be read: {why}; look at the view"
                );
                end(status::failed(seen, reasons::OUTCOME_MISSING, &message))
            }
            (Some(_), None) => end(status::failed(
                seen,
                reasons::OUTCOME_MISSING,
                "the Job ended well, and the view's history knows no commit of it; look at the view and refresh again",
            )),
        },
        Some(JobEnd::Failed { reason, message }) => resolve(seen, |seen| {
            if is_unwanted(seen) {
                return cancel(seen);
            }
            end(status::failed(seen, reason, message))
        }),
        // A node that is lost keeps its pods, and they their Job, for ever. The
        // deadline alone says nothing of that: its deletion may just have begun.
        None if job.is_lost(seen.now) && seen.overdue(DEADLINE_MARGIN) => {
            resolve(seen, without_job)
        }
        None if job.deleting => {
            // Its pods may still run: nothing is said of the end before they are gone.
            say(
                seen,
                &format!("Job {} is being deleted", seen.job_name),
                Pause::AtMost(Duration::from_secs(5)),
            )
        }
        None if to_be_stopped(seen) => Action::DeleteJob {
            uid: job.uid.clone(),
        },
        None if seen.recorded_uid() != Some(&job.uid) => {
            step(status::launched(seen, job), reasons::JOB_CREATED, false)
        }
        None => match &seen.progress {
            None => Action::Look(Look::Progress),
            Some(ProgressSeen::Silent) if seen.outcome.is_none() => Action::Look(Look::Outcome),
            Some(progress) => {
                if let Some(OutcomeSeen::Found(outcome)) = &seen.outcome {
                    return succeed(seen, outcome);
                }
                let status = status::running(seen, job, progress);
                if Some(&status) == seen.refresh.status.as_ref() {
                    return Action::Wait(Pause::ForProgress);
                }
                update(status)
            }
        },
    }
}

/// A terminal phase: nothing of it changes any more.
fn after_the_end(seen: &Observed) -> Action {
    let ended = seen.status().completion_time.map(|time| time.0);
    let ttl = seen.refresh.spec.ttl_seconds_after_finished;
    let left = ended.zip(ttl).map(|(ended, ttl)| {
        let left = SignedDuration::from_secs(ttl.max(0)) - seen.now.duration_since(ended);
        Duration::try_from(left).unwrap_or_default()
    });
    let is_over = left.is_some_and(|left| left.is_zero());
    // It goes with its refresh too.
    if let Some(action) = credential(seen).filter(|_| !is_over) {
        return action;
    }
    if seen.is_held() {
        return release_after_the_end(seen);
    }
    if let Some(JobSeen::Ours(job)) = &seen.job
        && job.end.is_none()
        && !job.deleting
        && !is_ending(seen, job)
    {
        // A create that an operator sent before it died has landed late.
        return Action::DeleteJob {
            uid: job.uid.clone(),
        };
    }
    if is_over {
        return match seen.is_deleted() {
            true => keep(seen, Pause::ForChange),
            false => Action::DeleteRefresh,
        };
    }
    let again = credential_due_again(&seen.refresh, seen.now);
    let again = again.map(|pause| Duration::try_from(pause).unwrap_or_default());
    match left.into_iter().chain(again).min() {
        None => keep(seen, Pause::ForChange),
        Some(pause) => keep(seen, Pause::AtMost(pause)),
    }
}

/// What is to be done about the credential of an ended refresh's caller, if
/// anything now. It is said to be gone once it was deleted, or when nothing can
/// bring it any more: what REST sends may arrive after the end.
fn credential(seen: &Observed) -> Option<Action> {
    let refresh = &seen.refresh;
    let is_due = || credential_due(refresh, seen.now).is_some_and(|due| due.is_zero());
    match seen.credential {
        None => is_due().then_some(Action::DeleteCredential),
        Some(_) if !keeps_credential(refresh) => None,
        Some(CredentialSeen::Absent) if !credential_is_late(refresh, seen.now) => None,
        Some(_) => Some(update(status::credential_deleted(seen))),
    }
}

/// Whether a Job of a refresh that has ended ends by itself: its success was
/// seen before the Job knew of it. So it may have been before its UID was
/// written, by an operator that took over from one that died.
fn is_ending(seen: &Observed, job: &JobState) -> bool {
    let is_its_own = |made: JobRef| made.uid.is_none_or(|uid| uid == job.uid);
    seen.phase() == Phase::Succeeded && seen.status().job.is_some_and(is_its_own)
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
    tell(seen, status::said(seen, message), pause)
}

/// Waits, with the status speaking of the resource's present generation.
fn keep(seen: &Observed, pause: Pause) -> Action {
    tell(seen, status::observed(seen), pause)
}

/// Waits, with this status.
fn tell(seen: &Observed, status: MaterializedViewRefreshStatus, pause: Pause) -> Action {
    if Some(&status) == seen.refresh.status.as_ref() {
        return Action::Wait(pause);
    }
    update(status)
}
