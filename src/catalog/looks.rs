//! Threads in which local tables are looked at.
//!
//! They are none of tokio's, and that is all there is to them: the local store
//! of object_store reads then and there where no runtime of tokio is about, and
//! hands each read to another thread where one is. A file system that hangs
//! holds up these threads and nobody else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use futures::executor::block_on;
use tokio::sync::oneshot;
use tracing::Instrument;

/// How many looks there may be at a time: more than processors, since a file
/// system may be at the other end of a network.
const THREADS: usize = 16;

type Look = Box<dyn FnOnce() + Send>;

static LOOKS: LazyLock<Option<Sender<Look>>> = LazyLock::new(start);

/// Carries out `look` in one of the threads. None: it cannot be done there, and
/// is to be done as anything else is.
pub async fn look<T: Send + 'static>(look: impl Future<Output = T> + Send + 'static) -> Option<T> {
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
    LOOKS.as_ref()?.send(whole).ok()?;
    answered.await.ok()
}

fn start() -> Option<Sender<Look>> {
    let (send, looks) = channel();
    let looks = Arc::new(Mutex::new(looks));
    let started = (0..THREADS).filter(|at| {
        let looks = looks.clone();
        let thread = std::thread::Builder::new().name(format!("look-{at}"));
        thread.spawn(move || work(&looks)).is_ok()
    });
    (started.count() > 0).then_some(send)
}

fn work(looks: &Mutex<Receiver<Look>>) {
    loop {
        let next = looks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(look) => look(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_look_is_out_of_tokios_sight() {
        let seen = look(async { tokio::runtime::Handle::try_current().is_ok() });
        assert_eq!(seen.await, Some(false));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_needs_tokio_is_not_answered_and_holds_up_no_thread() {
        for _ in 0..2 * THREADS {
            let needy = async { tokio::time::sleep(std::time::Duration::ZERO).await };
            assert_eq!(look(needy).await, None);
        }
        assert_eq!(look(async { 7 }).await, Some(7));
    }
}
