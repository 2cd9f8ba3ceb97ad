//! `LIMIT` views: they read the first rows of their source, and no more.

use std::path::PathBuf;

use lance::dataset::WriteMode;
use relance::engine::outcome::Mode;

use crate::support::{Db, Form, shape};

/// A source of ten fragments of 20 rows, and a view of its first 25 rows that
/// pass a filter.
async fn filled() -> Db {
    let mut db = Db::new(true);
    let batch = db.batch(200);
    db.write(batch, WriteMode::Create, 20).await;
    db.create_view("v", shape("limited").sql, Form::Plain).await;
    db
}

async fn right(db: &Db) -> Vec<String> {
    let version = db.open("src").await.version().version;
    db.evaluated(shape("limited"), Form::Plain, version).await
}

#[tokio::test]
async fn what_comes_after_the_first_rows_is_not_read() {
    let db = filled().await;
    db.create_view("w", "SELECT id FROM src LIMIT 30", Form::Plain)
        .await;
    let wanted = right(&db).await;
    // The data of all but the first two fragments is gone.
    let source = db.open("src").await;
    for fragment in &source.fragments()[2..] {
        for file in &fragment.files {
            let path = PathBuf::from(db.path("src")).join("data").join(&file.path);
            std::fs::remove_file(path).unwrap();
        }
    }
    let done = db.refresh("v").await.unwrap();
    assert_eq!(done.rows_written, 25);
    assert_eq!(db.rows("v").await, wanted);
    db.refresh("w").await.unwrap();
    assert_eq!(db.rows("w").await.len(), 30);
}

#[tokio::test]
async fn changes_after_the_first_rows_cost_nothing_and_those_among_them_do() {
    let mut db = filled().await;
    db.refresh("v").await.unwrap();
    let more = db.batch(10);
    db.write(more, WriteMode::Append, 20).await;
    let appended = db.refresh("v").await.unwrap();
    assert_eq!(appended.mode, Mode::NoOp);
    db.open("src").await.delete("id >= 150").await.unwrap();
    let deleted = db.refresh("v").await.unwrap();
    assert_eq!(deleted.mode, Mode::NoOp);
    assert_eq!(db.rows("v").await, right(&db).await);

    db.open("src").await.delete("id = 12").await.unwrap();
    let among = db.refresh("v").await.unwrap();
    assert_eq!((among.mode, among.rows_written), (Mode::Rebuild, 25));
    assert_eq!(db.rows("v").await, right(&db).await);
    // As many rows as there are fragments to give them.
    db.open("src").await.delete("id < 140").await.unwrap();
    db.refresh("v").await.unwrap();
    assert_eq!(db.rows("v").await, right(&db).await);
    let more = db.batch(60);
    db.write(more, WriteMode::Append, 20).await;
    db.refresh("v").await.unwrap();
    assert_eq!(db.rows("v").await, right(&db).await);
    assert_eq!(db.rows("v").await.len(), 25);
    let again = db.refresh("v").await.unwrap();
    assert_eq!(again.mode, Mode::NoOp);
}

#[tokio::test]
async fn rows_that_others_took_from_the_view_come_back() {
    let db = filled().await;
    db.refresh("v").await.unwrap();
    db.open("v").await.delete("id < 20").await.unwrap();
    db.refresh("v").await.unwrap();
    assert_eq!(db.rows("v").await, right(&db).await);
}
