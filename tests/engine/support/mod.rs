//! A small database on disk, views of both lancedb forms over it, and an
//! evaluation of a view from scratch to compare with.

mod memory;
mod processes;
mod shapes;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{
    ArrayRef, Int64Array, RecordBatch, RecordBatchIterator, StringArray, UInt64Array,
};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::{UpdateBuilder, WriteMode, WriteParams};
use lance_io::stream::RecordBatchStream;
use lancedb::materialized_view::{
    MaterializedViewDefinition, definition_metadata_from_sql, prepare_definition,
};
use relance::engine::catalog::Catalog;
use relance::engine::commit;
use relance::engine::error::EngineError;
use relance::engine::freshness::{self, Freshness};
use relance::engine::outcome::Outcome;
use relance::engine::refresh::{Progress, Request, refresh};
use relance::engine::view;
use tempfile::TempDir;
use tokio::sync::watch;

pub use processes::{Python, Worker, relance_refresh};
pub use shapes::{GENERAL, SHAPES, Shape, shape};

/// Which form a view's table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// lancedb crate 0.41: just the declared columns.
    Plain,
    /// lancedb 0.38 to 0.40: with `__source_row_id`.
    Provenance,
}

/// A database with one source table, `src`.
pub struct Db {
    pub folder: TempDir,
    pub stable_row_ids: bool,
    next_id: i64,
}

impl Db {
    pub fn new(stable_row_ids: bool) -> Db {
        Db {
            folder: tempfile::tempdir().unwrap(),
            stable_row_ids,
            next_id: 0,
        }
    }

    /// The same database again, in a folder of its own.
    pub fn copied(&self) -> Db {
        let copy = Db {
            folder: tempfile::tempdir().unwrap(),
            stable_row_ids: self.stable_row_ids,
            next_id: self.next_id,
        };
        copy_tree(self.folder.path(), copy.folder.path());
        copy
    }

    pub fn path(&self, table: &str) -> String {
        format!("{}/{table}.lance", self.folder.path().display())
    }

    pub async fn catalog(&self) -> Catalog {
        let uri = format!("dir://{}", self.folder.path().display());
        Catalog::connect(&uri, &BTreeMap::new()).await.unwrap()
    }

    pub async fn open(&self, table: &str) -> Dataset {
        Dataset::open(&self.path(table)).await.unwrap()
    }

    /// `rows` new rows. Ids go up; the other values depend on the id alone.
    pub fn batch(&mut self, rows: usize) -> RecordBatch {
        let from = self.next_id;
        self.next_id += rows as i64;
        rows_of((from..self.next_id).collect())
    }

    /// Writes `batch` to `src`.
    pub async fn write(&self, batch: RecordBatch, mode: WriteMode, max_rows_per_file: usize) {
        let schema = batch.schema();
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        let params = WriteParams {
            mode,
            max_rows_per_file,
            enable_stable_row_ids: self.stable_row_ids,
            ..Default::default()
        };
        Dataset::write(reader, &self.path("src"), Some(params))
            .await
            .unwrap();
    }

    /// A connection of lancedb 0.41 that knows nothing of earlier ones.
    pub async fn lancedb(&self) -> lancedb::Connection {
        lancedb::connect(&self.folder.path().display().to_string())
            .execute()
            .await
            .unwrap()
    }

    /// Creates view `name`, empty, as lancedb 0.41 does, or in the older form.
    pub async fn create_view(&self, name: &str, sql: &str, form: Form) {
        self.try_create_view(name, sql, form).await.unwrap();
    }

    /// As [`Db::create_view`]; lancedb refuses some definitions.
    pub async fn try_create_view(&self, name: &str, sql: &str, form: Form) -> lancedb::Result<()> {
        let connection = self.lancedb().await;
        let definition = MaterializedViewDefinition::from_sql(sql)?;
        let source = connection
            .open_table(&definition.source_table)
            .execute()
            .await?;
        let prepared = prepare_definition(&source, definition).await?;
        if form == Form::Plain {
            prepared.create(name).await?;
            return Ok(());
        }
        let mut fields: Vec<Field> = prepared
            .schema()
            .fields()
            .iter()
            .map(|f| f.as_ref().clone())
            .collect();
        fields.push(Field::new("__source_row_id", DataType::UInt64, false));
        let schema = Arc::new(Schema::new_with_metadata(
            fields,
            prepared.schema().metadata().clone(),
        ));
        let reader = RecordBatchIterator::new(
            std::iter::empty::<Result<RecordBatch, arrow_schema::ArrowError>>(),
            schema,
        );
        Dataset::write(reader, &self.path(name), None)
            .await
            .unwrap();
        Ok(())
    }

    /// Creates view `name` of `src` in SQL that only a SQL server stores, empty.
    pub async fn create_general_view(&self, name: &str, sql: &str) {
        let source = self.open("src").await;
        let source = Schema::from(source.schema()).with_metadata(HashMap::new());
        let context = SessionContext::new();
        let table = datafusion::datasource::empty::EmptyTable::new(Arc::new(source));
        context.register_table("src", Arc::new(table)).unwrap();
        let query = context.sql(sql).await.unwrap();
        let fields: Vec<Field> = query
            .schema()
            .fields()
            .iter()
            .map(|f| Field::new(f.name(), f.data_type().clone(), true))
            .collect();
        self.create_stored(name, fields, definition_metadata_from_sql(sql))
            .await;
    }

    pub async fn refresh_as(&self, request: Request) -> Result<Outcome, EngineError> {
        let (progress, _) = watch::channel(Progress::default());
        refresh(&self.catalog().await, &request, &progress).await
    }

    pub async fn refresh(&self, view: &str) -> Result<Outcome, EngineError> {
        self.refresh_as(request(view)).await
    }

    /// The view's rows, each as text, sorted.
    pub async fn rows(&self, view: &str) -> Vec<String> {
        let table = self.open(view).await;
        let batches: Vec<RecordBatch> = table
            .scan()
            .try_into_stream()
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        render(&batches)
    }

    /// What `shape` gives over `src` at `version`, evaluated from scratch.
    pub async fn evaluated(&self, shape: &Shape, form: Form, version: u64) -> Vec<String> {
        let sql = (shape.oracle)(form);
        self.evaluated_sql(&sql, shape.limit, version)
            .await
            .unwrap()
            .1
    }

    /// Asserts that the view `v` has just the rows of `shape` over the source
    /// version that a refresh says it left it at.
    pub async fn assert_right(&self, shape: &Shape, form: Form, done: &Outcome) {
        assert_eq!(
            self.rows("v").await,
            self.evaluated(shape, form, done.source_version).await,
            "{} {form:?}",
            shape.name
        );
    }

    /// What `sql` gives over `src` at `version`, evaluated from scratch by
    /// DataFusion over all rows in memory, in their order; the first `limit`
    /// rows of it. The types, and each row as text, sorted.
    pub async fn evaluated_sql(
        &self,
        sql: &str,
        limit: Option<usize>,
        version: u64,
    ) -> datafusion::common::Result<(Vec<DataType>, Vec<String>)> {
        let source = self
            .open("src")
            .await
            .checkout_version(version)
            .await
            .unwrap();
        let mut scan = source.scan();
        scan.with_row_id();
        let stream = scan.try_into_stream().await.unwrap();
        let schema: SchemaRef = stream.schema();
        let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        let config = datafusion::prelude::SessionConfig::new().with_target_partitions(1);
        let context = SessionContext::new_with_config(config);
        let table = datafusion::datasource::MemTable::try_new(schema, vec![batches])?;
        context.register_table("src", Arc::new(table))?;
        let mut query = context.sql(sql).await?;
        if let Some(limit) = limit {
            // Rows after the last one that is asked for are not computed.
            query = query.limit(0, Some(limit))?;
        }
        let types = query
            .schema()
            .fields()
            .iter()
            .map(|f| f.data_type().clone())
            .collect();
        let batches = query.collect().await?;
        Ok((types, render(&batches)))
    }
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// How many versions of `view` refresh `uid` has committed as they were meant:
/// one that landed on top of another change is looked at again.
pub async fn commits_of(db: &Db, view: &str, uid: &str) -> usize {
    let table = db.open(view).await;
    let mut found = 0;
    for version in 1..=table.version().version {
        // Versions may have been cleaned up.
        let transaction = table.read_transaction_by_version(version).await;
        found += usize::from(
            transaction
                .ok()
                .flatten()
                .and_then(|t| t.transaction_properties)
                .is_some_and(|p| {
                    p.get(commit::REFRESH).map(String::as_str) == Some(uid)
                        && p.get(commit::READ_VERSION) == Some(&(version - 1).to_string())
                }),
        );
    }
    found
}

/// Whether `view` is right as it is, as one tells who looks at it.
pub async fn is_current(db: &Db, view: &str) -> bool {
    is_current_at(db, view, None).await
}

/// The same of `view` and a version of its source.
pub async fn is_current_at(db: &Db, view: &str, src_version: Option<u64>) -> bool {
    let catalog = db.catalog().await;
    let (info, table) = view::open(&catalog, &[view.to_string()]).await.unwrap();
    let found = freshness::check(&catalog, &info, &table, src_version).await;
    matches!(found, Ok(Freshness::Current(_)))
}

/// Sets `column` of the rows for which `which` holds to `value`, both in SQL.
pub async fn update(table: Dataset, which: &str, column: &str, value: &str) -> lance::Result<()> {
    let update = UpdateBuilder::new(Arc::new(table)).update_where(which)?;
    update.set(column, value)?.build()?.execute().await?;
    Ok(())
}

/// The number in environment variable `name`, or else `default`.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

/// A refresh of `view` with a UID of its own.
pub fn request(view: &str) -> Request {
    Request {
        view: vec![view.to_string()],
        refresh: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    }
}

/// The source's rows of these ids.
pub fn rows_of(ids: Vec<i64>) -> RecordBatch {
    let mut tags = ListBuilder::new(Int32Builder::new());
    for id in &ids {
        match id % 5 {
            0 => tags.append_null(),
            1 => tags.append_value([]),
            n => tags.append_value((0..n as i32).map(|i| (i != 2).then_some(*id as i32 * 10 + i))),
        }
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        (
            "x",
            Arc::new(Int64Array::from_iter(
                ids.iter().map(|id| (id % 7 != 3).then_some(id * 3 % 101)),
            )),
        ),
        (
            "name",
            Arc::new(StringArray::from_iter(
                ids.iter()
                    .map(|id| (id % 11 != 4).then(|| format!("row {id}"))),
            )),
        ),
        ("tags", Arc::new(tags.finish())),
        ("id", Arc::new(Int64Array::from(ids))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
        .unwrap()
}

/// Each row of `batches` as text, sorted.
pub fn render(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<ArrayFormatter> = batch
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<String> = columns.iter().map(|c| c.value(row).to_string()).collect();
            rows.push(cells.join(" | "));
        }
    }
    rows.sort();
    rows
}

/// One-column batch of view-like rows that no source has.
pub fn foreign(schema: &Schema) -> RecordBatch {
    let columns = schema
        .fields()
        .iter()
        .map(|f| -> ArrayRef {
            match f.data_type() {
                DataType::UInt64 => Arc::new(UInt64Array::from(vec![u64::MAX - 1])),
                other if f.is_nullable() => arrow_array::new_null_array(other, 1),
                _ => Arc::new(Int64Array::from(vec![-5])),
            }
        })
        .collect();
    RecordBatch::try_new(
        Arc::new(Schema::new_with_metadata(
            schema.fields().clone(),
            HashMap::new(),
        )),
        columns,
    )
    .unwrap()
}
