//! The pool of memory that queries share.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use datafusion::common::Result;
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};

/// Operators that put together all that they have reserved, and hold it twice then: a
/// join's one side, and the first rows of an order.
const COPIED: [&str; 4] = [
    "CrossJoinExec",
    "HashJoinInput",
    "NestedLoopJoinLoad",
    "TopK",
];

/// Groups. They reserve what they hold; but when they merge what they have spilled, not
/// what rows are sorted by, nor all that is read ahead.
const MERGED: &str = "GroupedHashAggregateStream";

/// DataFusion's pool of fair shares, which counts twice what is held twice, and leaves
/// groups half of their share. Who finds no place is told so then, and sorts and spills
/// instead, rather than to be killed.
#[derive(Debug)]
pub struct Pool {
    fair: FairSpillPool,
    /// Whoever asks for more: groups have for an instant twice what they keep, which is
    /// nobody else's want.
    asks: Mutex<()>,
}

impl Pool {
    /// A pool of so many bytes.
    pub fn new(bytes: usize) -> Pool {
        Pool {
            fair: FairSpillPool::new(bytes),
            asks: Mutex::default(),
        }
    }
}

fn held(reservation: &MemoryReservation, bytes: usize) -> usize {
    let name = reservation.consumer().name();
    match COPIED.iter().any(|copied| name.starts_with(copied)) {
        true => bytes.saturating_mul(2),
        false => bytes,
    }
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
        self.fair.grow(reservation, held(reservation, additional));
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.fair.shrink(reservation, held(reservation, shrink));
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let _alone = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        if reservation.consumer().name().starts_with(MERGED) {
            // Twice all that it has then is to be within its share.
            let besides = reservation.size() + additional;
            self.fair.try_grow(reservation, besides + additional)?;
            self.fair.shrink(reservation, besides);
            return Ok(());
        }
        self.fair
            .try_grow(reservation, held(reservation, additional))
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
