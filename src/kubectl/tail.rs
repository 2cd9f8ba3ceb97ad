//! `logs --follow`: each pod is read as it writes, and pods are taken in as
//! they come, until the refresh has ended and its pods have said their last.
//!
//! A read may break off (logs rotate, API servers restart), and then goes on
//! after the last line that was read, by its time. So the end of a read is the
//! end of a log only if the worker was over when that read began.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Event, watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::access::Access;
use super::args::LogsArgs;
use super::error::PluginError;
use super::follow::{Heard, cause, has_ended, hear};
use super::logs::{Line, Place, none, params, speaks, worker};
use crate::resources::MaterializedViewRefresh;

/// The pause before a log is read on that broke off.
const READ_ON: Duration = Duration::from_secs(1);

/// How long pods may be silent after their refresh has ended.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// How often pods that nobody has told of yet are asked for at the end.
const ATTEMPTS: u32 = 5;

/// All that is written until the refresh has ended.
pub async fn followed(
    access: &Access,
    refresh: &MaterializedViewRefresh,
    place: &Place,
    args: &LogsArgs,
) -> Result<(), PluginError> {
    let (sender, mut said) = mpsc::channel(1024);
    let mut readers = Readers {
        pods: place.pods.clone(),
        params: params(args),
        sender,
        taken: BTreeSet::new(),
    };
    let mut told = Told {
        access,
        place,
        timestamps: args.timestamps,
        broken: BTreeMap::new(),
    };
    let config = watcher::Config::default().labels(&place.labels);
    let pods = watcher(place.pods.clone(), config).default_backoff();
    let mut pods = pin!(pods);
    let heard = hear(access, refresh);
    let mut heard = pin!(heard);
    let mut last = refresh.clone();
    let mut gone = false;
    while !gone && !has_ended(&last) {
        tokio::select! {
            Some((pod, said)) = said.recv() => {
                told.hear(pod, said)?;
            }
            pod = pods.next() => match pod {
                Some(Ok(Event::InitApply(pod) | Event::Apply(pod))) => readers.take(&pod),
                Some(Err(error)) => {
                    let error = place.error(access, &cause(error));
                    if matches!(error, PluginError::Forbidden(_)) {
                        return Err(error);
                    }
                }
                _ => {}
            },
            now = heard.next() => match now {
                Some(Heard::Now(now)) => last = *now,
                Some(Heard::Broken(error)) => {
                    let error = access.error(&cause(error));
                    if matches!(error, PluginError::Forbidden(_)) {
                        return Err(error);
                    }
                }
                Some(Heard::Gone) | None => gone = true,
            },
        }
    }
    let missed = readers.take_the_rest(&place.labels).await;
    let nobody = readers.taken.is_empty();
    // The channel ends with its last reader.
    drop(readers);
    let mut late = Instant::now() + LAST_WORDS;
    while let Ok(Some((pod, said))) = timeout_at(late, said.recv()).await {
        if told.hear(pod, said)? {
            late = Instant::now() + LAST_WORDS;
        }
    }
    missed.map_err(|error| place.error(access, &error))?;
    match told.broken.into_values().next() {
        Some(error) => Err(error),
        None if nobody && gone => Err(PluginError::Deleted(last.name_any())),
        None if nobody => Err(none(access, &last)),
        None => Ok(()),
    }
}

/// What is heard of a pod.
enum Said {
    /// A line.
    Line(Line),
    /// It cannot be read, and is tried again.
    Broken(kube::Error),
    /// That was all.
    Whole,
}

type Sender = mpsc::Sender<(String, Said)>;

/// Where what pods say goes.
struct Told<'a> {
    access: &'a Access,
    place: &'a Place,
    timestamps: bool,
    /// Pods that could not be read when they were last tried.
    broken: BTreeMap<String, PluginError>,
}

impl Told<'_> {
    /// Whether it was a line.
    fn hear(&mut self, pod: String, said: Said) -> Result<bool, PluginError> {
        match said {
            Said::Line(line) => {
                line.print(&pod, self.timestamps)?;
                self.broken.remove(&pod);
                return Ok(true);
            }
            Said::Whole => {
                self.broken.remove(&pod);
            }
            Said::Broken(error) => match self.place.error(self.access, &error) {
                error @ PluginError::Forbidden(_) => return Err(error),
                error @ PluginError::Unavailable { .. } => {
                    self.broken.insert(pod, error);
                }
                // A log that is not there yet, or no longer.
                _ => {}
            },
        }
        Ok(false)
    }
}

/// Who reads the pods.
struct Readers {
    pods: Api<Pod>,
    params: LogParams,
    sender: Sender,
    taken: BTreeSet<String>,
}

impl Readers {
    /// Begins to read a pod's log, if it can be read and is not yet.
    fn take(&mut self, pod: &Pod) {
        if !speaks(pod) || !self.taken.insert(pod.uid().unwrap_or_default()) {
            return;
        }
        let reader = Reader {
            pods: self.pods.clone(),
            pod: pod.name_any(),
            params: self.params.clone(),
            sender: self.sender.clone(),
            last: None,
        };
        let over = is_over(pod);
        tokio::spawn(async move {
            // Whoever took its lines has gone.
            let _ = reader.read_on(over).await;
        });
    }

    /// Pods whose beginning the watch has not told of yet.
    async fn take_the_rest(&mut self, labels: &str) -> Result<(), kube::Error> {
        let selected = ListParams::default().labels(labels);
        let mut attempt = 1;
        loop {
            match self.pods.list(&selected).await {
                Ok(pods) => {
                    pods.iter().for_each(|pod| self.take(pod));
                    return Ok(());
                }
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(READ_ON).await;
            attempt += 1;
        }
    }
}

/// Whether its worker writes no more.
fn is_over(pod: &Pod) -> bool {
    worker(pod).is_none_or(|state| state.running.is_none())
}

/// Who reads one pod.
struct Reader {
    pods: Api<Pod>,
    pod: String,
    params: LogParams,
    sender: Sender,
    /// The time of the last line that was read.
    last: Option<Timestamp>,
}

/// How a read ended.
enum Ended {
    /// The API server had no more.
    Whole,
    /// The pod is gone.
    Gone,
    /// Something else.
    Broken(kube::Error),
}

/// An error if nobody listens any more.
type Listened<T> = Result<T, mpsc::error::SendError<(String, Said)>>;

impl Reader {
    async fn read_on(mut self, mut over: bool) -> Listened<()> {
        self.params.follow = true;
        loop {
            let mut whole = false;
            match self.read(over).await? {
                Ended::Whole if over => break,
                Ended::Whole => whole = true,
                Ended::Gone => break,
                Ended::Broken(error) => self.say(Said::Broken(error)).await?,
            }
            let by_name = ListParams::default().fields(&format!("metadata.name={}", self.pod));
            match self.pods.list(&by_name).await {
                Ok(found) => match found.items.first() {
                    Some(pod) => over = is_over(pod),
                    None => break,
                },
                Err(error) => self.say(Said::Broken(error)).await?,
            }
            if let Some(last) = self.last {
                // The API server knows times by the second.
                self.params.since_time = Timestamp::from_second(last.as_second()).ok();
                self.params.tail_lines = None;
            }
            if !(whole && over) {
                tokio::time::sleep(READ_ON).await;
            }
        }
        self.say(Said::Whole).await
    }

    /// Reads what comes after the last line; of a worker that is `over`, to
    /// its last character.
    async fn read(&mut self, over: bool) -> Listened<Ended> {
        let log = match self.pods.log_stream(&self.pod, &self.params).await {
            Ok(log) => log,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Ended::Gone),
            Err(error) => return Ok(Ended::Broken(error)),
        };
        let mut log = Box::pin(log);
        let before = self.last;
        loop {
            match Line::read(&mut log, over).await {
                Ok(Some(line)) if before.is_some_and(|before| line.at <= before) => {}
                Ok(Some(line)) => {
                    self.last = self.last.max(Some(line.at));
                    self.say(Said::Line(line)).await?;
                }
                Ok(None) => return Ok(Ended::Whole),
                Err(error) => return Ok(Ended::Broken(kube::Error::Service(Box::new(error)))),
            }
        }
    }

    async fn say(&self, said: Said) -> Listened<()> {
        self.sender.send((self.pod.clone(), said)).await
    }
}
