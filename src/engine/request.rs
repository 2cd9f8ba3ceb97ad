//! What a refresh is asked for, and what it says on the way.

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The view's identifier path.
    pub view: Vec<String>,
    /// UID of the refresh: two runs with the same one are one refresh.
    pub refresh: String,
    /// Id of the job that it is, for those who know it by that alone.
    pub job: Option<String>,
    /// Source version to bring the view to; the latest if `None`.
    pub src_version: Option<u64>,
    /// Compute every row anew.
    pub full: bool,
    /// The incarnation that the view must have.
    pub expected_incarnation: Option<String>,
    /// Most rows in a fragment that is written.
    pub max_rows_per_fragment: Option<u64>,
    /// Units computed at a time; one a processor if `None`.
    pub threads: Option<usize>,
    /// How many workers share the refresh; 0 means 1.
    pub workers: u32,
    /// Which of them this is, from 0.
    pub index: u32,
    /// Most bytes that sorts, joins and aggregates hold before they spill; a
    /// share of what the process may have if `None` (see [`super::memory`]).
    pub query_memory: Option<u64>,
    /// Bring the view's indices up to date, once its rows are right.
    pub optimize_indices: bool,
}

impl Request {
    /// How many units are computed at a time.
    pub fn threads(&self) -> usize {
        self.threads
            .filter(|threads| *threads > 0)
            .unwrap_or_else(|| {
                std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
            })
    }

    /// The refresh whose claims alone count, where it computes every row anew.
    pub(super) fn own_only(&self) -> Option<&str> {
        self.full.then_some(self.refresh.as_str())
    }
}

/// How far a refresh is. Cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Units whose rows are right: kept, or computed by now.
    pub units_done: u64,
    /// Units that the view will consist of.
    pub units_total: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Bytes of data files written.
    pub bytes_written: u64,
}
