//! What bounds the memory of a worker.
//!
//! **Scans.** Each unit that is under way reads ahead by at most
//! [`READ_AHEAD`] bytes and decodes batches of about [`BATCH_BYTES`]. That is
//! not all that a unit holds: while files of very wide rows are written, much
//! of the unit may be in memory (two units at a time of 131,072 rows of 6 KiB
//! each took 1.9 GiB). Where rows are as wide, give the pod as much memory as
//! its units have bytes, or lower `intra_applier_concurrency`.
//!
//! **Queries.** Views that are recomputed whole sort, join and aggregate more
//! rows than memory takes. What these operators hold comes out of one pool for
//! the whole process of `limit / 2` bytes, where `limit` is the smallest of
//!
//! - what the process's control group allows (`memory.max` of version 2,
//!   `memory.limit_in_bytes` of version 1), and
//! - the machine's memory.
//!
//! The other half is for what the pool does not count: scans read ahead,
//! writers hold a page for each column. Operators that can spill share the
//! pool fairly and spill to the temporary directory (`TMPDIR`), which in a pod
//! is an `emptyDir`.

use std::sync::{Arc, LazyLock};

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};

use lance::dataset::scanner::Scanner;

use super::error::{EngineError, Result};
use super::store::first_line;

/// How far a unit's scan reads ahead, in bytes.
pub const READ_AHEAD: u64 = 64 << 20;

/// About how large a batch of a scan is, in bytes; 8,192 rows if that is less.
pub const BATCH_BYTES: u64 = 8 << 20;

/// Keeps what `scanner` holds within bounds.
pub fn bound(scanner: &mut Scanner) {
    scanner.io_buffer_size(READ_AHEAD);
    scanner.batch_size_bytes(BATCH_BYTES);
}

/// What share of the limit queries may hold: one part of so many.
const SHARE: u64 = 2;

/// The limit where nothing says what it is.
const UNKNOWN: u64 = 2 << 30;

/// A limit of version 1 that is none: it says so with a huge number.
const NO_LIMIT: u64 = 1 << 60;

static SHARED: LazyLock<std::result::Result<Arc<RuntimeEnv>, String>> =
    LazyLock::new(|| build(limit() / SHARE));

/// Where queries run: in the process's own pool, or in one of `bytes`. Errors:
/// `Internal` when no runtime can be made.
pub fn runtime(bytes: Option<u64>) -> Result<Arc<RuntimeEnv>> {
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
    [
        read("/sys/fs/cgroup/memory.max").and_then(|text| bytes(&text)),
        read("/sys/fs/cgroup/memory/memory.limit_in_bytes").and_then(|text| bytes(&text)),
        read("/proc/meminfo").and_then(|text| total(&text)),
    ]
    .into_iter()
    .flatten()
    .min()
    .unwrap_or(UNKNOWN)
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
    fn limits_are_read_as_the_kernel_writes_them() {
        assert_eq!(bytes("2147483648\n"), Some(2 << 30));
        assert_eq!(bytes("max\n"), None);
        assert_eq!(bytes("9223372036854771712\n"), None);
        assert_eq!(
            total("MemTotal:       24559460 kB\nMemFree: 1 kB\n"),
            Some(24559460 * 1024)
        );
        assert_eq!(total("nothing"), None);
        assert!(limit() > 0);
    }
}
