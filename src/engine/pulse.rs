//! What the workers of a refresh are at: told by those who take long, so that the
//! others do not begin the same.
//!
//! A worker that has been at some task for [`LATE`], or has begun one of another's
//! share, writes an object that names all that it is at, and again every [`EVERY`].
//! When nothing has become done for a while the others look for these, and take a
//! task that was told of for one that is under way until nothing has been told for
//! [`ALIVE`]: then its worker is dead. When it was told is seen by the reader's own
//! clock, from when it sees the object change.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::error::Result;
use super::fingerprint::Fingerprint;
use super::paths;
use super::request::Request;
use super::store::{HEADS, Objects};

/// How long a task of its own takes at least of which a worker tells. Less than
/// [`super::share::PATIENCE`], after which they would begin it.
pub const LATE: Duration = Duration::from_secs(1);

/// How often a worker tells.
pub const EVERY: Duration = Duration::from_secs(2);

/// How long what was told counts.
pub const ALIVE: Duration = Duration::from_secs(10);

/// What a worker is at.
#[derive(Serialize, Deserialize)]
struct Pulse {
    /// What identifies its tasks.
    tasks: Vec<Fingerprint>,
}

/// What the others have told.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What they are at, as far as that was told since it was heard before.
    pub tasks: Vec<Fingerprint>,
    /// When that was heard.
    pub when: Instant,
    /// When each of them told last, by the store's clock.
    at: HashMap<String, SystemTime>,
}

impl Default for Heard {
    /// Nothing yet.
    fn default() -> Heard {
        Heard {
            tasks: Vec::new(),
            when: Instant::now(),
            at: HashMap::new(),
        }
    }
}

/// Tells the other workers of `request` that this one is at `tasks`. Errors:
/// `Unavailable`.
pub async fn tell(objects: &Objects, request: &Request, tasks: Vec<Fingerprint>) -> Result<()> {
    let path = paths::pulse(objects.root(), &request.refresh, request.index);
    objects.put(&path, &Pulse { tasks }).await
}

/// Takes back what this worker of `request` has told: it is at nothing any more.
/// Errors: `Unavailable`.
pub async fn fall_silent(objects: &Objects, request: &Request) -> Result<()> {
    let path = paths::pulse(objects.root(), &request.refresh, request.index);
    objects.delete(vec![path]).await
}

/// What the other workers of `request` have told since `before`. Errors:
/// `Unavailable`.
pub async fn hear(objects: &Objects, request: &Request, before: Heard) -> Result<Heard> {
    let refresh = &request.refresh;
    let own = paths::pulse(objects.root(), refresh, request.index);
    let mut listed = objects
        .list(&paths::pulses(objects.root(), refresh))
        .await?;
    listed.retain(|listed| listed.path != own);
    let when = Instant::now();
    let new = listed
        .iter()
        .filter(|listed| before.at.get(&listed.name) != Some(&listed.modified))
        .map(|listed| listed.path.clone());
    let told: Vec<Option<Pulse>> = futures::stream::iter(new.collect::<Vec<_>>())
        .map(|path| async move { objects.get::<Pulse>(&path).await })
        .buffer_unordered(HEADS)
        .try_collect()
        .await?;
    let tasks = told.into_iter().flatten().flat_map(|pulse| pulse.tasks);
    let at = listed.into_iter().map(|l| (l.name, l.modified)).collect();
    Ok(Heard {
        tasks: tasks.collect(),
        when,
        at,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::store::Store;

    #[tokio::test]
    async fn what_others_tell_is_heard_once_each_time_that_they_tell_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(&BTreeMap::new());
        let uri = format!("file-object-store://{}", folder.path().display());
        let objects = store.objects(&uri).await.unwrap();
        let worker = |index| Request {
            refresh: "r".to_string(),
            index,
            ..Request::default()
        };
        let task = |name| vec![Fingerprint::of_text(name)];
        let hear = async |before| hear(&objects, &worker(0), before).await.unwrap();
        assert_eq!(hear(Heard::default()).await.tasks, []);
        tell(&objects, &worker(0), task("mine")).await.unwrap();
        tell(&objects, &worker(1), task("theirs")).await.unwrap();
        let heard = hear(Heard::default()).await;
        assert_eq!(heard.tasks, task("theirs"));
        let heard = hear(heard).await;
        assert_eq!(heard.tasks, []);
        // By some stores' clocks it is the same time still.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        tell(&objects, &worker(1), task("another")).await.unwrap();
        let heard = hear(heard).await;
        assert_eq!(heard.tasks, task("another"));
        fall_silent(&objects, &worker(1)).await.unwrap();
        assert_eq!(hear(Heard::default()).await.tasks, []);
    }
}
