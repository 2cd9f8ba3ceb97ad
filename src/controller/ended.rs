//! Refreshes that have ended: no cache holds them, so that history costs no
//! memory, and still each goes when its time to live is over.
//!
//! The controller proper watches what has not ended, by a field selector. Here
//! a second watch of all others goes by, and all that is kept of it is when a
//! refresh must be looked at again, if ever. The look itself is a pass like any
//! other, over the resource as the API server has it then.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event};
use tokio::sync::mpsc::UnboundedReceiver;

use super::context::Context;
use super::reconcile;
use super::refresh::credential_due;
use crate::resources::MaterializedViewRefresh;

/// Looks at a time: many may be due at once when an operator starts.
const AT_ONCE: usize = 8;

/// How long a watch may be behind another.
const BEHIND: Duration = Duration::from_secs(1);

/// The longest sleep: clocks are set now and then.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Looks after ended refreshes: those that `events` shows, and those that are
/// named through `late`, since a Job of them has turned up.
pub async fn look_after(
    ctx: Arc<Context>,
    events: impl Stream<Item = watcher::Result<Event<MaterializedViewRefresh>>>,
    mut late: UnboundedReceiver<String>,
) {
    // Nothing is taken for ended because it is not known to be active yet.
    let _ = ctx.known.refreshes.wait_until_ready().await;
    let mut events = pin!(events);
    let mut due = Due::default();
    let mut looks = FuturesUnordered::new();
    loop {
        let room = looks.len() < AT_ONCE;
        let sleep = due.first().map_or(LONGEST_SLEEP, until);
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(Event::Apply(refresh) | Event::InitApply(refresh)) => {
                    due.set(&refresh.name_any(), next_look(&refresh));
                }
                Ok(Event::Delete(refresh)) => {
                    due.set(&refresh.name_any(), None);
                    ctx.lasting.forget(&refresh.uid().unwrap_or_default());
                }
                // What went unseen is found gone when it is looked at.
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => {
                    tracing::warn!(%error, "the watch of ended refreshes broke off and begins again");
                }
            },
            Some(name) = late.recv() => due.set(&name, Some(Timestamp::now())),
            Some((name, again)) = looks.next() => {
                let (name, again): (String, Option<Duration>) = (name, again);
                // A watch that has shown it since knows better.
                if let Some(pause) = again && !due.has(&name) {
                    due.set(&name, Timestamp::now().checked_add(pause).ok());
                }
            }
            () = tokio::time::sleep(sleep), if room => {
                if let Some(name) = due.take(Timestamp::now()) {
                    let ctx = ctx.clone();
                    looks.push(async move {
                        let again = look(&ctx, &name).await;
                        (name, again)
                    });
                }
            }
            else => return,
        }
    }
}

fn until(at: Timestamp) -> Duration {
    let left = at.duration_since(Timestamp::now());
    Duration::try_from(left)
        .unwrap_or_default()
        .min(LONGEST_SLEEP)
}

/// One pass over an ended refresh; when to come again.
async fn look(ctx: &Arc<Context>, name: &str) -> Option<Duration> {
    let namespace = ctx.refreshes.namespace().unwrap_or_default();
    let active = ObjectRef::new(name).within(namespace);
    let is_active = ctx.known.refreshes.get(&active).is_some();
    let found = match ctx.refreshes.get_opt(name).await {
        Ok(found) => found?.0,
        Err(error) => {
            tracing::warn!(job_id = name, %error, "an ended refresh could not be looked at");
            return Some(ctx.put_off(name));
        }
    };
    ctx.went_on(name);
    match turn(&found, is_active) {
        Turn::Never => return None,
        Turn::Later => return Some(BEHIND),
        Turn::Now => {}
    }
    let refresh = Arc::new(found);
    match reconcile::pass(refresh.clone(), ctx).await {
        Ok(again) => again,
        Err(error) => Some(reconcile::broke_off(&refresh, &error, ctx)),
    }
}

/// Whether an ended refresh is looked at.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Now,
    Later,
    Never,
}

/// The turn of a refresh as the API server has it now, which the watch of what
/// has not ended shows still, or does not.
fn turn(found: &MaterializedViewRefresh, is_active: bool) -> Turn {
    match (found.phase().is_terminal(), is_active) {
        // The controller's own, until the watch of ended ones shows it.
        (false, _) => Turn::Never,
        // That watch is a moment behind this one, and its pass may be under
        // way; but nobody else will come back to it.
        (true, true) => Turn::Later,
        (true, false) => Turn::Now,
    }
}

/// When an ended refresh must be looked at; None: never.
fn next_look(refresh: &MaterializedViewRefresh) -> Option<Timestamp> {
    let meta = &refresh.metadata;
    let status = refresh.status.as_ref()?;
    let unseen = status.observed_generation != meta.generation;
    let now = Timestamp::now();
    if unseen || !refresh.finalizers().is_empty() {
        return Some(now);
    }
    let credential = credential_due(refresh, now).and_then(|due| now.checked_add(due).ok());
    credential.into_iter().chain(end_of_life(refresh)).min()
}

/// When its time to live is over. One beyond the calendar is none.
fn end_of_life(refresh: &MaterializedViewRefresh) -> Option<Timestamp> {
    let ended = refresh.status.as_ref()?.completion_time.as_ref()?.0;
    let ttl = refresh.spec.ttl_seconds_after_finished?;
    ended
        .checked_add(SignedDuration::from_secs(ttl.max(0)))
        .ok()
}

/// When which refresh is due, by name.
#[derive(Debug, Default)]
struct Due {
    times: HashMap<String, Timestamp>,
    order: BTreeSet<(Timestamp, String)>,
}

impl Due {
    fn set(&mut self, name: &str, at: Option<Timestamp>) {
        if let Some(before) = self.times.remove(name) {
            self.order.remove(&(before, name.to_string()));
        }
        if let Some(at) = at {
            self.times.insert(name.to_string(), at);
            self.order.insert((at, name.to_string()));
        }
    }

    fn has(&self, name: &str) -> bool {
        self.times.contains_key(name)
    }

    fn first(&self) -> Option<Timestamp> {
        self.order.first().map(|(at, _)| *at)
    }

    /// The first one that is due at `now`.
    fn take(&mut self, now: Timestamp) -> Option<String> {
        let (at, name) = self.order.first()?.clone();
        if at > now {
            return None;
        }
        self.set(&name, None);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::resources::{MaterializedViewRefreshSpec, MaterializedViewRefreshStatus, Phase};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn ended(ttl: Option<i64>) -> MaterializedViewRefresh {
        let mut spec = MaterializedViewRefreshSpec::of(["v"]);
        spec.ttl_seconds_after_finished = ttl;
        let mut refresh = MaterializedViewRefresh::new("r", spec);
        refresh.metadata.generation = Some(1);
        refresh.status = Some(MaterializedViewRefreshStatus {
            phase: Phase::Succeeded,
            observed_generation: Some(1),
            completion_time: Some(Time(at(1_000))),
            ..Default::default()
        });
        refresh
    }

    #[test]
    fn history_without_a_time_to_live_is_never_looked_at() {
        assert_eq!(next_look(&ended(None)), None);
    }

    #[test]
    fn one_with_a_time_to_live_is_looked_at_when_it_is_over() {
        assert_eq!(next_look(&ended(Some(60))), Some(at(1_060)));
        assert_eq!(next_look(&ended(Some(i64::MAX))), None);
    }

    #[test]
    fn one_that_was_changed_or_is_held_by_a_finalizer_is_looked_at_now() {
        let mut changed = ended(None);
        changed.metadata.generation = Some(2);
        let mut held = ended(Some(i64::MAX));
        held.metadata.finalizers = Some(vec!["relance.dev/x".into()]);
        for refresh in [changed, held] {
            let due = next_look(&refresh).expect("due");
            assert!(due > at(1_000_000) && due <= Timestamp::now());
        }
    }

    #[test]
    fn one_whose_callers_credential_may_still_be_there_is_looked_at_now() {
        let mut refresh = ended(None);
        refresh.spec.forwarded_credential = true;
        let due = next_look(&refresh).expect("due");
        assert!(due <= Timestamp::now());
    }

    #[test]
    fn one_whose_callers_credential_may_come_again_is_looked_at_then_unless_it_goes_before() {
        let mut refresh = ended(None);
        refresh.spec.forwarded_credential = true;
        let gone = serde_json::json!([{
            "type": "CredentialDeleted", "status": "True", "reason": "Ended", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
        let just_now = Timestamp::now();
        let status = refresh.status.get_or_insert_default();
        status.conditions = serde_json::from_value(gone).expect("conditions");
        status.completion_time = Some(Time(just_now));
        let due = next_look(&refresh).expect("due");
        assert!(due > just_now + SignedDuration::from_secs(120), "{due}");
        refresh.spec.ttl_seconds_after_finished = Some(60);
        let over = just_now + SignedDuration::from_secs(60);
        assert_eq!(next_look(&refresh), Some(over));
        // Nor is history of long ago looked at whenever an operator starts.
        refresh.spec.ttl_seconds_after_finished = None;
        refresh.status.get_or_insert_default().completion_time = Some(Time(at(1_000)));
        assert_eq!(next_look(&refresh), None);
    }

    #[test]
    fn one_that_another_watch_still_shows_as_active_is_come_back_to() {
        let mut refresh = ended(None);
        assert_eq!(turn(&refresh, true), Turn::Later);
        assert_eq!(turn(&refresh, false), Turn::Now);
        if let Some(status) = &mut refresh.status {
            status.phase = Phase::Running;
        }
        assert_eq!(turn(&refresh, true), Turn::Never);
        assert_eq!(turn(&refresh, false), Turn::Never);
    }

    #[test]
    fn each_is_due_once_at_the_time_that_was_said_last() {
        let mut due = Due::default();
        due.set("a", Some(at(10)));
        due.set("b", Some(at(5)));
        due.set("a", Some(at(3)));
        assert_eq!(due.first(), Some(at(3)));
        assert_eq!(due.take(at(2)), None);
        assert_eq!(due.take(at(20)).as_deref(), Some("a"));
        due.set("b", None);
        assert_eq!(due.take(at(20)), None);
        assert_eq!(due.first(), None);
    }
}
