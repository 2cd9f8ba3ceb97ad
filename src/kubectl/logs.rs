//! `logs`: what the worker pods of a refresh say, in one stream. Without
//! `--follow` the pods' logs are merged by the time of their lines; with it
//! [`tail`](super::tail) reads them.

use std::pin::pin;

use futures::{AsyncBufRead, AsyncBufReadExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams};

use super::access::Access;
use super::args::LogsArgs;
use super::error::PluginError;
use super::exit;
use super::follow::{Heard, cause, has_ended, hear};
use super::tail::followed;
use crate::resources::{MaterializedViewRefresh, names};
use crate::terminal;

/// Does it.
pub async fn logs(access: &Access, args: &LogsArgs) -> Result<i32, PluginError> {
    let mut refresh = access.get(&args.name).await?;
    if args.follow {
        refresh = launched(access, refresh, args).await?;
    }
    let place = place(access, &refresh, args).await?;
    match args.follow && !has_ended(&refresh) {
        true => followed(access, &refresh, &place, args).await?,
        false => merged(access, &refresh, &place, args).await?,
    }
    Ok(exit::OK)
}

/// The refresh once it has a Job, whose pods could be anywhere before, or has
/// ended without.
async fn launched(
    access: &Access,
    refresh: MaterializedViewRefresh,
    args: &LogsArgs,
) -> Result<MaterializedViewRefresh, PluginError> {
    let waits = |refresh: &MaterializedViewRefresh| {
        let job = refresh.status.as_ref().and_then(|s| s.job.as_ref());
        job.is_none() && !has_ended(refresh)
    };
    if !waits(&refresh) {
        return Ok(refresh);
    }
    if args.job_context.is_none() {
        // What cannot be had at all need not be waited for.
        place(access, &refresh, args).await?;
    }
    let heard = hear(access, &refresh);
    let mut heard = pin!(heard);
    loop {
        match heard.next().await {
            Some(Heard::Now(now)) if waits(&now) => {}
            Some(Heard::Now(now)) => return Ok(*now),
            Some(Heard::Gone) | None => return Err(PluginError::Deleted(args.name.clone())),
            Some(Heard::Broken(error)) => {
                let error = access.error(&cause(error));
                if matches!(error, PluginError::Forbidden(_)) {
                    return Err(error);
                }
            }
        }
    }
}

/// Where the pods of a refresh are.
pub struct Place {
    access: Option<Access>,
    pub pods: Api<Pod>,
    pub labels: String,
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
    pub fn error(&self, home: &Access, error: &kube::Error) -> PluginError {
        self.access.as_ref().unwrap_or(home).error(error)
    }
}

/// How the worker of a pod stands.
pub fn worker(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let worker = statuses
        .iter()
        .find(|c| c.name == names::WORKER_CONTAINER)?;
    worker.state.as_ref()
}

/// Whether its log can be read.
pub fn speaks(pod: &Pod) -> bool {
    worker(pod).is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// A line and when it was written.
pub struct Line {
    pub at: Timestamp,
    pub text: String,
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

    /// The next one of `log`, whatever its bytes are. Its last line is one
    /// without an end too, if `whole` says that no more of it will come.
    pub async fn read(
        log: &mut (impl AsyncBufRead + Unpin),
        whole: bool,
    ) -> std::io::Result<Option<Self>> {
        let mut raw = Vec::new();
        log.read_until(b'\n', &mut raw).await?;
        if raw.is_empty() || !(whole || raw.ends_with(b"\n")) {
            return Ok(None);
        }
        let raw = String::from_utf8_lossy(&raw);
        let line = raw.strip_suffix('\n').unwrap_or(&raw);
        Ok(Some(Self::of(line.strip_suffix('\r').unwrap_or(line))))
    }

    /// Writes it down.
    pub fn print(&self, pod: &str, timestamps: bool) -> Result<(), PluginError> {
        let line = match timestamps {
            true => format!("[{pod}] {} {}\n", self.at, self.text),
            false => format!("[{pod}] {}\n", self.text),
        };
        Ok(terminal::print(&line)?)
    }
}

/// How a log is asked for.
pub fn params(args: &LogsArgs) -> LogParams {
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
    // What can be had is printed, whatever becomes of the rest.
    let mut wrong = None;
    for pod in pods.iter().filter(|pod| speaks(pod)) {
        let log = match place.pods.log_stream(&pod.name_any(), &params(args)).await {
            Ok(log) => log,
            // It went in between.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => match place.error(access, &error) {
                error @ PluginError::Forbidden(_) => return Err(error),
                error => {
                    wrong.get_or_insert(error);
                    continue;
                }
            },
        };
        let mut log = Log {
            pod: pod.name_any(),
            lines: Box::pin(log),
            next: None,
        };
        log.read(&mut wrong, place, access).await;
        logs.push(log);
    }
    if logs.is_empty() && wrong.is_none() {
        return Err(none(access, refresh));
    }
    loop {
        let ready = logs.iter_mut().filter(|log| log.next.is_some());
        let Some(log) = ready.min_by_key(|log| log.next.as_ref().map(|line| line.at)) else {
            return wrong.map_or(Ok(()), Err);
        };
        if let Some(line) = log.next.take() {
            line.print(&log.pod, args.timestamps)?;
        }
        log.read(&mut wrong, place, access).await;
    }
}

/// Why there are none.
pub fn none(access: &Access, refresh: &MaterializedViewRefresh) -> PluginError {
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
    lines: R,
    next: Option<Line>,
}

impl<R: AsyncBufRead + Unpin> Log<R> {
    /// A log that breaks off ends there, and that is wrong.
    async fn read(&mut self, wrong: &mut Option<PluginError>, place: &Place, access: &Access) {
        match Line::read(&mut self.lines, true).await {
            Ok(line) => self.next = line,
            Err(error) => {
                let error = kube::Error::Service(Box::new(error));
                wrong.get_or_insert(place.error(access, &error));
            }
        }
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
    async fn lines(mut log: &[u8], whole: bool) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = Line::read(&mut log, whole).await.unwrap() {
            lines.push(line.text);
        }
        lines
    }

    #[tokio::test]
    async fn no_bytes_end_a_log_before_its_end() {
        let log = b"2026-11-22T20:21:42Z caf\xe9\r\n\n2026-11-22T20:21:43Z last";
        assert_eq!(lines(log, true).await, ["caf\u{fffd}", "", "last"]);
        // Of a line that is still being written the rest is yet to come.
        assert_eq!(lines(log, false).await, ["caf\u{fffd}", ""]);
    }
}
