//! A refresh that waits for its turn.

use super::*;

#[test]
fn a_new_refresh_is_looked_at_before_anything_is_said() {
    assert_eq!(decide(&seen(None)), Action::Look(Look::World));
}

#[test]
fn a_new_refresh_that_the_world_rules_out_fails_with_the_worlds_sentence() {
    let mut seen = seen(None);
    seen.world = Some(World::Refused {
        reason: "ViewNotFound".into(),
        message: "the catalog has no table 'v'".into(),
    });
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(
        status.message.as_deref(),
        Some("the catalog has no table 'v'")
    );
    assert_eq!(status.conditions[0].type_, condition::FAILED);
    assert_eq!(status.conditions[0].reason, "ViewNotFound");
}

#[test]
fn a_catalog_that_does_not_answer_leaves_the_refresh_queued_and_says_so() {
    let mut seen = seen(None);
    seen.world = Some(World::Unavailable("the catalog cannot be reached".into()));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Queued);
    assert_eq!(
        status.message.as_deref(),
        Some("the catalog cannot be reached")
    );
    assert_eq!(step, None);
    seen.refresh.status = Some(status);
    assert_eq!(decide(&seen), Action::Wait(Pause::BackOff));
}

/// Queued, where nothing could be looked at since `ago` seconds.
fn waits_in_vain(ago: i64) -> Observed {
    let mut seen = seen(Some(Phase::Queued));
    let status = seen.refresh.status.as_mut().unwrap();
    status.unavailable_since = Some(at(NOW - ago));
    seen
}

#[test]
fn one_that_can_never_be_looked_at_ends_when_it_would_have_been_stopped_with_the_last_words_of_why()
{
    let away = || Some(World::Unavailable("Waiting: the store says 403".into()));
    let mut first = seen(None);
    first.world = away();
    let (status, _) = written(decide(&first));
    assert_eq!(status.unavailable_since, Some(at(NOW)), "it begins now");
    for (ago, ends) in [(600, false), (601, true)] {
        let mut waits = waits_in_vain(ago);
        waits.refresh.status.as_mut().unwrap().view_uri = None;
        waits.world = away();
        let (status, _) = written(decide(&waits));
        let is_over = status.phase == Phase::Failed;
        assert_eq!(is_over, ends, "after {ago} s");
        if !is_over {
            assert_eq!(status.unavailable_since, Some(at(NOW - ago)), "as before");
            continue;
        }
        let failed = status.conditions.last().unwrap();
        assert_eq!(failed.reason, reasons::UNAVAILABLE);
        assert_eq!(
            status.message.unwrap(),
            "it could not begin within 600 s: the store says 403; see to that and refresh again"
        );
        assert_eq!(status.unavailable_since, None);
    }
}

#[test]
fn a_resumed_one_whose_history_can_never_be_read_ends_as_one_that_cannot_be_looked_at() {
    let mut resumed = started(None, 5_000);
    let status = resumed.refresh.status.as_mut().unwrap();
    status.phase = Phase::Queued;
    status.start_time = None;
    status.unavailable_since = Some(at(NOW - 601));
    resumed.outcome = Some(OutcomeSeen::Unavailable("503".into()));
    let mut held = resumed.clone();
    held.refresh.spec.suspend = true;
    assert_eq!(
        ends(decide(&resumed)),
        (Phase::Failed, reasons::UNAVAILABLE.into())
    );
    let (status, _) = written(decide(&held));
    assert_eq!(
        status.phase,
        Phase::Queued,
        "no clock of one that is held runs"
    );
}

#[test]
fn what_was_there_at_the_last_look_is_waited_for_anew() {
    let mut seen = waits_in_vain(5_000);
    seen.turn = Some(Turn::Behind("Number 1".into()));
    assert_eq!(decide(&seen), Action::Look(Look::World), "is it still so");
    seen.world = ready(None);
    let (status, _) = written(decide(&seen));
    assert_eq!(status.unavailable_since, None);
    seen.turn = Some(Turn::Now);
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Running);
    assert_eq!(status.unavailable_since, None);
}

#[test]
fn one_whose_cluster_stays_out_of_reach_ends_when_it_would_have_been_stopped() {
    let closed = || Some(Turn::Closed("Waiting: cluster far is away".into()));
    let mut first = seen(None);
    first.world = ready(None);
    first.turn = closed();
    let (status, _) = written(decide(&first));
    assert_eq!(status.phase, Phase::Queued);
    assert_eq!(status.unavailable_since, Some(at(NOW)), "it begins now");
    for (ago, ends) in [(600, false), (601, true)] {
        let mut waits = waits_in_vain(ago);
        waits.turn = closed();
        let (status, _) = written(decide(&waits));
        let is_over = status.phase == Phase::Failed;
        assert_eq!(is_over, ends, "after {ago} s");
        let message = status.message.unwrap();
        assert!(message.contains("cluster far is away"), "{message}");
        let since = (!is_over).then(|| at(NOW - ago));
        assert_eq!(status.unavailable_since, since, "as before");
    }
    // It is back, and another's turn comes first.
    let mut waits = waits_in_vain(5_000);
    waits.turn = Some(Turn::Behind("Number 1".into()));
    waits.world = ready(None);
    let (status, _) = written(decide(&waits));
    assert_eq!(status.unavailable_since, None);
}

#[test]
fn a_current_view_needs_no_job() {
    let mut seen = seen(None);
    seen.world = ready(Some(current()));
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Succeeded);
    assert_eq!(status.mode, Some(crate::resources::Mode::NoOp));
    assert_eq!(
        (status.source_version, status.view_version),
        (Some(7), Some(3))
    );
    assert_eq!(status.conditions[0].reason, reasons::UP_TO_DATE);
    assert_eq!(status.job, None);
}

#[test]
fn a_full_refresh_of_a_current_view_runs_all_the_same() {
    let mut seen = seen(None);
    seen.refresh.spec.full = true;
    seen.world = ready(Some(current()));
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
}

#[test]
fn indices_that_lag_behind_a_current_view_are_a_job_for_one_who_asks() {
    let mut seen = seen(None);
    let mut lagging = current();
    lagging.unindexed_rows = Some(5);
    seen.world = ready(Some(lagging));
    let (status, _) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Succeeded);
    assert_eq!(status.unindexed_rows, Some(5));
    seen.refresh.spec.optimize_indices = true;
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
    // Nothing lags, or there is no index.
    for rows in [Some(0), None] {
        let mut current = current();
        current.unindexed_rows = rows;
        seen.world = ready(Some(current));
        assert_eq!(written(decide(&seen)).0.phase, Phase::Succeeded);
    }
}

#[test]
fn a_stale_view_waits_for_its_turn_and_says_behind_what() {
    let mut seen = seen(None);
    seen.world = ready(None);
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
    seen.turn = Some(Turn::Behind("Number 1".into()));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Queued);
    assert_eq!(status.view_uri.as_deref(), Some("mem://v"));
    assert_eq!(step.unwrap().reason, reasons::QUEUED);
    seen.refresh.status = Some(status);
    assert!(matches!(decide(&seen), Action::Wait(_)));
}

#[test]
fn a_new_place_in_the_queue_is_no_event() {
    let mut seen = seen(Some(Phase::Queued));
    seen.turn = Some(Turn::Behind("Number 1".into()));
    let (status, step) = written(decide(&seen));
    assert_eq!(status.message.as_deref(), Some("Number 1"));
    assert_eq!(step, None);
}

#[test]
fn the_one_whose_turn_has_come_looks_at_the_world_again() {
    let mut seen = seen(Some(Phase::Queued));
    assert_eq!(decide(&seen), Action::Look(Look::Turn));
    seen.turn = Some(Turn::Now);
    assert_eq!(decide(&seen), Action::Look(Look::World));
    // What ran before it brought the view to where this one would.
    seen.world = ready(Some(current()));
    assert_eq!(
        ends(decide(&seen)),
        (Phase::Succeeded, reasons::UP_TO_DATE.into())
    );
}

#[test]
fn the_intent_is_written_before_the_job_is_created() {
    let mut seen = seen(None);
    seen.world = ready(None);
    seen.turn = Some(Turn::Now);
    let (status, step) = written(decide(&seen));
    assert_eq!(status.phase, Phase::Running);
    let job = status.job.clone().unwrap();
    assert_eq!((job.name.as_str(), job.uid), ("r-01234567", None));
    assert!(status.start_time.is_some());
    assert_eq!(step.unwrap().reason, reasons::LAUNCHING);
    seen.refresh.status = Some(status);
    // And the view's history is asked before the Job is created.
    assert_eq!(decide(&seen), Action::Look(Look::Outcome));
    seen.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(decide(&seen), Action::CreateJob);
}

#[test]
fn one_that_waits_loses_its_place_only_where_nobody_knows_whether_it_can_ever_ask() {
    let away = || Some(World::Unavailable("Waiting for Secret 's'".into()));
    let mut waits = seen(Some(Phase::Queued));
    assert_eq!(waits.cannot_ask(), None);
    waits.world = away();
    assert_eq!(waits.cannot_ask(), Some(CannotAsk::World));
    waits.turn = Some(Turn::Now);
    assert_eq!(waits.cannot_ask(), None, "it has asked");
    let mut resumed = started(None, 5);
    resumed.refresh.status.as_mut().unwrap().phase = Phase::Queued;
    resumed.outcome = Some(OutcomeSeen::Unavailable("away".into()));
    assert_eq!(resumed.cannot_ask(), Some(CannotAsk::History));
    resumed.outcome = Some(OutcomeSeen::NotFound);
    assert_eq!(resumed.cannot_ask(), None);
}
