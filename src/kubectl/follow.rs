//! Waiting for a refresh's end: by a watch, which is taken up again when it
//! breaks off. Whoever stops waiting leaves the refresh as it is.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::api::Api;
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Event, watcher};
use tokio::signal::unix::{SignalKind, signal};

use super::access::Access;
use super::args::WaitArgs;
use super::error::PluginError;
use super::exit;
use super::show::Show;
use super::status;
use crate::resources::{MaterializedViewRefresh, Phase};

/// `wait`.
pub async fn wait(access: &Access, args: &WaitArgs) -> Result<i32, PluginError> {
    let refresh = access.get(&args.name).await?;
    let (code, last) = to_the_end(access, &refresh, args.timeout).await?;
    let printed = match args.output {
        None => Ok(()),
        output => status::print_one(&last, output),
    };
    status::answered(code, printed)
}

/// What is heard of a refresh.
pub enum Heard {
    /// So it is now.
    Now(Box<MaterializedViewRefresh>),
    /// It is no more, and had not ended when it was seen last.
    Gone,
    /// The watch broke off, for this reason, and is tried again.
    Broken(watcher::Error),
}

/// What is heard of `refresh` and of no other that gets its name later, until
/// it has ended.
pub fn hear(
    access: &Access,
    refresh: &MaterializedViewRefresh,
) -> impl Stream<Item = Heard> + use<> {
    let name = refresh.metadata.name.as_deref().unwrap_or_default();
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let api: Api<MaterializedViewRefresh> = access.refreshes.clone();
    let uid = refresh.metadata.uid.clone();
    let mut seen = false;
    watcher(api, config)
        .default_backoff()
        .filter_map(move |event| {
            let heard = match event {
                Ok(Event::Init) => {
                    seen = false;
                    None
                }
                Ok(Event::InitApply(now) | Event::Apply(now)) => {
                    seen = true;
                    match now.metadata.uid == uid {
                        true => Some(Heard::Now(Box::new(now))),
                        false => Some(Heard::Gone),
                    }
                }
                Ok(Event::Delete(now)) if now.metadata.uid == uid && has_ended(&now) => {
                    Some(Heard::Now(Box::new(now)))
                }
                Ok(Event::Delete(_)) => Some(Heard::Gone),
                Ok(Event::InitDone) => (!seen).then_some(Heard::Gone),
                Err(error) => Some(Heard::Broken(error)),
            };
            std::future::ready(heard)
        })
}

/// Whether no further transition can follow.
pub fn has_ended(refresh: &MaterializedViewRefresh) -> bool {
    refresh.phase().is_terminal()
}

/// Waits for the end of `refresh` and shows how far it is; the code to end
/// with, and the refresh as it was seen last.
pub async fn to_the_end(
    access: &Access,
    refresh: &MaterializedViewRefresh,
    timeout: Option<Duration>,
) -> Result<(i32, MaterializedViewRefresh), PluginError> {
    let name = refresh.metadata.name.clone().unwrap_or_default();
    let mut last = refresh.clone();
    // Before anything is shown: whoever sees it may stop it.
    let mut stopped = pin!(stopped());
    let mut show = Show::of(refresh);
    let heard = hear(access, refresh);
    let mut heard = pin!(heard);
    let mut late = pin!(async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => pending().await,
        }
    });
    loop {
        show.now(&last);
        if has_ended(&last) {
            show.ended(&last);
            return Ok((code(last.phase()), last));
        }
        let heard = tokio::select! {
            // What is known of an end goes before the end of patience.
            biased;
            heard = heard.next() => heard,
            code = &mut stopped => {
                show.leave(&format!("refresh {name} goes on: {}", ways(access, &name)));
                return Ok((code, last));
            }
            () = &mut late => {
                let phase = last.phase();
                show.leave(&format!("refresh {name} is still {phase:?} and goes on: {}", ways(access, &name)));
                return Ok((exit::TIMED_OUT, last));
            }
        };
        match heard {
            Some(Heard::Now(now)) => last = *now,
            Some(Heard::Gone) | None => {
                show.leave("");
                return Err(PluginError::Deleted(name));
            }
            Some(Heard::Broken(error)) => {
                let error = access.error(&cause(error));
                match error {
                    PluginError::Forbidden(_) => {
                        show.leave("");
                        return Err(error);
                    }
                    other => show.trouble(&other.to_string()),
                }
            }
        }
    }
}

/// The client's error within a watch's.
pub fn cause(error: watcher::Error) -> kube::Error {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        watcher::Error::WatchError(status) => kube::Error::Api(status),
        other @ watcher::Error::NoResourceVersion => kube::Error::Service(Box::new(other)),
    }
}

fn ways(access: &Access, name: &str) -> String {
    format!(
        "`{}` follows it, `{}` ends it",
        access.command(&format!("wait {name}")),
        access.command(&format!("cancel {name}"))
    )
}

fn code(phase: Phase) -> i32 {
    match phase {
        Phase::Succeeded => exit::OK,
        Phase::Cancelled => exit::CANCELLED,
        _ => exit::FAILED,
    }
}

/// Until somebody ends this process; the code to end with. A pod's first
/// process has to ask for signals to get them; they are asked for at once, not
/// when it is first waited.
fn stopped() -> impl Future<Output = i32> {
    let (interrupt, terminate) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    async {
        match (interrupt, terminate) {
            (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
                _ = interrupt.recv() => exit::INTERRUPTED,
                _ = terminate.recv() => exit::TERMINATED,
            },
            // Then signals end it as they end any program.
            _ => pending().await,
        }
    }
}
