//! The same engine over a real S3 server with conditional puts. The AWS_*
//! variables say where it is and `RELANCE_TEST_S3_DIR` which folder it serves,
//! as `tests/cluster/cluster s3` prints them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arrow_array::RecordBatchIterator;
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use lancedb::materialized_view::{MaterializedViewDefinition, prepare_definition};
use relance::engine::catalog::Catalog;
use relance::engine::error::EngineError;
use relance::engine::outcome::Mode;
use relance::engine::refresh::{Progress, refresh};
use relance::engine::store::{Listed, Store};
use tokio::sync::watch;

use crate::support::{request, rows_of};

pub struct Bucket {
    folder: PathBuf,
    name: String,
}

impl Bucket {
    pub fn new() -> Bucket {
        let served = std::env::var("RELANCE_TEST_S3_DIR").unwrap_or_else(|_| {
            panic!(
                "RELANCE_TEST_S3_DIR is not set; this test needs an S3 server: \
                 eval \"$(tests/cluster/cluster s3)\""
            )
        });
        let name = format!("engine-{}", uuid::Uuid::new_v4().simple());
        let folder = PathBuf::from(served).join(&name);
        std::fs::create_dir(&folder).unwrap();
        Bucket { folder, name }
    }

    pub fn uri(&self) -> String {
        format!("s3://{}/db", self.name)
    }

    pub async fn append(&self, ids: std::ops::Range<i64>, mode: WriteMode) {
        let batch = rows_of(ids.collect());
        let schema = batch.schema();
        let params = WriteParams {
            mode,
            max_rows_per_file: 20,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        Dataset::write(reader, &format!("{}/src.lance", self.uri()), Some(params))
            .await
            .unwrap();
    }

    pub async fn count(&self) -> usize {
        Dataset::open(&format!("{}/v.lance", self.uri()))
            .await
            .unwrap()
            .count_rows(None)
            .await
            .unwrap()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_in_a_bucket_are_refreshed_and_racing_refreshes_commit_once() {
    let bucket = Bucket::new();
    bucket.append(0..60, WriteMode::Create).await;
    let connection = lancedb::connect(&bucket.uri()).execute().await.unwrap();
    let source = connection.open_table("src").execute().await.unwrap();
    let definition =
        MaterializedViewDefinition::from_sql("SELECT id, x * 2 AS y FROM src WHERE id > 9")
            .unwrap();
    prepare_definition(&source, definition)
        .await
        .unwrap()
        .create("v")
        .await
        .unwrap();

    let catalog = Catalog::connect(&format!("dir://{}", bucket.uri()), &BTreeMap::new())
        .await
        .unwrap();
    let (progress, _) = watch::channel(Progress::default());
    let first = refresh(&catalog, &request("v"), &progress).await.unwrap();
    assert_eq!(first.mode, Mode::Rebuild);
    assert_eq!(bucket.count().await, 50);

    for round in 1..=3i64 {
        bucket
            .append(round * 60..round * 60 + 60, WriteMode::Append)
            .await;
        let asked: Vec<_> = (0..3).map(|_| request("v")).collect();
        let runs = asked
            .iter()
            .map(|asked| refresh(&catalog, asked, &progress));
        for outcome in futures::future::join_all(runs).await {
            let outcome = outcome.unwrap();
            assert_ne!(outcome.mode, Mode::Rebuild);
        }
        assert_eq!(bucket.count().await as i64, 50 + round * 60);
    }
}

#[tokio::test]
async fn a_refused_credential_is_named_by_no_error() {
    let bucket = Bucket::new();
    bucket.append(0..10, WriteMode::Create).await;
    let secret = "wrong-and-secret-0123456789";
    let options = BTreeMap::from([
        ("aws_access_key_id".to_string(), "somebody".to_string()),
        ("aws_secret_access_key".to_string(), secret.to_string()),
    ]);
    let error = async {
        let catalog = Catalog::connect(&format!("dir://{}", bucket.uri()), &options).await?;
        let (progress, _) = watch::channel(Progress::default());
        refresh(&catalog, &request("src"), &progress).await
    }
    .await
    .unwrap_err();
    assert!(
        matches!(error, EngineError::Unavailable { .. }),
        "{error:?}"
    );
    assert!(!format!("{error} {error:?}").contains(secret));
}

#[tokio::test]
async fn a_folder_of_very_many_files_is_listed_whole_from_several_names_on() {
    let bucket = Bucket::new();
    let folder = bucket.folder.join("db/v.lance/data");
    std::fs::create_dir_all(&folder).unwrap();
    let mut names = vec!["0100".to_string(), "0".to_string(), "zzz.lance".to_string()];
    // More than come in one call, some of them from names on that are far apart.
    for n in 0..2500u32 {
        let hash = n.wrapping_mul(2_654_435_769);
        names.push(match n % 10 {
            0 => format!("{hash:08x}.lance"),
            _ => format!("{:024b}{n:08x}.lance", hash >> 8),
        });
    }
    for name in &names {
        std::fs::write(folder.join(name), "x").unwrap();
    }
    names.sort();
    let store = Store::new(&BTreeMap::new());
    let table = format!("{}/v.lance", bucket.uri());
    let objects = store.objects(&table).await.unwrap();
    let folder = objects.within("data");
    let named = |listed: Vec<Listed>| -> Vec<String> {
        listed.into_iter().map(|listed| listed.name).collect()
    };
    assert_eq!(named(objects.list(&folder).await.unwrap()), names);
    for starts in [&["0100", "1000", "1100"][..], &["0"], &["5"], &[]] {
        let listed = objects.list_many(&folder, starts).await.unwrap();
        assert_eq!(named(listed), names, "{starts:?}");
    }
    let nothing = objects.list_many(&objects.within("none"), &["1"]).await;
    assert!(nothing.unwrap().is_empty());
}
