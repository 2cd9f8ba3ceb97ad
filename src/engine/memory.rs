//! What bounds the memory of a worker.
//!
//! `limit` is the smallest of what the process's control group allows
//! (`memory.max` of version 2, `memory.limit_in_bytes` of version 1), and of the
//! machine's memory.
//!
//! **Scans.** A worker computes `threads` units at a time. The scan of each
//! reads ahead by at most
//!
//! ```text
//! R = limit / (16 × threads), and no more than 64 MiB nor less than 4 MiB
//! ```
//!
//! bytes. What it read, decoded, and hands to the writer, with what the
//! allocator keeps of all that, comes to 5 to 11 R: so all units together take
//! at most about two thirds of the limit, whatever the size of the tables, of their
//! fragments and of the units. (A single row that has more than R bytes is read
//! all the same.)
//!
//! **Queries.** Views that sort, join and aggregate do so with more rows than memory
//! takes. What these operators hold comes out of one pool for the whole process of
//! `limit / 3` bytes. Those that can spill share it fairly and spill to the temporary
//! directory (`TMPDIR`), which in a pod is an `emptyDir`; the others fail where they find
//! no place, and the rows are then sorted instead. Merges of what was spilled hold,
//! beside what they count, what rows are sorted by: with that, and with what the
//! allocator keeps, it comes to twice as much. Operators keep several batches each,
//! so the wider rows are ([`super::width`]), the fewer are in a batch. Beside them a
//! unit's scans have half of R together, as far as each of them has the least of it:
//! about a third of the limit.
//!
//! **States of groups.** The states of a part of the source are worth keeping only
//! where they are few. Each part has so much of a pool of its own that it takes to
//! find out.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;
use lance::dataset::scanner::Scanner;

use super::error::{EngineError, Result};
use super::pool::Pool;
use super::words::first_line;

/// The most that a scan reads ahead, in bytes.
const READ_AHEAD: u64 = 64 << 20;

/// The least: a page of a column is as large.
const LEAST_READ_AHEAD: u64 = 4 << 20;

/// What share of the limit the scans read ahead: one part of so many.
const AHEAD_SHARE: u64 = 16;

/// About how large a batch of a scan is, as part of what is read ahead; 8,192
/// rows if that is less.
const BATCHES_AHEAD: u64 = 8;

/// How many rows with blobs are read at a time.
pub const BLOBS: usize = 8;

/// What share of the limit queries may hold: one part of so many.
const SHARE: u64 = 3;

/// The same of what scans may read ahead beside queries.
const BESIDE: u64 = 2;

/// What share of the pool a batch may have that operators pass on, for each thread:
/// one part of so many.
const BATCHES: usize = 256;

/// How much less it is where memory was found to be too little for that.
const FRUGAL: usize = 8;

/// The fewest and the most rows of such a batch.
const BATCH_ROWS: (usize, usize) = (8, 8192);

/// The most that a sort may keep back for its last step, and what share of the pool
/// for each thread.
const SORT_RESERVE: usize = 8 << 20;
const SORT_SHARE: usize = 8;

/// The share of the pool that all sorts keep back where memory was found to be too
/// little: they hold their rows twice, and for the last step what these are sorted by.
const SORTS_SHARE: usize = 3;

/// What share of the pool rows may take, for each thread, until it is seen whether they
/// are fewer once they are grouped; and how many rows that is at the most.
const PROBE_SHARE: usize = 64;
const PROBE_ROWS: usize = 100_000;

/// How many groups there may be for each row for that to be worth its memory, where it
/// takes much of it.
const PROBE_RATIO: f64 = 0.3;

/// The limit where nothing says what it is.
const UNKNOWN: u64 = 2 << 30;

/// Less than this is little, to the allocator: which blocks it is to ask the system for
/// and give back by themselves, how much else it may keep, and in how many heaps.
const LITTLE: u64 = 4 << 30;
const BLOCK: i32 = 1 << 20;
const KEPT: i32 = 16 << 20;
const HEAPS: i32 = 4;

/// A limit of version 1 that is none: it says so with a huge number.
const NO_LIMIT: u64 = 1 << 60;

/// Has the allocator give back what is freed, where there is little memory. glibc's
/// own keeps larger and larger blocks, in a heap for each thread: rows of texts took
/// two to three times as much so (`benches/RESULTS.md`).
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if limit() < LITTLE {
        for (what, value) in [
            (libc::M_MMAP_THRESHOLD, BLOCK),
            (libc::M_TRIM_THRESHOLD, KEPT),
            (libc::M_ARENA_MAX, HEAPS),
        ] {
            // SAFETY: it takes numbers, and may be called at any time. What it does not
            // know stays as it is.
            unsafe { libc::mallopt(what, value) };
        }
    }
}

/// What the units of a refresh may hold.
#[derive(Clone, Debug)]
pub struct Memory {
    runtime: Arc<RuntimeEnv>,
    threads: usize,
    read_ahead: u64,
}

impl Memory {
    /// For `threads` units at a time, and queries in the process's own pool, or
    /// in one of `pool` bytes. Errors: `Internal` when no pool can be made.
    pub fn new(threads: usize, pool: Option<u64>) -> Result<Memory> {
        Ok(Memory {
            runtime: runtime(pool)?,
            threads: threads.max(1),
            read_ahead: read_ahead(limit(), threads as u64),
        })
    }

    /// Where queries run.
    pub fn runtime(&self) -> &Arc<RuntimeEnv> {
        &self.runtime
    }

    /// The same for each of the `scans` of one unit that feed operators which hold
    /// rows in the pool.
    pub fn beside_pool(&self, scans: usize) -> Memory {
        let share = self.read_ahead / BESIDE / scans.max(1) as u64;
        Memory {
            read_ahead: share.max(LEAST_READ_AHEAD.min(self.read_ahead)),
            ..self.clone()
        }
    }

    /// The same with a pool of its own, of `bytes` for each thread and no more than half
    /// of this one, for operators that get by with that. Errors: `Internal` when no pool
    /// can be made.
    pub fn apart(&self, bytes: u64) -> Result<Memory> {
        let bytes = bytes.saturating_mul(self.threads as u64);
        Ok(Memory {
            runtime: runtime(Some(bytes.min(self.pool() as u64 / 2)))?,
            ..self.clone()
        })
    }

    /// The bytes of the pool.
    fn pool(&self) -> usize {
        match self.runtime.memory_pool.memory_limit() {
            MemoryLimit::Finite(bytes) => bytes,
            _ => usize::MAX,
        }
    }

    /// Whether it matters to queries how wide rows of at most `width` bytes are.
    pub fn matters(&self, width: u64) -> bool {
        self.session(width, true).batch_size() < BATCH_ROWS.1
    }

    /// How queries run over rows of about `width` bytes. If `frugal` they take as little
    /// of the pool as they can do with.
    pub fn session(&self, width: u64, frugal: bool) -> SessionConfig {
        let (threads, less) = match frugal {
            true => (1, FRUGAL),
            false => (self.threads, 1),
        };
        let share = self.pool() / self.threads;
        let width = usize::try_from(width.max(1)).unwrap_or(usize::MAX);
        let (least, most) = BATCH_ROWS;
        let mut config = SessionConfig::new()
            .with_target_partitions(threads)
            .with_batch_size((share / BATCHES / less / width).clamp(least, most))
            .with_sort_spill_reservation_bytes(SORT_RESERVE.min(share / SORT_SHARE / 2));
        // Groups are formed before rows are parted by them, and again after. What the
        // first gives on is counted by nobody.
        let execution = &mut config.options_mut().execution;
        let probed = share / PROBE_SHARE / width;
        if frugal {
            execution.skip_partial_aggregation_probe_rows_threshold = 1;
            execution.skip_partial_aggregation_probe_ratio_threshold = 0.0;
        } else if probed < PROBE_ROWS {
            execution.skip_partial_aggregation_probe_rows_threshold = probed.max(1);
            execution.skip_partial_aggregation_probe_ratio_threshold = PROBE_RATIO;
        }
        config
    }

    /// What each of so many sorts keeps back that together have the pool.
    pub fn kept_back(&self, sorts: usize) -> usize {
        self.pool() / SORTS_SHARE / sorts.max(1)
    }

    /// Keeps what `scanner` holds within bounds.
    pub fn bound(&self, scanner: &mut Scanner) {
        scanner.io_buffer_size(self.read_ahead);
        scanner.batch_size_bytes(self.read_ahead / BATCHES_AHEAD);
    }

    /// The same where it reads blobs. How large these are is not known before they are
    /// read, and they may be large: few at a time.
    pub fn bound_blobs(&self, scanner: &mut Scanner) {
        scanner.batch_size(BLOBS);
        scanner.batch_readahead(1);
        scanner.materialization_readahead_bytes(self.read_ahead);
    }
}

fn read_ahead(limit: u64, threads: u64) -> u64 {
    (limit / AHEAD_SHARE / threads.max(1)).clamp(LEAST_READ_AHEAD, READ_AHEAD)
}

/// The process's own pool, while somebody uses it: what was spilled goes with it.
static SHARED: Mutex<Weak<RuntimeEnv>> = Mutex::new(Weak::new());

fn runtime(bytes: Option<u64>) -> Result<Arc<RuntimeEnv>> {
    let built = match bytes {
        Some(bytes) => build(bytes),
        None => {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            match shared.upgrade() {
                Some(runtime) => Ok(runtime),
                None => build(limit() / SHARE).inspect(|built| *shared = Arc::downgrade(built)),
            }
        }
    };
    built.map_err(|why| {
        EngineError::Internal(format!("no memory pool for queries could be made: {why}"))
    })
}

fn build(bytes: u64) -> std::result::Result<Arc<RuntimeEnv>, String> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(Pool::new(bytes)))
        .with_disk_manager_builder(
            DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory),
        )
        .build_arc()
        .map_err(|e| first_line(&e.to_string()))
}

/// How many bytes this process may have.
fn limit() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let limits = files(&groups).into_iter();
    let limits = limits.filter_map(|path| read(&path).and_then(|text| bytes(&text)));
    let machine = read("/proc/meminfo").and_then(|text| total(&text));
    limits.chain(machine).min().unwrap_or(UNKNOWN)
}

/// The files that limit a process whose `/proc/self/cgroup` is `groups`: those of
/// its control group and of each above it. In a pod there is often just the
/// last of them, that of the root, which is then the pod's own.
fn files(groups: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (root, file) = match parts.next() {
            Some("") => ("/sys/fs/cgroup", "memory.max"),
            Some(of) if of.split(',').any(|of| of == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut group = parts.next().unwrap_or("/").trim_end_matches('/');
        loop {
            found.push(format!("{root}{group}/{file}"));
            match group.rfind('/') {
                Some(above) => group = &group[..above],
                None => break,
            }
        }
    }
    found
}

/// What a control group's file says; `None` for no limit.
fn bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

/// The machine's memory by `/proc/meminfo`.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_units_at_a_time_read_ahead_less_each() {
        assert_eq!(read_ahead(2 << 30, 2), 64 << 20);
        assert_eq!(read_ahead(2 << 30, 8), 16 << 20);
        assert_eq!(read_ahead(256 << 20, 16), LEAST_READ_AHEAD);
        assert_eq!(read_ahead(64 << 30, 0), READ_AHEAD);
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        assert_eq!(bytes("2147483648\n"), Some(2 << 30));
        assert_eq!(bytes("max\n"), None);
        assert_eq!(bytes("9223372036854771712\n"), None);
        assert_eq!(
            total("MemTotal:       24559460 kB\nMemFree: 1 kB\n"),
            Some(24559460 * 1024)
        );
        assert_eq!(
            files("12:pids:/x\n5:cpu,memory:/a/b\n0::/\n"),
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(total("nothing"), None);
        assert!(limit() > 0);
    }

    #[test]
    fn batches_have_fewer_rows_the_wider_these_are() {
        let memory = |threads| Memory::new(threads, Some(1 << 30)).unwrap();
        let rows = |threads, width, frugal| memory(threads).session(width, frugal).batch_size();
        assert_eq!(rows(2, 0, false), 8192);
        assert_eq!(rows(2, 100, false), 8192);
        assert_eq!(rows(2, 8192, false), 256);
        assert_eq!(rows(8, 8192, false), 64);
        assert_eq!(rows(8, 8192, true), 8);
        assert_eq!(rows(2, 8192, true), 32);
        assert_eq!(rows(1, 1 << 40, false), 8);
        let probed = |threads, width, frugal| {
            let config = memory(threads).session(width, frugal);
            let execution = &config.options().execution;
            execution.skip_partial_aggregation_probe_rows_threshold
        };
        assert_eq!((probed(2, 8, false), probed(2, 8, true)), (PROBE_ROWS, 1));
        assert_eq!(
            (probed(2, 8192, false), probed(8, 1 << 40, false)),
            (1024, 1)
        );
        assert_eq!(memory(8).session(8, false).target_partitions(), 8);
        assert_eq!(memory(8).session(8, true).target_partitions(), 1);
    }

    #[test]
    fn a_pool_apart_is_no_larger_than_half_of_the_one_it_is_apart_from() {
        let memory = Memory::new(2, Some(1 << 20)).unwrap();
        assert_eq!(memory.apart(1 << 10).unwrap().pool(), 2 << 10);
        assert_eq!(memory.apart(1 << 30).unwrap().pool(), 1 << 19);
        assert_eq!(memory.pool(), 1 << 20);
    }

    #[test]
    fn those_who_ask_for_the_pool_of_the_process_at_a_time_share_it() {
        let (one, other) = (runtime(None).unwrap(), runtime(None).unwrap());
        assert!(Arc::ptr_eq(&one, &other));
    }

    #[test]
    fn the_scans_of_one_query_share_what_the_pool_leaves() {
        let mut memory = Memory::new(1, None).unwrap();
        memory.read_ahead = READ_AHEAD;
        let each = |scans| memory.beside_pool(scans).read_ahead;
        assert_eq!((each(0), each(1)), (READ_AHEAD / 2, READ_AHEAD / 2));
        assert_eq!(each(8), READ_AHEAD / 16);
        assert_eq!(each(1000), LEAST_READ_AHEAD);
    }
}
