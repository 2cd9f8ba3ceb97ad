//! relance and lancedb 0.41 on one view, in turn and at once.

use lance::dataset::WriteMode;
use relance::engine::outcome::Mode;

use crate::support::{Db, Form, SHAPES};

#[tokio::test]
async fn lancedb_and_relance_refresh_one_view_in_turn() {
    for shape in SHAPES {
        let mut db = Db::new(false);
        let batch = db.batch(60);
        db.write(batch, WriteMode::Create, 25).await;
        db.create_view("v", shape.sql, Form::Plain).await;
        db.refresh("v").await.unwrap();
        let more = db.batch(20);
        db.write(more, WriteMode::Append, 25).await;

        let connection = db.lancedb().await;
        let view = connection.open_materialized_view("v").await.unwrap();
        let theirs = view.refresh().execute().await.unwrap();
        let expected = db
            .evaluated(shape, Form::Plain, theirs.source_version.unwrap())
            .await;
        assert_eq!(db.rows("v").await, expected, "{}", shape.name);

        let more = db.batch(20);
        db.write(more, WriteMode::Append, 25).await;
        let ours = db.refresh("v").await.unwrap();
        assert_ne!(ours.mode, Mode::NoOp);
        let expected = db.evaluated(shape, Form::Plain, ours.source_version).await;
        assert_eq!(db.rows("v").await, expected, "{}", shape.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_race_with_lancedb_doubles_and_loses_nothing() {
    let mut db = Db::new(false);
    let batch = db.batch(60);
    db.write(batch, WriteMode::Create, 25).await;
    let shape = &SHAPES[0];
    db.create_view("v", shape.sql, Form::Plain).await;
    let connection = db.lancedb().await;
    for _ in 0..10 {
        let more = db.batch(10);
        db.write(more, WriteMode::Append, 25).await;
        let view = connection.open_materialized_view("v").await.unwrap();
        let (theirs, ours, also_ours) = tokio::join!(
            async { view.refresh().execute().await },
            db.refresh("v"),
            db.refresh("v"),
        );
        // lancedb gives up where it loses; relance looks again.
        drop(theirs);
        let ours = ours.unwrap();
        also_ours.unwrap();
        let expected = db.evaluated(shape, Form::Plain, ours.source_version).await;
        assert_eq!(db.rows("v").await, expected);
    }
}
