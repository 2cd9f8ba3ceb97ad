//! Refreshes that something comes between.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use relance::engine::outcome;

use super::sources::Sources;
use super::{Right, TALLY, View, among, could_not, same, settled, versions_now, versions_of};
use crate::faults::{run, run_all, store::Faults};
use crate::support::{Db, commits_of, request};

/// What is put when a refresh is held, and whether it is sure to be before its
/// commit.
const HOLDS: &[(&str, bool)] = &[
    ("/plans/", true),
    ("/data/", true),
    ("/claims/", true),
    ("/ledgers/", true),
    ("/_transactions", true),
    ("/outcomes/", false),
    ("/fresh", false),
];

/// A refresh whose storage fails from some operation on, for all of its workers
/// or one, and then the same refresh again.
pub async fn faulty(
    db: &Db,
    view: &View,
    random: &mut StdRng,
    log: &mut Vec<String>,
) -> Result<(), String> {
    let mut asked = request(&view.name);
    asked.full = random.random_bool(0.2);
    let workers = random.random_range(1..4);
    let (k, after) = (random.random_range(0..160), random.random_bool(0.5));
    let all_fail = random.random_bool(0.5);
    let before = view.rows(db).await;
    let right = view.right(db).await;
    view.told(db, &right).await?;
    let faults = Faults::new(k, after);
    let done = run_all(db, &asked, workers, |worker| {
        match worker == 0 || all_fail {
            true => faults.clone(),
            false => Faults::none(),
        }
    })
    .await;
    log.push(format!(
        "refresh of {} by {workers}, all fail {all_fail}, from {k}, after {after}: {done:?}",
        view.name
    ));
    let now = view.rows(db).await;
    if let Some(Ok(one)) = done.iter().find(|result| result.is_ok()) {
        let right = right
            .as_ref()
            .map_err(|e| format!("done, and from scratch it is: {e}"))?;
        same(&view.name, "done in spite of faults", &now, right)?;
        if let Some(Ok(other)) = done.iter().find(|d| d.as_ref().is_ok_and(|d| d != one)) {
            return Err(format!("workers of one refresh did {one:?} and {other:?}"));
        }
    }
    for error in done.iter().filter_map(|result| result.as_ref().err()) {
        if right.as_ref() != Ok(&now) {
            same(&view.name, "failed by faults", &now, &before)?;
        }
        if right.is_ok() && !(faults.struck() && error.retryable()) {
            return Err(format!("{}: faults made it {error}", view.name));
        }
        TALLY.note("failed by faults");
    }
    view.told(db, &right).await?;
    if random.random_bool(0.5) {
        let before = view.rows(db).await;
        let id = [view.name.clone()];
        let found = outcome::find(&db.catalog().await, &id, &asked.refresh).await;
        let ended = found.is_ok_and(|found| found.is_some());
        let done = db.refresh_as(asked.clone()).await;
        log.push(format!("the same again: {done:?}"));
        // What has ended is told of, and not looked at again.
        match (&done, &right) {
            (Ok(_), Ok(right)) if ended => {
                same(&view.name, "again", &view.rows(db).await, right)?;
            }
            _ => settled(db, view, &done, &before, &right).await?,
        }
        let commits = commits_of(db, &view.name, &asked.refresh).await;
        if commits > 1 {
            return Err(format!("one refresh made {commits} commits"));
        }
    }
    Ok(())
}

/// A refresh that is held, and left there; or that goes on when something has
/// changed meanwhile.
pub async fn held(
    db: &Db,
    sources: &mut Sources,
    view: &mut View,
    random: &mut StdRng,
    log: &mut Vec<String>,
) -> Result<(), String> {
    let (of, before_commit) = *HOLDS.choose(random).unwrap();
    let mut asked = request(&view.name);
    asked.full = random.random_bool(0.2);
    let before = view.rows(db).await;
    let (right, versions) = (view.right(db).await, versions_now(db).await);
    let version = db.open(&view.name).await.version().version;
    let (stored, source) = (view.query.stored.clone(), view.source(db).await);
    let faults = Faults::holding(of);
    let mut refresh = Box::pin(run(db, &asked, faults.clone()));
    let ended = tokio::select! {
        done = &mut refresh => Some(done),
        () = faults.reached() => None,
    };
    if let Some(done) = ended {
        log.push(format!("refresh of {}, not held: {done:?}", view.name));
        return settled(db, view, &done, &before, &right).await;
    }
    if random.random_bool(0.3) {
        drop(refresh);
        log.push(format!("refresh of {}, left at {of}", view.name));
        let now = view.rows(db).await;
        if right.as_ref() != Ok(&now) {
            same(&view.name, "left midway", &now, &before)?;
        }
        TALLY.note("left midway");
        return view.told(db, &right).await.map(|_| ());
    }
    let what = match before_commit {
        true => random.random_range(0..6),
        false => 5,
    };
    let told = match what {
        0 => view.disturb(db, random).await,
        1 => view.redefine(db, view.query.edited(random)).await,
        _ => sources.change(db, random).await,
    };
    let told = told.unwrap_or_else(|e| could_not(&TALLY, &e));
    faults.go_on();
    let done = refresh.await;
    log.push(format!(
        "refresh of {}, held at {of} while: {told}: {done:?}",
        view.name
    ));
    let now = view.rows(db).await;
    let (then_right, then) = (view.right(db).await, versions_now(db).await);
    match &done {
        Ok(outcome) => {
            // What was right when it was looked at is not looked at again.
            let unchanged = outcome.view_version == version && right.as_ref() == Ok(&before);
            let landed = right.as_ref() == Ok(&now) && view.query.stored == stored;
            let as_it_was =
                among(&versions_of(outcome, &source), &versions) && (unchanged || landed);
            let as_it_is = among(&versions_of(outcome, &view.source(db).await), &then)
                && then_right.as_ref() == Ok(&now);
            if !as_it_was && !as_it_is {
                let right = then_right.as_ref().unwrap_or(&before);
                same(&view.name, "held", &now, right)?;
                return Err(format!(
                    "held, and did {outcome:?} of {versions:?} or {then:?}"
                ));
            }
            TALLY.note("held");
        }
        Err(error) => {
            let seen = |rows: &Right| rows.as_ref() == Ok(&now);
            if what > 1 && !seen(&right) && !seen(&then_right) {
                same(&view.name, "failed when it was held", &now, &before)?;
            }
            TALLY.note(format!("held, and then {}", error.reason()));
        }
    }
    view.told(db, &then_right).await?;
    let done = db.refresh(&view.name).await;
    log.push(format!("and again: {done:?}"));
    settled(db, view, &done, &now, &then_right).await
}
