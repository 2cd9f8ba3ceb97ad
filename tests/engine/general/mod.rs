//! Views in any SQL: every shape against DataFusion over the tables in memory,
//! through changes to its sources, faults, and several workers.

mod cases;
mod memory;
mod world;

use std::collections::BTreeMap;

use arrow_schema::Field;
use lance::dataset::WriteMode;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lancedb::materialized_view::{
    DEFINITION_META_KEY, definition_metadata_from_sql, definition_metadata_from_sql_with_defaults,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relance::engine::error::EngineError;
use relance::engine::freshness::{self, Freshness};
use relance::engine::outcome::{Mode, Outcome};
use relance::engine::refresh::Request;
use relance::engine::view;

use self::cases::{CASES, Case};
use self::world::World;
use crate::faults::{self, store::Faults};
use crate::support::{commits_of, request, rows_of, update};

#[tokio::test]
async fn every_query_gives_its_rows_and_does_nothing_the_second_time() {
    let mut world = World::new(false).await;
    for (at, case) in CASES.iter().enumerate() {
        let name = format!("v{at}");
        world.create_view(&name, case.sql).await;
        let first = world.check(&name, case, "at first").await;
        assert_eq!(first.mode, Mode::Rebuild, "{}", case.name);
        let again = world.check(&name, case, "again").await;
        assert_eq!(again.mode, Mode::NoOp, "{}", case.name);
    }
    world.append("orders", 20).await;
    for (at, case) in CASES.iter().enumerate() {
        let after = world
            .check(&format!("v{at}"), case, "after an append")
            .await;
        if !case.sql.contains("orders") {
            continue;
        }
        let kept = after.units_kept > 0;
        assert_eq!(kept, case.by_orders, "{}: {after:?}", case.name);
    }
}

#[tokio::test]
async fn a_compaction_of_the_table_that_a_query_is_cut_by_costs_nothing() {
    for stable_row_ids in [false, true] {
        let world = World::new(stable_row_ids).await;
        let cases: Vec<&Case> = CASES.iter().filter(|case| case.by_orders).collect();
        for (at, case) in cases.iter().enumerate() {
            let name = format!("v{at}");
            world.create_view(&name, case.sql).await;
            world.check(&name, case, "at first").await;
        }
        let mut orders = world.db.open("orders").await;
        let metrics = compact_files(&mut orders, CompactionOptions::default(), None).await;
        assert_eq!(metrics.unwrap().fragments_removed, 3);
        for (at, case) in cases.iter().enumerate() {
            let name = format!("v{at}");
            let after = world.check(&name, case, "after a compaction").await;
            let wrote = (after.mode, after.bytes_written);
            assert_eq!(wrote, (Mode::NoOp, 0), "{}", case.name);
        }
    }
}

#[tokio::test]
async fn every_query_stays_right_through_random_changes() {
    random_changes(false).await;
}

#[tokio::test]
async fn every_query_stays_right_through_random_changes_with_stable_row_ids() {
    random_changes(true).await;
}

/// `RELANCE_SEED` and `RELANCE_ROUNDS` say which changes, and how many rounds.
async fn random_changes(stable_row_ids: bool) {
    let said = |name: &str| std::env::var(name).ok().map(|s| s.parse().unwrap());
    let seed = said("RELANCE_SEED").unwrap_or(7);
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new(stable_row_ids).await;
    for (at, case) in CASES.iter().enumerate() {
        world.create_view(&format!("v{at}"), case.sql).await;
    }
    for round in 0..said("RELANCE_ROUNDS").unwrap_or(3) {
        for _ in 0..random.random_range(0..3) {
            world.change(&mut random).await;
        }
        for (at, case) in CASES.iter().enumerate() {
            let why = format!("seed {seed} round {round}, stable row ids {stable_row_ids}");
            world.check(&format!("v{at}"), case, &why).await;
        }
    }
}

#[tokio::test]
async fn a_column_that_no_part_of_the_query_reads_costs_nothing() {
    let world = World::new(true).await;
    let case = &CASES[0];
    world.create_view("v", case.sql).await;
    world.check("v", case, "at first").await;
    let orders = world.db.open("orders").await;
    update(orders, "true", "note", "'other'").await.unwrap();
    // The update moved every row to another file, so this one must look.
    world.check("v", case, "after all rows moved").await;
    let mut orders = world.db.open("orders").await;
    orders
        .add_columns(
            lance::dataset::NewColumnTransform::SqlExpressions(vec![(
                "extra".into(),
                "id * 2".into(),
            )]),
            None,
            None,
        )
        .await
        .unwrap();
    orders.drop_columns(&["note"]).await.unwrap();
    let after = world
        .check("v", case, "after a column more and one less")
        .await;
    assert_eq!(after.mode, Mode::NoOp);
}

#[tokio::test]
async fn the_versions_of_all_sources_are_told_and_freshness_compares_them_all() {
    let mut world = World::new(false).await;
    let case = &CASES[0];
    world.create_view("v", case.sql).await;
    let done = world.check("v", case, "at first").await;
    assert_eq!(
        done.source_versions,
        BTreeMap::from([("customers".to_string(), 1), ("orders".to_string(), 3)])
    );
    assert_eq!(done.sources(), "source versions customers 1, orders 3");
    let catalog = world.db.catalog().await;
    let look = async || {
        let (info, table) = view::open(&catalog, &["v".to_string()]).await.unwrap();
        let found = freshness::check(&catalog, &info, &table, None).await;
        found.unwrap()
    };
    assert!(matches!(look().await, Freshness::Current { .. }));
    world.append("customers", 1).await;
    match look().await {
        Freshness::Stale { why } => assert!(why.contains("customers"), "{why}"),
        other => panic!("{other:?}"),
    }
    world.check("v", case, "after a customer").await;
    assert!(matches!(look().await, Freshness::Current { .. }));
    world.append("regions", 1).await;
    assert!(matches!(look().await, Freshness::Current { .. }));
}

#[tokio::test]
async fn a_source_version_pins_a_sole_source_and_is_refused_for_several() {
    let mut world = World::new(false).await;
    world
        .create_view("one", "SELECT DISTINCT customer FROM orders")
        .await;
    let before = world
        .evaluated("SELECT DISTINCT customer FROM orders")
        .await;
    world.append("orders", 30).await;
    let mut dataset = world.db.open("orders").await;
    dataset.delete("customer < 9").await.unwrap();
    let pinned = |view: &str| Request {
        src_version: Some(3),
        ..request(view)
    };
    let done = world.db.refresh_as(pinned("one")).await.unwrap();
    assert_eq!(done.source_version, 3);
    assert_eq!(world.db.rows("one").await, before);
    world.create_view("two", CASES[0].sql).await;
    let error = world.db.refresh_as(pinned("two")).await.unwrap_err();
    assert!(
        matches!(&error, EngineError::InvalidInput(why)
        if why.starts_with("src_version is 3") && why.contains("2 source tables")),
        "{error}"
    );
}

#[tokio::test]
async fn functions_whose_result_changes_by_itself_are_refused_wherever_they_stand() {
    let world = World::new(false).await;
    for (at, (sql, function)) in [
        (
            "SELECT o.id, now() AS t FROM orders o JOIN regions r ON r.id = o.id",
            "now()",
        ),
        (
            "SELECT id FROM orders WHERE amount > (SELECT max(id) * random() FROM regions)",
            "random()",
        ),
        (
            "SELECT id, uuid() AS u FROM orders UNION ALL SELECT id, code FROM regions",
            "uuid()",
        ),
        (
            "WITH d AS (SELECT id, current_date AS d FROM orders) SELECT id, d FROM d",
            "current_date()",
        ),
        (
            "SELECT DISTINCT id FROM orders ORDER BY random() LIMIT 3",
            "random()",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("v{at}");
        let fields = vec![Field::new("id", arrow_schema::DataType::Int64, true)];
        world
            .db
            .create_stored(&name, fields, definition_metadata_from_sql(sql))
            .await;
        let error = world.db.refresh(&name).await.unwrap_err();
        assert!(matches!(error, EngineError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(function), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_definition_that_no_longer_fits_is_told_and_leaves_the_view() {
    let world = World::new(false).await;
    let case = &CASES[0];
    world.create_view("v", case.sql).await;
    world.check("v", case, "at first").await;
    let before = world.db.rows("v").await;
    let mut customers = world.db.open("customers").await;
    customers.drop_columns(&["name"]).await.unwrap();
    let error = world.db.refresh("v").await.unwrap_err();
    assert!(
        matches!(error, EngineError::DefinitionMismatch { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("name"), "{error}");
    assert_eq!(world.db.rows("v").await, before);
    // Other columns or types than the view's table holds.
    let wrong = vec![Field::new("id", arrow_schema::DataType::Utf8, true)];
    let sql = "SELECT DISTINCT id FROM orders";
    world
        .db
        .create_stored("w", wrong, definition_metadata_from_sql(sql))
        .await;
    let error = world.db.refresh("w").await.unwrap_err();
    assert!(
        matches!(error, EngineError::DefinitionMismatch { .. }),
        "{error}"
    );
    let gone = vec![Field::new("id", arrow_schema::DataType::Int64, true)];
    let sql = "SELECT a.id FROM orders a JOIN nowhere b ON a.id = b.id";
    world
        .db
        .create_stored("x", gone, definition_metadata_from_sql(sql))
        .await;
    let error = world.db.refresh("x").await.unwrap_err();
    assert!(
        matches!(&error, EngineError::SourceNotFound { table, .. } if table == "nowhere"),
        "{error}"
    );
}

#[tokio::test]
async fn names_written_for_a_server_that_folds_case_are_understood() {
    let world = World::new(false).await;
    let fields = vec![
        Field::new("id", arrow_schema::DataType::Int64, true),
        Field::new("total", arrow_schema::DataType::Int64, true),
    ];
    let sql = "SELECT O.ID, O.Amount AS Total FROM public.orders AS O \
               JOIN \"db\".\"public\".\"customers\" AS C ON C.Id = O.Customer";
    let definition = definition_metadata_from_sql_with_defaults(sql, "db", &[]);
    world.db.create_stored("v", fields, definition).await;
    world.db.refresh("v").await.unwrap();
    assert_eq!(
        world.db.rows("v").await,
        world
            .evaluated("SELECT o.id, o.amount FROM orders o JOIN customers c ON c.id = o.customer")
            .await
    );
}

#[tokio::test]
async fn a_name_in_another_case_is_a_common_table_expression_before_it_is_a_table() {
    let world = World::new(false).await;
    let sql = "WITH Big AS (SELECT id FROM orders WHERE amount > 50) SELECT ID FROM big";
    let fields = vec![Field::new("id", arrow_schema::DataType::Int64, true)];
    let definition = definition_metadata_from_sql(sql);
    world.db.create_stored("v", fields, definition).await;
    world.db.refresh("v").await.unwrap();
    let right = world.evaluated("SELECT id FROM orders WHERE amount > 50");
    assert_eq!(world.db.rows("v").await, right.await);
}

#[tokio::test]
async fn a_table_in_lower_case_is_not_hidden_by_one_in_another() {
    let world = World::new(false).await;
    for (table, ids) in [("T", 0..10), ("t", 5..20)] {
        let rows = rows_of(ids.collect());
        world.write(table, rows, WriteMode::Create).await;
    }
    let sql = "SELECT A.ID FROM \"T\" AS A JOIN t AS B ON A.ID = B.ID";
    let fields = vec![Field::new("id", arrow_schema::DataType::Int64, true)];
    let definition = definition_metadata_from_sql(sql);
    world.db.create_stored("v", fields, definition).await;
    world.db.refresh("v").await.unwrap();
    assert_eq!(world.db.rows("v").await, ["5", "6", "7", "8", "9"]);
}

#[tokio::test]
async fn expressions_that_lance_itself_does_not_read_are_computed_row_by_row() {
    let mut world = World::new(false).await;
    let expressions = [
        "CASE WHEN amount > 50 THEN 'dear' WHEN amount > 9 THEN 'cheap' END",
        "floor(amount / 3.0)",
        "ceil(amount / 3.0)",
        "substring(note FROM 2 FOR 3)",
        "trim(note)",
        "trim(BOTH 'n' FROM note)",
        "position('1' IN note)",
        "overlay(note placing 'x' FROM 2)",
        "extract(year FROM DATE '2020-02-01' + INTERVAL '1 year')",
        "note SIMILAR TO '.*1.*'",
        "amount > 50 IS UNKNOWN",
        "id & 6",
        "id | 1",
        "note ~ '1'",
        "note !~* 'N'",
        "CAST(id AS VARCHAR)",
        "id::text",
        "CAST(id AS REAL)",
        "CAST(id AS NUMERIC(12, 2))",
        "CAST('2020-01-02' AS TIMESTAMP)",
        "+id",
        "[id, customer]",
    ];
    let mut views = Vec::new();
    for (at, expression) in expressions.into_iter().enumerate() {
        let (name, sql) = (
            format!("v{at}"),
            format!("SELECT id, {expression} AS y FROM orders WHERE customer > 2"),
        );
        world.create_view(&name, &sql).await;
        world.db.refresh(&name).await.unwrap();
        let right = world.evaluated(&sql).await;
        assert_eq!(world.db.rows(&name).await, right, "{sql}");
        views.push((name, sql));
    }
    world.append("orders", 20).await;
    for (name, sql) in views {
        let done = world.db.refresh(&name).await.unwrap();
        assert_eq!(done.mode, Mode::Incremental, "{sql}");
        let right = world.evaluated(&sql).await;
        assert_eq!(world.db.rows(&name).await, right, "{sql}");
    }
    let constant = "SELECT 'x' AS tag FROM orders WHERE id > 3";
    world.create_view("c", constant).await;
    world.db.refresh("c").await.unwrap();
    assert_eq!(world.db.rows("c").await, world.evaluated(constant).await);
    let grouped = "SELECT customer, count(*) AS n FROM orders WHERE floor(amount / 3.0) > 4 \
                   GROUP BY customer";
    world.create_view("g", grouped).await;
    world.db.refresh("g").await.unwrap();
    assert_eq!(world.db.rows("g").await, world.evaluated(grouped).await);
}

#[tokio::test]
async fn what_no_planner_reads_is_refused_in_words() {
    let world = World::new(false).await;
    let fields = || vec![Field::new("id", arrow_schema::DataType::Int64, true)];
    for (at, (sql, said)) in [
        ("SELECT id FROM orders WHERE note = N'abc'", "abc"),
        ("SELECT id FROM orders WHERE note = B'01'", "01"),
        ("SELECT id FROM orders WHERE is_valid()", "is_valid"),
        ("SELECT id FROM orders WHERE unheard_of(note)", "unheard_of"),
        ("SELECT id + nothing AS id FROM orders", "'nothing'"),
        (
            "SELECT CASE WHEN nothing > 1 THEN id END AS id FROM orders",
            "nothing",
        ),
        (
            "SELECT CASE WHEN now() > '2020-01-01' THEN id END AS id FROM orders",
            "now()",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("v{at}");
        let definition = definition_metadata_from_sql(sql);
        world.db.create_stored(&name, fields(), definition).await;
        let error = world.db.refresh(&name).await.unwrap_err();
        let kind = match said {
            "now()" => matches!(error, EngineError::Unsupported { .. }),
            _ => matches!(error, EngineError::DefinitionMismatch { .. }),
        };
        assert!(kind && error.to_string().contains(said), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_plan_of_other_branches_is_not_carried_out() {
    let world = World::new(false).await;
    let sql = "SELECT o.id, c.name AS x FROM orders o JOIN customers c ON c.id = o.customer";
    let redefined =
        "SELECT id, name AS x FROM customers UNION ALL SELECT id, note AS x FROM orders";
    world.create_view("v", sql).await;
    let asked = request("v");
    // A worker that is gone before it has recorded anything.
    let faults = Faults::holding("/claims/");
    tokio::select! {
        ended = faults::run(&world.db, &asked, faults.clone()) => panic!("{ended:?}"),
        () = faults.reached() => {}
    }
    let definition = definition_metadata_from_sql(redefined);
    let metadata = BTreeMap::from([(DEFINITION_META_KEY, definition.as_str())]);
    let mut view = world.db.open("v").await;
    view.update_schema_metadata(metadata).await.unwrap();
    world.db.refresh_as(asked).await.unwrap();
    let right = world.evaluated(redefined).await;
    assert_eq!(world.db.rows("v").await, right);
}

#[tokio::test]
async fn rows_that_others_changed_in_the_view_are_put_right() {
    let world = World::new(false).await;
    for (name, case) in [("v", &CASES[0]), ("w", &CASES[22])] {
        world.create_view(name, case.sql).await;
        world.check(name, case, "at first").await;
        let mut table = world.db.open(name).await;
        table.delete("id % 2 = 0").await.unwrap();
        world
            .check(name, case, "after a deletion in the view")
            .await;
    }
}

#[tokio::test]
async fn several_workers_share_the_branches_and_commit_once() {
    let world = World::new(false).await;
    let case = CASES
        .iter()
        .find(|c| c.name == "union all with groups")
        .unwrap();
    world.create_view("v", case.sql).await;
    let before = world.db.open("v").await.version().version;
    let uid = uuid::Uuid::new_v4().to_string();
    let workers = (0..3).map(|index| {
        world.db.refresh_as(Request {
            refresh: uid.clone(),
            workers: 3,
            index,
            ..request("v")
        })
    });
    let done: Vec<Outcome> = futures::future::try_join_all(workers).await.unwrap();
    assert!(done.iter().all(|o| o == &done[0]), "{done:?}");
    assert_eq!(world.db.rows("v").await, world.evaluated(case.sql).await);
    assert_eq!(world.db.open("v").await.version().version, before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_a_fault_ended_is_finished_by_the_next() {
    let mut world = World::new(false).await;
    let case = CASES
        .iter()
        .find(|c| c.name == "union all with groups")
        .unwrap();
    world.create_view("v", case.sql).await;
    world.check("v", case, "at first").await;
    world.append("orders", 25).await;
    world.append("customers", 2).await;
    let before = world.db.rows("v").await;
    let right = world.evaluated(case.sql).await;
    let counter = Faults::none();
    let clean = world.db.copied();
    faults::run(&clean, &request("v"), counter.clone())
        .await
        .unwrap();
    assert_eq!(clean.rows("v").await, right);
    // `RELANCE_SWEEP=0` tries them all.
    let some = std::env::var("RELANCE_SWEEP").map_or(16, |s| s.parse().unwrap());
    let step = match some {
        0 => 1,
        some => counter.operations().div_ceil(some),
    };
    for k in (0..counter.operations()).step_by(step as usize) {
        for after in [false, true] {
            let db = world.db.copied();
            let asked = request("v");
            let faults = Faults::new(k, after);
            let result = faults::run(&db, &asked, faults.clone()).await;
            let now = db.rows("v").await;
            let place = format!("k={k} after={after}: {result:?}");
            match &result {
                Ok(_) => assert_eq!(now, right, "{place}"),
                Err(error) => {
                    assert!(now == before || now == right, "{place}");
                    assert!(faults.struck() && error.retryable(), "{place}");
                }
            }
            db.refresh_as(asked.clone()).await.unwrap();
            assert_eq!(db.rows("v").await, right, "{place}");
            assert_eq!(commits_of(&db, "v", &asked.refresh).await, 1, "{place}");
        }
    }
}
