//! `logs`: what the worker pods of a refresh say, in one stream.
//!
//! Without `--follow` the pods' logs are merged by the time of their lines.
//! With it each pod is read as it writes, and pods are taken in as they come,
//! until the refresh has ended and its pods have said their last. A read that
//! breaks off (logs rotate, API servers restart) goes on after the last line
//! that was read, by its time.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use futures::io::Lines;
use futures::{AsyncBufRead, AsyncBufReadExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Event, watcher};
use tokio::sync::mpsc;

use super::access::Access;
use super::args::LogsArgs;
use super::error::PluginError;
use super::exit;
use super::follow::{Heard, cause, has_ended, hear};
use crate::resources::{MaterializedViewRefresh, names};
use crate::terminal;

/// The pause before a log is read on that broke off.
const READ_ON: Duration = Duration::from_secs(1);

/// How long pods may go on speaking after their refresh has ended.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Does it.
pub async fn logs(access: &Access, args: &LogsArgs) -> Result<i32, PluginError> {
    let refresh = access.get(&args.name).await?;
    let place = place(access, &refresh, args).await?;
    match args.follow && !has_ended(&refresh) {
        true => followed(access, &refresh, &place, args).await?,
        false => merged(access, &refresh, &place, args).await?,
    }
    Ok(exit::OK)
}

/// Where the pods of a refresh are.
struct Place {
    access: Option<Access>,
    pods: Api<Pod>,
    labels: String,
}

/// Finds it, or says why these logs cannot be had.
async fn place(
    access: &Access,
    refresh: &MaterializedViewRefresh,
    args: &LogsArgs,
) -> Result<Place, PluginError> {
    let job = refresh.status.as_ref().and_then(|s| s.job.as_ref());
    let uid = refresh.metadata.uid.as_deref().unwrap_or_default();
    let labels = format!("{}={uid}", names::REFRESH_UID_LABEL);
    if let Some(context) = &args.job_context {
        let there = access.by_context(context).await?;
        let namespace = job.map_or(&there.namespace, |job| &job.namespace);
        return Ok(Place {
            pods: Api::namespaced(there.client.clone(), namespace),
            access: Some(there),
            labels,
        });
    }
    let cluster = job.map_or(&refresh.spec.cluster, |job| &job.cluster);
    // Who may not see RefreshClusters is told by the finalizer, while it is there.
    let found = access.clusters.get_opt(cluster).await.ok().flatten();
    let held = refresh.finalizers().iter();
    let held = held.into_iter().any(|f| f == names::REMOTE_FINALIZER);
    if held || found.is_some_and(|cluster| cluster.spec.is_remote()) {
        let namespace = job.map(|job| format!(" -n {}", job.namespace));
        return Err(PluginError::NoLogs(format!(
            "the Job of refresh '{}' is in another cluster (RefreshCluster '{cluster}'), whose logs this context does not have; \
             give --job-context if your kubeconfig has one for it, or ask there: `kubectl logs{} -l {labels} --prefix`",
            refresh.name_any(),
            namespace.unwrap_or_default(),
        )));
    }
    let namespace = job.map_or(&access.namespace, |job| &job.namespace);
    Ok(Place {
        access: None,
        pods: Api::namespaced(access.client.clone(), namespace),
        labels,
    })
}

impl Place {
    fn error(&self, home: &Access, error: &kube::Error) -> PluginError {
        self.access.as_ref().unwrap_or(home).error(error)
    }
}

/// How the worker of a pod stands.
fn worker(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let worker = statuses
        .iter()
        .find(|c| c.name == names::WORKER_CONTAINER)?;
    worker.state.as_ref()
}

/// Whether its log can be read.
fn speaks(pod: &Pod) -> bool {
    worker(pod).is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// A line and when it was written.
struct Line {
    at: Timestamp,
    text: String,
}

impl Line {
    /// Of what the API server sends if times are asked for.
    fn of(raw: &str) -> Self {
        let stamped = raw.split_once(' ').unwrap_or((raw, ""));
        match stamped.0.parse() {
            Ok(at) => Self {
                at,
                text: stamped.1.to_string(),
            },
            // Not the pod's: the kubelet's word that it cannot read a log.
            Err(_) => Self {
                at: Timestamp::UNIX_EPOCH,
                text: raw.to_string(),
            },
        }
    }

    fn print(&self, pod: &str, timestamps: bool) -> Result<(), PluginError> {
        let line = match timestamps {
            true => format!("[{pod}] {} {}\n", self.at, self.text),
            false => format!("[{pod}] {}\n", self.text),
        };
        Ok(terminal::print(&line)?)
    }
}

fn params(args: &LogsArgs) -> LogParams {
    LogParams {
        container: Some(names::WORKER_CONTAINER.to_string()),
        tail_lines: args.tail.map(i64::from),
        timestamps: true,
        ..LogParams::default()
    }
}

/// All that has been written so far.
async fn merged(
    access: &Access,
    refresh: &MaterializedViewRefresh,
    place: &Place,
    args: &LogsArgs,
) -> Result<(), PluginError> {
    let selected = ListParams::default().labels(&place.labels);
    let pods = place.pods.list(&selected).await;
    let pods = pods.map_err(|error| place.error(access, &error))?.items;
    let mut logs = Vec::new();
    for pod in pods.iter().filter(|pod| speaks(pod)) {
        let log = match place.pods.log_stream(&pod.name_any(), &params(args)).await {
            Ok(log) => log,
            // It went in between.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(place.error(access, &error)),
        };
        let mut log = Log {
            pod: pod.name_any(),
            lines: Box::pin(log).lines(),
            next: None,
        };
        log.read().await;
        logs.push(log);
    }
    if logs.is_empty() {
        return Err(none(access, refresh));
    }
    loop {
        let ready = logs.iter_mut().filter(|log| log.next.is_some());
        let Some(log) = ready.min_by_key(|log| log.next.as_ref().map(|line| line.at)) else {
            return Ok(());
        };
        if let Some(line) = log.next.take() {
            line.print(&log.pod, args.timestamps)?;
        }
        log.read().await;
    }
}

/// Why there are none.
fn none(access: &Access, refresh: &MaterializedViewRefresh) -> PluginError {
    let name = refresh.name_any();
    let message = refresh.status.as_ref().and_then(|s| s.message.clone());
    let message = message.unwrap_or_default();
    PluginError::NoLogs(match has_ended(refresh) {
        true => format!(
            "no pod of refresh '{name}' is left: it ended {:?} without one, or they were cleaned up ({message})",
            refresh.phase()
        ),
        false => format!(
            "no pod of refresh '{name}' has said anything yet ({message}); `{} -f` waits for them",
            access.command(&format!("logs {name}"))
        ),
    })
}

/// The log of one pod, a line ahead.
struct Log<R> {
    pod: String,
    lines: Lines<R>,
    next: Option<Line>,
}

impl<R: AsyncBufRead + Unpin> Log<R> {
    /// A log that breaks off ends there: what was read of it is right.
    async fn read(&mut self) {
        let line = self.lines.try_next().await.ok().flatten();
        self.next = line.map(|raw| Line::of(&raw));
    }
}

/// All that is written until the refresh has ended.
async fn followed(
    access: &Access,
    refresh: &MaterializedViewRefresh,
    place: &Place,
    args: &LogsArgs,
) -> Result<(), PluginError> {
    let (sender, mut lines) = mpsc::channel::<(String, Line)>(1024);
    // Dropped once no further pod is waited for: then the channel ends with its last reader.
    let mut sender = Some(sender);
    let mut taken = BTreeSet::new();
    let config = watcher::Config::default().labels(&place.labels);
    let pods = watcher(place.pods.clone(), config).default_backoff();
    let mut pods = pin!(pods);
    let heard = hear(access, refresh);
    let mut heard = pin!(heard);
    let mut late = pin!(tokio::time::sleep(Duration::MAX));
    loop {
        let watching = sender.is_some();
        tokio::select! {
            line = lines.recv() => match line {
                Some((pod, line)) => line.print(&pod, args.timestamps)?,
                None => return Ok(()),
            },
            pod = pods.next(), if watching => match pod {
                Some(Ok(Event::InitApply(pod) | Event::Apply(pod))) => {
                    take(&pod, place, args, &sender, &mut taken);
                }
                Some(Err(error)) => {
                    let error = place.error(access, &cause(error));
                    if matches!(error, PluginError::Forbidden(_)) {
                        return Err(error);
                    }
                }
                _ => {}
            },
            now = heard.next(), if watching => {
                let over = match now {
                    Some(Heard::Now(now)) => has_ended(&now),
                    Some(Heard::Gone) | None => true,
                    Some(Heard::Broken(_)) => false,
                };
                if over {
                    // Pods whose beginning the watch has not told of yet.
                    let selected = ListParams::default().labels(&place.labels);
                    for pod in place.pods.list(&selected).await.into_iter().flatten() {
                        take(&pod, place, args, &sender, &mut taken);
                    }
                    sender = None;
                    late.as_mut().reset(tokio::time::Instant::now() + LAST_WORDS);
                }
            }
            () = &mut late => return Ok(()),
        }
    }
}

/// Begins to read a pod's log, if it can be read and is not yet.
fn take(
    pod: &Pod,
    place: &Place,
    args: &LogsArgs,
    sender: &Option<mpsc::Sender<(String, Line)>>,
    taken: &mut BTreeSet<String>,
) {
    let Some(sender) = sender.as_ref().filter(|_| speaks(pod)) else {
        return;
    };
    if !taken.insert(pod.uid().unwrap_or_default()) {
        return;
    }
    let (name, pods) = (pod.name_any(), place.pods.clone());
    let (params, sender) = (params(args), sender.clone());
    tokio::spawn(async move {
        // Whoever took its lines has gone.
        let _ = read_to_the_end(&pods, &name, params, &sender).await;
    });
}

async fn read_to_the_end(
    pods: &Api<Pod>,
    pod: &str,
    mut params: LogParams,
    sender: &mpsc::Sender<(String, Line)>,
) -> Result<(), mpsc::error::SendError<(String, Line)>> {
    params.follow = true;
    let mut last = None;
    loop {
        if let Ok(log) = pods.log_stream(pod, &params).await {
            let mut lines = Box::pin(log).lines();
            while let Ok(Some(raw)) = lines.try_next().await {
                let line = Line::of(&raw);
                // The API server knows times by the second.
                if last.is_some_and(|last| line.at <= last) {
                    continue;
                }
                last = Some(line.at);
                sender.send((pod.to_string(), line)).await?;
            }
        }
        let over = match pods.get_opt(pod).await {
            Ok(Some(pod)) => worker(&pod).is_none_or(|state| state.running.is_none()),
            Ok(None) => true,
            Err(_) => false,
        };
        if over {
            return Ok(());
        }
        if last.is_some() {
            params.since_time = last;
            params.tail_lines = None;
        }
        tokio::time::sleep(READ_ON).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parted_from_its_time_whose_digits_may_be_fewer() {
        let late = Line::of("2026-11-22T20:21:42.5Z hello  world");
        let early = Line::of("2026-11-22T21:21:42.123456789+01:00 hello");
        assert_eq!(late.text, "hello  world");
        assert!(early.at < late.at);
        assert_eq!(Line::of("2026-11-22T20:21:42Z").text, "");
        assert_eq!(Line::of("unable to retrieve").text, "unable to retrieve");
    }
}
