//! What people do to a source, and to a view behind relance's back.
//!
//! Each change is made by lance alone. Where lance cannot make it, nothing
//! happens, and the history tells of it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchIterator};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::transaction::{Operation, TransactionBuilder};
use lance::dataset::{
    ColumnAlteration, CommitBuilder, MergeInsertBuilder, NewColumnTransform, WhenMatched,
    WhenNotMatched, WriteDestination, WriteMode, WriteParams,
};
use lance_core::utils::deletion::DeletionVector;
use lance_table::io::deletion::write_deletion_file;
use rand::Rng;
use rand::rngs::StdRng;

use super::data::{new_name, new_schema, new_type, rows};
use crate::support::{Db, foreign, update};

/// The source under change.
pub struct Source {
    pub key: String,
    pub next_id: i64,
}

fn ticked(name: &str) -> String {
    format!("`{name}`")
}

impl Source {
    /// Writes `count` new rows of `schema`.
    pub async fn write(
        &mut self,
        db: &Db,
        schema: &SchemaRef,
        count: i64,
        mode: WriteMode,
        per_file: usize,
    ) -> lance::Result<()> {
        let ids: Vec<i64> = (self.next_id..self.next_id + count).collect();
        self.next_id += count;
        let batch = rows(schema, &self.key, &ids, 0);
        let params = WriteParams {
            mode,
            max_rows_per_file: per_file,
            enable_stable_row_ids: db.stable_row_ids,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new([Ok(batch)], schema.clone());
        Dataset::write(reader, &db.path("src"), Some(params)).await?;
        Ok(())
    }

    /// Changes the source somehow, and tells how.
    pub async fn change(&mut self, db: &Db, random: &mut StdRng) -> lance::Result<String> {
        let mut source = db.open("src").await;
        let schema: SchemaRef =
            Arc::new(Schema::from(source.schema()).with_metadata(HashMap::new()));
        let key = ticked(&self.key);
        let low = random.random_range(0..self.next_id.max(1));
        let high = low + random.random_range(1..30);
        let others: Vec<Field> = schema
            .fields()
            .iter()
            .filter(|f| *f.name() != self.key)
            .map(|f| f.as_ref().clone())
            .collect();
        let other = (!others.is_empty()).then(|| &others[random.random_range(0..others.len())]);
        match (random.random_range(0..36), other) {
            (0..=5 | 30..=35, _) => {
                let count = random.random_range(0..40);
                let per_file = random.random_range(3..40);
                self.write(db, &schema, count, WriteMode::Append, per_file)
                    .await?;
                Ok(format!("append {count}"))
            }
            (6..=7, _) => {
                source.delete(&format!("{key} % 9 = {}", low % 9)).await?;
                Ok("delete here and there".into())
            }
            (8, _) => {
                let which = format!("{key} >= {low} AND {key} < {high}");
                source.delete(&which).await?;
                Ok(format!("delete where {which}"))
            }
            (9..=11, Some(other)) => {
                let column = ticked(other.name());
                let value = match other.data_type() {
                    DataType::Int64 => format!("coalesce({column}, 0) + 17"),
                    DataType::Utf8 => "'changed'".to_string(),
                    DataType::Boolean => "true".to_string(),
                    _ => return Ok("nothing".into()),
                };
                let which = format!("{key} >= {low} AND {key} < {high}");
                update(source, &which, other.name(), &value).await?;
                Ok(format!("update {column} where {which}"))
            }
            (12..=14, _) => {
                let mut ids: Vec<i64> = (low..high).collect();
                ids.extend(self.next_id..self.next_id + 3);
                self.next_id += 3;
                let batch = rows(&schema, &self.key, &ids, random.random_range(1..1000));
                let reader = RecordBatchIterator::new([Ok(batch)], schema);
                let on = vec![self.key.clone()];
                let mut builder = MergeInsertBuilder::try_new(Arc::new(source), on)?;
                builder
                    .when_matched(WhenMatched::UpdateAll)
                    .when_not_matched(WhenNotMatched::InsertAll);
                builder
                    .try_build()?
                    .execute_reader(Box::new(reader))
                    .await?;
                Ok(format!("merge-insert {low}..{high}"))
            }
            (15..=17, _) => {
                compact_files(&mut source, compaction(random), None).await?;
                Ok("compact".into())
            }
            (18..=19, _) => {
                let taken: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
                let name = new_name(random, &taken);
                let how = if random.random_bool(0.5) {
                    NewColumnTransform::SqlExpressions(vec![(name.clone(), format!("{key} * 5"))])
                } else {
                    let field = Field::new(&name, new_type(random), true);
                    NewColumnTransform::AllNulls(Arc::new(Schema::new(vec![field])))
                };
                source.add_columns(how, None, None).await?;
                Ok(format!("add column {name}"))
            }
            (20, Some(other)) => {
                source.drop_columns(&[&escaped(other.name())]).await?;
                Ok(format!("drop column {}", other.name()))
            }
            (21, Some(other)) => {
                let taken: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
                let name = new_name(random, &taken);
                let alteration = ColumnAlteration::new(escaped(other.name())).rename(name.clone());
                source.alter_columns(&[alteration]).await?;
                Ok(format!("rename column {} to {name}", other.name()))
            }
            (22..=23, _) => {
                let at = some_version(&source, random).await?;
                source.checkout_version(at).await?.restore().await?;
                Ok(format!("restore {at}"))
            }
            (24, _) => {
                let schema = if random.random_bool(0.4) {
                    new_schema(random, &self.key)
                } else {
                    schema
                };
                let count = random.random_range(0..60);
                let per_file = random.random_range(5..40);
                self.write(db, &schema, count, WriteMode::Overwrite, per_file)
                    .await?;
                Ok(format!("overwrite with {count}"))
            }
            (25, _) => {
                source.truncate_table().await?;
                Ok("truncate".into())
            }
            (26, _) => empty_a_fragment(source, random).await,
            (27, _) if random.random_bool(0.4) => {
                tokio::fs::remove_dir_all(db.path("src")).await?;
                let count = random.random_range(0..50);
                self.write(db, &schema, count, WriteMode::Create, 20)
                    .await?;
                Ok(format!("drop, and create with {count}"))
            }
            _ => {
                clean_up(&source).await?;
                Ok("clean up".into())
            }
        }
    }
}

/// A column's name as lance's paths into a schema have it.
fn escaped(name: &str) -> String {
    ticked(name)
}

pub fn compaction(random: &mut StdRng) -> CompactionOptions {
    CompactionOptions {
        // Not always all into one.
        target_rows_per_fragment: [20, 60, 1 << 20][random.random_range(0..3)],
        materialize_deletions_threshold: [0.0, 0.1][random.random_range(0..2)],
        ..Default::default()
    }
}

pub async fn some_version(table: &Dataset, random: &mut StdRng) -> lance::Result<u64> {
    let versions = table.versions().await?;
    Ok(versions[random.random_range(0..versions.len())].version)
}

pub async fn clean_up(table: &Dataset) -> lance::Result<()> {
    table
        .cleanup_old_versions(chrono::Duration::zero(), Some(true), Some(false))
        .await?;
    Ok(())
}

/// Deletes every row of a fragment and leaves the fragment.
pub async fn empty_a_fragment(table: Dataset, random: &mut StdRng) -> lance::Result<String> {
    let all = table.fragments();
    if all.is_empty() {
        return Ok("nothing".into());
    }
    let mut fragment = all[random.random_range(0..all.len())].clone();
    let rows = fragment.physical_rows.unwrap_or(0) as u32;
    let (version, id) = (table.version().version, fragment.id);
    let store = table.object_store(None).await?;
    fragment.deletion_file = write_deletion_file(
        &table.branch_location().path,
        id,
        version,
        &DeletionVector::Set((0..rows).collect()),
        &store,
    )
    .await?;
    let operation = Operation::Delete {
        updated_fragments: vec![fragment],
        deleted_fragment_ids: Vec::new(),
        predicate: "by hand".into(),
    };
    let transaction = TransactionBuilder::new(version, operation).build();
    CommitBuilder::new(WriteDestination::Dataset(Arc::new(table)))
        .execute(transaction)
        .await?;
    Ok(format!("empty fragment {id}"))
}

/// Someone else writes to view `name`.
pub async fn change_view(db: &Db, name: &str, random: &mut StdRng) -> lance::Result<String> {
    let mut view = db.open(name).await;
    let schema = Schema::from(view.schema());
    let first = ticked(schema.field(0).name());
    let what = match random.random_range(0..10) {
        0..=2 => {
            compact_files(&mut view, compaction(random), None).await?;
            "compacts"
        }
        3 => {
            let number = schema
                .fields()
                .iter()
                .find(|f| *f.data_type() == DataType::Int64);
            let which = match number {
                Some(field) => format!("{} % 2 = 0", ticked(field.name())),
                None => format!("{first} IS NULL"),
            };
            view.delete(&which).await?;
            "deletes from"
        }
        4 => {
            let batch: RecordBatch = foreign(&schema);
            let schema = batch.schema();
            let params = WriteParams {
                mode: WriteMode::Append,
                ..Default::default()
            };
            let reader = RecordBatchIterator::new([Ok(batch)], schema);
            Dataset::write(reader, &db.path(name), Some(params)).await?;
            "appends to"
        }
        5 => {
            let Some(field) = schema
                .fields()
                .iter()
                .find(|f| matches!(f.data_type(), DataType::Int64 | DataType::Utf8))
            else {
                return Ok("nothing".into());
            };
            let which = format!("{} IS NOT NULL", ticked(field.name()));
            update(view, &which, field.name(), "NULL").await?;
            "updates"
        }
        6 => {
            clean_up(&view).await?;
            "cleans up"
        }
        7 => {
            view.truncate_table().await?;
            "truncates"
        }
        8 => {
            return empty_a_fragment(view, random)
                .await
                .map(|s| format!("{s} of {name}"));
        }
        _ => {
            let at = some_version(&view, random).await?;
            view.checkout_version(at).await?.restore().await?;
            "restores"
        }
    };
    Ok(format!("someone {what} {name}"))
}
