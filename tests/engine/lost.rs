//! Files that are gone: of the view, which a clean-up took from under a commit,
//! and of the source.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::TimeDelta;
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::transaction::{Operation, Transaction};
use lance::dataset::{CommitBuilder, WriteMode};
use relance::engine::catalog::Catalog;
use relance::engine::ledger::deletions;
use relance::engine::outcome::{self, Mode};
use relance::engine::refresh::{Progress, Request, refresh};
use tokio::sync::watch;

use crate::faults::run;
use crate::faults::store::{Faults, Wrap};
use crate::scenarios::filled;
use crate::support::{Db, Form, GENERAL, SHAPES, Shape, commits_of, is_current, request, shape};

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
    age_ledgers(&db);
    // Once more, and from then on no more.
    operations().await;
    let settled = operations().await;
    assert!(settled + files <= looked, "{settled}, and {looked} before");
}

#[tokio::test]
async fn a_ledger_of_a_commit_that_never_landed_hides_no_file_that_is_gone() {
    for old in [false, true] {
        let (shape, db) = (shape("filtered"), filled(true).await);
        db.create_view("v", shape.sql, Form::Plain).await;
        db.refresh("v").await.unwrap();
        leave_a_ledger(&db).await;
        if old {
            age_ledgers(&db);
        }
        // What was committed before is taken all the same.
        for path in files(&db, None).await {
            std::fs::remove_file(format!("{}/{path}", db.path("v"))).unwrap();
        }
        assert!(!is_current(&db, "v").await, "old {old}");
        let mut source = db.open("src").await;
        let none: [(&str, &str); 1] = [("key", "value")];
        source.update_config(none).await.unwrap();
        let done = db.refresh("v").await.unwrap();
        assert_whole(&db, shape, &done, &format!("old {old}")).await;
    }
}

#[tokio::test]
async fn a_ledger_of_a_commit_that_never_landed_is_followed_by_one_of_the_view() {
    let db = filled(true).await;
    db.create_view("v", shape("filtered").sql, Form::Plain)
        .await;
    db.refresh("v").await.unwrap();
    leave_a_ledger(&db).await;
    let ledgers = format!("{}/_relance/ledgers", db.path("v"));
    let count = || std::fs::read_dir(&ledgers).unwrap().count();
    let before = count();
    for after in [1, 1] {
        let done = db.refresh("v").await.unwrap();
        assert_eq!((done.mode, done.bytes_written), (Mode::NoOp, 0));
        assert!(is_current(&db, "v").await);
        assert_eq!(count(), before + after);
    }
}

/// Leaves what a full refresh does that dies when it has written its ledger.
async fn leave_a_ledger(db: &Db) {
    let full = Request {
        full: true,
        ..request("v")
    };
    let dies = Faults::after("/ledgers/");
    run(db, &full, dies).await.unwrap_err();
}

/// Has the view's ledgers be as old as none is that is looked after.
fn age_ledgers(db: &Db) {
    let ledgers = format!("{}/_relance/ledgers", db.path("v"));
    for ledger in std::fs::read_dir(ledgers).unwrap() {
        let days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
        let file = std::fs::File::open(ledger.unwrap().path()).unwrap();
        file.set_modified(days_ago).unwrap();
    }
}

/// A view of `shape`, of whose source most is as it was when it was refreshed, a
/// row is gone, and some are new.
async fn changed(shape: &Shape) -> Db {
    let mut db = Db::new(true);
    let batch = db.batch(400);
    db.write(batch, WriteMode::Create, 100).await;
    match GENERAL.iter().any(|s| s.name == shape.name) {
        true => db.create_general_view("v", shape.sql).await,
        false => db.create_view("v", shape.sql, Form::Plain).await,
    }
    db.refresh("v").await.unwrap();
    let mut source = db.open("src").await;
    source.delete("id = 42").await.unwrap();
    let more = db.batch(60);
    db.write(more, WriteMode::Append, 60).await;
    db
}

/// All files that a version of the view has, or its latest, by their paths.
async fn files(db: &Db, version: Option<u64>) -> HashSet<String> {
    let mut table = db.open("v").await;
    if let Some(version) = version {
        table = table.checkout_version(version).await.unwrap();
    }
    let fragments = table.fragments().iter();
    let of = fragments.flat_map(|fragment| {
        let data = fragment.files.iter().map(|f| format!("data/{}", f.path));
        data.chain(deletions(fragment))
    });
    of.collect()
}

/// Takes what the view's latest version brought in, as far as it is there, as a
/// clean-up does that looked at the versions before.
async fn rob(db: &Db) {
    let version = db.open("v").await.version().version;
    let before = files(db, Some(version - 1)).await;
    let brought = files(db, None).await;
    let paths = brought.difference(&before);
    let taken = paths.map(|path| std::fs::remove_file(format!("{}/{path}", db.path("v"))));
    assert!(taken.filter(Result::is_ok).count() > 0);
}

/// Has lance clean the view up, files that no version has included.
async fn clean_up(db: &Db) {
    let view = db.open("v").await;
    view.cleanup_old_versions(TimeDelta::zero(), Some(true), Some(false))
        .await
        .unwrap();
}

async fn assert_whole(db: &Db, shape: &Shape, done: &outcome::Outcome, place: &str) {
    assert_eq!(
        db.rows("v").await,
        db.evaluated(shape, Form::Plain, done.source_version).await,
        "{place}"
    );
    assert!(is_current(db, "v").await, "{place}");
    let version = db.open("v").await.version().version;
    assert_eq!(done.view_version, version, "{place}");
    let again = db.refresh("v").await.unwrap();
    assert_eq!(again.mode, Mode::NoOp, "{place}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_a_cleanup_took_before_their_commit_are_computed_again_by_the_same_refresh() {
    for name in ["filtered", "grouped", "limited", "window"] {
        let (shape, template) = (shape(name), changed(shape(name)).await);
        // While the files are looked at; and after that.
        for held in ["/ledgers/", "v.lance/_transactions"] {
            for full in [false, true] {
                let db = template.copied();
                let asked = Request {
                    full,
                    ..request("v")
                };
                let faults = Faults::holding(held);
                let cleaned = async {
                    faults.reached().await;
                    clean_up(&db).await;
                    faults.go_on();
                };
                let (done, ()) = futures::join!(run(&db, &asked, faults.clone()), cleaned);
                let done = done.unwrap();
                let place = format!("{name}, held at {held}, full {full}: {done:?}");
                let commits = commits_of(&db, "v", &asked.refresh).await;
                assert!(
                    commits == 2 || held == "/ledgers/",
                    "{commits} commits: {place}"
                );
                assert_whole(&db, shape, &done, &place).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_files_a_cleanup_took_counts_for_nobody() {
    for name in ["filtered", "grouped"] {
        let (shape, template) = (shape(name), changed(shape(name)).await);
        for (full, beside) in [(false, false), (true, false), (false, true)] {
            let db = template.copied();
            let asked = request("v");
            let worker = |index| Request {
                workers: if beside { 2 } else { 1 },
                index,
                full,
                ..asked.clone()
            };
            // A worker that is about to commit the same.
            let late = Faults::holding("/ledgers/");
            let other = async {
                match beside {
                    true => Some(run(&db, &worker(1), late.clone()).await.unwrap()),
                    false => None,
                }
            };
            let dies = async {
                if beside {
                    late.reached().await;
                }
                // It dies when it has committed.
                let faults = Faults::after("v.lance/_versions");
                run(&db, &worker(0), faults).await.unwrap_err();
                rob(&db).await;
                let id = ["v".to_string()];
                let found = outcome::find(&db.catalog().await, &id, &asked.refresh).await;
                assert_eq!(found.unwrap(), None);
                late.go_on();
            };
            let (other, ()) = futures::join!(other, dies);
            let done = db.refresh_as(worker(0)).await.unwrap();
            let place = format!("{name}, full {full}, beside another {beside}: {done:?}");
            assert!(other.is_none_or(|other| other == done), "{place}");
            assert_eq!(commits_of(&db, "v", &asked.refresh).await, 2, "{place}");
            assert_whole(&db, shape, &done, &place).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleanup_that_goes_on_taking_files_is_found_out_until_it_ends() {
    let (shape, db) = (shape("filtered"), changed(shape("filtered")).await);
    let asked = request("v");
    let faults = Faults::holding("v.lance/_transactions");
    let cleaned = async {
        faults.reached().await;
        // It takes the new data files; what takes rows out comes later.
        clean_up(&db).await;
        faults.go_on_until("/ledgers/");
        faults.reached().await;
        rob(&db).await;
        faults.go_on();
    };
    let (done, ()) = futures::join!(run(&db, &asked, faults.clone()), cleaned);
    let done = done.unwrap();
    assert_eq!(commits_of(&db, "v", &asked.refresh).await, 3, "{done:?}");
    assert_whole(&db, shape, &done, "taken in two steps").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_lost_its_files_is_not_what_the_refresh_tells_of_once_another_mended_it() {
    let (shape, db) = (shape("filtered"), changed(shape("filtered")).await);
    let asked = request("v");
    let faults = Faults::holding("v.lance/_transactions");
    let mended = async {
        faults.reached().await;
        clean_up(&db).await;
        faults.go_on_until("/plan-0002.json");
        faults.reached().await;
        let mended = db.refresh("v").await.unwrap();
        assert!(mended.rows_written > 0);
        faults.go_on();
        mended
    };
    let (done, mended) = futures::join!(run(&db, &asked, faults.clone()), mended);
    let done = done.unwrap();
    assert_eq!(
        (done.mode, done.view_version),
        (Mode::NoOp, mended.view_version)
    );
    assert_whole(&db, shape, &done, "mended by another").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lands_beside_a_second_commit_is_put_right_as_beside_the_first() {
    let (shape, db) = (shape("filtered"), changed(shape("filtered")).await);
    let asked = request("v");
    let dies = Faults::after("v.lance/_versions");
    run(&db, &asked, dies).await.unwrap_err();
    rob(&db).await;
    let before = db.open("v").await.version().version;
    // The same refresh again; beside its commit rows go that it keeps.
    let faults = Faults::holding("v.lance/_transactions");
    let damaged = async {
        faults.reached().await;
        let view = Arc::new(db.open("v").await);
        let gone = Operation::Delete {
            updated_fragments: Vec::new(),
            deleted_fragment_ids: vec![view.fragments()[1].id],
            predicate: "true".to_string(),
        };
        let transaction = Transaction::new(before, gone, None);
        let view = CommitBuilder::new(view).execute(transaction).await.unwrap();
        assert_eq!(view.version().version, before + 1);
        faults.go_on();
    };
    let (done, ()) = futures::join!(run(&db, &asked, faults.clone()), damaged);
    let done = done.unwrap();
    assert_whole(&db, shape, &done, "damaged beside").await;
}
