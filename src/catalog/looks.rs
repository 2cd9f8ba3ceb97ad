//! Threads in which local tables are looked at.
//!
//! They are none of tokio's, and that is all there is to them: the local store
//! of object_store reads then and there where no runtime of tokio is about, and
//! hands each read to another thread where one is. A file system that hangs
//! holds up these threads and nobody else. What cannot be done so is done
//! [`beside`].

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

use futures::executor::block_on;
use futures::future::BoxFuture;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::engine::view::deep::STACK;
use crate::panics::{self, Panicked};

/// How many looks there may be at a time: more than processors, since a file
/// system may be at the other end of a network.
const THREADS: usize = 16;

type Look = Box<dyn FnOnce() + Send>;

static THERE_AND_THEN: LazyLock<Threads> = LazyLock::new(Threads::default);

static BESIDE: LazyLock<std::io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .thread_name("beside")
        .thread_stack_size(STACK)
        .enable_all()
        .build()
});

/// Carries out `look` in one of the threads. None: it cannot be done there, and
/// is to be done [`beside`].
pub async fn there_and_then<T: Send + 'static>(look: BoxFuture<'static, T>) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let look = look.in_current_span();
    let whole: Look = Box::new(move || {
        // Whoever asked may have gone.
        if !answer.is_closed()
            && let Ok(found) = catch_unwind(AssertUnwindSafe(|| block_on(look)))
        {
            let _ = answer.send(found);
        }
    });
    THERE_AND_THEN.carry_out(whole);
    answered.await.ok()
}

/// Carries out `look` by tokio, in threads that nobody else waits for: to read
/// the manifest of a great table keeps a processor busy for a while.
pub async fn beside<T: Send + 'static>(look: BoxFuture<'static, T>) -> Result<T, Panicked> {
    let look = look.in_current_span();
    match &*BESIDE {
        Ok(runtime) => match AbortOnDropHandle::new(runtime.spawn(look)).await {
            Ok(found) => Ok(found),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(Panicked::from(panic)),
                // Nobody aborts it but who no longer waits.
                Err(_) => std::future::pending().await,
            },
        },
        Err(error) => {
            tracing::warn!(%error, "no threads can be started to look at tables; all waits for it");
            panics::caught(look).await
        }
    }
}

/// Threads that are started when they are needed, and then used again: the one
/// that was at work last comes first, and what it had at hand is at hand still.
#[derive(Default)]
struct Threads(Mutex<State>);

#[derive(Default)]
struct State {
    looks: VecDeque<Look>,
    idle: Vec<Thread>,
    started: usize,
}

impl Threads {
    fn carry_out(&'static self, look: Look) {
        let mut state = self.state();
        state.looks.push_back(look);
        if let Some(idle) = state.idle.pop() {
            drop(state);
            idle.unpark();
        } else if state.started < THREADS {
            let named = thread::Builder::new()
                .name(format!("look-{}", state.started))
                .stack_size(STACK);
            if named.spawn(|| self.work()).is_ok() {
                state.started += 1;
            } else if state.started == 0 {
                // Whoever asked hears that it cannot be done here.
                state.looks.clear();
            }
        }
    }

    fn work(&self) {
        let me = thread::current();
        let mut state = self.state();
        loop {
            if let Some(look) = state.looks.pop_front() {
                drop(state);
                look();
                state = self.state();
            } else {
                state.idle.push(me.clone());
                drop(state);
                thread::park();
                state = self.state();
                // It may have come by itself.
                state.idle.retain(|idle| idle.id() != me.id());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Barrier;

    use futures::FutureExt;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_look_is_out_of_tokios_sight() {
        let seen = there_and_then(async { tokio::runtime::Handle::try_current().is_ok() }.boxed());
        assert_eq!(seen.await, Some(false));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_needs_tokio_is_not_answered_and_holds_up_no_thread() {
        for _ in 0..2 * THREADS {
            let needy = async { tokio::time::sleep(std::time::Duration::ZERO).await };
            assert_eq!(there_and_then(needy.boxed()).await, None);
        }
        assert_eq!(there_and_then(async { 7 }.boxed()).await, Some(7));
    }

    #[tokio::test]
    async fn as_many_looks_as_threads_are_carried_out_at_a_time_and_none_is_forgotten() {
        for _ in 0..20 {
            let all = Arc::new(Barrier::new(THREADS));
            let looks = (0..4 * THREADS).map(|at| {
                let all = all.clone();
                let look = async move {
                    all.wait();
                    at
                };
                there_and_then(look.boxed())
            });
            let found = futures::future::join_all(looks).await;
            let expected: Vec<_> = (0..4 * THREADS).map(Some).collect();
            assert_eq!(found, expected);
        }
    }

    #[tokio::test]
    async fn what_takes_long_beside_holds_up_nobody_here() {
        let (send, wait) = std::sync::mpsc::channel();
        let long = beside(async move { wait.recv().is_ok() }.boxed());
        let (waited, ()) = futures::join!(long, async {
            tokio::task::yield_now().await;
            let _ = send.send(());
        });
        assert_eq!(waited.ok(), Some(true));
    }
}
