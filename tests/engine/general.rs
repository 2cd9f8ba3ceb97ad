//! Views in any SQL: every shape against DataFusion over the tables in memory,
//! through changes to its sources, faults, and several workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, RecordBatchIterator, StringArray,
};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{UpdateBuilder, WriteMode, WriteParams};
use lance_io::stream::RecordBatchStream;
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

use crate::faults::{self, store::Faults};
use crate::support::{Db, commits_of, render, request};

/// A query, and which change leaves some of its units as they are.
struct Case {
    name: &'static str,
    sql: &'static str,
    /// Whether rows appended to `orders` cost just those.
    by_orders: bool,
}

const fn whole(name: &'static str, sql: &'static str) -> Case {
    Case {
        name,
        sql,
        by_orders: false,
    }
}

const fn by_orders(name: &'static str, sql: &'static str) -> Case {
    Case {
        name,
        sql,
        by_orders: true,
    }
}

const CASES: &[Case] = &[
    by_orders(
        "join",
        "SELECT o.id, o.amount, c.name FROM orders o JOIN customers c ON o.customer = c.id \
         WHERE o.amount > 10",
    ),
    by_orders(
        "join the other way round",
        "SELECT c.name, o.id FROM customers c JOIN orders o ON o.customer = c.id AND c.region <> 'r1'",
    ),
    by_orders(
        "left join",
        "SELECT o.id, c.name FROM orders o LEFT JOIN customers c ON o.customer = c.id",
    ),
    by_orders(
        "right join",
        "SELECT o.id, c.name FROM customers c RIGHT JOIN orders o ON o.customer = c.id",
    ),
    whole(
        "full join",
        "SELECT o.id, c.name FROM orders o FULL JOIN customers c ON o.customer = c.id",
    ),
    by_orders(
        "three tables",
        "SELECT o.id, c.name, r.title FROM orders o JOIN customers c ON o.customer = c.id \
         JOIN regions r ON c.region = r.code",
    ),
    by_orders(
        "join with groups of the other side",
        "SELECT o.id, n.customers FROM orders o JOIN customers c ON o.customer = c.id \
         JOIN (SELECT region, count(*) AS customers FROM customers GROUP BY region) n \
         ON n.region = c.region",
    ),
    whole(
        "join with a sum of floats",
        "SELECT o.id FROM orders o JOIN (SELECT region, sum(score) AS s FROM customers \
         GROUP BY region) c ON o.amount > c.s",
    ),
    whole(
        "join with the first rows",
        "SELECT o.id, c.id AS c FROM orders o JOIN (SELECT id FROM customers ORDER BY id LIMIT 3) c \
         ON o.customer = c.id",
    ),
    by_orders(
        "in",
        "SELECT id FROM orders WHERE customer IN (SELECT id FROM customers WHERE score > 3)",
    ),
    by_orders(
        "not exists",
        "SELECT id FROM orders o WHERE NOT EXISTS (SELECT 1 FROM customers c WHERE c.id = o.customer)",
    ),
    by_orders(
        "not in",
        "SELECT id FROM orders WHERE customer NOT IN (SELECT id FROM customers WHERE id > 9)",
    ),
    whole(
        "self join",
        "SELECT a.id AS a, b.id AS b FROM orders a JOIN orders b ON a.id = b.id + 1",
    ),
    by_orders(
        "union all",
        "SELECT id, amount FROM orders WHERE amount > 50 UNION ALL SELECT id, score FROM customers",
    ),
    by_orders(
        "projection of a union",
        "SELECT v * 2 AS twice FROM (SELECT id AS v FROM orders UNION ALL SELECT id AS w FROM customers \
         UNION ALL SELECT customer FROM orders) u WHERE v % 3 = 0",
    ),
    by_orders(
        "common table expressions",
        "WITH big AS (SELECT id, customer FROM orders WHERE amount > 40), \
         named AS (SELECT big.id, c.name FROM big JOIN customers c ON c.id = big.customer) \
         SELECT id, name FROM named",
    ),
    by_orders(
        "union all with groups",
        "SELECT id, amount FROM orders UNION ALL SELECT region_n, s FROM \
         (SELECT count(*) AS region_n, max(score) AS s FROM customers GROUP BY region) g",
    ),
    by_orders(
        "names that need quotes",
        "SELECT o.\"id\" AS \"The id\", `amount` FROM \"orders\" o",
    ),
    whole(
        "union",
        "SELECT customer AS c FROM orders UNION SELECT id FROM customers",
    ),
    whole("distinct", "SELECT DISTINCT customer FROM orders"),
    whole(
        "except",
        "SELECT id FROM customers EXCEPT SELECT customer FROM orders",
    ),
    whole(
        "intersect",
        "SELECT id FROM customers INTERSECT SELECT customer FROM orders",
    ),
    whole(
        "window",
        "SELECT id, row_number() OVER (PARTITION BY customer ORDER BY amount, id) AS n FROM orders",
    ),
    whole(
        "first rows by an order",
        "SELECT id, amount FROM orders ORDER BY amount DESC, id LIMIT 7 OFFSET 2",
    ),
    whole(
        "groups of a join",
        "SELECT c.region, count(*) AS n, max(o.amount) AS most FROM orders o \
         JOIN customers c ON o.customer = c.id GROUP BY c.region HAVING count(*) > 1",
    ),
    whole("count", "SELECT count(*) AS n FROM orders, regions"),
    whole(
        "scalar subquery",
        "SELECT id FROM orders WHERE amount > (SELECT avg(score) FROM customers)",
    ),
    whole(
        "recursion",
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 5) \
         SELECT n.i, count(*) AS c FROM n JOIN orders o ON o.id % 5 + 1 = n.i GROUP BY n.i",
    ),
    by_orders(
        "expressions",
        "SELECT CASE WHEN o.amount IS NULL THEN 'none' ELSE upper(c.name) END AS label, \
         coalesce(o.amount, 0) AS a FROM orders o CROSS JOIN regions r JOIN customers c \
         ON c.id = o.customer AND c.region = r.code",
    ),
];

struct World {
    db: Db,
    next: BTreeMap<&'static str, i64>,
}

impl World {
    async fn new(stable_row_ids: bool) -> World {
        let mut world = World {
            db: Db::new(stable_row_ids),
            next: BTreeMap::new(),
        };
        world.append("orders", 60).await;
        world.append("orders", 40).await;
        world.append("orders", 30).await;
        world.append("customers", 20).await;
        world.append("regions", 4).await;
        world
    }

    async fn append(&mut self, table: &'static str, rows: i64) {
        let from = *self.next.entry(table).or_insert(0);
        self.next.insert(table, from + rows);
        let ids: Vec<i64> = (from..from + rows).collect();
        self.write(table, rows_of(table, ids), WriteMode::Append)
            .await;
    }

    async fn write(&self, table: &str, batch: RecordBatch, mode: WriteMode) {
        let schema = batch.schema();
        let params = WriteParams {
            mode,
            enable_stable_row_ids: self.db.stable_row_ids,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        Dataset::write(reader, &self.db.path(table), Some(params))
            .await
            .unwrap();
    }

    /// Some change to some table.
    async fn change(&mut self, random: &mut StdRng) {
        let table = ["orders", "orders", "customers", "regions"][random.random_range(0..4)];
        let mut dataset = self.db.open(table).await;
        let id = random.random_range(0..self.next[table]);
        match random.random_range(0..6) {
            0 | 1 => {
                let rows = random.random_range(1..9);
                self.append(table, rows).await;
            }
            2 => {
                dataset
                    .delete(&format!("id = {id} OR id = {}", id + 3))
                    .await
                    .unwrap();
            }
            3 => {
                let (column, value) = match table {
                    "orders" => ("amount", "amount + 1"),
                    "customers" => ("name", "'changed'"),
                    _ => ("title", "'changed'"),
                };
                UpdateBuilder::new(Arc::new(dataset))
                    .update_where(&format!("id >= {id}"))
                    .unwrap()
                    .set(column, value)
                    .unwrap()
                    .build()
                    .unwrap()
                    .execute()
                    .await
                    .unwrap();
            }
            4 => {
                compact_files(&mut dataset, CompactionOptions::default(), None)
                    .await
                    .unwrap();
            }
            _ => {}
        }
    }

    /// The tables in memory, as a query sees them.
    async fn tables(&self) -> SessionContext {
        let mut config = SessionConfig::new();
        config.options_mut().sql_parser.enable_ident_normalization = false;
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        let context = SessionContext::new_with_config(config);
        for table in ["orders", "customers", "regions"] {
            let stream = self
                .db
                .open(table)
                .await
                .scan()
                .try_into_stream()
                .await
                .unwrap();
            let schema: SchemaRef = stream.schema();
            let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
            let table_in_memory = MemTable::try_new(schema, vec![batches]).unwrap();
            context
                .register_table(table, Arc::new(table_in_memory))
                .unwrap();
        }
        context
    }

    async fn evaluated(&self, sql: &str) -> Vec<String> {
        let rows = self.tables().await.sql(sql).await.unwrap();
        render(&rows.collect().await.unwrap())
    }

    /// Creates view `name`, empty, as a SQL server stores it.
    async fn create_view(&self, name: &str, sql: &str) {
        let plan = self.tables().await.sql(sql).await.unwrap();
        let plan = plan.into_optimized_plan().unwrap();
        let fields: Vec<Field> = plan
            .schema()
            .fields()
            .iter()
            .map(|f| Field::new(f.name(), f.data_type().clone(), true))
            .collect();
        self.create_table(name, fields, definition_metadata_from_sql(sql))
            .await;
    }

    async fn create_table(&self, name: &str, fields: Vec<Field>, definition: String) {
        let metadata = HashMap::from([(DEFINITION_META_KEY.to_string(), definition)]);
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
        let reader = RecordBatchIterator::new(std::iter::empty(), schema);
        Dataset::write(reader, &self.db.path(name), None)
            .await
            .unwrap();
    }

    async fn check(&self, name: &str, case: &Case, why: &str) -> Outcome {
        let outcome = self.db.refresh(name).await.unwrap();
        assert_eq!(
            self.db.rows(name).await,
            self.evaluated(case.sql).await,
            "{} {why}",
            case.name
        );
        outcome
    }
}

fn rows_of(table: &str, ids: Vec<i64>) -> RecordBatch {
    let numbers = |f: fn(i64) -> Option<i64>| -> ArrayRef {
        Arc::new(Int64Array::from_iter(ids.iter().map(|id| f(*id))))
    };
    let texts = |f: fn(i64) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter(ids.iter().map(|id| f(*id))))
    };
    let id = numbers(Some);
    let columns: Vec<(&str, ArrayRef)> = match table {
        "orders" => vec![
            ("id", id),
            (
                "customer",
                numbers(|id| (id % 9 != 5).then_some(id * 7 % 17)),
            ),
            (
                "amount",
                numbers(|id| (id % 8 != 3).then_some(id * 13 % 101)),
            ),
            ("note", texts(|id| Some(format!("note {id}")))),
        ],
        "customers" => vec![
            ("id", id),
            (
                "name",
                texts(|id| (id % 5 != 4).then(|| format!("customer {id}"))),
            ),
            ("region", texts(|id| Some(format!("r{}", id % 3)))),
            (
                "score",
                Arc::new(Float64Array::from_iter(
                    ids.iter().map(|id| Some(*id as f64 * 1.5)),
                )),
            ),
        ],
        _ => vec![
            ("id", id),
            ("code", texts(|id| Some(format!("r{id}")))),
            ("title", texts(|id| Some(format!("Region {id}")))),
        ],
    };
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
        .unwrap()
}

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
    UpdateBuilder::new(Arc::new(orders))
        .set("note", "'other'")
        .unwrap()
        .build()
        .unwrap()
        .execute()
        .await
        .unwrap();
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
            .create_table(&name, fields, definition_metadata_from_sql(sql))
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
        .create_table("w", wrong, definition_metadata_from_sql(sql))
        .await;
    let error = world.db.refresh("w").await.unwrap_err();
    assert!(
        matches!(error, EngineError::DefinitionMismatch { .. }),
        "{error}"
    );
    let gone = vec![Field::new("id", arrow_schema::DataType::Int64, true)];
    let sql = "SELECT a.id FROM orders a JOIN nowhere b ON a.id = b.id";
    world
        .create_table("x", gone, definition_metadata_from_sql(sql))
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
    world.create_table("v", fields, definition).await;
    world.db.refresh("v").await.unwrap();
    assert_eq!(
        world.db.rows("v").await,
        world
            .evaluated("SELECT o.id, o.amount FROM orders o JOIN customers c ON c.id = o.customer")
            .await
    );
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
