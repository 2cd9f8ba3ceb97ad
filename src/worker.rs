//! An engine run inside a Job's pod.
//!
//! The pod's environment holds the task; standard output carries progress
//! lines; the termination message and the exit code say how it ended. A worker
//! exits 0 only once the view is right. It ends at once on SIGTERM: whatever
//! it was doing, the next worker finds what is there.

use std::io::Write;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::Instrument;

use crate::catalog::Source;
use crate::catalog::credential::Place;
use crate::engine::catalog::{Catalog, DELIMITER};
use crate::engine::error::EngineError;
use crate::engine::outcome::Outcome;
use crate::engine::refresh::{Progress, Request, refresh};
use crate::protocol::{
    Ending, INDEX_ENV, PROGRESS, ProgressLine, TASK_ENV, TERMINATION_LOG, Task, exit,
};
use crate::telemetry::{self, trace};

/// How often progress is printed, at the most.
const INTERVAL: Duration = Duration::from_millis(500);

/// Longest [`Ending`], in bytes of JSON: a termination message is cut at 4,096
/// bytes, or where a pod has twelve containers at this, and cut JSON is no JSON.
const ENDING_LIMIT: usize = 1024;

/// Runs the task in the environment and returns the exit code.
pub fn run() -> BoxFuture<'static, i32> {
    // Boxed here, so that it is compiled once, and not into each program anew.
    run_task().boxed()
}

async fn run_task() -> i32 {
    // First of all: the kernel keeps from a container's first process each
    // signal that it has no handler for.
    let terminations = signal(SignalKind::terminate());
    let task = match task_from(std::env::var(TASK_ENV).ok(), std::env::var(INDEX_ENV).ok()) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("relance: {error}");
            end(failed(&error));
            return exit::USAGE;
        }
    };
    let terminated = async {
        match terminations {
            Ok(mut terminations) => {
                terminations.recv().await;
            }
            // Without a handler SIGTERM ends the process by itself.
            Err(_) => std::future::pending().await,
        }
    };
    if let Err(error) = telemetry::start_tracing() {
        tracing::warn!(%error, "no traces are sent");
    }
    let parent = std::env::var(trace::TRACEPARENT_ENV).ok();
    let parent = parent.and_then(|text| text.parse().ok());
    let traced = trace::begin("work", trace::Kind::Consumer, parent);
    let traced = traced.map(|span| {
        span.with("job_id", &task.0.job_id)
            .with("view", task.0.view.join("$"))
            .with("index", task.1)
    });
    let working = work(&task.0, task.1).instrument(telemetry::job_span(&task.0.job_id));
    let result = tokio::select! {
        result = working => result,
        () = terminated => return exit::STOPPED,
    };
    if let Some(span) = traced {
        match &result {
            Ok(outcome) => span
                .with("mode", format!("{:?}", outcome.mode))
                .with("rows_written", outcome.rows_written)
                .end(false),
            Err(error) => span.with("reason", error.reason()).end(true),
        }
    }
    let code = match result {
        Ok(outcome) => {
            end(Ending::Done(outcome));
            exit::OK
        }
        Err(error) => {
            let job_id = &task.0.job_id;
            tracing::error!(job_id, reason = error.reason(), "{error}");
            end(failed(&error));
            exit_code(&error)
        }
    };
    trace::flush().await;
    code
}

async fn work(task: &Task, index: u32) -> Result<Outcome, EngineError> {
    let catalog = catalog(task).await?;
    let request = Request {
        view: task.view.clone(),
        refresh: task.refresh_uid.clone(),
        job: Some(task.job_id.clone()).filter(|id| !id.is_empty()),
        src_version: task.src_version,
        full: task.full,
        expected_incarnation: task.expected_incarnation.clone(),
        max_rows_per_fragment: task.max_rows_per_fragment,
        threads: task.intra_applier_concurrency.map(|n| n as usize),
        workers: task.concurrency.unwrap_or(1),
        index,
        optimize_indices: task.optimize_indices,
        query_memory: None,
    };
    let (sender, progress) = watch::channel(Progress::default());
    let work = refresh(&catalog, &request, &sender);
    telling(&task.job_id, progress, work).await
}

async fn catalog(task: &Task) -> Result<Catalog, EngineError> {
    let source = Source {
        uri: task.catalog.clone(),
        options: task.storage_options.clone(),
        headers: task.catalog_headers.clone(),
    };
    if !task.as_caller {
        return source.connect().await;
    }
    let caller = Place::CALLER
        .in_environment()
        .ok_or_else(|| EngineError::CatalogDenied {
            table: task.view.join(DELIMITER),
            why: "the Secret that held it is gone".to_string(),
        })?;
    source.connect_as(&caller)
}

/// Prints how far `work` is, and at its end how far it has come.
async fn telling<T>(
    job_id: &str,
    progress: watch::Receiver<Progress>,
    work: impl Future<Output = T>,
) -> T {
    let printer = tokio::spawn(print_progress(job_id.to_string(), progress.clone()));
    let result = work.await;
    // It may be in its pause, which nobody is to wait for.
    printer.abort();
    let _ = printer.await;
    let last = *progress.borrow();
    if last.units_total > 0 {
        print_line(job_id, last);
    }
    result
}

async fn print_progress(job_id: String, mut progress: watch::Receiver<Progress>) {
    while progress.changed().await.is_ok() {
        print_line(&job_id, *progress.borrow_and_update());
        tokio::time::sleep(INTERVAL).await;
    }
}

fn print_line(job_id: &str, progress: Progress) {
    let line = ProgressLine {
        relance: PROGRESS.to_string(),
        job_id: job_id.to_string(),
        units_done: progress.units_done,
        units_total: progress.units_total,
        rows_written: progress.rows_written,
        bytes_written: progress.bytes_written,
    };
    if let Ok(json) = serde_json::to_string(&line) {
        // A reader that has gone away must not end the work.
        let _ = writeln!(std::io::stdout(), "{json}");
    }
}

fn task_from(task: Option<String>, index: Option<String>) -> Result<(Task, u32), EngineError> {
    let wrong = |why: String| {
        EngineError::InvalidInput(format!(
            "the environment variable {TASK_ENV} must hold a refresh task as JSON ({why}); workers \
             are started by the Jobs of relance's controller"
        ))
    };
    let task = task.ok_or_else(|| wrong("it is not set".to_string()))?;
    let task: Task = serde_json::from_str(&task).map_err(|e| wrong(e.to_string()))?;
    if task.refresh_uid.is_empty() || task.view.is_empty() {
        return Err(wrong("it names no refresh or no view".to_string()));
    }
    let index = index.and_then(|i| i.parse().ok()).unwrap_or(0);
    Ok((task, index))
}

fn failed(error: &EngineError) -> Ending {
    Ending::Failed {
        reason: error.reason().to_string(),
        message: error.to_string(),
        retryable: error.retryable(),
    }
}

/// `ending` as JSON that no kubelet cuts.
fn encoded(mut ending: Ending) -> serde_json::Result<String> {
    loop {
        let json = serde_json::to_string(&ending)?;
        let over = json.len().saturating_sub(ENDING_LIMIT);
        match &mut ending {
            _ if over == 0 => return Ok(json),
            // The commit's own record has them.
            Ending::Done(outcome) if !outcome.source_versions.is_empty() => {
                outcome.source_versions.clear();
            }
            Ending::Failed { message, .. } if !message.is_empty() => {
                // JSON makes no more than six bytes of a character.
                let last = message.char_indices().rev().nth(over.div_ceil(6) - 1);
                message.truncate(last.map_or(0, |(at, _)| at));
            }
            _ => return Ok(json),
        }
    }
}

/// The exit code that tells `error`'s kind.
pub fn exit_code(error: &EngineError) -> i32 {
    match error {
        EngineError::ViewContended { .. } => exit::CONTENDED,
        EngineError::Unavailable { .. } => exit::UNAVAILABLE,
        EngineError::Internal(_) => exit::INTERNAL,
        _ => exit::PERMANENT,
    }
}

/// Leaves the termination message, where there is a place for it.
fn end(ending: Ending) {
    if let Ok(json) = encoded(ending)
        && let Ok(mut file) = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(TERMINATION_LOG)
    {
        // It is a cache of what the commit says.
        let _ = file.write_all(json.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::outcome::Mode;

    #[test]
    fn a_task_comes_from_the_environment_and_nothing_else_will_do() {
        let task = Task {
            refresh_uid: "u".into(),
            view: vec!["v".into()],
            ..Task::default()
        };
        let json = serde_json::to_string(&task).unwrap();
        assert_eq!(
            task_from(Some(json.clone()), None).unwrap(),
            (task.clone(), 0)
        );
        assert_eq!(task_from(Some(json), Some("3".into())).unwrap(), (task, 3));
        for wrong in [None, Some("{"), Some("{}")] {
            let error = task_from(wrong.map(str::to_string), None).unwrap_err();
            assert!(error.to_string().contains(TASK_ENV), "{error}");
        }
    }

    #[test]
    fn a_failure_is_told_within_a_termination_message() {
        for text in ["é\"", "\u{1}", "x", "🦀"] {
            let error = EngineError::InvalidInput(text.repeat(5000));
            let json = encoded(failed(&error)).unwrap();
            let expected = ENDING_LIMIT - 6..=ENDING_LIMIT;
            assert!(expected.contains(&json.len()), "{}", json.len());
            let Ok(Ending::Failed { message, .. }) = serde_json::from_str(&json) else {
                panic!("{json}");
            };
            assert!(error.to_string().starts_with(&message), "{message}");
        }
        let short = failed(&EngineError::InvalidInput("why".into()));
        let json = encoded(short.clone()).unwrap();
        assert_eq!(serde_json::from_str::<Ending>(&json).unwrap(), short);
    }

    #[test]
    fn a_success_of_many_sources_is_told_without_them() {
        let outcome = |sources: usize| Outcome {
            mode: Mode::Incremental,
            source_version: 1,
            source_versions: (0..sources).map(|n| (format!("table-{n}"), 1)).collect(),
            view_version: 2,
            rows_written: 3,
            bytes_written: 4,
            units_total: 5,
            units_kept: 0,
            unindexed_rows: None,
        };
        for (sources, told) in [(3, 3), (300, 0)] {
            let json = encoded(Ending::Done(outcome(sources))).unwrap();
            assert!(json.len() <= ENDING_LIMIT, "{}", json.len());
            let read: Ending = serde_json::from_str(&json).unwrap();
            assert_eq!(read, Ending::Done(outcome(told)));
        }
    }

    #[tokio::test]
    async fn the_end_of_the_work_waits_for_no_pause_of_the_printer() {
        let started = std::time::Instant::now();
        let (sender, progress) = watch::channel(Progress::default());
        let work = async {
            sender.send_replace(Progress::default());
            // The printer begins its pause.
            tokio::time::sleep(INTERVAL / 10).await;
        };
        telling("r", progress, work).await;
        assert!(started.elapsed() < INTERVAL, "{:?}", started.elapsed());
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let contended = EngineError::ViewContended {
            view: "v".into(),
            attempts: 1,
        };
        assert_eq!(exit_code(&contended), exit::CONTENDED);
        let missing = EngineError::ViewNotFound { view: "v".into() };
        assert_eq!(exit_code(&missing), exit::PERMANENT);
        assert_eq!(
            exit_code(&EngineError::Internal("x".into())),
            exit::INTERNAL
        );
    }
}
