//! A worker as a process of its own: this program again, told by an environment
//! variable; it goes the way that a worker's pod goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relance::engine::catalog::Catalog;
use relance::engine::memory;
use relance::engine::refresh::{Progress, Request, refresh};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::sync::watch;

use crate::delay::{Delay, Wrap};
use crate::peers::cpu_seconds;

const WORKER: &str = "RELANCE_BENCH_WORKER";

/// What a worker shall do.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Task {
    /// Its catalog's URI.
    pub catalog: String,
    /// The view to fill.
    pub view: String,
    /// UID of the refresh.
    pub refresh: String,
    /// How many share it.
    pub workers: u32,
    /// Which of them this is.
    pub index: u32,
    /// Units at a time; 0 for one a processor.
    pub threads: usize,
    /// Added to every storage call.
    pub delay_millis: u64,
    /// Whether what the view has may stay.
    pub incremental: bool,
    /// The control group to enter first.
    pub group: Option<PathBuf>,
}

/// What it took.
#[derive(Serialize, Deserialize)]
pub struct Done {
    /// Seconds of processor time.
    pub cpu: f64,
    /// Storage calls, where they are delayed.
    pub calls: u64,
    /// The most memory that was resident.
    pub peak_mib: u64,
    /// Rows written by all workers.
    pub rows: u64,
}

/// Whether this process is a worker.
pub fn is_worker() -> bool {
    std::env::var_os(WORKER).is_some()
}

/// Works, and says what it took.
pub async fn work() {
    let task = std::env::var(WORKER).expect("a task");
    let task: Task = serde_json::from_str(&task).expect("a task");
    if let Some(group) = &task.group {
        let this = std::process::id().to_string();
        std::fs::write(group.join("cgroup.procs"), this).expect("in the control group");
        memory::give_back();
    }
    let delay = Arc::new(Delay {
        delay: Duration::from_millis(task.delay_millis),
        calls: AtomicU64::new(0),
    });
    let (uri, options) = (&task.catalog, BTreeMap::new());
    let catalog = if task.delay_millis > 0 {
        Catalog::connect_wrapped(uri, &options, Arc::new(Wrap(delay.clone()))).await
    } else {
        Catalog::connect(uri, &options).await
    };
    let catalog = catalog.expect("connected");
    let request = Request {
        view: vec![task.view],
        refresh: task.refresh,
        full: !task.incremental,
        threads: Some(task.threads),
        workers: task.workers,
        index: task.index,
        ..Default::default()
    };
    let (progress, _) = watch::channel(Progress::default());
    let outcome = refresh(&catalog, &request, &progress)
        .await
        .expect("refreshed");
    let done = Done {
        cpu: cpu_seconds(),
        calls: delay.calls.load(Ordering::Relaxed),
        peak_mib: peak_mib(),
        rows: outcome.rows_written,
    };
    println!("{}", serde_json::to_string(&done).expect("JSON"));
}

/// Runs `task` in a process. Panics where it does not succeed.
pub async fn run(task: Task) -> Done {
    let done = try_run(task).await;
    done.unwrap_or_else(|why| panic!("a worker failed: {why}"))
}

/// Runs `task` in a process. Error: how that ended; why, it has said on its standard
/// error, unless it was killed.
pub async fn try_run(task: Task) -> Result<Done, String> {
    let this = std::env::current_exe().expect("this program");
    // What it spills goes with it, even where it is killed.
    let spilled = tempfile::tempdir().expect("a folder");
    let worker = Command::new(&this)
        .env(WORKER, serde_json::to_string(&task).expect("JSON"))
        .env("TMPDIR", spilled.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a worker starts");
    let output = worker.wait_with_output().await.expect("a worker ends");
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0) / 1024
}

/// A control group, removed with this value.
pub struct Group(PathBuf);

impl Group {
    /// One that may have `bytes` of memory. Error: why none can be made, for
    /// which one mostly has to be root.
    pub fn new(bytes: u64) -> std::io::Result<Group> {
        let name = format!("relance-bench-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match first.is_dir() {
            true => (first, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let group = Group(root.join(name));
        std::fs::create_dir(&group.0)?;
        std::fs::write(group.0.join(limit), bytes.to_string())?;
        Ok(group)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
