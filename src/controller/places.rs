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
}

impl State {
    /// Forgets what was remembered of how one waits.
    fn wakes(&mut self, uid: &str) {
        self.asleep.remove(uid);
        self.stalled.remove(uid);
        self.aside.remove(uid);
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
        let stalls = state.stalled.contains(&self.uid);
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
        let next: Vec<String> = turns.filter(|uid| state.asleep.contains(uid)).collect();
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
        let answers: Vec<(String, Turn)> = answers
            .map(|(place, hand)| (place.uid.clone(), hand.turn(place)))
            .collect();
        for (uid, answer) in answers {
            let Some(asking) = asking.get_mut(&uid).filter(|a| a.answer.is_none()) else {
                continue;
            };
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
    /// it: it gives it back, and will ask again.
    pub fn stalls(&self, uid: &str) {
        let mut state = self.state();
        let has_turn = state.reserved.contains_key(uid);
        // Where it has its turn, others are woken once it has given it back.
        if state.stalled.insert(uid.to_string()) && !has_turn {
            drop(state);
            self.changed();
        }
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
        places.stalls("uid-a");
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
        places.stalls("uid-a");
        let [waits, goes] = [&same, &other].map(|refresh| ask(&places, refresh));
        places.deal(&[], &limit(1));
        assert!(behind(&waits).ends_with("behind mvr/a"));
        assert_eq!(goes.answer(), Some(Turn::Now), "of another view");
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
