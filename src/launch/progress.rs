//! How far a running Job is: a sample of one pod's log, now and then.
//!
//! Not a follow: that is a connection a pod, and stalls when the log rotates.
//! Lines are cumulative, so the last whole one tells all. Reads and writes
//! that progress causes are held within a budget of the whole operator, so
//! that a thousand refreshes cost the API server no more than a hundred.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;

use crate::lean::Lean;
use crate::protocol::{PROGRESS, ProgressLine};
use crate::resources::{Progress, count, names};

/// Lines and bytes of a log that one sample reads at most.
const TAIL_LINES: i64 = 20;
const LIMIT_BYTES: i64 = 16 * 1024;

/// How long one sample may take: a kubelet that hangs must not hold up a refresh.
const PATIENCE: Duration = Duration::from_secs(1);

/// So many a second, and a second's worth at once.
#[derive(Debug)]
pub struct Budget {
    a_second: f64,
    left: Mutex<(f64, Instant)>,
}

impl Budget {
    /// A full budget of `a_second`.
    pub fn new(a_second: f64) -> Self {
        Self {
            a_second,
            left: Mutex::new((a_second, Instant::now())),
        }
    }

    /// Takes one, if one is left.
    pub fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = now.saturating_duration_since(left.1).as_secs_f64() * self.a_second;
        left.0 = (left.0 + earned).min(self.a_second);
        left.1 = now;
        if left.0 < 1.0 {
            return false;
        }
        left.0 -= 1.0;
        true
    }
}

/// What the worker in `pod` printed last of its progress; None if nothing
/// could be read: progress is a hint, and its absence no error.
pub async fn sample(pods: &Api<Lean<Pod>>, pod: &str) -> Option<Progress> {
    let params = LogParams {
        container: Some(names::WORKER_CONTAINER.to_string()),
        tail_lines: Some(TAIL_LINES),
        limit_bytes: Some(LIMIT_BYTES),
        ..LogParams::default()
    };
    let log = tokio::time::timeout(PATIENCE, pods.logs(pod, &params)).await;
    match log {
        Ok(Ok(log)) => last(&log),
        Ok(Err(error)) => {
            tracing::debug!(pod, %error, "no progress can be read");
            None
        }
        Err(_) => {
            tracing::debug!(pod, "the log did not come in time");
            None
        }
    }
}

/// The last progress line of a log; others in it are for people.
fn last(log: &str) -> Option<Progress> {
    let line = log.lines().rev().find_map(|line| {
        let line: ProgressLine = serde_json::from_str(line).ok()?;
        (line.relance == PROGRESS).then_some(line)
    })?;
    Some(Progress {
        units_done: count(line.units_done),
        units_total: count(line.units_total),
        rows_written: count(line.rows_written),
        bytes_written: count(line.bytes_written),
        summary: format!("{}/{}", line.units_done, line.units_total),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(done: u64) -> String {
        let line = ProgressLine {
            relance: PROGRESS.into(),
            job_id: "r".into(),
            units_done: done,
            units_total: 10,
            rows_written: 100 * done,
            bytes_written: 1_000 * done,
        };
        serde_json::to_string(&line).unwrap()
    }

    #[test]
    fn the_last_whole_progress_line_counts() {
        let log = format!("hello\n{}\n{}\n{{\"other\":1}}\n{{\"rela", line(3), line(4));
        let progress = last(&log).unwrap();
        assert_eq!(progress.summary, "4/10");
        assert_eq!(progress.rows_written, 400);
    }

    #[test]
    fn a_log_without_progress_says_nothing() {
        assert_eq!(last("hello\n{\"relance\":\"else\"}\n"), None);
    }

    #[test]
    fn a_budget_is_spent_and_earned_again() {
        let budget = Budget::new(2.0);
        let start = Instant::now();
        assert!(budget.take_at(start));
        assert!(budget.take_at(start));
        assert!(!budget.take_at(start));
        assert!(!budget.take_at(start + Duration::from_millis(400)));
        assert!(budget.take_at(start + Duration::from_millis(600)));
        let later = start + Duration::from_secs(100);
        assert!(budget.take_at(later) && budget.take_at(later) && !budget.take_at(later));
    }
}
