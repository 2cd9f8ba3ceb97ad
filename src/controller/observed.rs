//! What is known of one refresh when it is decided about, and what can be
//! decided: the words that [`decide`](super::refresh::decide) and the passes
//! that carry it out have in common.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::engine::freshness::Current;
use crate::engine::outcome::Outcome;
pub use crate::launch::state::{JobEnd, JobState};
use crate::resources::reasons::condition;
use crate::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshStatus, Phase, Progress, names,
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
    /// The namespace that its Job is in, or would be.
    pub job_namespace: String,
    /// The same of the digest of its cluster's address; see [`JobRef::server`].
    ///
    /// [`JobRef::server`]: crate::resources::JobRef::server
    pub job_server: Option<String>,
    /// Whether a Job of it would now be made in another cluster.
    pub remote: bool,
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
    /// What became of the Secret with its caller's credential in this pass.
    pub credential: Option<CredentialSeen>,
    /// How far the Job is, if it is time to ask.
    pub progress: Option<ProgressSeen>,
    /// Whether the Job has no pod, and nobody could be asked why in this pass.
    pub unexplained: bool,
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
    /// Its cluster is out of reach, as the sentence says.
    Closed(String),
}

/// What keeps a refresh that waits from asking for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CannotAsk {
    /// What it did before it was held cannot be read, and perhaps never will be:
    /// nobody is to wait for that.
    History,
    /// Its view, its cluster or its Secrets cannot be looked at yet: it keeps its
    /// place before its view's others, or a younger one would run first; but not
    /// for long where one of those can look.
    World,
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
    /// Its cluster does not answer, for what the sentence says.
    Away(String),
    /// Nobody can say any more how to reach its cluster: the RefreshCluster or
    /// its kubeconfig is gone.
    Lost(String),
}

/// What a view's history says of a refresh.
#[derive(Clone, Debug, PartialEq)]
pub enum OutcomeSeen {
    /// Its commit is there.
    Found(Outcome),
    /// There is none.
    NotFound,
    /// The history could not be read now, for what the sentence says.
    Unavailable(String),
    /// No wait makes it readable: the catalog does not take the caller's credential
    /// any more, say, and nothing else opens the history.
    Denied {
        /// What that is called ([`crate::engine::error::EngineError::reason`]).
        reason: &'static str,
        /// One sentence.
        why: String,
    },
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

/// What was found of the Secret with the credential of a refresh's caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialSeen {
    /// It was there, and was deleted.
    Deleted,
    /// There was none.
    Absent,
}

/// What a look at a running Job's progress gave.
#[derive(Clone, Debug, PartialEq)]
pub enum ProgressSeen {
    /// It is not time to look, or the budget is spent, or nothing could be read.
    Nothing,
    /// Nothing could be read for so long that the workers may have ended
    /// without anyone being able to say so: a kubelet that is dead, for one.
    Silent,
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
    /// Add the finalizer that holds a Job in another cluster, and decide again
    /// with the resource as it is then.
    Hold,
    /// Take that finalizer away, tell the step, and decide again with the
    /// resource as it is then, if it is still there.
    Release(Option<Step>),
    /// Delete the Secret with its caller's credential, fill
    /// [`Observed::credential`], and decide again.
    DeleteCredential,
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

/// Whether a refresh has the finalizer that holds a Job in another cluster.
pub fn is_held(refresh: &MaterializedViewRefresh) -> bool {
    let finalizers = refresh.metadata.finalizers.iter().flatten();
    finalizers
        .into_iter()
        .any(|held| held == names::REMOTE_FINALIZER)
}

/// How long after the end of a refresh REST may still bring its caller's
/// credential. It may have seen the refresh right before: three attempts at the
/// resource, its manifest's and its credential's Secret, of 15 s each, with a
/// look between those at the resource; and a create that was not answered may be
/// carried out a minute later.
const CREDENTIAL_COMES: SignedDuration = SignedDuration::from_secs(300);

/// How long after its end it is looked for once more, by an operator that does
/// not know whether it was.
const CREDENTIAL_SOUGHT: SignedDuration = SignedDuration::from_secs(3600);

/// The first pause between two looks for a credential that may be on its way.
const CREDENTIAL_PAUSE: SignedDuration = SignedDuration::from_secs(15);

/// In how long the Secret with the credential of an ended refresh's caller is to
/// be looked for. None: it is not to be looked for again.
pub fn credential_due(refresh: &MaterializedViewRefresh, now: Timestamp) -> Option<SignedDuration> {
    let late = since_end(refresh, now);
    match keeps_credential(refresh) {
        true => Some(SignedDuration::ZERO),
        // For one that a repeated request brought after the first was deleted.
        false if refresh.spec.forwarded_credential && late < CREDENTIAL_SOUGHT => {
            Some((CREDENTIAL_COMES - late).max(SignedDuration::ZERO))
        }
        false => None,
    }
}

/// In how long it is to be looked for again, after a look just now.
pub fn credential_due_again(
    refresh: &MaterializedViewRefresh,
    now: Timestamp,
) -> Option<SignedDuration> {
    if credential_is_late(refresh, now) {
        return None;
    }
    if !keeps_credential(refresh) {
        return credential_due(refresh, now);
    }
    // Twice as late each time.
    let late = since_end(refresh, now);
    Some(late.max(CREDENTIAL_PAUSE).min(CREDENTIAL_COMES - late))
}

/// Whether nothing brings it any more.
pub fn credential_is_late(refresh: &MaterializedViewRefresh, now: Timestamp) -> bool {
    since_end(refresh, now) >= CREDENTIAL_COMES
}

/// By the same clock that told the end: the API server's may be another.
fn since_end(refresh: &MaterializedViewRefresh, now: Timestamp) -> SignedDuration {
    let ended = refresh
        .status
        .as_ref()
        .and_then(|s| s.completion_time.as_ref());
    ended.map_or(SignedDuration::MAX, |ended| now.duration_since(ended.0))
}

/// Whether the condition does not say yet that the Secret with a refresh's
/// caller's credential is gone.
pub fn keeps_credential(refresh: &MaterializedViewRefresh) -> bool {
    let conditions = refresh.status.iter().flat_map(|status| &status.conditions);
    let is_deleted = |c: &Condition| c.type_ == condition::CREDENTIAL_DELETED && c.status == "True";
    refresh.spec.forwarded_credential && !conditions.into_iter().any(is_deleted)
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pause {
    /// Until something changes.
    ForChange,
    /// Until something changes, and no longer than this.
    AtMost(Duration),
    /// Until something changes, and no longer than until it is time to ask how
    /// far its workers are.
    ForProgress,
    /// A little longer each time.
    BackOff,
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

    /// Notes the resource as it was just written.
    ///
    /// No Job is asked for before an intent is written: behind the first one
    /// there is no commit to look for in the view's history.
    pub fn wrote(&mut self, written: MaterializedViewRefresh) {
        let before = self.was_started();
        self.refresh = written;
        if !before && self.was_started() {
            self.outcome = Some(OutcomeSeen::NotFound);
        }
    }

    /// What kept it from asking for its turn in this pass, if it waits for one
    /// and could not.
    pub fn cannot_ask(&self) -> Option<CannotAsk> {
        if self.phase() != Phase::Queued || self.turn.is_some() {
            return None;
        }
        match (&self.outcome, &self.world) {
            (Some(OutcomeSeen::Unavailable(_)), _) => Some(CannotAsk::History),
            (_, Some(World::Unavailable(_))) => Some(CannotAsk::World),
            _ => None,
        }
    }

    /// Whether the finalizer says that a Job of it may be in another cluster.
    pub fn is_held(&self) -> bool {
        is_held(&self.refresh)
    }

    /// Whether it stays when that finalizer goes, for those of others.
    pub(super) fn is_held_by_others(&self) -> bool {
        let finalizers = self.refresh.metadata.finalizers.iter().flatten();
        finalizers
            .into_iter()
            .any(|held| held != names::REMOTE_FINALIZER)
    }

    /// Whether its Job's cluster has another address than its status says.
    pub(super) fn has_moved(&self) -> bool {
        let job = self.refresh.status.as_ref().and_then(|s| s.job.as_ref());
        job.is_some_and(|job| job.server != self.job_server)
    }

    /// Whether it goes once its finalizers have.
    pub(super) fn is_deleted(&self) -> bool {
        self.refresh.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn status(&self) -> MaterializedViewRefreshStatus {
        self.refresh.status.clone().unwrap_or_default()
    }

    pub(super) fn phase(&self) -> Phase {
        self.refresh.phase()
    }

    /// Whether a Job may ever have been created for it.
    pub(super) fn was_started(&self) -> bool {
        let status = self.refresh.status.as_ref();
        status.is_some_and(|s| s.job.is_some())
    }

    /// Whether its clock runs, or ran until its end: from the intent to create a
    /// Job until that Job was stopped for a time.
    pub(super) fn has_begun(&self) -> bool {
        let status = self.refresh.status.as_ref();
        status.is_some_and(|s| s.start_time.is_some())
    }

    /// For how long what must be looked at before it can begin has been out of
    /// reach, at each look.
    pub(super) fn waited_in_vain(&self) -> SignedDuration {
        let status = self.refresh.status.as_ref();
        let since = status.and_then(|s| s.unavailable_since.as_ref());
        since.map_or(SignedDuration::ZERO, |since| {
            self.now.duration_since(since.0)
        })
    }

    pub(super) fn recorded_uid(&self) -> Option<&str> {
        let job = self.refresh.status.as_ref()?.job.as_ref()?;
        job.uid.as_deref()
    }

    /// Home's clock alone counts.
    pub(super) fn overdue(&self, margin: SignedDuration) -> bool {
        let Some(status) = self.refresh.status.as_ref() else {
            return false;
        };
        let started = status.start_time.as_ref();
        let deadline = status.deadline_time.as_ref().map(|at| at.0);
        let deadline = deadline.or_else(|| started.map(|start| start.0 + self.deadline));
        deadline.is_some_and(|deadline| self.now.duration_since(deadline) > margin)
    }
}
