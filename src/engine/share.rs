//! Which task a worker does next, so that several share a plan without a word
//! between them but the claims that they leave.
//!
//! Each worker has a share: every n-th task. It does its own in their order,
//! then takes over from the ends of the others' shares, knowing what they have
//! done by then, and each thief another task. The first open tasks of a share,
//! as many as a worker does at a time, are taken to be under way: they are left
//! to their worker until nothing has become done anywhere for a while. Those that
//! a worker tells it is at ([`super::pulse`]) are left to it for as long as it
//! does, or until it has taken far longer than any took here. So a task is rarely
//! done twice, and never left undone by a worker that died.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::pulse::ALIVE;

/// How long nothing may become done before tasks that another worker seems to
/// be doing are done again; at least this, and thrice the longest task.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The same for those that another tells it is at: at least this, and five times
/// the longest task that this worker has done, if it has done one.
const STRAGGLING: Duration = Duration::from_secs(30);

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

/// How old what is known of the others may be when work is taken from them.
const FRESH: Duration = Duration::from_millis(250);

/// One worker's view of the tasks of a plan.
#[derive(Debug)]
pub struct Share {
    tasks: Vec<State>,
    /// Tasks that are not done.
    left: usize,
    /// Each worker's open tasks, and others that are no longer open.
    shares: Vec<VecDeque<usize>>,
    /// How many of them are open.
    open: Vec<usize>,
    index: usize,
    at_a_time: usize,
    /// When another worker was last known to be at a task.
    told: HashMap<usize, Instant>,
    longest: Duration,
    last_done: Instant,
    looked: Instant,
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
        let shares: Vec<VecDeque<usize>> = (0..workers)
            .map(|worker| (worker..tasks).step_by(workers).collect())
            .collect();
        Share {
            tasks: vec![State::Open; tasks],
            left: tasks,
            open: shares.iter().map(VecDeque::len).collect(),
            shares,
            index: index % workers,
            at_a_time: at_a_time.max(1),
            told: HashMap::new(),
            longest: Duration::ZERO,
            last_done: now,
            looked: now,
        }
    }

    /// Whether all tasks are done as far as this worker knows.
    pub fn is_finished(&self) -> bool {
        self.left == 0
    }

    /// How many tasks are not done as far as this worker knows.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Whether there is something of its own to do.
    pub fn has_own(&self) -> bool {
        self.open[self.index] > 0
    }

    /// How long nothing has become done.
    pub fn quiet(&self, now: Instant) -> Duration {
        now.duration_since(self.last_done)
    }

    /// Records that `task` is done, by whomever; `took` if by this worker.
    pub fn done(&mut self, task: usize, took: Option<Duration>, now: Instant) {
        if self.tasks.get(task).is_some_and(|s| *s != State::Done) {
            self.set(task, State::Done);
            self.left -= 1;
            self.last_done = now;
        }
        self.longest = self.longest.max(took.unwrap_or_default());
    }

    /// Records that another worker was at `task` at `now`.
    pub fn under_way(&mut self, task: usize, now: Instant) {
        self.told.insert(task, now);
    }

    /// Records that the others' work is known as it was at `now`.
    pub fn looked(&mut self, now: Instant) {
        self.looked = now;
    }

    /// The next task, which is then this worker's to do.
    pub fn next(&mut self, now: Instant) -> Next {
        let found = self
            .first_of_its_own(now)
            .or_else(|| self.last_of_another(now))
            .or_else(|| self.last_of_one_that_stalls(now));
        match found {
            Some(task) => {
                self.set(task, State::Running);
                Next::Do(task)
            }
            None if self.is_finished() => Next::Finished,
            None => Next::Wait,
        }
    }

    fn set(&mut self, task: usize, state: State) {
        if self.tasks[task] == State::Open {
            self.open[task % self.shares.len()] -= 1;
        }
        self.tasks[task] = state;
    }

    fn first_of_its_own(&mut self, now: Instant) -> Option<usize> {
        let tasks = &self.tasks;
        let share = &mut self.shares[self.index];
        while share.front().is_some_and(|at| tasks[*at] != State::Open) {
            share.pop_front();
        }
        let mut share = self.shares[self.index].iter().copied();
        share.find(|task| self.tasks[*task] == State::Open && !self.is_told(*task, now))
    }

    /// Whether another worker is at `task`, by what it tells.
    fn is_told(&self, task: usize, now: Instant) -> bool {
        let told = self.told.get(&task);
        told.is_some_and(|at| now.duration_since(*at) < ALIVE)
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let workers = self.shares.len();
        (1..workers).map(move |i| (self.index + i) % workers)
    }

    fn open_from_the_end(&self, worker: usize) -> impl Iterator<Item = usize> {
        let share = self.shares[worker].iter().rev().copied();
        share.filter(|task| self.tasks[*task] == State::Open)
    }

    fn last_of_another(&self, now: Instant) -> Option<usize> {
        if now.duration_since(self.looked) > FRESH {
            return None;
        }
        // Others may be after the same share at the same time.
        let workers = self.shares.len();
        let rank = |victim: usize| (victim + workers - self.index) % workers - 1;
        let victim = self
            .others()
            .filter(|victim| self.open[*victim] > self.at_a_time + rank(*victim))
            .max_by_key(|victim| self.open[*victim])?;
        // Its first ones it seems to be at.
        self.open_from_the_end(victim)
            .take(self.open[victim].saturating_sub(self.at_a_time))
            .filter(|task| !self.is_told(*task, now))
            .nth(rank(victim))
    }

    fn last_of_one_that_stalls(&self, now: Instant) -> Option<usize> {
        let quiet = self.quiet(now);
        if quiet < PATIENCE.max(self.longest * 3) || now.duration_since(self.looked) > FRESH {
            return None;
        }
        // Who has done none does not know how long one takes.
        let straggles = !self.longest.is_zero() && quiet >= STRAGGLING.max(self.longest * 5);
        let left = |task: &usize| straggles || !self.is_told(*task, now);
        self.others()
            .chain([self.index])
            .find_map(|worker| self.open_from_the_end(worker).find(left))
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
        // The others' first tasks seem to be under way; and one task is left to
        // another thief.
        assert!(!taken.contains(&0) && !taken.contains(&2));
        assert_eq!(
            taken[3..],
            [3, 8, 5],
            "from the ends, but for the very last"
        );
        assert_eq!(share.next(now), Next::Wait);
    }

    #[test]
    fn nothing_is_taken_from_others_by_old_knowledge() {
        let now = Instant::now();
        let mut share = Share::new(10, 2, 0, 1, now);
        let later = now + FRESH * 2;
        while share.has_own() {
            assert!(matches!(share.next(later), Next::Do(_)));
        }
        assert_eq!(share.next(later), Next::Wait);
        share.looked(later);
        assert_eq!(share.next(later), Next::Do(9));
    }

    #[test]
    fn thieves_take_different_tasks() {
        let now = Instant::now();
        let mut taken = std::collections::BTreeSet::new();
        for index in 1..4 {
            let mut share = Share::new(40, 4, index, 2, now);
            (0..40)
                .filter(|task| task % 4 != 0)
                .for_each(|task| share.done(task, None, now));
            let Next::Do(task) = share.next(now) else {
                panic!("nothing to take")
            };
            assert!(taken.insert(task));
        }
        assert_eq!(taken.into_iter().collect::<Vec<_>>(), [28, 32, 36]);
    }

    #[test]
    fn what_a_dead_worker_was_at_is_done_after_a_while() {
        let now = Instant::now();
        let mut share = Share::new(2, 2, 0, 1, now);
        assert_eq!(share.next(now), Next::Do(0));
        share.done(0, Some(Duration::from_secs(5)), now);
        let later = now + PATIENCE;
        share.looked(later);
        assert_eq!(share.next(later), Next::Wait, "its tasks are long");
        let later = now + Duration::from_secs(15);
        assert_eq!(share.next(later), Next::Wait, "it may be done by now");
        share.looked(later);
        assert_eq!(share.next(later), Next::Do(1));
    }

    /// One that looks every half second at a worker that tells every other.
    fn wait(share: &mut Share, task: usize, from: Instant, told: Duration) -> Duration {
        let mut now = from;
        loop {
            now += Duration::from_millis(500);
            if now.duration_since(from) <= told {
                share.under_way(task, now);
            }
            share.looked(now);
            match share.next(now) {
                Next::Wait => {}
                next => {
                    assert_eq!(next, Next::Do(task));
                    return now.duration_since(from);
                }
            }
            if now.duration_since(from) > Duration::from_secs(7200) {
                return Duration::MAX;
            }
        }
    }

    #[test]
    fn what_a_worker_tells_it_is_at_is_left_to_it_until_it_is_dead_or_straggles() {
        let now = Instant::now();
        let hours = Duration::from_secs(8000);
        // One that has nothing of its own does not know how long a task takes.
        let mut idle = Share::new(1, 2, 1, 1, now);
        assert_eq!(wait(&mut idle, 0, now, hours), Duration::MAX);
        let mut idle = Share::new(1, 2, 1, 1, now);
        let minute = Duration::from_secs(60);
        let waited = wait(&mut idle, 0, now, minute);
        assert_eq!(waited, minute + ALIVE, "dead after a minute");
        // One that has done its own does.
        let mut quick = Share::new(2, 2, 0, 1, now);
        assert_eq!(quick.next(now), Next::Do(0));
        quick.done(0, Some(Duration::from_secs(20)), now);
        let waited = wait(&mut quick, 1, now, hours);
        assert_eq!(waited, Duration::from_secs(100));
    }

    #[test]
    fn what_another_thief_is_at_is_passed_over() {
        let now = Instant::now();
        let mut share = Share::new(30, 3, 1, 1, now);
        for task in (0..30).filter(|task| task % 3 != 0) {
            share.done(task, None, now);
        }
        share.under_way(27, now);
        share.under_way(24, now);
        assert_eq!(
            share.next(now),
            Next::Do(18),
            "and one is left to the third"
        );
    }

    #[test]
    fn what_a_worker_has_begun_and_not_told_yet_is_not_taken_for_what_others_tell() {
        let now = Instant::now();
        let mut share = Share::new(21, 3, 2, 2, now);
        let left = [3, 6, 9, 12];
        for task in (0..21).filter(|task| !left.contains(task)) {
            share.done(task, None, now);
        }
        for task in [3, 9, 12] {
            share.under_way(task, now);
        }
        assert_eq!(share.next(now), Next::Wait, "the first is at 3 and 6");
    }

    #[test]
    fn who_comes_late_does_not_begin_what_another_is_at() {
        let now = Instant::now();
        let mut late = Share::new(2, 2, 0, 1, now);
        late.under_way(0, now);
        assert_eq!(late.next(now), Next::Wait);
        late.looked(now + ALIVE);
        assert_eq!(late.next(now + ALIVE), Next::Do(0), "it is dead");
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
            hears in prop::collection::vec(any::<bool>(), 1..20),
        ) {
            let mut now = Instant::now();
            let mut shares: Vec<Share> =
                (0..workers).map(|i| Share::new(tasks, workers, i, at_a_time, now)).collect();
            let mut running: Vec<Vec<usize>> = vec![Vec::new(); workers];
            let mut times_done = vec![0usize; tasks];
            let mut all_done = std::collections::BTreeSet::new();
            let survivors: Vec<usize> = (0..workers).filter(|w| *w != dead || workers == 1).collect();
            let steps = order.iter().map(|w| w % workers)
                .chain(survivors.iter().copied().cycle().take(survivors.len() * ((tasks + 2) * 3 + 40)));
            for (step, worker) in steps.enumerate() {
                now += Duration::from_millis(700);
                // The dead one tells for a while, too.
                for (other, tasks) in running.iter().enumerate() {
                    if hears[step % hears.len()] && (survivors.contains(&other) || step < 30) {
                        tasks.iter().for_each(|task| shares[worker].under_way(*task, now));
                    }
                }
                for task in &all_done { shares[worker].done(*task, None, now); }
                shares[worker].looked(now);
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
