//! Which replica acts: the rules of its Lease. Pure.
//!
//! As client-go's: a candidate measures a foreign lease's age by its own
//! clock, from when it first saw the lease as it is now, so that no two
//! machines' clocks are ever compared. The holder counts from *before* it sent
//! its last renewal, and to two thirds of the lease only: when another one may
//! take the lease, the holder has long ceased to act.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;

/// How long a lease is held, and what follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// After so long without a renewal another replica may take the lease.
    pub lease: Duration,
}

impl Timing {
    /// How long its holder may act after it began the last renewal that went well.
    pub fn deadline(self) -> Duration {
        self.lease * 2 / 3
    }

    /// How often the holder renews, and how often the others look.
    pub fn look_again(self) -> Duration {
        self.lease * 2 / 15
    }
}

/// What to do about the lease now.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write this: the lease is to be had, or is ours to renew.
    Write(LeaseSpec),
    /// It is another's; look again after this.
    Wait(Duration),
}

/// One replica, and the lease as it has last seen it.
#[derive(Debug)]
pub struct Candidate {
    me: String,
    timing: Timing,
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// A replica whose identity nobody else has, not even itself after a restart.
    pub fn new(me: String, timing: Timing) -> Self {
        Self {
            me,
            timing,
            seen: None,
        }
    }

    /// What to do about the lease as it was `found` at `now`; `time` is what
    /// the lease itself shall say, for people.
    pub fn decide(&mut self, found: Option<&LeaseSpec>, now: Instant, time: Timestamp) -> Step {
        let Some(found) = found else {
            return Step::Write(self.claim(0, time));
        };
        let transitions = found.lease_transitions.unwrap_or(0);
        let holder = found.holder_identity.as_deref().unwrap_or_default();
        if holder == self.me {
            return Step::Write(LeaseSpec {
                acquire_time: found.acquire_time.clone(),
                ..self.claim(transitions, time)
            });
        }
        let since = match &self.seen {
            Some((seen, since)) if seen == found => *since,
            _ => {
                self.seen = Some((found.clone(), now));
                now
            }
        };
        // Held for as long as its holder believes, whatever this one would allow.
        let held = found.lease_duration_seconds.unwrap_or(0).max(0);
        let held = Duration::from_secs(held.unsigned_abs().into());
        let age = now.saturating_duration_since(since);
        if holder.is_empty() || age >= held {
            return Step::Write(self.claim(transitions.saturating_add(1), time));
        }
        Step::Wait((held - age).min(self.timing.look_again()))
    }

    fn claim(&self, transitions: i32, time: Timestamp) -> LeaseSpec {
        let seconds = self.timing.lease.as_secs().max(1);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: Some(MicroTime(time)),
            renew_time: Some(MicroTime(time)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// The lease given back, so that the next replica need not wait; None if it is not ours.
    pub fn release(&self, found: &LeaseSpec) -> Option<LeaseSpec> {
        let ours = found.holder_identity.as_deref() == Some(self.me.as_str());
        ours.then(|| LeaseSpec {
            holder_identity: None,
            ..found.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        lease: Duration::from_secs(15),
    };

    fn candidate(name: &str) -> Candidate {
        Candidate::new(name.into(), TIMING)
    }

    fn written(step: Step) -> LeaseSpec {
        match step {
            Step::Write(spec) => spec,
            Step::Wait(pause) => panic!("waits for {pause:?}"),
        }
    }

    #[test]
    fn a_lease_that_nobody_made_is_taken() {
        let spec = written(candidate("a").decide(None, Instant::now(), Timestamp::now()));
        assert_eq!(spec.holder_identity.as_deref(), Some("a"));
        assert_eq!(spec.lease_duration_seconds, Some(15));
    }

    #[test]
    fn the_holder_renews_and_keeps_the_time_it_was_elected() {
        let (now, time) = (Instant::now(), Timestamp::now());
        let mut a = candidate("a");
        let first = written(a.decide(None, now, time));
        let later = time + Duration::from_secs(2);
        let second = written(a.decide(Some(&first), now, later));
        assert_eq!(second.acquire_time, first.acquire_time);
        assert_eq!(second.renew_time, Some(MicroTime(later)));
        assert_eq!(second.lease_transitions, Some(0));
    }

    #[test]
    fn another_waits_for_a_whole_lease_from_when_it_first_saw_it_whatever_the_clocks_say() {
        let now = Instant::now();
        // The holder's clock is a year behind.
        let old = Timestamp::now() - Duration::from_secs(365 * 24 * 3600);
        let held = written(candidate("a").decide(None, now, old));
        let mut b = candidate("b");
        for second in [0, 5, 14] {
            let at = now + Duration::from_secs(second);
            let step = b.decide(Some(&held), at, Timestamp::now());
            assert!(matches!(step, Step::Wait(_)), "{second}: {step:?}");
        }
        let at = now + Duration::from_secs(15);
        let taken = written(b.decide(Some(&held), at, Timestamp::now()));
        assert_eq!(taken.holder_identity.as_deref(), Some("b"));
        assert_eq!(taken.lease_transitions, Some(1));
    }

    #[test]
    fn a_renewal_makes_the_others_wait_anew() {
        let (now, time) = (Instant::now(), Timestamp::now());
        let mut a = candidate("a");
        let mut b = candidate("b");
        let first = written(a.decide(None, now, time));
        assert!(matches!(b.decide(Some(&first), now, time), Step::Wait(_)));
        let renewed = written(a.decide(Some(&first), now, time + Duration::from_secs(2)));
        let at = now + Duration::from_secs(15);
        assert!(matches!(b.decide(Some(&renewed), at, time), Step::Wait(_)));
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let (now, time) = (Instant::now(), Timestamp::now());
        let mut a = candidate("a");
        let held = written(a.decide(None, now, time));
        assert_eq!(candidate("b").release(&held), None, "not its own to give");
        let given = a.release(&held).expect("its own");
        let taken = written(candidate("b").decide(Some(&given), now, time));
        assert_eq!(taken.holder_identity.as_deref(), Some("b"));
    }

    #[test]
    fn the_last_look_comes_when_the_lease_ends() {
        let (now, time) = (Instant::now(), Timestamp::now());
        let held = written(candidate("a").decide(None, now, time));
        let mut b = candidate("b");
        assert_eq!(
            b.decide(Some(&held), now, time),
            Step::Wait(Duration::from_secs(2))
        );
        let near = now + Duration::from_millis(14_500);
        let step = b.decide(Some(&held), near, time);
        assert_eq!(step, Step::Wait(Duration::from_millis(500)));
    }

    /// At no moment may two act, however requests are delayed and machines stop.
    #[test]
    fn a_holder_has_ceased_to_act_when_another_may_take_the_lease() {
        assert!(TIMING.deadline() + 2 * TIMING.look_again() < TIMING.lease);
    }
}
