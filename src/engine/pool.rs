//! The pool of memory that queries share.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use datafusion::common::Result;
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};

/// How an operator holds what it reserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// Once.
    Once,
    /// Twice, when it puts together all that it has: a join's one side, and the first
    /// rows of an order.
    Twice,
    /// Twice for a while, and it spills: it may have half of its share. Groups reserve
    /// what they hold; but when they merge what they have spilled, not what rows are
    /// sorted by, nor all that is read ahead.
    Half,
    /// Rows on their way from all parts to all parts. They could spill, but who reads
    /// them waits for ever where two that write do (apache/datafusion#24883). So they
    /// find place, and count as far as there is any: mostly they are few, since they
    /// wait while one of those who read them is spilling. What does not count is no
    /// more than the pool has.
    Always,
}

impl Holds {
    /// By the name that the operator registers.
    fn of(name: &str) -> Holds {
        use Holds::{Always, Half, Once, Twice};
        const BY_NAME: [(&str, Holds); 7] = [
            ("CrossJoinExec", Twice),
            ("HashJoinInput", Twice),
            ("TopK", Twice),
            ("GroupedHashAggregateStream", Half),
            ("NestedLoopJoinLoad[fallback]", Half),
            ("NestedLoopJoinLoad", Twice),
            ("RepartitionExec", Always),
        ];
        let mut named = BY_NAME.iter();
        let named = named.find(|(start, _)| name.starts_with(start));
        match named {
            // It puts parts that are in order into one, and cannot spill.
            Some((_, Always)) if name.contains("[Merge") => Once,
            Some((_, holds)) => *holds,
            None => Once,
        }
    }

    fn counted(self, bytes: usize) -> usize {
        match self {
            Holds::Twice => bytes.saturating_mul(2),
            _ => bytes,
        }
    }
}

/// DataFusion's pool of fair shares, which counts twice what is held twice, and leaves
/// half of their share to those that need the other now and then. Who finds no place is
/// told so then, and sorts and spills instead, rather than to be killed.
#[derive(Debug)]
pub struct Pool {
    fair: FairSpillPool,
    bytes: usize,
    /// How many bytes of rows on their way found place and do not count. Held by who
    /// asks for more: some have for an instant more than they keep, which is nobody
    /// else's want.
    uncounted: Mutex<usize>,
}

impl Pool {
    /// A pool of so many bytes.
    pub fn new(bytes: usize) -> Pool {
        Pool {
            fair: FairSpillPool::new(bytes),
            bytes,
            uncounted: Mutex::default(),
        }
    }

    fn uncounted(&self) -> MutexGuard<'_, usize> {
        self.uncounted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn holds(reservation: &MemoryReservation) -> Holds {
    Holds::of(reservation.consumer().name())
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fair.fmt(f)
    }
}

impl MemoryPool for Pool {
    fn name(&self) -> &str {
        self.fair.name()
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.fair.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.fair.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        let counted = holds(reservation).counted(additional);
        self.fair.grow(reservation, counted);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let holds = holds(reservation);
        let mut counted = holds.counted(shrink);
        if holds == Holds::Always {
            let mut uncounted = self.uncounted();
            let free = counted.min(*uncounted);
            *uncounted -= free;
            counted -= free;
        }
        self.fair.shrink(reservation, counted);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let mut uncounted = self.uncounted();
        match holds(reservation) {
            Holds::Half => {
                // Twice all that it has then is to be within its share.
                let besides = reservation.size() + additional;
                self.fair.try_grow(reservation, besides + additional)?;
                self.fair.shrink(reservation, besides);
                Ok(())
            }
            Holds::Always => {
                if let Err(full) = self.fair.try_grow(reservation, additional) {
                    if uncounted.saturating_add(additional) > self.bytes {
                        return Err(full);
                    }
                    *uncounted += additional;
                }
                Ok(())
            }
            holds => self.fair.try_grow(reservation, holds.counted(additional)),
        }
    }

    fn reserved(&self) -> usize {
        self.fair.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.fair.memory_limit()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn groups_have_half_of_their_share() {
        let pool: Arc<dyn MemoryPool> = Arc::new(Pool::new(1000));
        let register = |name: &str| {
            let consumer = MemoryConsumer::new(name).with_can_spill(true);
            consumer.register(&pool)
        };
        let sorted = register("ExternalSorter[0]");
        let groups = register("GroupedHashAggregateStream[0] (count)");
        groups.try_grow(100).unwrap();
        groups.try_grow(150).unwrap();
        assert!(groups.try_grow(1).is_err());
        assert_eq!(pool.reserved(), 250);
        sorted.try_grow(500).unwrap();
        assert!(sorted.try_grow(1).is_err());
        drop(groups);
        assert_eq!(pool.reserved(), 500);
    }

    #[test]
    fn rows_on_their_way_always_find_place_and_count_as_far_as_there_is_any() {
        let pool: Arc<dyn MemoryPool> = Arc::new(Pool::new(1000));
        let register = |name: &str, spills| {
            let consumer = MemoryConsumer::new(name).with_can_spill(spills);
            consumer.register(&pool)
        };
        let rows = register("RepartitionExec[1]", true);
        rows.try_grow(900).unwrap();
        let merged = register("RepartitionExec[Merge 1]", false);
        assert!(merged.try_grow(101).is_err());
        merged.try_grow(100).unwrap();
        rows.try_grow(700).unwrap();
        assert_eq!((rows.size(), pool.reserved()), (1600, 1000));
        rows.shrink(800);
        assert_eq!((rows.size(), pool.reserved()), (800, 900));
        rows.try_grow(50).unwrap();
        assert_eq!((rows.size(), pool.reserved()), (850, 950));
        rows.try_grow(900).unwrap();
        assert!(rows.try_grow(101).is_err());
        drop(rows);
        assert_eq!(pool.reserved(), 100);
        merged.try_grow(900).unwrap();
    }

    #[test]
    fn a_side_that_is_joined_some_rows_at_a_time_has_half_of_its_share() {
        let pool: Arc<dyn MemoryPool> = Arc::new(Pool::new(1000));
        let name = "NestedLoopJoinLoad[fallback]";
        let consumer = MemoryConsumer::new(name).with_can_spill(true);
        let side = consumer.register(&pool);
        side.try_grow(500).unwrap();
        assert!(side.try_grow(1).is_err());
        side.grow(1);
        assert_eq!(pool.reserved(), 501);
        side.resize(0);
        assert_eq!(pool.reserved(), 0);
    }

    #[test]
    fn what_is_held_twice_is_counted_twice_and_given_back_whole() {
        let pool: Arc<dyn MemoryPool> = Arc::new(Pool::new(1000));
        for (name, once) in [
            ("HashJoinInput[3]", 500),
            ("TopK[0]", 500),
            ("CrossJoinExec", 500),
            ("NestedLoopJoinLoad[0]", 500),
            ("SMJStream[1]", 1000),
        ] {
            let reservation = MemoryConsumer::new(name).register(&pool);
            assert!(reservation.try_grow(once + 1).is_err(), "{name}");
            reservation.try_grow(once).unwrap();
            assert_eq!(pool.reserved(), 1000, "{name}");
            reservation.shrink(once / 2);
            assert_eq!(pool.reserved(), 500, "{name}");
            drop(reservation);
            assert_eq!(pool.reserved(), 0, "{name}");
        }
    }
}
