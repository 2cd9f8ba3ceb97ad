//! What every pass over a refresh shares: clients, caches, budgets, and the
//! little that is kept in memory between passes. None of that memory is
//! needed to be right: it saves calls, and it dies with the process.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};

use super::admission::Pace;
use super::metrics::ControllerMetrics;
use super::orphans::Lasting;
use super::places::Places;
use super::refresh::LOOK_AGAIN;
use super::targets::Targets;
use crate::catalog::SharedCatalog;
use crate::launch::job::Home;
use crate::launch::progress::Budget;
use crate::lean::Lean;
use crate::resources::{MaterializedViewRefresh, RefreshCluster};

/// Logs that are read a second, at most, for progress and Events of stuck Jobs.
const READS_A_SECOND: f64 = 10.0;

/// Status writes a second, at most, that are no step in a refresh's life.
const UPDATES_A_SECOND: f64 = 20.0;

/// Longer than a watch takes to show what was written.
const WATCH_DELAY: Duration = Duration::from_secs(30);

/// After how long a Job of whose workers nothing is heard is looked for in the
/// view's history.
const SILENCE: Duration = Duration::from_secs(10);

/// How long it is remembered when a refresh was looked at or heard of: longer
/// than from one look to the next.
const NOTED: Duration = Duration::from_secs(60);

/// How long after a look its finding is none for the next one: longer than the
/// longest pause between them, and what a look takes.
const SPELL_BREAKS: Duration = Duration::from_secs(150);

/// At least so long after one another RefreshClusters are asked for, so that
/// many launches at a time share an answer.
const BETWEEN_ASKS: Duration = Duration::from_millis(20);

/// The first and the longest pause of a back-off.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What every pass shares.
pub struct Context {
    pub(super) client: Client,
    pub(super) refreshes: Api<Lean<MaterializedViewRefresh>>,
    pub(super) clusters: Api<RefreshCluster>,
    pub(super) secrets: Api<Secret>,
    pub(super) targets: Arc<Targets>,
    pub(super) known: Known,
    pub(super) catalog: SharedCatalog,
    pub(super) home: Home,
    reporter: Reporter,
    pub(super) metrics: ControllerMetrics,
    pub(super) reads: Budget,
    pub(super) updates: Budget,
    /// Who runs, waits and asks for a turn.
    pub(super) places: Arc<Places>,
    /// Held while turns are given.
    pub(super) admission: tokio::sync::Mutex<Pace>,
    /// RefreshClusters as they were last asked for, by name, and when.
    asked: tokio::sync::Mutex<Option<Instant>>,
    found: Mutex<HashMap<String, Found>>,
    /// The last resource that was written, until the cache has it.
    written: Mutex<Written>,
    /// Whose ended Jobs in other clusters need not be asked after.
    pub(super) lasting: Lasting,
    /// How often in a row a refresh had to be put off, by UID.
    put_off: Mutex<HashMap<String, u32>>,
    /// When a refresh's progress was last looked at, by UID.
    looked: Mutex<Times>,
    /// When a refresh's workers were last heard of, or asked after, by UID.
    heard: Mutex<Times>,
    /// Since when the histories of refreshes have been shut.
    shut: Mutex<Spells>,
}

/// When something was last noted of refreshes, by UID. A pass that is under way
/// may note it of one that was deleted meanwhile, which nobody comes back to.
#[derive(Default)]
struct Times {
    by_uid: HashMap<String, Instant>,
    /// When those were last dropped of which nothing is noted any more.
    swept: Option<Instant>,
}

impl Times {
    fn note(&mut self, uid: &str, now: Instant) {
        let since = self.swept.get_or_insert(now);
        if now.duration_since(*since) >= NOTED {
            *since = now;
            self.by_uid.retain(|_, at| now.duration_since(*at) < NOTED);
        }
        self.by_uid.insert(uid.to_string(), now);
    }
}

/// Since when something has been found the same of refreshes at each look, and
/// when last, by UID.
#[derive(Default)]
struct Spells {
    by_uid: HashMap<String, (Instant, Instant)>,
}

impl Spells {
    /// For how long it has been so, found so again now.
    fn go_on(&mut self, uid: &str, now: Instant) -> Duration {
        // What nobody looked at for so long may have been otherwise meanwhile.
        self.by_uid
            .retain(|_, (_, last)| now.duration_since(*last) < SPELL_BREAKS);
        let spell = self.by_uid.entry(uid.to_string()).or_insert((now, now));
        spell.1 = now;
        now.duration_since(spell.0)
    }
}

/// What the API server said of a RefreshCluster to a request that began then.
struct Found {
    began: Instant,
    cluster: Option<Arc<RefreshCluster>>,
}

/// Resources that were written, and when, by UID.
#[derive(Default)]
struct Written {
    by_uid: HashMap<String, (Instant, Arc<MaterializedViewRefresh>)>,
    /// When those were last dropped that never come to the cache.
    swept: Option<Instant>,
}

impl Written {
    fn keep(&mut self, uid: String, resource: Arc<MaterializedViewRefresh>) {
        let now = Instant::now();
        let since = self.swept.get_or_insert(now);
        if now.duration_since(*since) >= WATCH_DELAY {
            *since = now;
            // Ended ones, mostly.
            self.by_uid
                .retain(|_, (at, _)| now.duration_since(*at) < WATCH_DELAY);
        }
        self.by_uid.insert(uid, (now, resource));
    }
}

/// What the watches showed.
pub struct Known {
    /// All refreshes of the namespace that have not ended.
    pub refreshes: Store<MaterializedViewRefresh>,
    /// All RefreshClusters of the namespace.
    pub clusters: Store<RefreshCluster>,
}

impl Context {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        client: Client,
        namespace: &str,
        home: Home,
        catalog: SharedCatalog,
        known: Known,
        places: Arc<Places>,
        targets: Arc<Targets>,
        reporter: Reporter,
        metrics: ControllerMetrics,
    ) -> Self {
        Self {
            refreshes: Api::namespaced(client.clone(), namespace),
            clusters: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client.clone(), namespace),
            client,
            targets,
            known,
            catalog,
            home,
            reporter,
            metrics,
            reads: Budget::new(READS_A_SECOND),
            updates: Budget::new(UPDATES_A_SECOND),
            places,
            admission: tokio::sync::Mutex::default(),
            asked: tokio::sync::Mutex::default(),
            found: Mutex::default(),
            written: Mutex::default(),
            lasting: Lasting::default(),
            put_off: Mutex::default(),
            looked: Mutex::default(),
            heard: Mutex::default(),
            shut: Mutex::default(),
        }
    }

    /// What publishes an Event. A new one each time: it counts an Event that is
    /// told again, which steps are not, and goes through all that it remembers
    /// of the last minutes to tell another.
    pub(super) fn recorder(&self) -> Recorder {
        Recorder::new(self.client.clone(), self.reporter.clone())
    }

    /// The newer of what the cache has and what was written last: a pass that
    /// begins with a state of before its own last write would only be refused.
    pub(super) fn newest(
        &self,
        cached: Arc<MaterializedViewRefresh>,
    ) -> Arc<MaterializedViewRefresh> {
        let mut written = lock(&self.written);
        let Some(uid) = cached.uid() else {
            return cached;
        };
        match written.by_uid.get(&uid) {
            Some((_, ours)) if version(&**ours) > version(&*cached) => ours.clone(),
            Some(_) => {
                written.by_uid.remove(&uid);
                cached
            }
            None => cached,
        }
    }

    /// Keeps what was written until the cache has it.
    pub(super) fn wrote(&self, refresh: &MaterializedViewRefresh) {
        if let Some(uid) = refresh.uid() {
            let mut written = lock(&self.written);
            written.keep(uid, Arc::new(refresh.clone()));
        }
    }

    /// The cluster of that name as it was last seen, by a watch or because it
    /// was asked for. None: not seen, or it has gone.
    pub(super) fn cluster(&self, name: &str) -> Option<Arc<RefreshCluster>> {
        let namespace = self.refreshes.namespace().unwrap_or_default();
        let key = ObjectRef::new(name).within(namespace);
        let watched = self.known.clusters.get(&key)?;
        let found = lock(&self.found);
        let Some(found) = found.get(name) else {
            return Some(watched);
        };
        let cluster = found.cluster.clone()?;
        Some(match version(&*cluster) > version(&*watched) {
            true => cluster,
            false => watched,
        })
    }

    /// All clusters, each as it was last seen: also such as were asked for and
    /// that the watch, which is late, does not show yet.
    pub(super) fn all_clusters(&self) -> Vec<Arc<RefreshCluster>> {
        let watched = self.known.clusters.state().into_iter();
        let newest = watched.map(|watched| self.cluster(&watched.name_any()).unwrap_or(watched));
        let mut all: Vec<_> = newest.collect();
        let found = lock(&self.found);
        let found = found.values().filter_map(|found| found.cluster.clone());
        let watched: HashSet<String> = all.iter().map(|watched| watched.name_any()).collect();
        all.extend(found.filter(|found| !watched.contains(&found.name_any())));
        all
    }

    /// Has [`Context::cluster`] know what the API server says of a cluster, by
    /// a request that began after `since`. All that ask for it meanwhile are
    /// answered by one.
    pub(super) async fn ask_for_cluster(
        &self,
        name: &str,
        since: Instant,
    ) -> Result<(), kube::Error> {
        let is_known = || {
            let found = lock(&self.found);
            found.get(name).is_some_and(|found| found.began >= since)
        };
        if is_known() {
            return Ok(());
        }
        let mut asked = self.asked.lock().await;
        if is_known() {
            return Ok(());
        }
        if let Some(last) = *asked {
            tokio::time::sleep_until((last + BETWEEN_ASKS).into()).await;
        }
        let began = Instant::now();
        let cluster = self.clusters.get_opt(name).await?.map(Arc::new);
        lock(&self.found).insert(name.to_string(), Found { began, cluster });
        *asked = Some(began);
        Ok(())
    }

    /// Forgets what was said of a cluster that has gone.
    pub(super) fn forget_cluster(&self, name: &str) {
        lock(&self.found).remove(name);
    }

    /// How long to put a refresh off: twice as long each time in a row.
    pub(super) fn put_off(&self, uid: &str) -> Duration {
        let mut put_off = lock(&self.put_off);
        let times = put_off.entry(uid.to_string()).or_default();
        let pause = FIRST_PAUSE * 2u32.pow((*times).min(6));
        *times += 1;
        pause.min(LONGEST_PAUSE)
    }

    /// It went on: the next pause is short again.
    pub(super) fn went_on(&self, uid: &str) {
        lock(&self.put_off).remove(uid);
    }

    /// Whether it is time to look at a refresh's progress: `interval` after the last look.
    pub(super) fn time_to_look(&self, uid: &str, interval: Duration) -> bool {
        let mut looked = lock(&self.looked);
        let now = Instant::now();
        let last = looked.by_uid.get(uid);
        if last.is_some_and(|last| now.duration_since(*last) < interval) {
            return false;
        }
        // The first look is due an interval after the Job was first seen.
        let is_known = last.is_some();
        looked.note(uid, now);
        is_known
    }

    /// How long to wait between two looks at a running refresh: no look is to
    /// come too early to be allowed to read anything.
    pub(super) fn between_looks(&self) -> Duration {
        pace(lock(&self.heard).by_uid.len())
    }

    /// Notes that a refresh's workers were heard of.
    pub(super) fn heard(&self, uid: &str) {
        lock(&self.heard).note(uid, Instant::now());
    }

    /// Whether nothing was heard of a refresh's workers for [`SILENCE`]; asks
    /// for no more than one look at the history in that time.
    pub(super) fn is_silent(&self, uid: &str) -> bool {
        let mut heard = lock(&self.heard);
        let now = Instant::now();
        let last = heard.by_uid.get(uid);
        let silent = last.is_some_and(|last| now.duration_since(*last) >= SILENCE);
        if silent || last.is_none() {
            heard.note(uid, now);
        }
        silent
    }

    /// Notes that relance itself found no way into a refresh's history, which its
    /// caller is kept from; for how long that has been so.
    pub(super) fn is_shut(&self, uid: &str) -> Duration {
        lock(&self.shut).go_on(uid, Instant::now())
    }

    /// Notes that this is not so, or cannot be said.
    pub(super) fn is_not_shut(&self, uid: &str) {
        lock(&self.shut).by_uid.remove(uid);
    }

    /// Forgets when the workers of a refresh that has none any more were heard of.
    pub(super) fn at_rest(&self, uid: &str) {
        lock(&self.looked).by_uid.remove(uid);
        lock(&self.heard).by_uid.remove(uid);
    }

    /// Forgets a refresh that nothing more is to be done about for now.
    pub(super) fn forget(&self, uid: &str) {
        lock(&self.put_off).remove(uid);
        self.is_not_shut(uid);
        self.at_rest(uid);
        self.places.forget(uid);
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context")
    }
}

/// The pause between looks where so many run: as long as it takes to read of
/// each of them once, and no longer than silence may last.
fn pace(running: usize) -> Duration {
    let round = running as f64 / READS_A_SECOND;
    Duration::from_secs_f64(round).clamp(LOOK_AGAIN, SILENCE)
}

/// A resource's version as a number, which the API server's are.
fn version(resource: &impl ResourceExt) -> u64 {
    let version = resource.meta().resource_version.as_deref();
    version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_of_which_nothing_is_noted_any_more_is_forgotten() {
        let mut times = Times::default();
        let began = Instant::now();
        times.note("deleted", began);
        for look in 1..=40 {
            times.note("runs", began + SILENCE * look);
        }
        let known: Vec<_> = times.by_uid.into_keys().collect();
        assert_eq!(known, ["runs"]);
    }

    #[test]
    fn a_spell_lasts_for_as_long_as_each_look_finds_the_same() {
        let mut spells = Spells::default();
        let began = Instant::now();
        let minutes = |n: u64| Duration::from_secs(60 * n);
        for minute in 0..5 {
            let lasts = spells.go_on("a", began + minutes(minute));
            assert_eq!(lasts, minutes(minute));
        }
        assert_eq!(spells.go_on("b", began + minutes(5)), Duration::ZERO);
        assert_eq!(spells.go_on("a", began + minutes(9)), Duration::ZERO);
        assert_eq!(spells.go_on("b", began + minutes(11)), Duration::ZERO);
        assert_eq!(spells.by_uid.len(), 2);
    }

    #[test]
    fn the_more_run_the_longer_is_waited_between_looks_at_each() {
        assert_eq!(pace(0), LOOK_AGAIN);
        assert_eq!(pace(20), LOOK_AGAIN);
        assert_eq!(pace(50), Duration::from_secs(5));
        assert_eq!(pace(1_000_000), SILENCE);
    }
}
