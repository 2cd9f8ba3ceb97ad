//! Files that are gone: of the view, which a clean-up took from under a commit,
//! and of the source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lance::Dataset;
use lance::dataset::WriteMode;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use relance::engine::catalog::Catalog;
use relance::engine::outcome::Mode;
use relance::engine::refresh::{Progress, Request, refresh};
use tokio::sync::watch;

use crate::faults::store::{Faults, Wrap};
use crate::scenarios::filled;
use crate::support::{Db, Form, SHAPES, is_current, request};

#[tokio::test]
async fn a_source_that_has_lost_a_file_is_named_and_tried_again_by_nobody() {
    let grouped = "SELECT name, count(*) AS n FROM src GROUP BY name";
    let general = "SELECT DISTINCT name FROM src";
    for sql in [SHAPES[0].sql, grouped, general] {
        let db = filled(true).await;
        match sql == general {
            true => db.create_general_view("v", sql).await,
            false => db.create_view("v", sql, Form::Plain).await,
        }
        let source = db.open("src").await;
        let lost = &source.fragments()[1].files[0].path;
        let path = format!("{}/data/{lost}", db.path("src"));
        let aside = format!("{path}.aside");
        std::fs::rename(&path, &aside).unwrap();
        let error = db.refresh("v").await.unwrap_err();
        assert_eq!(error.reason(), "SourceDamaged", "{error}");
        assert!(!error.retryable());
        assert!(error.to_string().contains(lost.as_str()), "{error}");
        std::fs::rename(&aside, &path).unwrap();
        assert!(db.refresh("v").await.unwrap().rows_written > 0);
    }
}

#[tokio::test]
async fn files_that_a_cleanup_took_from_under_a_commit_are_computed_again() {
    let db = filled(true).await;
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    db.refresh("v").await.unwrap();
    for fragment in db.open("v").await.fragments().iter() {
        let file = format!("{}/data/{}", db.path("v"), fragment.files[0].path);
        std::fs::remove_file(file).unwrap();
    }
    assert!(!is_current(&db, "v").await, "who looks finds its files");
    let again = db.refresh("v").await.unwrap();
    assert!(again.rows_written > 0, "{again:?}");
    assert_eq!(
        db.rows("v").await,
        db.evaluated(&SHAPES[0], Form::Plain, 1).await
    );
}

#[tokio::test]
async fn files_that_a_cleanup_took_after_further_commits_are_computed_again() {
    let take = |table: &Dataset, files: &[String]| {
        let folder = std::path::Path::new(table.uri()).join("data");
        for file in files {
            std::fs::remove_file(folder.join(file)).unwrap();
        }
    };
    let files = |table: &Dataset| -> Vec<String> {
        let fragments = table.fragments().iter();
        fragments.map(|f| f.files[0].path.clone()).collect()
    };
    for compacted in [false, true] {
        let mut db = filled(true).await;
        db.create_view("v", SHAPES[0].sql, Form::Plain).await;
        db.refresh("v").await.unwrap();
        if compacted {
            let mut table = db.open("v").await;
            let options = CompactionOptions::default();
            compact_files(&mut table, options, None).await.unwrap();
        }
        let taken = files(&db.open("v").await);
        for _ in 0..3 {
            let more = db.batch(20);
            db.write(more, WriteMode::Append, 30).await;
            let done = db.refresh("v").await.unwrap();
            assert_eq!(done.mode, Mode::Incremental);
        }
        let now = files(&db.open("v").await);
        assert!(taken.iter().all(|file| now.contains(file)), "{now:?}");
        assert!(is_current(&db, "v").await);
        take(&db.open("v").await, &taken);
        assert!(!is_current(&db, "v").await);
        let mended = db.refresh("v").await.unwrap();
        assert!(mended.rows_written > 0, "{mended:?}");
        assert_eq!(
            db.rows("v").await,
            db.evaluated(&SHAPES[0], Form::Plain, mended.source_version)
                .await
        );
    }
}

#[tokio::test]
async fn files_of_a_commit_are_looked_for_until_no_cleanup_can_be_left() {
    let mut db = Db::new(true);
    for _ in 0..20 {
        let batch = db.batch(10);
        db.write(batch, WriteMode::Append, 10).await;
    }
    db.create_view("v", SHAPES[0].sql, Form::Plain).await;
    // A fragment, and a file, for each.
    let asked = Request {
        max_rows_per_fragment: Some(5),
        ..request("v")
    };
    db.refresh_as(asked).await.unwrap();
    let files = db.open("v").await.fragments().len() as u64;
    assert!(files >= 20);
    let operations = async || {
        // A version that changes nothing for the view.
        let mut source = db.open("src").await;
        let none: [(&str, &str); 1] = [("key", "value")];
        source.update_config(none).await.unwrap();
        let faults = Faults::none();
        let wrapper = Arc::new(Wrap(faults.clone()));
        let uri = format!("dir://file-object-store://{}", db.folder.path().display());
        let catalog = Catalog::connect_wrapped(&uri, &BTreeMap::new(), wrapper)
            .await
            .unwrap();
        let (progress, _) = watch::channel(Progress::default());
        let done = refresh(&catalog, &request("v"), &progress).await.unwrap();
        assert_eq!(done.mode, Mode::NoOp);
        faults.operations()
    };
    let looked = operations().await;
    let again = operations().await;
    assert!(again + files > looked, "{again}, and {looked} before");
    let ledgers = format!("{}/_relance/ledgers", db.path("v"));
    for ledger in std::fs::read_dir(ledgers).unwrap() {
        let days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
        let file = std::fs::File::open(ledger.unwrap().path()).unwrap();
        file.set_modified(days_ago).unwrap();
    }
    // Once more, and from then on no more.
    operations().await;
    let settled = operations().await;
    assert!(settled + files <= looked, "{settled}, and {looked} before");
}
