//! Who runs and who waits, as far as this operator knows, and who asks for a
//! turn. [`super::admission`] gives turns.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use super::queue::{self, Gate, Hand, Place};
use super::refresh::Turn;
use crate::resources::MaterializedViewRefresh;

/// What is waited after a change before the next are woken: others follow it,
/// mostly.
const SETTLE: Duration = Duration::from_millis(20);
/// The pause after they were sought, as a multiple of the time that it took.
const PAUSE: u32 = 19;

/// For how long one that cannot look at what it would ask for keeps its place before
/// others of its view who can: longer than the Secrets of a new one take to come.
const KEEPS_PLACE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub struct Places {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// What the watch showed, by UID.
    noted: HashMap<String, Noted>,
    /// The UIDs that a list has shown which the watch has begun again with.
    listed: Option<HashSet<String>>,
    /// Those that ask now, by UID.
    asking: HashMap<String, Asking>,
    /// Turns that were given and are not yet in a status, by UID.
    reserved: HashMap<String, Place>,
    /// UIDs of those that wait until they are woken.
    asleep: HashSet<String>,
    /// UIDs of those that could not use their turn, or not look yet at what they
    /// would ask for: they ask again some time, and until then nobody waits for
    /// them but their view's others.
    stalled: HashSet<String>,
    /// UIDs of those that cannot even ask for now: nobody waits for them until
    /// they do.
    aside: HashSet<String>,
    /// Since when those that stall have, at each look, by UID.
    failing: HashMap<String, Instant>,
    /// UIDs of those that stall, and when another of their view, which waits for
    /// them, could look at it: they are to look once more.
    awaited: HashMap<String, Instant>,
    /// UIDs of those who have not been told that.
    untold: Vec<String>,
    /// Who stalls, by the UIDs of those who were told to wait for it.
    held_up: HashMap<String, String>,
}

impl State {
    /// Forgets what was remembered of how one waits.
    fn wakes(&mut self, uid: &str) {
        self.asleep.remove(uid);
        self.stalled.remove(uid);
        self.aside.remove(uid);
        self.held_up.remove(uid);
    }

    /// Forgets that it stalls, or ever did.
    fn sees(&mut self, uid: &str) {
        self.failing.remove(uid);
        self.awaited.remove(uid);
    }
}

struct Noted {
    refresh: ObjectRef<MaterializedViewRefresh>,
    /// The view's path.
    view: Vec<String>,
    /// Its URI is empty until it is known.
    place: Place,
}

struct Asking {
    view: Vec<String>,
    place: Place,
    answer: Option<Turn>,
}

/// One refresh asks for its turn, and if it got it, has it, until this is
/// dropped: by then the turn is in a status, or was not used.
pub struct Asked<'a> {
    places: &'a Places,
    uid: String,
}

impl Asked<'_> {
    /// What was given, once something was.
    pub fn answer(&self) -> Option<Turn> {
        self.places.state().asking.get(&self.uid)?.answer.clone()
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.places.state();
        state.asking.remove(&self.uid);
        state.reserved.remove(&self.uid);
        let stalls = state.stalled.contains(&self.uid) || state.aside.contains(&self.uid);
        drop(state);
        if stalls {
            self.places.changed();
        }
    }
}

impl Places {
    /// Notes a refresh that the cache has just taken up, or lost.
    pub fn note(&self, refresh: &MaterializedViewRefresh, gone: bool) {
        let uid = refresh.uid().unwrap_or_default();
        let place = Place::noted(refresh).filter(|_| !gone);
        let mut state = self.state();
        if let Some(listed) = &mut state.listed {
            listed.insert(uid.clone());
        }
        let waits = place.as_ref().is_some_and(|place| !place.running);
        if !waits {
            state.sees(&uid);
        }
        let before = match place.clone() {
            Some(place) => {
                let noted = Noted {
                    refresh: ObjectRef::from_obj(refresh),
                    view: refresh.spec.view.clone(),
                    place,
                };
                state.noted.insert(uid, noted)
            }
            None => {
                state.wakes(&uid);
                state.noted.remove(&uid)
            }
        };
        drop(state);
        // One that has just come stands in nobody's way.
        if before.is_some_and(|before| Some(before.place) != place) {
            self.changed.notify_one();
        }
    }

    /// The watch begins again, with a list.
    pub fn list_begins(&self) {
        self.state().listed = Some(HashSet::new());
    }

    /// The list is over: what it has not shown ended or went while nobody
    /// watched.
    pub fn list_ends(&self) {
        let mut state = self.state();
        if let Some(listed) = state.listed.take() {
            state.noted.retain(|uid, _| listed.contains(uid));
            state.asleep.retain(|uid| listed.contains(uid));
            state.stalled.retain(|uid| listed.contains(uid));
            state.aside.retain(|uid| listed.contains(uid));
            state.failing.retain(|uid, _| listed.contains(uid));
            state.awaited.retain(|uid, _| listed.contains(uid));
            state.held_up.retain(|uid, _| listed.contains(uid));
        }
        drop(state);
        self.changed();
    }

    /// Somebody's turn may have come.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// Tells `wake` of those that were told to wait and whose turn it would be
    /// now, whenever that may have changed.
    pub async fn wake(
        &self,
        gates: impl Fn() -> BTreeMap<String, Gate>,
        wake: impl Fn(ObjectRef<MaterializedViewRefresh>),
    ) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            let began = Instant::now();
            self.next(&gates()).into_iter().for_each(&wake);
            // With thousands it takes its time, and every change asks for it.
            tokio::time::sleep(PAUSE * began.elapsed()).await;
        }
    }

    fn next(&self, gates: &BTreeMap<String, Gate>) -> Vec<ObjectRef<MaterializedViewRefresh>> {
        let mut state = self.state();
        let known = state.noted.values().map(|noted| &noted.place);
        let known = known.filter(|place| !place.uri.is_empty());
        // One that has begun since is in its view's way again.
        let known = known.filter(|place| place.running || !state.aside.contains(&place.uid));
        let known = known.chain(state.reserved.values());
        let hands = queue::hands(known, gates, &state.stalled);
        let turns = hands.into_iter().filter(|(_, hand)| *hand == Hand::Turn);
        let turns = turns.map(|(place, _)| place.uid.clone());
        let mut next: Vec<String> = turns.filter(|uid| state.asleep.contains(uid)).collect();
        next.append(&mut state.untold);
        let woken = next.into_iter().filter_map(|uid| {
            state.asleep.remove(&uid);
            Some(state.noted.get(&uid)?.refresh.clone())
        });
        woken.collect()
    }

    /// `place`, of a view of that path, asks for its turn.
    pub fn ask(&self, place: Place, view: Vec<String>) -> Asked<'_> {
        let uid = place.uid.clone();
        let mut state = self.state();
        state.wakes(&uid);
        // Before the answer, or what happens in between would wake nobody.
        state.asleep.insert(uid.clone());
        let asking = Asking {
            view,
            place,
            answer: None,
        };
        state.asking.insert(uid.clone(), asking);
        Asked { places: self, uid }
    }

    /// Turns that were given and are not yet in a status.
    pub fn reserved(&self) -> Vec<Place> {
        self.state().reserved.values().cloned().collect()
    }

    /// The URIs of the views of those that ask and have no answer yet, by their
    /// UIDs.
    pub fn asking(&self) -> HashMap<String, String> {
        let state = self.state();
        let asking = state.asking.iter().filter(|(_, a)| a.answer.is_none());
        asking
            .map(|(uid, asking)| (uid.clone(), asking.place.uri.clone()))
            .collect()
    }

    /// Answers all that ask.
    #[cfg(test)]
    fn deal(&self, running: &[Place], gates: &BTreeMap<String, Gate>) {
        self.deal_to(&self.asking(), running, gates);
    }

    /// Answers those whose UIDs are in `whom`, as [`Places::asking`] gave them,
    /// where `running` are those that run. What stands before one that has come
    /// to ask since was not looked for. One that was answered asks no more, but
    /// its turn stands for as long as its pass is under way; and one that runs,
    /// whatever a late cache makes it ask for, gets no second turn.
    pub fn deal_to(
        &self,
        whom: &HashMap<String, String>,
        running: &[Place],
        gates: &BTreeMap<String, Gate>,
    ) {
        let mut state = self.state();
        let State {
            noted,
            asking,
            reserved,
            asleep,
            stalled,
            aside,
            held_up,
            ..
        } = &mut *state;
        let asks = |place: &Place| {
            let asking = asking.get(&place.uid);
            asking.is_some_and(|asking| asking.answer.is_none())
        };
        let waiting = waiting(noted, asking);
        let waiting = waiting
            .iter()
            .filter(|place| !asks(place) && !aside.contains(&place.uid));
        let all = running.iter().chain(reserved.values()).chain(waiting);
        let all = all.chain(asking.values().map(|asking| &asking.place));
        let hands = queue::hands(all, gates, stalled).into_iter();
        let answers = hands.filter(|(place, _)| asks(place) && whom.contains_key(&place.uid));
        let answers: Vec<(String, Turn, Option<String>)> = answers
            .map(|(place, hand)| {
                let before = match hand {
                    Hand::View { before, .. } => Some(&before.uid),
                    _ => None,
                };
                let stalls = before.filter(|uid| stalled.contains(*uid));
                (place.uid.clone(), hand.turn(place), stalls.cloned())
            })
            .collect();
        for (uid, answer, stalls) in answers {
            let Some(asking) = asking.get_mut(&uid).filter(|a| a.answer.is_none()) else {
                continue;
            };
            if let Some(stalls) = stalls {
                held_up.insert(uid.clone(), stalls);
            }
            if answer == Turn::Now {
                asleep.remove(&uid);
                let place = Place {
                    running: true,
                    ..asking.place.clone()
                };
                reserved.insert(uid, place);
            }
            asking.answer = Some(answer);
        }
    }

    /// A refresh that has its turn cannot use it for now, or could not if it had
    /// it, by a look that began then: it gives it back, and will ask again. It
    /// keeps its place, unless others of its view could look before that.
    pub fn stalls(&self, uid: &str, began: Instant) {
        let mut state = self.state();
        let has_turn = state.reserved.contains_key(uid);
        state.failing.entry(uid.to_string()).or_insert(began);
        let is_alone = state.awaited.get(uid).is_some_and(|since| began >= *since);
        let is_new = match is_alone {
            true => state.aside.insert(uid.to_string()),
            false => state.stalled.insert(uid.to_string()),
        };
        // Where it has its turn, others are woken once it has given it back.
        if is_new && !has_turn {
            drop(state);
            self.changed();
        }
    }

    /// Who stalls and is waited for by `uid`, which was told to wait for its turn.
    pub fn held_up_by(&self, uid: &str) -> Option<String> {
        self.state().held_up.get(uid).cloned()
    }

    /// Another one that waits for `uid`, which stalls, can look at their view: what
    /// keeps `uid` from that is perhaps its own. It is to look once more, and if it
    /// cannot yet, nobody waits for it until it can.
    pub fn is_awaited(&self, uid: &str) {
        let mut state = self.state();
        let since = state.failing.get(uid);
        let is_long = since.is_some_and(|since| since.elapsed() >= KEEPS_PLACE);
        if !is_long || !state.stalled.contains(uid) || state.awaited.contains_key(uid) {
            return;
        }
        state.awaited.insert(uid.to_string(), Instant::now());
        state.untold.push(uid.to_string());
        drop(state);
        self.changed();
    }

    /// A refresh that waits could look at what it asks for.
    pub fn can_look(&self, uid: &str) {
        self.state().sees(uid);
    }

    /// A refresh that waits cannot even ask for its turn for now, and perhaps
    /// never will: nobody else waits for it until it does.
    pub fn steps_aside(&self, uid: &str) {
        if self.state().aside.insert(uid.to_string()) {
            self.changed();
        }
    }

    /// Forgets a refresh that has ended or is gone.
    pub fn forget(&self, uid: &str) {
        let mut state = self.state();
        state.reserved.remove(uid);
        state.wakes(uid);
        state.sees(uid);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that wait. One that was not looked at yet is taken to be of the same
/// URI as another of the same path, so that a refresh which has just come does
/// not lose its turn to one of a lower priority that was looked at before it.
fn waiting(noted: &HashMap<String, Noted>, asking: &HashMap<String, Asking>) -> Vec<Place> {
    let waiting = || noted.values().filter(|noted| !noted.place.running);
    let mut uris: HashMap<&[String], &str> = HashMap::new();
    if waiting().any(|noted| noted.place.uri.is_empty()) {
        let known = noted.values().map(|noted| (&noted.view, &noted.place));
        let asking = asking.values().map(|asking| (&asking.view, &asking.place));
        let known = known
            .chain(asking)
            .filter(|(_, place)| !place.uri.is_empty());
        uris.extend(known.map(|(view, place)| (view.as_slice(), place.uri.as_str())));
    }
    let waiting = waiting().filter_map(|noted| {
        let mut place = noted.place.clone();
        if place.uri.is_empty() {
            place.uri = uris.get(noted.view.as_slice())?.to_string();
        }
        Some(place)
    });
    waiting.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refresh(name: &str, view: &str, status: serde_json::Value) -> MaterializedViewRefresh {
        serde_json::from_value(json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "MaterializedViewRefresh",
            "metadata": {
                "name": name, "namespace": "n", "uid": format!("uid-{name}"),
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"view": [view]},
            "status": status,
        }))
        .unwrap()
    }

    fn queued(name: &str, view: &str) -> MaterializedViewRefresh {
        let uri = format!("mem://{view}");
        refresh(name, view, json!({"phase": "Queued", "viewUri": uri}))
    }

    fn running(name: &str, view: &str) -> MaterializedViewRefresh {
        let uri = format!("mem://{view}");
        refresh(name, view, json!({"phase": "Running", "viewUri": uri}))
    }

    fn ask<'a>(places: &'a Places, refresh: &MaterializedViewRefresh) -> Asked<'a> {
        places.ask(Place::of(refresh).unwrap(), refresh.spec.view.clone())
    }

    fn limit(limit: i32) -> BTreeMap<String, Gate> {
        BTreeMap::from([("default".to_string(), Gate::Limit(limit))])
    }

    fn behind(asked: &Asked) -> String {
        match asked.answer() {
            Some(Turn::Behind(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_that_ask_are_answered_at_once_and_no_more_than_may_get_their_turn() {
        let places = Places::default();
        let all: Vec<_> = ["a", "b", "c"].map(|name| queued(name, name)).into();
        let asked: Vec<_> = all.iter().map(|refresh| ask(&places, refresh)).collect();
        assert_eq!(asked[0].answer(), None);
        places.deal(&[], &limit(2));
        assert_eq!(asked[0].answer(), Some(Turn::Now));
        assert_eq!(asked[1].answer(), Some(Turn::Now));
        assert!(behind(&asked[2]).contains("at its limit of 2"));
        drop(asked);
        let again = ask(&places, &all[2]);
        places.deal(&[], &limit(2));
        assert_eq!(again.answer(), Some(Turn::Now), "the others were not used");
    }

    #[test]
    fn a_turn_that_was_given_stands_before_others_until_it_is_dropped() {
        let places = Places::default();
        let (first, second) = (queued("a", "v"), queued("b", "v"));
        let given = ask(&places, &first);
        places.deal(&[], &limit(9));
        assert_eq!(given.answer(), Some(Turn::Now));
        let waits = ask(&places, &second);
        places.deal(&[], &limit(9));
        assert!(behind(&waits).ends_with("behind mvr/a"));
        assert_eq!(given.answer(), Some(Turn::Now), "it is not taken back");
        drop(waits);
        drop(given);
        let next = ask(&places, &second);
        places.deal(&[], &limit(9));
        assert_eq!(next.answer(), Some(Turn::Now));
    }

    #[test]
    fn a_turn_that_was_given_is_not_forgotten_for_one_that_goes_before_it() {
        let mut urgent = queued("b", "v");
        urgent.spec.priority = 5;
        let mut older = queued("0", "v");
        older.metadata.creation_timestamp.as_mut().unwrap().0 -= Duration::from_secs(60);
        // Whether or not the list shows its status already.
        for listed in [vec![], vec![Place::of(&running("a", "v")).unwrap()]] {
            let places = Places::default();
            let first = queued("a", "v");
            for refresh in [&first, &urgent, &older] {
                places.note(refresh, false);
                // It could not ask when the first one did.
                places.steps_aside(&refresh.uid().unwrap());
            }
            let given = ask(&places, &first);
            places.deal(&[], &limit(9));
            assert_eq!(given.answer(), Some(Turn::Now));
            for other in [&urgent, &older] {
                let asked = ask(&places, other);
                places.deal(&listed, &limit(9));
                assert!(behind(&asked).ends_with("behind mvr/a"));
            }
            assert_eq!(given.answer(), Some(Turn::Now));
        }
    }

    #[test]
    fn a_turn_that_was_given_keeps_its_place_of_its_cluster_too() {
        let places = Places::default();
        let given = ask(&places, &queued("a", "v"));
        places.deal(&[], &limit(1));
        assert_eq!(given.answer(), Some(Turn::Now));
        let mut urgent = queued("b", "w");
        urgent.spec.priority = 5;
        let asked = ask(&places, &urgent);
        places.deal(&[Place::of(&running("a", "v")).unwrap()], &limit(1));
        assert!(behind(&asked).contains("at its limit of 1"));
        drop(asked);
        let asked = ask(&places, &urgent);
        places.deal(&[], &limit(1));
        assert!(behind(&asked).contains("at its limit of 1"));
    }

    #[test]
    fn one_that_runs_gets_no_second_turn_and_keeps_its_view_though_a_late_cache_asks_for_it() {
        let places = Places::default();
        let mut urgent = queued("b", "v");
        urgent.spec.priority = 5;
        let [late, other] = [&queued("a", "v"), &urgent].map(|refresh| ask(&places, refresh));
        places.deal(&[Place::of(&running("a", "v")).unwrap()], &limit(9));
        assert_eq!(late.answer(), None);
        assert!(behind(&other).ends_with("behind mvr/a"));
    }

    #[test]
    fn what_runs_by_the_list_counts_and_what_the_cache_says_of_it_does_not() {
        let places = Places::default();
        places.note(&running("old", "v"), false);
        let me = queued("a", "v");
        let asked = ask(&places, &me);
        places.deal(&[], &limit(1));
        assert_eq!(asked.answer(), Some(Turn::Now), "the cache is late");
        drop(asked);
        let asked = ask(&places, &me);
        places.deal(&[Place::of(&running("new", "v")).unwrap()], &limit(9));
        assert!(behind(&asked).ends_with("behind mvr/new"));
    }

    #[test]
    fn one_that_came_to_ask_after_it_was_looked_what_runs_is_answered_the_next_time() {
        let places = Places::default();
        let first = ask(&places, &queued("a", "v"));
        let asking = places.asking();
        let late = ask(&places, &queued("b", "w"));
        places.deal_to(&asking, &[], &limit(9));
        assert_eq!(first.answer(), Some(Turn::Now));
        assert_eq!(late.answer(), None);
        // A worker of a refresh that is gone was found at work on its view.
        let mut gone = Place::of(&running("gone", "w")).unwrap();
        gone.name += " (deleted)";
        places.deal(&[gone], &limit(9));
        assert!(behind(&late).ends_with("behind mvr/gone (deleted)"));
    }

    #[test]
    fn one_that_was_not_looked_at_yet_keeps_its_place_in_its_views_queue() {
        let places = Places::default();
        let mut urgent = refresh("z", "v", json!(null));
        urgent.spec.priority = 5;
        places.note(&urgent, false);
        let asked = ask(&places, &queued("a", "v"));
        let other = ask(&places, &queued("b", "w"));
        places.deal(&[], &limit(9));
        assert!(behind(&asked).ends_with("behind mvr/z"));
        assert_eq!(other.answer(), Some(Turn::Now));
    }

    #[test]
    fn those_are_woken_who_were_told_to_wait_and_whose_turn_has_come() {
        let places = Places::default();
        let (first, second, third) = (running("a", "v"), queued("b", "v"), queued("c", "v"));
        for refresh in [&first, &second, &third] {
            places.note(refresh, false);
        }
        let listed = [Place::of(&first).unwrap()];
        for refresh in [&second, &third] {
            let asked = ask(&places, refresh);
            places.deal(&listed, &limit(9));
            behind(&asked);
        }
        assert!(places.next(&limit(9)).is_empty());
        places.note(&first, true);
        let woken = places.next(&limit(9));
        assert_eq!(woken, [ObjectRef::from_obj(&second)]);
        assert!(places.next(&limit(9)).is_empty(), "once is enough");
    }

    #[test]
    fn one_that_cannot_use_its_turn_holds_up_its_view_and_no_other() {
        let places = Places::default();
        let (stuck, same, other) = (queued("a", "v"), queued("b", "v"), queued("c", "w"));
        for refresh in [&stuck, &same, &other] {
            places.note(refresh, false);
        }
        let asked = ask(&places, &stuck);
        let waits = ask(&places, &other);
        places.deal(&[], &limit(1));
        assert_eq!(asked.answer(), Some(Turn::Now));
        assert!(behind(&waits).contains("at its limit of 1"));
        drop(waits);
        // Its view's store is away.
        places.stalls("uid-a", Instant::now());
        assert!(places.next(&limit(1)).is_empty(), "it still has its turn");
        drop(asked);
        assert_eq!(places.next(&limit(1)), [ObjectRef::from_obj(&other)]);
        let [asked, waits] = [&other, &same].map(|refresh| ask(&places, refresh));
        places.deal(&[], &limit(1));
        assert_eq!(asked.answer(), Some(Turn::Now));
        assert!(behind(&waits).ends_with("behind mvr/a"));
        drop((asked, waits));
        // When it asks again it comes in its order.
        let [asked, waits] = [&stuck, &other].map(|refresh| ask(&places, refresh));
        places.deal(&[], &limit(1));
        assert_eq!(asked.answer(), Some(Turn::Now));
        assert!(behind(&waits).contains("at its limit of 1"));
    }

    #[test]
    fn one_that_cannot_even_ask_lets_the_next_one_of_its_view_go_until_it_can() {
        let places = Places::default();
        let (stuck, next) = (queued("a", "v"), queued("b", "v"));
        for refresh in [&stuck, &next] {
            places.note(refresh, false);
        }
        let asked = ask(&places, &next);
        places.deal(&[], &limit(1));
        assert!(behind(&asked).ends_with("behind mvr/a"));
        drop(asked);
        // What it did before it was held cannot be read.
        places.steps_aside("uid-a");
        assert_eq!(places.next(&limit(1)), [ObjectRef::from_obj(&next)]);
        let asked = ask(&places, &next);
        places.deal(&[], &limit(1));
        assert_eq!(asked.answer(), Some(Turn::Now));
        drop(asked);
        // When it asks again it comes in its order.
        let [stuck, next] = [&stuck, &next].map(|refresh| ask(&places, refresh));
        places.deal(&[], &limit(1));
        assert_eq!(stuck.answer(), Some(Turn::Now));
        assert!(behind(&next).ends_with("behind mvr/a"));
    }

    #[test]
    fn one_that_cannot_look_yet_at_what_it_would_ask_for_keeps_its_place_before_its_views_others() {
        let places = Places::default();
        let (stuck, same, other) = (
            refresh("a", "v", json!(null)),
            queued("b", "v"),
            queued("c", "w"),
        );
        for refresh in [&stuck, &same, &other] {
            places.note(refresh, false);
        }
        // The catalog was away, or its Secret is yet to come.
        places.stalls("uid-a", Instant::now());
        let [waits, goes] = [&same, &other].map(|refresh| ask(&places, refresh));
        places.deal(&[], &limit(1));
        assert!(behind(&waits).ends_with("behind mvr/a"));
        assert_eq!(goes.answer(), Some(Turn::Now), "of another view");
    }

    /// `a` stalls and `b`, of the same view, waits for it.
    fn held_up(accepted: bool) -> (Places, [MaterializedViewRefresh; 2]) {
        let first = match accepted {
            true => queued("a", "v"),
            false => refresh("a", "v", json!(null)),
        };
        let both = [first, queued("b", "v")];
        let places = Places::default();
        for refresh in &both {
            places.note(refresh, false);
        }
        places.stalls("uid-a", Instant::now());
        let asked = ask(&places, &both[1]);
        places.deal(&[], &limit(9));
        assert!(behind(&asked).ends_with("behind mvr/a"));
        drop(asked);
        (places, both)
    }

    fn long_ago(places: &Places, uid: &str) {
        let mut state = places.state();
        let since = state.failing.get_mut(uid).unwrap();
        *since = since.checked_sub(KEEPS_PLACE).unwrap();
    }

    #[test]
    fn one_that_stalls_lets_the_next_one_go_that_can_look_once_it_has_looked_again() {
        for accepted in [false, true] {
            let (places, [first, next]) = held_up(accepted);
            let waits_for = places.held_up_by("uid-b").unwrap();
            assert_eq!(waits_for, "uid-a");
            let is_told = || {
                let woken = places.next(&limit(9));
                woken.contains(&ObjectRef::from_obj(&first))
            };
            let waits = || {
                let asked = ask(&places, &next);
                places.deal(&[], &limit(9));
                asked.answer() != Some(Turn::Now)
            };
            let before = Instant::now();
            places.is_awaited("uid-a");
            assert!(!is_told(), "it keeps its place yet");
            long_ago(&places, "uid-a");
            places.is_awaited("uid-a");
            assert!(is_told());
            assert!(!is_told(), "once is enough");
            // By a look that was under way when the other could look.
            places.stalls("uid-a", before);
            assert!(waits());
            let turn = accepted.then(|| {
                let turn = ask(&places, &first);
                places.deal(&[], &limit(9));
                assert_eq!(turn.answer(), Some(Turn::Now));
                turn
            });
            places.stalls("uid-a", Instant::now());
            drop(turn);
            assert_eq!(places.next(&limit(9)), [ObjectRef::from_obj(&next)]);
            assert!(!waits());
            assert_eq!(places.held_up_by("uid-b"), None);
        }
    }

    #[test]
    fn one_that_can_look_again_has_its_place_before_the_next_one() {
        let (places, [first, next]) = held_up(true);
        long_ago(&places, "uid-a");
        places.is_awaited("uid-a");
        places.can_look("uid-a");
        let [goes, waits] = [&first, &next].map(|refresh| ask(&places, refresh));
        places.deal(&[], &limit(9));
        assert_eq!(goes.answer(), Some(Turn::Now));
        assert!(behind(&waits).ends_with("behind mvr/a"));
        assert_eq!(places.held_up_by("uid-b"), None, "it does not stall");
        drop((goes, waits));
        // And counts anew.
        places.stalls("uid-a", Instant::now());
        places.is_awaited("uid-a");
        places.next(&limit(9));
        places.stalls("uid-a", Instant::now());
        let asked = ask(&places, &next);
        places.deal(&[], &limit(9));
        assert!(behind(&asked).ends_with("behind mvr/a"));
    }

    #[test]
    fn what_ended_while_nobody_watched_holds_up_nobody() {
        let places = Places::default();
        let (first, second) = (running("a", "v"), queued("b", "v"));
        places.note(&first, false);
        places.note(&second, false);
        let asked = ask(&places, &second);
        places.deal(&[Place::of(&first).unwrap()], &limit(9));
        behind(&asked);
        drop(asked);
        places.list_begins();
        places.note(&second, false);
        assert!(places.next(&limit(9)).is_empty(), "the list is not over");
        places.list_ends();
        let woken = places.next(&limit(9));
        assert_eq!(woken, [ObjectRef::from_obj(&second)]);
    }

    #[tokio::test]
    async fn a_change_wakes_and_what_has_just_come_does_not() {
        let places = std::sync::Arc::new(Places::default());
        let (first, second) = (running("a", "v"), queued("b", "v"));
        let (told, mut woken) = tokio::sync::mpsc::unbounded_channel();
        let waker = places.clone();
        let waking = tokio::spawn(async move {
            let tell = |refresh| told.send(refresh).unwrap();
            waker.wake(|| limit(9), tell).await;
        });
        places.note(&first, false);
        places.note(&second, false);
        let asked = ask(&places, &second);
        places.deal(&[Place::of(&first).unwrap()], &limit(9));
        drop(asked);
        tokio::time::sleep(10 * SETTLE).await;
        assert!(woken.try_recv().is_err());
        places.note(&first, true);
        assert_eq!(woken.recv().await, Some(ObjectRef::from_obj(&second)));
        waking.abort();
    }
}
