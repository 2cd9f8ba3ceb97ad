//! The operator dies again and again while refreshes run, and runs twice.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relance::resources::Phase;
use serde_json::json;

use crate::operator::Operator;

const VIEWS: usize = 5;
const REFRESHES: usize = 50;
const DEATHS: usize = 20;

/// How many refreshes are asked for after each death.
const AT_EACH_DEATH: usize = 2;

#[tokio::test]
async fn the_operator_is_killed_twenty_times_during_fifty_refreshes_and_each_commits_once() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut operator = Operator::prepared().await;
    operator.append("src", 0..100).await;
    for view in 0..VIEWS {
        let sql = format!("SELECT id FROM src WHERE id >= {view}");
        operator.view(&format!("v{view}"), &sql).await;
    }
    operator.spawn();
    let mut refreshes = Vec::new();
    let start = Instant::now();
    for death in 0..=DEATHS {
        // Some are under way at every death, and some have just come.
        let due = REFRESHES - (DEATHS - death) * AT_EACH_DEATH;
        for at in refreshes.len()..due {
            let view = format!("v{}", at % VIEWS);
            // Each has something to commit.
            let spec = json!({"view": [view], "full": true});
            let refresh = operator.apply(&format!("r{at}"), spec).await;
            refreshes.push((view, refresh));
        }
        if death < DEATHS {
            // One that stands by has nothing to leave half done.
            operator.acts().await;
            let lived = dice.random_range(100..2_500);
            tokio::time::sleep(Duration::from_millis(lived)).await;
            operator.kill();
            operator.spawn();
        }
    }
    assert_eq!(refreshes.len(), REFRESHES);

    for (view, refresh) in &refreshes {
        let name = refresh.metadata.name.as_ref().unwrap();
        let status = operator.settled(name).await;
        assert_eq!(
            status.phase,
            Phase::Succeeded,
            "seed {seed}: {name}: {status:?}"
        );
        let commits = operator.commits(view, refresh).await;
        assert_eq!(commits, 1, "seed {seed}: {name} committed {commits} times");
    }
    for view in 0..VIEWS {
        let expected: Vec<i64> = (view as i64..100).collect();
        assert_eq!(
            operator.ids(&format!("v{view}")).await,
            expected,
            "seed {seed}"
        );
    }
    assert_eq!(operator.job_count().await, REFRESHES, "seed {seed}");
    println!(
        "{REFRESHES} refreshes, {DEATHS} deaths, {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn two_operators_by_accident_launch_no_refresh_twice() {
    let mut operator = Operator::prepared().await;
    operator.append("src", 0..20).await;
    for view in 0..3 {
        let sql = format!("SELECT id FROM src WHERE id >= {view}");
        operator.view(&format!("v{view}"), &sql).await;
    }
    operator.spawn();
    let _second = operator.second();
    let mut refreshes = Vec::new();
    for at in 0..12 {
        let view = format!("v{}", at % 3);
        let spec = json!({"view": [view], "full": true});
        let refresh = operator.apply(&format!("r{at}"), spec).await;
        refreshes.push((view, refresh));
    }
    for (view, refresh) in &refreshes {
        operator
            .succeeded(refresh.metadata.name.as_ref().unwrap())
            .await;
        assert_eq!(operator.commits(view, refresh).await, 1);
    }
    assert_eq!(operator.job_count().await, refreshes.len());
    for view in 0..3 {
        let expected: Vec<i64> = (view..20).collect();
        assert_eq!(operator.ids(&format!("v{view}")).await, expected);
    }
}
