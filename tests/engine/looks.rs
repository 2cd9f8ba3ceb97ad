//! Looks at local tables, in threads that are none of tokio's, see what any
//! other look sees: whatever the tables are called, indices and all.

use std::sync::Arc;

use lance::dataset::WriteMode;
use relance::catalog::{SharedCatalog, Source};
use relance::engine::catalog::Catalog;
use relance::engine::freshness::{self, Freshness};
use relance::engine::view;
use relance::telemetry::Metrics;

use crate::support::{Db, Form, rows_of};

fn shared(db: &Db) -> SharedCatalog {
    let source = Source {
        uri: format!("dir://{}", db.folder.path().display()),
        ..Default::default()
    };
    SharedCatalog::new(source, &Metrics::default())
}

/// Whether `view` is current, and what is at `table`.
async fn seen(catalog: &Catalog, id: &str) -> (Freshness, u64, String) {
    let (info, table) = view::open(catalog, &[id.to_string()]).await.unwrap();
    let freshness = freshness::check(catalog, &info, &table, None)
        .await
        .unwrap();
    (freshness, info.version, info.uri)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_in_a_thread_for_looks_sees_what_any_other_does() {
    let db = Db::new(true);
    db.write(rows_of((0..50).collect()), WriteMode::Create, 20)
        .await;
    db.create_view("v", "SELECT id FROM src", Form::Plain).await;
    db.refresh("v").await.unwrap();
    // A path that is another one when it is written as a URI.
    for odd in ["an odd one", "a+b"] {
        let (from, to) = (db.path("v"), db.path(odd));
        let copied = std::process::Command::new("cp")
            .args(["-r", &from, &to])
            .status();
        assert!(copied.unwrap().success());
    }
    let shared = shared(&db);
    for id in ["v", "an odd one", "a+b"] {
        let catalog = shared.get().await.unwrap();
        assert!(catalog.is_local());
        let usual = seen(&catalog, id).await;
        let id: Arc<str> = id.into();
        let look = |catalog| {
            let id = id.clone();
            async move {
                (
                    seen(&catalog, &id).await,
                    std::thread::current().name().map(String::from),
                )
            }
        };
        let (found, thread) = shared.look(catalog, look).await.unwrap();
        assert_eq!(found, usual, "{id}");
        assert!(matches!(found.0, Freshness::Current(_)), "{id}");
        assert!(thread.is_some_and(|name| name.starts_with("look-")), "{id}");
    }
}
