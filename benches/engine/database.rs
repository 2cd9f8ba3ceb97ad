//! A database of one source and a view of it for each peer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchIterator};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use datafusion::prelude::SessionContext;
use lance::Dataset;
use lance::datafusion::LanceTableProvider;
use lance::dataset::{WriteMode, WriteParams};
use lancedb::materialized_view::{
    DEFINITION_META_KEY, MaterializedViewDefinition, definition_metadata_from_sql_with_defaults,
    prepare_definition,
};
use tempfile::TempDir;

use crate::workload::{Workload, rates};

/// Fragments that every source starts with.
pub const FRAGMENTS: u64 = 200;

/// Rows that are made at a time.
const BATCH: u64 = 20_000;

/// A database in a folder of its own.
pub struct Database {
    folder: TempDir,
    /// What is in it.
    pub workload: &'static Workload,
    /// Whether the source has stable row ids.
    pub stable_row_ids: bool,
    /// Rows that the source has had.
    pub rows: u64,
    /// Rows of each of its first fragments.
    pub fragment_rows: u64,
}

impl Database {
    /// Makes a source of `rows` rows in [`FRAGMENTS`] fragments.
    pub async fn new(
        parent: &Path,
        workload: &'static Workload,
        rows: u64,
        stable_row_ids: bool,
    ) -> Database {
        let folder = tempfile::Builder::new()
            .prefix("relance-bench")
            .tempdir_in(parent)
            .expect("a folder");
        let mut database = Database {
            folder,
            workload,
            stable_row_ids,
            rows: 0,
            fragment_rows: rows.div_ceil(FRAGMENTS),
        };
        database.append(rows).await;
        if !workload.lancedb {
            let rates = rates();
            let schema = rates.schema();
            let rates = RecordBatchIterator::new([Ok(rates)], schema);
            Dataset::write(rates, &database.path("rates"), None)
                .await
                .expect("written");
        }
        database
    }

    /// The database's folder.
    pub fn folder(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// Where a table is.
    pub fn path(&self, table: &str) -> String {
        format!("{}/{table}.lance", self.folder())
    }

    /// Opens a table.
    pub async fn open(&self, table: &str) -> Dataset {
        Dataset::open(&self.path(table)).await.expect("a table")
    }

    /// Appends `rows` rows to the source.
    pub async fn append(&mut self, rows: u64) {
        let (from, to) = (self.rows, self.rows + rows);
        self.rows = to;
        let make = self.workload.rows;
        let batches = (from..to)
            .step_by(BATCH as usize)
            .map(move |at| Ok::<RecordBatch, ArrowError>(make(at, to.min(at + BATCH))));
        let params = WriteParams {
            mode: if from == 0 {
                WriteMode::Create
            } else {
                WriteMode::Append
            },
            max_rows_per_file: self.fragment_rows as usize,
            enable_stable_row_ids: self.stable_row_ids,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new(batches, make(0, 0).schema());
        Dataset::write(reader, &self.path("src"), Some(params))
            .await
            .expect("written");
    }

    /// Creates view `name`, empty: as the lancedb crate does, or with the
    /// source's row ids as lancedb 0.40 has it.
    pub async fn create_view(&self, name: &str, row_ids: bool) {
        let schema = if self.workload.lancedb {
            let connection = lancedb::connect(&self.folder())
                .execute()
                .await
                .expect("connected");
            let source = connection
                .open_table("src")
                .execute()
                .await
                .expect("opened");
            let definition =
                MaterializedViewDefinition::from_sql(self.workload.sql).expect("a definition");
            let prepared = prepare_definition(&source, definition)
                .await
                .expect("prepared");
            if !row_ids {
                prepared.create(name).await.expect("created");
                return;
            }
            let mut fields: Vec<Arc<Field>> = prepared.schema().fields().iter().cloned().collect();
            fields.push(Arc::new(Field::new(
                "__source_row_id",
                DataType::UInt64,
                false,
            )));
            Schema::new_with_metadata(fields, prepared.schema().metadata().clone())
        } else {
            let frame = self.frame(self.workload.sql).await;
            let definition = definition_metadata_from_sql_with_defaults(self.workload.sql, "", &[]);
            Schema::new_with_metadata(
                frame.schema().as_arrow().fields().clone(),
                HashMap::from([(DEFINITION_META_KEY.to_string(), definition)]),
            )
        };
        let rows = std::iter::empty::<Result<RecordBatch, ArrowError>>();
        let reader = RecordBatchIterator::new(rows, Arc::new(schema));
        Dataset::write(reader, &self.path(name), None)
            .await
            .expect("written");
    }

    /// `sql` over the tables as they are, for DataFusion.
    pub async fn frame(&self, sql: &str) -> datafusion::dataframe::DataFrame {
        let context = SessionContext::new();
        let mut tables = vec!["src"];
        if !self.workload.lancedb {
            tables.push("rates");
        }
        for table in tables {
            let dataset = Arc::new(self.open(table).await);
            let provider = LanceTableProvider::new(dataset, false, false);
            context
                .register_table(table, Arc::new(provider))
                .expect("registered");
        }
        context.sql(sql).await.expect("a plan")
    }

    /// How many rows the view must have now.
    pub async fn expected(&self) -> u64 {
        if let Some(scan) = &self.workload.scan {
            let filter = Some(scan.filter.to_string());
            let source = self.open("src").await;
            return source.count_rows(filter).await.expect("counted") as u64;
        }
        self.frame(self.workload.oracle)
            .await
            .count()
            .await
            .expect("counted") as u64
    }

    /// How many rows table `name` has.
    pub async fn count(&self, name: &str) -> u64 {
        let table = self.open(name).await;
        table.count_rows(None).await.expect("counted") as u64
    }

    /// How many bytes the data files of `table` have.
    pub fn bytes(&self, table: &str) -> u64 {
        let data = std::fs::read_dir(format!("{}/data", self.path(table)));
        data.expect("data files")
            .map(|file| file.and_then(|f| f.metadata()).map_or(0, |m| m.len()))
            .sum()
    }

    /// Removes the files that only older versions of `views` refer to.
    pub async fn tidy(&self, views: impl Iterator<Item = &str>) {
        for view in views {
            let table = self.open(view).await;
            table
                .cleanup_old_versions(chrono::TimeDelta::zero(), None, None)
                .await
                .expect("cleaned up");
        }
    }

    /// Some row's id.
    pub fn some_id(&self, round: usize) -> u64 {
        self.rows / 2 + 7 * round as u64
    }
}
