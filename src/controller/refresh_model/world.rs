//! What all others do in the model: API server, Job controller, workers and
//! users; and how it all comes to rest.

use super::*;

impl Model {
    /// As the API server does it: a second create of the same name meets the first.
    pub(super) fn create(&mut self, of: usize) {
        self.next_uid += 1;
        let uid = format!("job-{}", self.next_uid);
        self.jobs.entry(of).or_insert(Job {
            uid,
            work: Work::Pending,
            deleting: None,
        });
    }

    /// What a worker does at the commit: nothing, if its refresh's is there.
    pub(super) fn commit(&mut self, of: usize) {
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

    pub(super) fn work(&mut self, of: usize, kind: u32) {
        let Some(job) = self.jobs.get_mut(&of) else {
            return;
        };
        match (&job.work, kind % 5) {
            (Work::Pending, _) if job.deleting.is_none() => job.work = Work::Running,
            (Work::Running, 0) => self.commit(of),
            (Work::Running, 1 | 2) if job.deleting.is_none() => {
                job.work = Work::Succeeded;
                self.commit(of);
            }
            (Work::Running, 3) if job.deleting.is_none() => job.work = Work::Failed,
            _ => {}
        }
    }

    pub(super) fn remove_job(&mut self, of: usize, forced: bool) {
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

    pub(super) fn edit(&mut self, of: usize, change: impl FnOnce(&mut MaterializedViewRefresh)) {
        let stored = &mut self.stored[of];
        if stored.gone {
            return;
        }
        change(&mut stored.refresh);
        stored.version += 1;
        *stored.refresh.metadata.generation.get_or_insert(1) += 1;
    }

    /// What no finalizer keeps would be gone at once. Somebody's does, where
    /// none of relance's ever is, and now and then elsewhere.
    fn delete(&mut self, of: usize, kept: bool) {
        let refresh = &self.stored[of].refresh;
        let is_deleted = refresh.metadata.deletion_timestamp.is_some();
        if is_deleted || (remote(of) && !kept && !is_held(refresh)) {
            return;
        }
        self.edit(of, |refresh| {
            refresh.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            if kept || !remote(of) {
                let finalizers = refresh.metadata.finalizers.get_or_insert_default();
                finalizers.push(OTHERS.to_string());
            }
        });
    }

    /// One thing happens.
    pub(super) fn happen(&mut self, dice: u32) {
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
                    job.deleting.is_some() || matches!(job.work, Work::Succeeded | Work::Failed)
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
            62 if kind.is_multiple_of(4) => self.delete(of, kind.is_multiple_of(8)),
            // Or no deadline would pass while anything can go wrong.
            63 if kind.is_multiple_of(2) => self.now += DEADLINE / 2,
            _ => self.now += i64::from(kind % 40),
        }
    }

    /// Faults stop; everything that should happen does, again and again. But
    /// the catalog may stay away, from those that were cancelled or from all.
    pub(super) fn settle(&mut self) {
        self.away_from_cancelled = !self.catalog_up;
        let away_for_good = !self.catalog_up && self.now % 2 == 0;
        self.catalog_up = !away_for_good;
        self.quota = false;
        if self.far == Far::Away {
            self.far = Far::Up;
        }
        self.orphans.clear();
        for of in std::mem::take(&mut self.late) {
            self.late_once.insert(of);
            self.create(of);
        }
        for of in 0..REFRESHES {
            if self.stored[of].refresh.spec.suspend {
                self.edit(of, |refresh| refresh.spec.suspend = false);
            }
        }
        let rounds = if away_for_good { 160 } else { 60 };
        for round in 0..rounds {
            if round % 20 == 19 && (self.far == Far::Lost || self.away_from_cancelled) {
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
                if self.jobs.get(&of).is_some_and(|job| job.deleting.is_some()) {
                    self.remove_job(of, false);
                }
                self.work(of, 1);
            }
            self.now += 1;
        }
        for (of, stored) in self.stored.iter().enumerate() {
            let deleted = stored.refresh.metadata.deletion_timestamp.is_some();
            assert_eq!(
                stored.gone,
                deleted && !is_kept(&stored.refresh),
                "r{of} is deleted and stays, or is gone before it may"
            );
            if stored.gone {
                continue;
            }
            let phase = stored.refresh.phase();
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
