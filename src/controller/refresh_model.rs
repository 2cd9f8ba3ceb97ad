//! Random interleavings of everything that can happen to refreshes: a small
//! model of API server, Job controller, workers, catalog and users, around the
//! real `decide` and the real queue.
//!
//! Between any two steps of the operator anything else may happen, and the
//! operator may die, with a create under way that lands later or never. Half of
//! the refreshes have their Jobs in another cluster, which may be out of reach,
//! or lost for good. What must hold at every step and at the end is asserted
//! where it could break.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::queue::{self, Place};
use super::refresh::*;
use crate::engine::outcome::{Mode, Outcome};
use crate::resources::{MaterializedViewRefresh, Phase, Progress, names, reasons};

const REFRESHES: usize = 4;
const DEADLINE: i64 = 600;

/// A refresh as the API server has it, and what truly became of its work.
struct Stored {
    refresh: MaterializedViewRefresh,
    version: u64,
    committed: Option<Outcome>,
    /// The end that was written.
    ended: Option<Phase>,
    /// It was deleted, and is.
    gone: bool,
}

/// Whether the other cluster can be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Far {
    Up,
    Away,
    /// Its RefreshCluster was deleted.
    Lost,
}

/// Whether a refresh's Jobs are made in the other cluster.
fn remote(of: usize) -> bool {
    of % 2 == 1
}

#[derive(Clone, Debug, PartialEq)]
enum Work {
    Pending,
    Running,
    Succeeded,
    Failed,
}

#[derive(Clone, Debug)]
struct Job {
    uid: String,
    work: Work,
    deleting: bool,
}

/// One operator process: what dies with it.
#[derive(Default)]
struct Operator {
    pass: Option<Pass>,
    cache: BTreeMap<usize, (MaterializedViewRefresh, u64)>,
    reserved: BTreeSet<usize>,
}

struct Pass {
    of: usize,
    version: u64,
    seen: Observed,
}

struct Model {
    now: i64,
    catalog_up: bool,
    quota: bool,
    far: Far,
    stored: Vec<Stored>,
    jobs: BTreeMap<usize, Job>,
    /// Pods whose Job was forced away under them.
    orphans: Vec<usize>,
    /// Creates that were sent by an operator that has died.
    late: Vec<usize>,
    next_uid: u32,
    operators: Vec<Operator>,
    orphaned_once: BTreeSet<usize>,
    late_once: BTreeSet<usize>,
}

impl Model {
    fn new(operators: usize) -> Model {
        let stored: Vec<Stored> = (0..REFRESHES)
            .map(|of| {
                let spec = serde_json::json!({"view": [if of == 3 { "w" } else { "v" }]});
                let mut refresh = MaterializedViewRefresh::new(
                    &format!("r{of}"),
                    serde_json::from_value(spec).unwrap(),
                );
                refresh.metadata.uid = Some(format!("refresh-{of}"));
                refresh.metadata.generation = Some(1);
                refresh.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
                Stored {
                    refresh,
                    version: 1,
                    committed: None,
                    ended: None,
                    gone: false,
                }
            })
            .collect();
        let mut model = Model {
            now: 1_000,
            catalog_up: true,
            quota: false,
            far: Far::Up,
            stored,
            jobs: BTreeMap::new(),
            orphans: Vec::new(),
            late: Vec::new(),
            next_uid: 0,
            operators: Vec::new(),
            orphaned_once: BTreeSet::new(),
            late_once: BTreeSet::new(),
        };
        for at in 0..operators {
            model.operators.push(Operator::default());
            model.restart(at);
        }
        model
    }

    fn restart(&mut self, at: usize) {
        let cache = self.stored.iter().enumerate();
        self.operators[at] = Operator {
            cache: cache
                .map(|(of, s)| (of, (s.refresh.clone(), s.version)))
                .collect(),
            ..Operator::default()
        };
    }

    /// The operator dies; a create that it was about to send may be on its way.
    fn crash(&mut self, at: usize, sent: bool) {
        if let Some(pass) = &self.operators[at].pass
            && sent
            && decide(&pass.seen) == Action::CreateJob
        {
            self.late.push(pass.of);
        }
        self.restart(at);
    }

    fn sync(&mut self, at: usize, of: usize) {
        let stored = &self.stored[of];
        let fresh = (stored.refresh.clone(), stored.version);
        self.operators[at].cache.insert(of, fresh);
    }

    /// One step of an operator: it starts a pass over a refresh, or goes on with the one it has.
    fn operate(&mut self, at: usize, of: usize) {
        let Some(pass) = self.operators[at].pass.take() else {
            self.start(at, of);
            return;
        };
        self.advance(at, pass);
    }

    fn start(&mut self, at: usize, of: usize) {
        if self.stored[of].gone {
            return;
        }
        let (mut refresh, mut version) = self.operators[at].cache[&of].clone();
        let job = refresh.status.as_ref().and_then(|s| s.job.as_ref());
        if job.is_some_and(|job| job.uid.is_none()) {
            // An intent is read afresh before anything is launched on it.
            refresh = self.stored[of].refresh.clone();
            version = self.stored[of].version;
        }
        let terminal = refresh
            .status
            .as_ref()
            .is_some_and(|s| s.phase.is_terminal());
        let seen = Observed {
            now: Timestamp::from_second(self.now).unwrap(),
            job_name: format!("job-{of}"),
            job_namespace: "ns".into(),
            remote: remote(of),
            deadline: SignedDuration::from_secs(DEADLINE),
            job: (terminal && !is_held(&refresh)).then(|| self.cached_job(of)),
            refresh,
            world: None,
            turn: None,
            outcome: None,
            refused: None,
            progress: None,
        };
        self.operators[at].pass = Some(Pass { of, version, seen });
    }

    /// As a look at its cluster shows it.
    fn job(&self, of: usize, held: bool) -> JobSeen {
        match self.far {
            Far::Away if held => JobSeen::Away("away".into()),
            Far::Lost if held => JobSeen::Lost("gone".into()),
            // A Job of this cluster is not in the other one, nor the other way round.
            _ if held != remote(of) => JobSeen::Absent,
            _ => self.cached_job(of),
        }
    }

    fn cached_job(&self, of: usize) -> JobSeen {
        let Some(job) = self.jobs.get(&of) else {
            return JobSeen::Absent;
        };
        let end = match job.work {
            Work::Pending | Work::Running => None,
            Work::Succeeded => Some(JobEnd::Succeeded(None)),
            Work::Failed => Some(JobEnd::Failed {
                reason: reasons::WORKERS_FAILED.into(),
                message: "failed".into(),
            }),
        };
        JobSeen::Ours(JobState {
            uid: job.uid.clone(),
            deleting: job.deleting,
            end,
            stuck: None,
        })
    }

    fn uri(&self, of: usize) -> String {
        format!("mem://{}", self.stored[of].refresh.spec.view.join("/"))
    }

    fn advance(&mut self, at: usize, mut pass: Pass) {
        let of = pass.of;
        match decide(&pass.seen) {
            Action::Look(Look::World) => {
                pass.seen.world = Some(if self.catalog_up {
                    World::Ready {
                        uri: self.uri(of),
                        current: None,
                    }
                } else {
                    World::Unavailable("away".into())
                });
            }
            Action::Look(Look::Turn) => pass.seen.turn = Some(self.turn(at, of)),
            Action::Look(Look::Job) => {
                let held = pass.seen.is_held();
                pass.seen.saw_job(Some(self.job(of, held)));
            }
            Action::Look(Look::Outcome) => {
                pass.seen.outcome = Some(match (&self.stored[of].committed, self.catalog_up) {
                    (_, false) => OutcomeSeen::Unavailable("away".into()),
                    (Some(outcome), _) => OutcomeSeen::Found(outcome.clone()),
                    (None, _) => OutcomeSeen::NotFound,
                });
            }
            Action::Look(Look::Progress) => {
                pass.seen.progress = Some(match self.now % 3 {
                    0 => ProgressSeen::Silent,
                    _ => ProgressSeen::At(Progress {
                        units_done: self.now,
                        ..Progress::default()
                    }),
                });
            }
            Action::Write(write) => {
                if !self.write(&mut pass, &write) {
                    // Refused for its resourceVersion: the pass is over.
                    self.operators[at].reserved.remove(&of);
                    return;
                }
                // What an operator wrote it knows.
                let known = (pass.seen.refresh.clone(), pass.version);
                self.operators[at].cache.insert(of, known);
            }
            Action::CreateJob => self.create_for(&mut pass),
            Action::Hold => {
                assert!(remote(of));
                if !self.finalize(&mut pass, true) {
                    self.operators[at].reserved.remove(&of);
                    return;
                }
            }
            Action::Release(told) => {
                if !self.finalize(&mut pass, false) {
                    self.operators[at].reserved.remove(&of);
                    return;
                }
                let stored = &mut self.stored[of];
                let given_up = told.is_some() || self.far != Far::Up;
                if let Some(job) = self.jobs.get(&of)
                    && self.operators.len() == 1
                    && !self.late_once.contains(&of)
                {
                    let works = matches!(job.work, Work::Pending | Work::Running) && !job.deleting;
                    assert!(!works || given_up, "released while Job {job:?} works");
                }
                if stored.refresh.metadata.deletion_timestamp.is_some() {
                    stored.gone = true;
                    self.operators[at].reserved.remove(&of);
                    return;
                }
            }
            Action::DeleteJob { uid } if self.far != Far::Up && pass.seen.is_held() => {
                assert!(!uid.is_empty());
                let unseen = self.job(of, true);
                pass.seen.saw_job(Some(unseen));
            }
            Action::DeleteJob { uid } => {
                if let Some(job) = self.jobs.get_mut(&of)
                    && job.uid == uid
                {
                    job.deleting = true;
                }
                pass.seen.saw_job(None);
            }
            Action::DeleteRefresh => panic!("no refresh here has a time to live"),
            Action::Wait(_) => {
                self.operators[at].reserved.remove(&of);
                return;
            }
        }
        self.operators[at].pass = Some(pass);
    }

    fn turn(&mut self, at: usize, of: usize) -> Turn {
        let uri = self.uri(of);
        let place = |refresh: &MaterializedViewRefresh, of: usize| {
            let mut refresh = refresh.clone();
            let status = refresh.status.get_or_insert_default();
            status
                .view_uri
                .get_or_insert(format!("mem://{}", refresh.spec.view.join("/")));
            let mut place = Place::of(&refresh)?;
            place.running |= self.operators[at].reserved.contains(&of);
            Some(place)
        };
        // What runs comes fresh from the API server, what waits from the cache.
        let running = self
            .stored
            .iter()
            .enumerate()
            .filter(|(_, s)| phase(&s.refresh) == Phase::Running && !s.gone);
        let mut others: Vec<Place> = running
            .filter_map(|(of, s)| place(&s.refresh, of))
            .collect();
        let cached = self.operators[at].cache.iter();
        others.extend(
            cached
                .filter(|(of, _)| !self.stored[**of].gone)
                .filter(|(_, (r, _))| r.status.is_some() && phase(r) == Phase::Queued)
                .filter_map(|(of, (refresh, _))| place(refresh, *of)),
        );
        let Some(mut me) = place(&self.stored[of].refresh, of) else {
            return Turn::Behind("it neither runs nor waits".into());
        };
        me.running = false;
        assert_eq!(me.uri, uri);
        let turn = queue::turn(&me, &others, &BTreeMap::new());
        if turn == Turn::Now {
            self.operators[at].reserved.insert(of);
        }
        turn
    }

    /// Adds or removes the finalizer, if the refresh is what was looked at.
    fn finalize(&mut self, pass: &mut Pass, held: bool) -> bool {
        let stored = &mut self.stored[pass.of];
        if stored.version != pass.version || stored.gone {
            return false;
        }
        let finalizers = held.then(|| vec![names::REMOTE_FINALIZER.to_string()]);
        stored.refresh.metadata.finalizers = finalizers;
        stored.version += 1;
        pass.version = stored.version;
        pass.seen.refresh = stored.refresh.clone();
        true
    }

    fn write(&mut self, pass: &mut Pass, write: &Write) -> bool {
        let lost = remote(pass.of) && self.far == Far::Lost;
        let stored = &mut self.stored[pass.of];
        if stored.version != pass.version || stored.gone {
            return false;
        }
        let (before, after) = (phase(&stored.refresh), write.status.phase);
        assert!(
            !before.is_terminal() || before == after,
            "{before:?} is final, and {after:?} was written over it"
        );
        if after == Phase::Succeeded && before != after {
            assert!(stored.committed.is_some(), "success without a commit");
        }
        if after.is_terminal() && before != after {
            assert_eq!(stored.ended.replace(after), None, "one end");
            // A history that is out of reach for longer than the deadline is given up.
            let start = write.status.start_time.as_ref();
            let given_up = start.is_some_and(|start| self.now - start.0.as_second() > DEADLINE);
            // Between the look and the word only two can commit: a pod whose Job
            // was forced away, and a Job that a dead operator had asked for.
            let behind_the_back =
                self.orphaned_once.contains(&pass.of) || self.late_once.contains(&pass.of);
            if stored.committed.is_some() && !behind_the_back && !given_up && !lost {
                assert_eq!(after, Phase::Succeeded, "a commit was overlooked");
            }
            if matches!(after, Phase::Failed | Phase::Cancelled)
                && self.operators.len() == 1
                && let Some(job) = self.jobs.get(&pass.of)
            {
                assert!(
                    matches!(job.work, Work::Failed | Work::Succeeded)
                        || given_up
                        || lost
                        || self.late_once.contains(&pass.of),
                    "{after:?} was said while Job {job:?} may do the work"
                );
            }
        }
        let stored = &mut self.stored[pass.of];
        stored.refresh.status = Some(write.status.clone());
        stored.version += 1;
        pass.version = stored.version;
        pass.seen.refresh = stored.refresh.clone();
        if self.operators.len() == 1 {
            self.one_running_per_view();
        }
        true
    }

    fn one_running_per_view(&self) {
        let mut views = BTreeSet::new();
        for (of, stored) in self.stored.iter().enumerate() {
            if phase(&stored.refresh) == Phase::Running && !stored.gone {
                assert!(views.insert(self.uri(of)), "two refreshes of one view run");
            }
        }
    }

    fn create_for(&mut self, pass: &mut Pass) {
        let of = pass.of;
        let held = pass.seen.is_held();
        assert_eq!(held, remote(of), "a Job in the wrong cluster");
        if self.stored[of].gone {
            // Its Job is swept up.
            return;
        }
        if held && self.far != Far::Up {
            // The answer is lost; the create may have landed.
            if self.far == Far::Away && self.now % 2 == 0 {
                self.late_once.insert(of);
                self.create(of);
            }
            pass.seen.saw_job(Some(self.job(of, held)));
            return;
        }
        let stored = phase(&self.stored[of].refresh);
        if self.operators.len() == 1 {
            assert_eq!(stored, Phase::Running, "launched without an intent");
            assert!(
                self.stored[of].committed.is_none()
                    || self.orphaned_once.contains(&of)
                    || self.late_once.contains(&of)
                    || self.jobs.contains_key(&of),
                "launched again after its success"
            );
        }
        if self.quota && !self.jobs.contains_key(&of) {
            pass.seen.refused = Some(LaunchRefused {
                reason: reasons::JOB_REJECTED.into(),
                permanent: false,
                message: "exceeded quota".into(),
            });
            return;
        }
        self.create(of);
        pass.seen.saw_job(Some(self.cached_job(of)));
    }

    /// As the API server does it: a second create of the same name meets the first.
    fn create(&mut self, of: usize) {
        self.next_uid += 1;
        let uid = format!("job-{}", self.next_uid);
        self.jobs.entry(of).or_insert(Job {
            uid,
            work: Work::Pending,
            deleting: false,
        });
    }

    /// What a worker does at the commit: nothing, if its refresh's is there.
    fn commit(&mut self, of: usize) {
        let outcome = Outcome {
            mode: Mode::Incremental,
            source_version: 1,
            source_versions: Default::default(),
            view_version: 2,
            rows_written: 1,
            bytes_written: 1,
            units_total: 1,
            units_kept: 0,
            unindexed_rows: None,
        };
        self.stored[of].committed.get_or_insert(outcome);
    }

    fn work(&mut self, of: usize, kind: u32) {
        let Some(job) = self.jobs.get_mut(&of) else {
            return;
        };
        match (&job.work, kind % 5) {
            (Work::Pending, _) if !job.deleting => job.work = Work::Running,
            (Work::Running, 0) => self.commit(of),
            (Work::Running, 1 | 2) if !job.deleting => {
                job.work = Work::Succeeded;
                self.commit(of);
            }
            (Work::Running, 3) if !job.deleting => job.work = Work::Failed,
            _ => {}
        }
    }

    fn remove_job(&mut self, of: usize, forced: bool) {
        let status = self.stored[of].refresh.status.as_ref();
        let recorded = status.and_then(|s| s.job.as_ref()?.uid.as_ref());
        if recorded.is_none() {
            // It came and went unseen, perhaps between a look at the history and
            // a create: then the worker finds the commit, and does nothing.
            self.late_once.insert(of);
        }
        if let Some(job) = self.jobs.remove(&of)
            && forced
            && job.work == Work::Running
        {
            self.orphans.push(of);
            self.orphaned_once.insert(of);
        }
    }

    fn edit(&mut self, of: usize, change: impl FnOnce(&mut MaterializedViewRefresh)) {
        let stored = &mut self.stored[of];
        if stored.gone {
            return;
        }
        change(&mut stored.refresh);
        stored.version += 1;
        *stored.refresh.metadata.generation.get_or_insert(1) += 1;
    }

    /// One thing happens.
    fn happen(&mut self, dice: u32) {
        let of = (dice >> 8) as usize % REFRESHES;
        let at = (dice >> 12) as usize % self.operators.len();
        let kind = dice >> 16;
        match dice % 64 {
            0..=30 => self.operate(at, of),
            31 | 32 => self.crash(at, kind.is_multiple_of(2)),
            33..=38 => self.sync(at, of),
            39..=48 => self.work(of, kind),
            49 => self.remove_job(of, true),
            50 | 51 => {
                if self.jobs.get(&of).is_some_and(|job| {
                    job.deleting || matches!(job.work, Work::Succeeded | Work::Failed)
                }) {
                    self.remove_job(of, false);
                }
            }
            52 => {
                if let Some(of) = self.orphans.pop()
                    && kind.is_multiple_of(2)
                {
                    self.commit(of);
                }
            }
            53 => {
                if let Some(of) = self.late.pop() {
                    self.late_once.insert(of);
                    self.create(of);
                }
            }
            54 => self.edit(of, |refresh| refresh.spec.suspend = true),
            55 | 56 => self.edit(of, |refresh| refresh.spec.suspend = false),
            57 if kind.is_multiple_of(4) => self.edit(of, |refresh| refresh.spec.cancel = true),
            58 => self.edit(of, |refresh| refresh.spec.priority = (kind % 3) as i32),
            59 => self.catalog_up = !kind.is_multiple_of(3),
            60 => self.quota = kind.is_multiple_of(3),
            61 => {
                self.far = match kind % 16 {
                    0 => Far::Lost,
                    1..6 => Far::Away,
                    _ if self.far == Far::Lost => Far::Lost,
                    _ => Far::Up,
                }
            }
            62 if kind.is_multiple_of(8) && remote(of) => {
                if is_held(&self.stored[of].refresh) {
                    self.edit(of, |refresh| {
                        refresh.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
                    });
                }
            }
            _ => self.now += i64::from(kind % 40),
        }
    }

    /// Faults stop; everything that should happen does, again and again.
    fn settle(&mut self) {
        self.catalog_up = true;
        self.quota = false;
        if self.far == Far::Away {
            self.far = Far::Up;
        }
        self.orphans.clear();
        for of in std::mem::take(&mut self.late) {
            self.create(of);
        }
        for of in 0..REFRESHES {
            if self.stored[of].refresh.spec.suspend {
                self.edit(of, |refresh| refresh.spec.suspend = false);
            }
        }
        for round in 0..60 {
            if round % 20 == 19 && self.far == Far::Lost {
                // Only the deadline ends what nobody can look at; each may have
                // waited for the one before it.
                self.now += DEADLINE + 100;
            }
            for of in 0..REFRESHES {
                if self.stored[of].gone {
                    continue;
                }
                for at in 0..self.operators.len() {
                    while self.operators[at].pass.is_some() {
                        self.operate(at, of);
                    }
                    self.sync(at, of);
                    self.start(at, of);
                    let mut steps = 0;
                    while self.operators[at].pass.is_some() {
                        steps += 1;
                        assert!(steps < 60, "a pass that does not end");
                        self.operate(at, of);
                    }
                }
                if self.jobs.get(&of).is_some_and(|job| job.deleting) {
                    self.remove_job(of, false);
                }
                self.work(of, 1);
            }
            self.now += 1;
        }
        for (of, stored) in self.stored.iter().enumerate() {
            let deleted = stored.refresh.metadata.deletion_timestamp.is_some();
            assert_eq!(stored.gone, deleted, "r{of} is deleted and stays");
            if stored.gone {
                continue;
            }
            let phase = phase(&stored.refresh);
            assert!(
                phase.is_terminal(),
                "r{of} is {phase:?} for ever: {:?}",
                stored.refresh.status
            );
            let status = stored.refresh.status.as_ref().unwrap();
            assert!(status.message.is_some() && status.completion_time.is_some());
            assert!(
                !is_held(&stored.refresh),
                "r{of} is {phase:?} and held for ever"
            );
            if phase != Phase::Succeeded
                && (self.far == Far::Up || !remote(of))
                && let Some(job) = self.jobs.get(&of)
            {
                let ended = matches!(job.work, Work::Succeeded | Work::Failed);
                assert!(ended, "{job:?} runs on after {phase:?}");
            }
        }
    }
}

fn phase(refresh: &MaterializedViewRefresh) -> Phase {
    refresh.status.as_ref().map_or(Phase::Queued, |s| s.phase)
}

fn play(operators: usize, history: &[u32]) {
    let mut model = Model::new(operators);
    for dice in history {
        model.happen(*dice);
    }
    model.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(400), ..ProptestConfig::default() })]

    #[test]
    fn one_operator_that_may_die_at_any_moment(history in prop::collection::vec(any::<u32>(), 0..600)) {
        play(1, &history);
    }

    #[test]
    fn two_operators_by_accident(history in prop::collection::vec(any::<u32>(), 0..600)) {
        play(2, &history);
    }
}
