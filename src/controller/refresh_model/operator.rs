//! What an operator does in the model: the passes of the controller, step by
//! step, with the real `decide`.

use super::*;

impl Model {
    pub(super) fn restart(&mut self, at: usize) {
        let cache = self.stored.iter().enumerate();
        self.operators[at] = Operator {
            cache: cache
                .map(|(of, s)| (of, (s.refresh.clone(), s.version)))
                .collect(),
            ..Operator::default()
        };
    }

    /// The operator dies; a create that it was about to send may be on its way.
    pub(super) fn crash(&mut self, at: usize, sent: bool) {
        if let Some(pass) = &self.operators[at].pass
            && sent
            && decide(&pass.seen) == Action::CreateJob
        {
            self.late.push(pass.of);
        }
        self.restart(at);
    }

    pub(super) fn sync(&mut self, at: usize, of: usize) {
        let stored = &self.stored[of];
        let fresh = (stored.refresh.clone(), stored.version);
        self.operators[at].cache.insert(of, fresh);
    }

    /// One step of an operator: it starts a pass over a refresh, or goes on with the one it has.
    pub(super) fn operate(&mut self, at: usize, of: usize) {
        let Some(pass) = self.operators[at].pass.take() else {
            self.start(at, of);
            return;
        };
        self.advance(at, pass);
    }

    pub(super) fn start(&mut self, at: usize, of: usize) {
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
            job_server: None,
            remote: remote(of),
            deadline: SignedDuration::from_secs(DEADLINE),
            job: (terminal && !is_held(&refresh)).then(|| self.cached_job(of)),
            refresh,
            world: None,
            turn: None,
            outcome: None,
            refused: None,
            credential: None,
            progress: None,
            unexplained: false,
        };
        self.operators[at].pass = Some(Pass { of, version, seen });
    }

    /// As a look at its cluster shows it.
    pub(super) fn job(&self, of: usize, held: bool) -> JobSeen {
        match self.far {
            Far::Away if held => JobSeen::Away("away".into()),
            Far::Lost if held => JobSeen::Lost("gone".into()),
            // A Job of this cluster is not in the other one, nor the other way round.
            _ if held != remote(of) => JobSeen::Absent,
            _ => self.cached_job(of),
        }
    }

    pub(super) fn cached_job(&self, of: usize) -> JobSeen {
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
            deleting: job.deleting.is_some(),
            due: job.deleting.map(|at| Timestamp::from_second(at).unwrap()),
            end,
            stuck: None,
        })
    }

    pub(super) fn uri(&self, of: usize) -> String {
        format!("mem://{}", self.stored[of].refresh.spec.view.join("/"))
    }

    pub(super) fn advance(&mut self, at: usize, mut pass: Pass) {
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
                let away = self.away_from_cancelled && self.stored[of].refresh.spec.cancel;
                let up = self.catalog_up && !away;
                pass.seen.outcome = Some(match (&self.stored[of].committed, up) {
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
                    let works =
                        matches!(job.work, Work::Pending | Work::Running) && job.deleting.is_none();
                    assert!(!works || given_up, "released while Job {job:?} works");
                }
                let deleted = stored.refresh.metadata.deletion_timestamp.is_some();
                if deleted && !is_kept(&stored.refresh) {
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
                    job.deleting.get_or_insert(self.now);
                }
                pass.seen.saw_job(None);
            }
            Action::DeleteCredential => panic!("no refresh here has a credential"),
            Action::DeleteRefresh => panic!("no refresh here has a time to live"),
            Action::Wait(_) => {
                self.operators[at].reserved.remove(&of);
                return;
            }
        }
        self.operators[at].pass = Some(pass);
    }

    pub(super) fn turn(&mut self, at: usize, of: usize) -> Turn {
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
            .filter(|(_, s)| s.refresh.phase() == Phase::Running && !s.gone);
        let mut others: Vec<Place> = running
            .filter_map(|(of, s)| place(&s.refresh, of))
            .collect();
        let cached = self.operators[at].cache.iter();
        others.extend(
            cached
                .filter(|(of, _)| !self.stored[**of].gone)
                .filter(|(_, (r, _))| r.status.is_some() && r.phase() == Phase::Queued)
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
    pub(super) fn finalize(&mut self, pass: &mut Pass, held: bool) -> bool {
        let stored = &mut self.stored[pass.of];
        if stored.version != pass.version || stored.gone {
            return false;
        }
        let finalizers = stored.refresh.metadata.finalizers.get_or_insert_default();
        finalizers.retain(|held| held != names::REMOTE_FINALIZER);
        finalizers.extend(held.then(|| names::REMOTE_FINALIZER.to_string()));
        stored.version += 1;
        pass.version = stored.version;
        pass.seen.refresh = stored.refresh.clone();
        true
    }

    pub(super) fn write(&mut self, pass: &mut Pass, write: &Write) -> bool {
        // It may be found again between the look and the word.
        let lost = remote(pass.of)
            && (self.far == Far::Lost || matches!(pass.seen.job, Some(JobSeen::Lost(_))));
        let stored = &mut self.stored[pass.of];
        if stored.version != pass.version || stored.gone {
            return false;
        }
        let (before, after) = (stored.refresh.phase(), write.status.phase);
        assert!(
            !before.is_terminal() || before == after,
            "{before:?} is final, and {after:?} was written over it"
        );
        if after == Phase::Succeeded && before != after {
            assert!(stored.committed.is_some(), "success without a commit");
        }
        if after.is_terminal() && before != after {
            assert_eq!(stored.ended.replace(after), None, "one end");
            let start = write.status.start_time.as_ref();
            let overdue = start.is_some_and(|start| self.now - start.0.as_second() > DEADLINE);
            // A Job that is out of sight, or does not go, for longer than the
            // deadline is given up; also one that another operator has made.
            let unseen = matches!(pass.seen.job, Some(JobSeen::Away(_) | JobSeen::Lost(_)));
            let deleting = self.jobs.get(&pass.of).and_then(|job| job.deleting);
            let stays = deleting.is_some_and(|since| self.now - since > LOST);
            let given_up = overdue && (unseen || stays || self.operators.len() > 1);
            // Between the look and the word only two can commit: a pod whose Job
            // was forced away, and a Job that a dead operator had asked for.
            let behind_the_back =
                self.orphaned_once.contains(&pass.of) || self.late_once.contains(&pass.of);
            // One that was stopped before does not wait for a history that cannot be
            // read, and none does so for longer than the deadline.
            let unread = (before != Phase::Running || overdue)
                && matches!(pass.seen.outcome, Some(OutcomeSeen::Unavailable(_)));
            if stored.committed.is_some() && !behind_the_back && !given_up && !lost && !unread {
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
        pass.seen.wrote(stored.refresh.clone());
        if self.operators.len() == 1 {
            self.one_running_per_view();
        }
        true
    }

    pub(super) fn one_running_per_view(&self) {
        let mut views = BTreeSet::new();
        for (of, stored) in self.stored.iter().enumerate() {
            if stored.refresh.phase() == Phase::Running && !stored.gone {
                assert!(views.insert(self.uri(of)), "two refreshes of one view run");
            }
        }
    }

    pub(super) fn create_for(&mut self, pass: &mut Pass) {
        let of = pass.of;
        let held = pass.seen.is_held();
        assert_eq!(held, remote(of), "a Job in the wrong cluster");
        if self.stored[of].gone {
            // Its Job is swept up.
            pass.seen.saw_job(Some(JobSeen::Ours(JobState {
                uid: "swept-up".into(),
                ..JobState::default()
            })));
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
        let stored = self.stored[of].refresh.phase();
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
        // Whether or not the Job is there already.
        if self.quota {
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
}
