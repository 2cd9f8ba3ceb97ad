//! How much one caller may ask: so many requests a second, and so many at work
//! at a time. What is over is 429 with Retry-After.
//!
//! The rate is the generic cell rate algorithm's: a caller has a time up to
//! which what it sent is paid for, each request moves it on, and it may lie one
//! second ahead. An entry whose time has passed is as good as none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::rest::error::ApiError;

/// How far a caller may be ahead of its rate.
const BURST: Duration = Duration::from_secs(1);

/// Entries above which those that say nothing any more are looked for.
const MANY: usize = 10_000;

/// What one caller may ask at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerLimits {
    /// Requests a second.
    pub per_second: u32,
    /// Requests at work at a time.
    pub at_a_time: u32,
}

#[derive(Debug)]
struct Entry {
    paid_until: Instant,
    at_work: u32,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Callers {
    limits: CallerLimits,
    callers: Arc<Mutex<HashMap<String, Entry>>>,
}

/// A caller's request at work, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    caller: String,
    of: Callers,
}

impl Callers {
    /// Nobody has asked for anything yet.
    pub fn new(limits: CallerLimits) -> Self {
        Self {
            limits,
            callers: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request of `caller` in, or says `Throttled`.
    pub fn admit(&self, caller: &str) -> Result<Permit, ApiError> {
        self.admit_at(caller, Instant::now())
    }

    fn admit_at(&self, caller: &str, now: Instant) -> Result<Permit, ApiError> {
        let CallerLimits {
            per_second,
            at_a_time,
        } = self.limits;
        let mut callers = self.lock();
        if callers.len() >= MANY {
            callers.retain(|_, entry| entry.at_work > 0 || entry.paid_until > now);
        }
        let entry = callers.entry(caller.to_string()).or_insert(Entry {
            paid_until: now,
            at_work: 0,
        });
        if entry.at_work >= at_a_time {
            return Err(ApiError::Throttled(format!(
                "user '{caller}' has {at_a_time} requests at work, which is as many as one may have; try again when some are answered"
            )));
        }
        let cost = Duration::from_secs(1) / per_second.max(1);
        let paid_until = entry.paid_until.max(now) + cost;
        if paid_until > now + BURST.max(cost) {
            return Err(ApiError::Throttled(format!(
                "user '{caller}' sends more than {per_second} requests a second; try again in a second"
            )));
        }
        entry.paid_until = paid_until;
        entry.at_work += 1;
        Ok(Permit {
            caller: caller.to_string(),
            of: self.clone(),
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(entry) = self.of.lock().get_mut(&self.caller) {
            entry.at_work = entry.at_work.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers(per_second: u32, at_a_time: u32) -> Callers {
        Callers::new(CallerLimits {
            per_second,
            at_a_time,
        })
    }

    #[test]
    fn a_caller_may_send_a_seconds_worth_at_once_and_then_its_rate() {
        let callers = callers(10, 1000);
        let start = Instant::now();
        let admitted = |at: Instant, count: usize| {
            (0..count)
                .filter(|_| callers.admit_at("a", at).is_ok())
                .count()
        };
        assert_eq!(admitted(start, 100), 10);
        assert_eq!(admitted(start + Duration::from_millis(500), 100), 5);
        assert_eq!(admitted(start + Duration::from_secs(60), 100), 10);
        assert!(callers.admit_at("b", start).is_ok(), "another's is its own");
    }

    #[test]
    fn a_caller_may_have_so_many_at_work_and_more_once_some_are_done() {
        let callers = callers(1000, 2);
        let one = callers.admit("a").unwrap();
        let _two = callers.admit("a").unwrap();
        let refused = callers.admit("a").unwrap_err();
        assert!(matches!(refused, ApiError::Throttled(_)), "{refused}");
        assert!(callers.admit("b").is_ok());
        drop(one);
        assert!(callers.admit("a").is_ok());
    }

    #[test]
    fn one_a_second_lets_one_in() {
        let callers = callers(1, 9);
        let start = Instant::now();
        assert!(callers.admit_at("a", start).is_ok());
        assert!(callers.admit_at("a", start).is_err());
        assert!(
            callers
                .admit_at("a", start + Duration::from_secs(1))
                .is_ok()
        );
    }

    #[test]
    fn callers_that_come_once_are_forgotten() {
        let callers = callers(1000, 9);
        let start = Instant::now();
        for at in 0..MANY {
            callers.admit_at(&at.to_string(), start).unwrap();
        }
        let held = callers.admit_at("0", start + BURST).unwrap();
        callers.admit_at("new", start + BURST).unwrap();
        assert!(callers.lock().len() <= 2);
        drop(held);
    }
}
