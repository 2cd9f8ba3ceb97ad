//! Turns at what a request about jobs may cost: many of them at once take no
//! more memory and processors than a few, and the others wait.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::past::Searches;
use crate::rest::auth::cache::Salt;

/// Searches for what a job left behind, at a time.
const SEARCHES: usize = 4;

/// Accounts of jobs that are held at a time. Each has the view's whole ledger.
const ACCOUNTS: usize = 4;

/// Filters that are evaluated at a time, each in a thread of its own.
const FILTERS: usize = 4;

/// See the module.
#[derive(Clone)]
pub struct Turns {
    /// For the record of a job whose resource is gone.
    pub searches: Arc<Semaphore>,
    /// For what is known of a job's work.
    pub accounts: Arc<Semaphore>,
    /// For a filter of events.
    pub filters: Arc<Semaphore>,
    /// What searches found in the last seconds.
    pub(super) found: Arc<Searches>,
    /// Hashes the credentials of those who asked.
    pub(super) salt: Arc<Salt>,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Turns")
    }
}

impl Default for Turns {
    fn default() -> Self {
        let of = |turns| Arc::new(Semaphore::new(turns));
        Self {
            searches: of(SEARCHES),
            accounts: of(ACCOUNTS),
            filters: of(FILTERS),
            found: Arc::default(),
            salt: Arc::default(),
        }
    }
}
