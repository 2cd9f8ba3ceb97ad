//! Storage that fails: for every operation k of a refresh, everything from k
//! on fails, once before it takes effect and once after. Then storage is
//! mended and the view refreshed again.
//!
//! At every k: readers see the view as it was or as it shall be; the same
//! refresh run again, or the next one, makes it right, in one commit; and what
//! had a durable claim when storage failed is not computed again.
//!
//! `RELANCE_SWEEP` says how many points of each sweep are tried (default 16;
//! 0 for all), chosen by `RELANCE_SEED`.

pub mod store;

use std::sync::Arc;

use chrono::TimeDelta;
use futures::StreamExt;
use lance::dataset::WriteMode;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use relance::engine::catalog::Catalog;
use relance::engine::error::EngineError;
use relance::engine::ledger::Claim;
use relance::engine::outcome::Outcome;
use relance::engine::refresh::{Progress, Request, refresh};
use tokio::sync::watch;

use crate::support::{Db, Form, GENERAL, Shape, commits_of, number, request, shape, update};
use store::{Faults, Wrap};

/// What is refreshed, and how.
struct Case {
    shape: &'static Shape,
    form: Form,
    full: bool,
    situation: Situation,
    workers: Workers,
}

#[derive(Clone, Copy, PartialEq)]
enum Situation {
    /// The view was never refreshed.
    First,
    /// Some of the source was changed, and some not.
    Changed,
    /// Changed, and source and view were compacted besides.
    Compacted,
    /// Changed after many small appends, so that the view has many small fragments.
    Many,
    /// Single rows of large units were deleted and updated, some twice.
    Touched,
}

#[derive(Clone, Copy)]
enum Workers {
    One,
    /// Several, whose storage fails at the same time.
    AllFail(u32),
    /// Several, and one of them is cut off.
    OneFails(u32),
}

impl Case {
    fn of(name: &str, form: Form) -> Case {
        Case {
            shape: shape(name),
            form,
            full: false,
            situation: Situation::Changed,
            workers: Workers::One,
        }
    }

    async fn prepared(&self) -> Db {
        let mut db = Db::new(true);
        if self.situation == Situation::Touched {
            self.touch(&mut db).await;
            return db;
        }
        let batch = db.batch(20);
        db.write(batch, WriteMode::Create, 20).await;
        if GENERAL.iter().any(|s| s.name == self.shape.name) {
            db.create_general_view("v", self.shape.sql).await;
        } else {
            db.create_view("v", self.shape.sql, self.form).await;
        }
        let appends = if self.situation == Situation::Many {
            9
        } else {
            4
        };
        for _ in 0..appends {
            if self.situation != Situation::First {
                db.refresh("v").await.unwrap();
            }
            let more = db.batch(20);
            db.write(more, WriteMode::Append, 20).await;
        }
        let mut source = db.open("src").await;
        // Not neighbours: units of their own.
        source.delete("id = 5 OR id = 47").await.unwrap();
        if self.situation == Situation::Compacted {
            db.refresh("v").await.unwrap();
            for table in ["src", "v"] {
                let mut table = db.open(table).await;
                compact_files(&mut table, CompactionOptions::default(), None)
                    .await
                    .unwrap();
            }
            let more = db.batch(20);
            db.write(more, WriteMode::Append, 20).await;
        }
        db
    }
}

impl Case {
    async fn touch(&self, db: &mut Db) {
        let batch = db.batch(120);
        db.write(batch, WriteMode::Create, 60).await;
        db.create_view("v", self.shape.sql, self.form).await;
        db.refresh("v").await.unwrap();
        let more = db.batch(60);
        db.write(more, WriteMode::Append, 60).await;
        let mut source = db.open("src").await;
        source.delete("id = 100").await.unwrap();
        db.refresh("v").await.unwrap();
        source.delete("id IN (7, 101, 150)").await.unwrap();
        let which = "id IN (20, 151)";
        update(source, which, "name", "'other'").await.unwrap();
    }
}

/// One worker with storage that fails by `faults`. The scheme has lance read
/// and write data files, too, through the object-store interface.
pub async fn run(db: &Db, asked: &Request, faults: Arc<Faults>) -> Result<Outcome, EngineError> {
    let uri = format!("dir://file-object-store://{}", db.folder.path().display());
    let catalog =
        Catalog::connect_wrapped(&uri, &Default::default(), Arc::new(Wrap(faults))).await?;
    let (progress, _) = watch::channel(Progress::default());
    refresh(&catalog, asked, &progress).await
}

/// All workers of a refresh, worker `n` with the faults `of(n)`.
pub async fn run_all(
    db: &Db,
    asked: &Request,
    workers: u32,
    of: impl Fn(u32) -> Arc<Faults>,
) -> Vec<Result<Outcome, EngineError>> {
    let runs = (0..workers).map(|index| {
        let asked = Request {
            workers,
            index,
            ..asked.clone()
        };
        let faults = of(index);
        async move { run(db, &asked, faults).await }
    });
    futures::future::join_all(runs).await
}

/// How many units of `refresh` have a durable claim that a file was written for.
fn durable(db: &Db, refresh: &str) -> usize {
    let folder = format!("{}/_relance/plans/{refresh}/claims", db.path("v"));
    let Ok(claims) = std::fs::read_dir(folder) else {
        return 0;
    };
    claims
        .filter_map(|entry| std::fs::read(entry.unwrap().path()).ok())
        .filter_map(|json| serde_json::from_slice::<Claim>(&json).ok())
        .filter(|claim| !claim.written().is_empty())
        .count()
}

async fn sweep(case: Case) {
    let template = case.prepared().await;
    let version = template.open("src").await.version().version;
    let before = template.rows("v").await;
    let wanted = template.evaluated(case.shape, case.form, version).await;

    // A run without faults tells how many operations and data files there are.
    let counter = Faults::none();
    let workers = match case.workers {
        Workers::One => 1,
        Workers::AllFail(n) | Workers::OneFails(n) => n,
    };
    let clean = template.copied();
    let asked = Request {
        full: case.full,
        ..request("v")
    };
    for result in run_all(&clean, &asked, workers, |_| counter.clone()).await {
        result.unwrap();
    }
    assert_eq!(clean.rows("v").await, wanted);
    let files = counter.written("v.lance/");
    // Workers that share storage do not always need the same number.
    let operations = counter.operations() * if workers > 1 { 5 } else { 4 } / 4;
    assert!(operations > 30, "only {operations} operations were seen");

    let mut points: Vec<(u64, bool)> = (0..operations)
        .flat_map(|k| [(k, false), (k, true)])
        .collect();
    let seed = number("RELANCE_SEED", 1);
    let some = number("RELANCE_SWEEP", 16) as usize;
    if some > 0 {
        points.shuffle(&mut StdRng::seed_from_u64(seed));
        points.truncate(some);
    }
    println!(
        "{} {:?}: {} of {operations} operations, before and after, RELANCE_SEED={seed}; \
         {files} data files",
        case.shape.name,
        case.form,
        points.len()
    );
    let (case, template, before, wanted) = (&case, &template, &before, &wanted);
    futures::stream::iter(points)
        .for_each_concurrent(3, |(k, after)| async move {
            point(case, template, before, wanted, files, k, after).await;
        })
        .await;
}

async fn point(
    case: &Case,
    template: &Db,
    before: &[String],
    wanted: &[String],
    files: usize,
    k: u64,
    after: bool,
) {
    let db = template.copied();
    let asked = Request {
        full: case.full,
        ..request("v")
    };
    let faults = Faults::new(k, after);
    let workers = match case.workers {
        Workers::One => 1,
        Workers::AllFail(n) | Workers::OneFails(n) => n,
    };
    let results = run_all(&db, &asked, workers, |n| match case.workers {
        Workers::OneFails(_) if n > 0 => Faults::none(),
        _ => faults.clone(),
    })
    .await;
    let now = db.rows("v").await;
    let place = format!(
        "{} {:?}, k={k} after={after}: {results:?}",
        case.shape.name, case.form
    );
    if results.iter().any(Result::is_ok) {
        assert_eq!(now, wanted, "{place}");
    } else {
        // Readers see the view as it was or as it shall be.
        assert!(now == before || now == wanted, "{place}");
    }
    for error in results.iter().filter_map(|r| r.as_ref().err()) {
        assert!(
            faults.struck() && error.retryable(),
            "{place}, which is not how failing storage is told"
        );
    }
    if matches!(case.workers, Workers::OneFails(_)) {
        assert!(results[1..].iter().all(Result::is_ok), "{place}");
    }
    let committed = commits_of(&db, "v", &asked.refresh).await;
    let claimed = durable(&db, &asked.refresh);

    // The same refresh again, as new pods would run it; or another one, which
    // takes over what this one left, unless it was told to compute all anew.
    let healthy = Faults::none();
    let next = if k % 2 == 1 && !case.full {
        request("v")
    } else {
        asked.clone()
    };
    let again = run_all(&db, &next, workers, |_| healthy.clone()).await;
    let place = format!("{place}, then {again:?}");
    assert!(again.iter().all(Result::is_ok), "{place}");
    assert_eq!(db.rows("v").await, wanted, "{place}");
    let mut commits = commits_of(&db, "v", &asked.refresh).await;
    if next.refresh != asked.refresh {
        commits += commits_of(&db, "v", &next.refresh).await;
    }
    assert_eq!(commits, 1, "{place}");
    let left = if committed > 0 {
        0
    } else {
        files.saturating_sub(claimed)
    };
    let written = healthy.written("v.lance/");
    // Workers may begin the same unit at the same time.
    if workers == 1 || left == 0 {
        assert!(
            written <= left,
            "{place}: {claimed} of {files} units were claimed, and {written} were computed again"
        );
    }
}

/// What a refresh that failed has left is no use to the next one where the
/// view has lost the fragments that rows were taken out of, or a clean-up took
/// what no version refers to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_staged_and_is_of_no_use_any_more_holds_nobody_up() {
    let mut template = Db::new(true);
    let batch = template.batch(400);
    template.write(batch, WriteMode::Create, 100).await;
    let shape = shape("filtered");
    template.create_view("v", shape.sql, Form::Plain).await;
    template.refresh("v").await.unwrap();
    let mut source = template.open("src").await;
    source.delete("id = 42").await.unwrap();
    let more = template.batch(60);
    template.write(more, WriteMode::Append, 60).await;
    let mut staged = 0;
    for k in (0..).step_by(3) {
        let failed = template.copied();
        let asked = request("v");
        if run(&failed, &asked, Faults::new(k, false)).await.is_ok() {
            break;
        }
        let committed = commits_of(&failed, "v", &asked.refresh).await;
        staged += usize::from(durable(&failed, &asked.refresh) > 0 && committed == 0);
        for cleaned in [false, true] {
            let db = failed.copied();
            let mut view = db.open("v").await;
            if cleaned {
                view.cleanup_old_versions(TimeDelta::zero(), Some(true), Some(false))
                    .await
                    .unwrap();
            } else {
                view.delete("true").await.unwrap();
            }
            // The same again, or another one.
            let next = if k % 2 == 1 {
                request("v")
            } else {
                asked.clone()
            };
            let done = db.refresh_as(next).await;
            let place = format!("k={k} cleaned={cleaned}: {done:?}");
            let done = done.expect(&place);
            if committed == 0 {
                db.assert_right(shape, Form::Plain, &done).await;
            }
        }
    }
    assert!(staged > 1, "{staged} claims were left");
}

macro_rules! sweeps {
    ($($name:ident: $case:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            sweep($case).await;
        }
    )*};
}

sweeps! {
    an_incremental_refresh_survives_a_fault_at_every_operation:
        Case::of("filtered", Form::Plain);
    an_incremental_refresh_of_the_older_form_survives_a_fault_at_every_operation:
        Case::of("carried", Form::Provenance);
    an_unnested_refresh_survives_a_fault_at_every_operation:
        Case::of("unnested", Form::Plain);
    a_grouped_refresh_survives_a_fault_at_every_operation:
        Case::of("grouped", Form::Plain);
    a_grouped_refresh_of_the_older_form_survives_a_fault_at_every_operation:
        Case::of("grouped", Form::Provenance);
    a_limited_refresh_survives_a_fault_at_every_operation:
        Case::of("limited", Form::Plain);
    a_refresh_of_branches_survives_a_fault_at_every_operation:
        Case::of("branches", Form::Plain);
    a_refresh_of_windows_survives_a_fault_at_every_operation:
        Case::of("window", Form::Plain);
    a_full_refresh_survives_a_fault_at_every_operation:
        Case { full: true, ..Case::of("expressions", Form::Plain) };
    a_first_refresh_survives_a_fault_at_every_operation:
        Case { situation: Situation::First, ..Case::of("filtered", Form::Provenance) };
    a_refresh_after_compactions_survives_a_fault_at_every_operation:
        Case { situation: Situation::Compacted, ..Case::of("filtered", Form::Plain) };
    a_refresh_of_many_small_fragments_survives_a_fault_at_every_operation:
        Case { situation: Situation::Many, ..Case::of("carried", Form::Plain) };
    a_refresh_that_takes_rows_out_survives_a_fault_at_every_operation:
        Case { situation: Situation::Touched, ..Case::of("filtered", Form::Plain) };
    a_refresh_that_takes_rows_out_of_the_older_form_survives_a_fault_at_every_operation:
        Case { situation: Situation::Touched, ..Case::of("expressions", Form::Provenance) };
    three_workers_that_take_rows_out_survive_storage_that_fails_for_all_of_them:
        Case {
            situation: Situation::Touched,
            workers: Workers::AllFail(3),
            ..Case::of("filtered", Form::Provenance)
        };
    three_workers_survive_storage_that_fails_for_all_of_them:
        Case { workers: Workers::AllFail(3), ..Case::of("filtered", Form::Plain) };
    two_workers_go_on_when_storage_fails_for_the_third:
        Case { workers: Workers::OneFails(3), ..Case::of("expressions", Form::Plain) };
    a_worker_goes_on_with_a_full_refresh_when_storage_fails_for_the_other:
        Case { full: true, workers: Workers::OneFails(2), ..Case::of("unnested", Form::Provenance) };
}
