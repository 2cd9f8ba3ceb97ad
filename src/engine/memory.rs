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
//! all the same.) A query that reads several tables shares R among their scans, as
//! far as each has the least of it.
//!
//! **Queries.** Views that are recomputed whole sort, join and aggregate more
//! rows than memory takes. What these operators hold comes out of one pool for
//! the whole process of `limit / 2` bytes; the other half is for scans. Operators
//! that can spill share the pool fairly and spill to the temporary directory
//! (`TMPDIR`), which in a pod is an `emptyDir`.

use std::sync::{Arc, LazyLock};

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};

use lance::dataset::scanner::Scanner;

use super::error::{EngineError, Result};
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
const SHARE: u64 = 2;

/// The limit where nothing says what it is.
const UNKNOWN: u64 = 2 << 30;

/// A limit of version 1 that is none: it says so with a huge number.
const NO_LIMIT: u64 = 1 << 60;

/// What the units of a refresh may hold.
#[derive(Clone, Debug)]
pub struct Memory {
    runtime: Arc<RuntimeEnv>,
    read_ahead: u64,
}

impl Memory {
    /// For `threads` units at a time, and queries in the process's own pool, or
    /// in one of `pool` bytes. Errors: `Internal` when no pool can be made.
    pub fn new(threads: usize, pool: Option<u64>) -> Result<Memory> {
        Ok(Memory {
            runtime: runtime(pool)?,
            read_ahead: read_ahead(limit(), threads as u64),
        })
    }

    /// Where queries run.
    pub fn runtime(&self) -> &Arc<RuntimeEnv> {
        &self.runtime
    }

    /// The same for each of `scans` that may run at a time in one unit: they share
    /// what a scan may read ahead.
    pub fn among(&self, scans: usize) -> Memory {
        let share = self.read_ahead / scans.max(1) as u64;
        Memory {
            runtime: self.runtime.clone(),
            read_ahead: share.max(LEAST_READ_AHEAD.min(self.read_ahead)),
        }
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

static SHARED: LazyLock<std::result::Result<Arc<RuntimeEnv>, String>> =
    LazyLock::new(|| build(limit() / SHARE));

fn runtime(bytes: Option<u64>) -> Result<Arc<RuntimeEnv>> {
    match bytes {
        None => SHARED.clone(),
        Some(bytes) => build(bytes),
    }
    .map_err(|why| {
        EngineError::Internal(format!("no memory pool for queries could be made: {why}"))
    })
}

fn build(bytes: u64) -> std::result::Result<Arc<RuntimeEnv>, String> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(bytes)))
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
    fn the_scans_of_one_query_share_what_a_scan_may_read_ahead() {
        let mut memory = Memory::new(1, None).unwrap();
        memory.read_ahead = READ_AHEAD;
        let each = |scans| memory.among(scans).read_ahead;
        assert_eq!((each(0), each(1)), (READ_AHEAD, READ_AHEAD));
        assert_eq!(each(8), READ_AHEAD / 8);
        assert_eq!(each(1000), LEAST_READ_AHEAD);
    }
}
