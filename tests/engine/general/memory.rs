//! Queries that may hold little: they spill, or say that they need more memory, and
//! never give other rows.

use relance::engine::error::EngineError;
use relance::engine::refresh::Request;

use super::world::World;
use crate::support::request;

/// Fills a new `view` of `sql`, whose rows are `right`, with so many `megabytes` for
/// queries. Returns how often it was refused for memory, which it `may_refuse` alone: once
/// or never.
async fn gives_or_refuses(
    world: &World,
    view: &str,
    sql: &str,
    right: &[String],
    megabytes: u64,
    may_refuse: bool,
) -> usize {
    world.create_view(view, sql).await;
    let done = world.db.refresh_as(Request {
        query_memory: Some(megabytes << 20),
        ..request(view)
    });
    match done.await {
        Ok(_) => {
            let found = world.db.rows(view).await;
            let count = (found.len(), right.len());
            assert!(found == right, "{count:?} rows with {megabytes} MiB: {sql}");
            0
        }
        Err(EngineError::EvaluationFailed { why, .. }) if may_refuse => {
            assert!(why.contains("more memory"), "{why}");
            1
        }
        Err(other) => panic!("{megabytes} MiB: {sql}: {other}"),
    }
}

#[tokio::test]
async fn a_query_that_holds_more_than_it_may_spills() {
    let mut world = World::new(false).await;
    world.append("orders", 60_000).await;
    for (name, sql) in [
        (
            "sorted",
            "SELECT id, amount, note FROM orders ORDER BY note DESC, id LIMIT 50000",
        ),
        (
            "grouped",
            "SELECT note, count(*) AS n FROM orders GROUP BY note HAVING count(*) > 0",
        ),
        (
            "joined",
            "SELECT a.id, b.note FROM orders a FULL JOIN orders b ON a.note = b.note",
        ),
        ("distinct", "SELECT DISTINCT note FROM orders"),
        (
            "sorted by texts alone",
            "SELECT note FROM orders ORDER BY note LIMIT 50000",
        ),
        (
            "windows over whole groups",
            "SELECT id, note, count(*) OVER (PARTITION BY note) AS n FROM orders",
        ),
        (
            "distinct among many",
            "SELECT DISTINCT id, note FROM (SELECT id, note FROM orders UNION ALL SELECT id, note \
             FROM orders UNION ALL SELECT id, note FROM orders UNION ALL SELECT id, note FROM \
             orders) AS u",
        ),
    ] {
        world.create_view(name, sql).await;
        let done = world
            .db
            .refresh_as(Request {
                query_memory: Some(6 << 20),
                ..request(name)
            })
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(done.rows_written >= 50_000, "{name}");
        assert_eq!(
            world.db.rows(name).await,
            world.evaluated(sql).await,
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_join_of_a_unit_that_holds_more_than_it_may_spills() {
    let mut world = World::new(false).await;
    world.append("orders", 240_000).await;
    for join in ["JOIN", "LEFT JOIN"] {
        let sql = format!("SELECT a.id, b.note FROM orders a {join} orders b ON a.note = b.note");
        world.create_view(join, &sql).await;
        let request = Request {
            query_memory: Some(12 << 20),
            ..request(join)
        };
        let done = world.db.refresh_as(request).await;
        done.unwrap_or_else(|e| panic!("{join}: {e}"));
        let right = world.db.rows(join).await == world.evaluated(&sql).await;
        assert!(right, "{join}");
    }
}

#[tokio::test]
async fn a_not_in_over_nulls_gives_its_rows_or_says_that_it_needs_more_memory() {
    let mut world = World::new(false).await;
    world.append("orders", 200_000).await;
    let mut refused = 0;
    // With how much of it there is enough: of a unit that has it alone, and of all.
    for (at, (enough, sql)) in [
        (
            12,
            "SELECT customer, note FROM orders WHERE customer NOT IN \
             (SELECT id FROM customers WHERE id > 9)",
        ),
        (
            12,
            "SELECT customer, note FROM orders WHERE customer NOT IN \
             (SELECT CASE WHEN id > 9 THEN id END FROM customers)",
        ),
        (
            256,
            "SELECT DISTINCT customer, note FROM orders WHERE customer NOT IN \
             (SELECT id FROM customers WHERE id > 9)",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let right = world.evaluated(sql).await;
        for megabytes in [1, 4, 12, 256] {
            let view = format!("v{at}_{megabytes}");
            let may_refuse = megabytes < enough;
            refused += gives_or_refuses(&world, &view, sql, &right, megabytes, may_refuse).await;
        }
    }
    // Else none had to make do with less than a join by hashes takes.
    assert!(refused > 0);
}

/// Of many rows with the same key that are spilled a few at a time, DataFusion finds the
/// last alone again.
#[tokio::test]
async fn a_match_that_is_asked_for_by_more_than_its_key_is_found_or_said_to_need_more_memory() {
    let mut world = World::new(false).await;
    world.append("orders", 60_000).await;
    world.append("customers", 2000).await;
    // Rows of a key come in several batches, and one of them is the only match.
    let sides = "(SELECT id, repeat(name, 300) AS text FROM customers) c";
    let exists = |not: &str| {
        format!(
            "SELECT id, length(text) AS size FROM {sides} WHERE {not} EXISTS (SELECT 1 FROM \
             orders o WHERE o.id % 20 = c.id % 20 AND o.id >= c.id * 20 AND \
             o.id < c.id * 20 + 20 AND c.id % 3 <> 0)"
        )
    };
    let mut refused = 0;
    for (at, sql) in [exists(""), exists("NOT")].into_iter().enumerate() {
        let right = world.evaluated(&sql).await;
        assert!(!right.is_empty() && right.len() < 2000);
        for megabytes in [256, 8, 4] {
            let view = format!("v{at}_{megabytes}");
            let may_refuse = megabytes < 256;
            refused += gives_or_refuses(&world, &view, &sql, &right, megabytes, may_refuse).await;
        }
    }
    assert!(refused > 0, "there was enough for all");
}

/// DataFusion spills one side of such a join without a word where it finds no place.
#[tokio::test]
async fn a_join_by_no_equality_that_holds_more_than_it_may_gives_all_its_rows() {
    let mut world = World::new(false).await;
    world.append("orders", 600).await;
    world.append("customers", 900).await;
    // Of each more than may be held at once, whichever of them it is.
    let sides = "(SELECT id, amount, repeat(note, 1000) AS text FROM orders) a";
    let other = "(SELECT id, score, repeat(name, 600) AS text FROM customers) c";
    let near = "a.amount < c.score AND c.score < a.amount + 2";
    let joined = |join: &str| {
        format!(
            "SELECT a.id AS a, length(a.text) AS b, c.id AS c, length(c.text) AS d \
             FROM {sides} {join} {other} ON {near}"
        )
    };
    let exists = |not: &str| {
        format!(
            "SELECT id, amount, text FROM {sides} WHERE {not} EXISTS \
             (SELECT 1 FROM customers c WHERE {near})"
        )
    };
    let marked = format!("{} OR a.id % 7 = 0", exists(""));
    let all = format!(
        "SELECT b, count(*) AS n FROM ({}) AS j GROUP BY b",
        joined("LEFT JOIN")
    );
    let mut refused = 0;
    for (at, sql) in [
        joined("JOIN"),
        joined("LEFT JOIN"),
        joined("RIGHT JOIN"),
        joined("FULL JOIN"),
        exists(""),
        exists("NOT"),
        marked,
        all,
    ]
    .into_iter()
    .enumerate()
    {
        let right = world.evaluated(&sql).await;
        for megabytes in [256, 4, 1] {
            let view = format!("v{at}_{megabytes}");
            // Where rows of both sides are given alone, there is no other way.
            let may_refuse = sql.contains("FULL JOIN");
            refused += gives_or_refuses(&world, &view, &sql, &right, megabytes, may_refuse).await;
        }
    }
    assert!(refused > 0, "there was enough for all");
}
