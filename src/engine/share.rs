//! Which task a worker does next, so that several share a plan without a word
//! between them but the claims that they leave.
//!
//! Each worker has a share: every n-th task. It does its own in their order,
//! then takes over from the ends of the others' shares. The first open tasks of
//! a share, as many as a worker does at a time, are taken to be under way: they
//! are left to their worker until nothing has become done anywhere for a while.
//! So a task is rarely done twice, and never left undone by a worker that died.

use std::time::{Duration, Instant};

/// How long nothing may become done before tasks that another worker seems to
/// be doing are done again; at least this, and thrice the longest task.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This task.
    Do(usize),
    /// Nothing yet: others are at what is left.
    Wait,
    /// All is done.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Running,
    Done,
}

/// One worker's view of the tasks of a plan.
#[derive(Debug)]
pub struct Share {
    tasks: Vec<State>,
    workers: usize,
    index: usize,
    at_a_time: usize,
    longest: Duration,
    last_done: Instant,
}

impl Share {
    /// The share of worker `index` of `workers` in `tasks`, of which each worker
    /// does some `at_a_time`.
    pub fn new(
        tasks: usize,
        workers: usize,
        index: usize,
        at_a_time: usize,
        now: Instant,
    ) -> Share {
        let workers = workers.max(1);
        Share {
            tasks: vec![State::Open; tasks],
            workers,
            index: index % workers,
            at_a_time: at_a_time.max(1),
            longest: Duration::ZERO,
            last_done: now,
        }
    }

    /// Whether `task` is done as far as this worker knows.
    pub fn is_done(&self, task: usize) -> bool {
        self.tasks.get(task) == Some(&State::Done)
    }

    /// Records that `task` is done, by whomever; `took` if by this worker.
    pub fn done(&mut self, task: usize, took: Option<Duration>, now: Instant) {
        if let Some(state) = self.tasks.get_mut(task)
            && *state != State::Done
        {
            *state = State::Done;
            self.last_done = now;
        }
        self.longest = self.longest.max(took.unwrap_or_default());
    }

    /// The next task, which is then this worker's to do.
    pub fn next(&mut self, now: Instant) -> Next {
        let found = self
            .open_of(self.index)
            .next()
            .or_else(|| self.last_of_another())
            .or_else(|| self.last_of_one_that_stalls(now));
        match found {
            Some(task) => {
                self.tasks[task] = State::Running;
                Next::Do(task)
            }
            None if self.tasks.iter().all(|state| *state == State::Done) => Next::Finished,
            None => Next::Wait,
        }
    }

    fn open_of(&self, worker: usize) -> impl DoubleEndedIterator<Item = usize> {
        (0..self
            .tasks
            .len()
            .saturating_sub(worker)
            .div_ceil(self.workers))
            .map(move |i| i * self.workers + worker)
            .filter(|task| self.tasks[*task] == State::Open)
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        (1..self.workers).map(|i| (self.index + i) % self.workers)
    }

    fn last_of_another(&self) -> Option<usize> {
        let (open, victim) = self
            .others()
            .map(|worker| (self.open_of(worker).count(), worker))
            .max_by_key(|(open, _)| *open)?;
        (open > self.at_a_time).then(|| self.open_of(victim).next_back())?
    }

    fn last_of_one_that_stalls(&self, now: Instant) -> Option<usize> {
        let patience = PATIENCE.max(self.longest * 3);
        if now.duration_since(self.last_done) < patience {
            return None;
        }
        self.others()
            .find_map(|worker| self.open_of(worker).next_back())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sole_worker_does_all_in_order() {
        let now = Instant::now();
        let mut share = Share::new(3, 1, 0, 2, now);
        for task in 0..3 {
            assert_eq!(share.next(now), Next::Do(task));
            share.done(task, None, now);
        }
        assert_eq!(share.next(now), Next::Finished);
    }

    #[test]
    fn ones_own_come_first_then_the_end_of_the_longest_other_share() {
        let now = Instant::now();
        let mut share = Share::new(9, 3, 1, 1, now);
        let mut taken = Vec::new();
        while let Next::Do(task) = share.next(now) {
            taken.push(task);
            share.done(task, None, now);
        }
        assert_eq!(taken[..3], [1, 4, 7]);
        // Tasks 0 and 2 seem to be under way.
        assert_eq!(taken.len(), 7);
        assert!(!taken.contains(&0) && !taken.contains(&2));
        assert_eq!(share.next(now), Next::Wait);
    }

    #[test]
    fn what_a_dead_worker_was_at_is_done_after_a_while() {
        let now = Instant::now();
        let mut share = Share::new(2, 2, 0, 1, now);
        assert_eq!(share.next(now), Next::Do(0));
        share.done(0, Some(Duration::from_secs(5)), now);
        assert_eq!(share.next(now + PATIENCE), Next::Wait, "its tasks are long");
        assert_eq!(share.next(now + Duration::from_secs(15)), Next::Do(1));
    }

    proptest! {
        /// Whoever dies whenever, the workers left do everything, each task at
        /// most once for each of them.
        #[test]
        fn all_gets_done(
            tasks in 0usize..40,
            workers in 1usize..5,
            at_a_time in 1usize..3,
            order in prop::collection::vec(0usize..5, 0..200),
            dead in 0usize..5,
        ) {
            let mut now = Instant::now();
            let mut shares: Vec<Share> =
                (0..workers).map(|i| Share::new(tasks, workers, i, at_a_time, now)).collect();
            let mut running: Vec<Vec<usize>> = vec![Vec::new(); workers];
            let mut times_done = vec![0usize; tasks];
            let mut all_done = std::collections::BTreeSet::new();
            let survivors: Vec<usize> = (0..workers).filter(|w| *w != dead || workers == 1).collect();
            let steps = order.iter().map(|w| w % workers)
                .chain(survivors.iter().copied().cycle().take(survivors.len() * (tasks + 2) * 3));
            for worker in steps {
                now += Duration::from_millis(700);
                for task in &all_done { shares[worker].done(*task, None, now); }
                if let Some(task) = running[worker].pop() {
                    times_done[task] += 1;
                    all_done.insert(task);
                    shares[worker].done(task, None, now);
                }
                if let Next::Do(task) = shares[worker].next(now) {
                    running[worker].push(task);
                } else {
                    now += PATIENCE;
                }
            }
            prop_assert_eq!(all_done.len(), tasks);
            prop_assert!(times_done.iter().all(|n| *n <= workers));
        }
    }
}
