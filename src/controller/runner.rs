//! Passes over objects: one at a time over each, any number at a time in all.
//!
//! What kube-runtime's `Controller` does, at a cost that does not grow with how
//! many passes are under way. Its runner polls each of them, and tries all that
//! are to follow one, whenever any of them wakes; here hundreds of refreshes
//! wait for their turn at a time, and that took half of what a launch costs.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Resource;
use kube::runtime::reflector::{Lookup, ObjectRef, Store};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

/// The longest that is waited for a pass; timers reach no further than years.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Carries out `pass` over each object of `store` that `touched` names, once
/// the store is filled, and again after as long as the pass says; None: when it
/// is touched again. An object that is touched during its pass has another one
/// at once. Ends with `shutdown`, when the passes under way have ended. To drop
/// it breaks them off.
pub async fn run<K, F>(
    touched: impl Stream<Item = ObjectRef<K>>,
    store: Store<K>,
    shutdown: CancellationToken,
    pass: impl Fn(Arc<K>) -> F,
) where
    K: Resource + Lookup<DynamicType = ()> + Clone + Send + Sync + 'static,
    F: Future<Output = Option<Duration>> + Send + 'static,
{
    let mut touched = pin!(touched.fuse());
    let mut schedule = Schedule::default();
    let mut passes = JoinSet::new();
    let mut ready = pin!(store.wait_until_ready());
    // Touched before the store was filled; None: it is.
    let mut early = Some(HashSet::new());
    let mut is_ending = false;
    while !(is_ending && passes.is_empty()) {
        let mut due = Vec::new();
        tokio::select! {
            filled = &mut ready, if early.is_some() => {
                if filled.is_err() {
                    // Nobody fills it any more.
                    return;
                }
                let early = early.take().unwrap_or_default();
                due.extend(early.into_iter().filter(|object| schedule.touch(object)));
            }
            object = touched.next(), if !is_ending => match (object, &mut early) {
                (Some(object), Some(early)) => drop(early.insert(object)),
                (Some(object), None) if schedule.touch(&object) => due.push(object),
                (Some(_), None) => {}
                (None, _) => is_ending = true,
            },
            Some(object) = schedule.due(), if !is_ending => due.push(object),
            Some(ended) = passes.join_next() => match ended {
                Ok((object, again)) => {
                    if schedule.ended(&object, again) && !is_ending {
                        due.push(object);
                    }
                }
                // A pass catches its own panics.
                Err(error) => {
                    if let Ok(panic) = error.try_into_panic() {
                        resume_unwind(panic);
                    }
                }
            },
            () = shutdown.cancelled(), if !is_ending => is_ending = true,
        }
        for object in due {
            match store.get(&object) {
                Some(found) => {
                    let pass = pass(found);
                    passes.spawn(async move { (object, pass.await) });
                }
                None => schedule.forget(&object),
            }
        }
    }
}

/// When which object has its next pass.
struct Schedule<T> {
    states: HashMap<T, State>,
    due: DelayQueue<T>,
}

enum State {
    /// A pass is under way. Another one is to follow at once?
    Passing { again: bool },
    /// The next one is due some time.
    Waiting(Key),
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self {
            states: HashMap::new(),
            due: DelayQueue::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Schedule<T> {
    /// Something happened to `object`; whether a pass over it begins now.
    fn touch(&mut self, object: &T) -> bool {
        let now = State::Passing { again: false };
        match self.states.get_mut(object) {
            Some(State::Passing { again }) => {
                *again = true;
                return false;
            }
            Some(state @ State::Waiting(_)) => {
                if let State::Waiting(key) = std::mem::replace(state, now) {
                    self.due.try_remove(&key);
                }
            }
            None => {
                self.states.insert(object.clone(), now);
            }
        }
        true
    }

    /// The next object of which a pass begins because its time has come; None
    /// if none waits.
    async fn due(&mut self) -> Option<T> {
        let object = self.due.next().await?.into_inner();
        let now = State::Passing { again: false };
        self.states.insert(object.clone(), now);
        Some(object)
    }

    /// A pass has ended, and another one is due `after` that; whether it begins
    /// now.
    fn ended(&mut self, object: &T, after: Option<Duration>) -> bool {
        let Some(state) = self.states.get_mut(object) else {
            return false;
        };
        if let State::Passing {
            again: again @ true,
        } = state
        {
            *again = false;
            return true;
        }
        match after {
            Some(after) => {
                let after = after.min(LONGEST_WAIT);
                *state = State::Waiting(self.due.insert(object.clone(), after));
            }
            None => self.forget(object),
        }
        false
    }

    /// There is no such object any more.
    fn forget(&mut self, object: &T) {
        self.states.remove(object);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn an_object_has_one_pass_at_a_time_and_one_more_for_all_that_happened_meanwhile() {
        let mut schedule = Schedule::default();
        assert!(schedule.touch(&"a"));
        assert!(!schedule.touch(&"a"));
        assert!(!schedule.touch(&"a"));
        assert!(schedule.touch(&"b"));
        assert!(schedule.ended(&"a", Some(SOON)));
        assert!(!schedule.ended(&"a", None));
        assert!(!schedule.ended(&"b", None));
        assert!(schedule.states.is_empty());
        assert!(schedule.touch(&"a"));
    }

    #[tokio::test]
    async fn a_pass_is_due_when_the_last_one_said_or_when_something_happens() {
        let mut schedule = Schedule::default();
        assert!(schedule.touch(&"a"));
        assert!(!schedule.ended(&"a", Some(SOON)));
        let began = Instant::now();
        assert_eq!(schedule.due().await, Some("a"));
        assert!(began.elapsed() >= SOON);
        assert!(!schedule.ended(&"a", Some(SOON)));
        assert!(schedule.touch(&"a"));
        assert_eq!(schedule.due().await, None);
    }

    #[tokio::test]
    async fn a_pause_of_years_is_cut_short() {
        let mut schedule = Schedule::default();
        assert!(schedule.touch(&"a"));
        assert!(!schedule.ended(&"a", Some(Duration::MAX)));
        assert!(timeout(SOON, schedule.due()).await.is_err());
        assert!(schedule.touch(&"a"));
    }

    fn object(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object
    }

    fn named(name: &str) -> ObjectRef<ConfigMap> {
        ObjectRef::new(name)
    }

    #[tokio::test]
    async fn nothing_passes_before_the_cache_is_filled_and_what_is_gone_never() {
        let (store, mut writer) = reflector::store();
        let (touch, mut touched) = mpsc::unbounded_channel();
        let (tell, mut told) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let touched = futures::stream::poll_fn(move |cx| touched.poll_recv(cx));
        let running = tokio::spawn(run(touched, store, shutdown.clone(), {
            move |object: Arc<ConfigMap>| {
                let tell = tell.clone();
                async move {
                    let _ = tell.send(object.metadata.name.clone().unwrap_or_default());
                    None
                }
            }
        }));
        for name in ["gone", "there", "there"] {
            touch.send(named(name)).unwrap();
        }
        tokio::time::sleep(SOON).await;
        assert!(told.try_recv().is_err());
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitApply(object("there")));
        writer.apply_watcher_event(&Event::InitDone);
        assert_eq!(told.recv().await.as_deref(), Some("there"));
        tokio::time::sleep(SOON).await;
        assert!(told.try_recv().is_err());
        touch.send(named("there")).unwrap();
        assert_eq!(told.recv().await.as_deref(), Some("there"));
        shutdown.cancel();
        timeout(LONG, running).await.expect("it ends").unwrap();
    }

    #[tokio::test]
    async fn a_shutdown_waits_for_the_passes_under_way_and_a_drop_breaks_them_off() {
        for is_dropped in [false, true] {
            let (store, mut writer) = reflector::store();
            writer.apply_watcher_event(&Event::Init);
            writer.apply_watcher_event(&Event::InitApply(object("a")));
            writer.apply_watcher_event(&Event::InitDone);
            let (tell, mut told) = mpsc::unbounded_channel();
            let shutdown = CancellationToken::new();
            let touched = futures::stream::iter([named("a")]);
            let touched = touched.chain(futures::stream::pending());
            let running = tokio::spawn(run(touched, store, shutdown.clone(), {
                move |_| {
                    let tell = tell.clone();
                    async move {
                        let _ = tell.send("begun");
                        tokio::time::sleep(SOON).await;
                        let _ = tell.send("ended");
                        Some(SOON)
                    }
                }
            }));
            assert_eq!(told.recv().await, Some("begun"));
            if is_dropped {
                running.abort();
                assert_eq!(told.recv().await, None);
            } else {
                shutdown.cancel();
                running.await.unwrap();
                assert_eq!(told.recv().await, Some("ended"));
                assert_eq!(told.recv().await, None);
            }
        }
    }
}
