//! Three tables of the same columns, and what people do to them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow_array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch, RecordBatchIterator,
    StringArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use lance::Dataset;
use lance::dataset::optimize::compact_files;
use lance::dataset::{
    ColumnAlteration, MergeInsertBuilder, NewColumnTransform, WhenMatched, WhenNotMatched,
    WriteMode, WriteParams,
};
use rand::Rng;
use rand::rngs::StdRng;

use super::super::changes::{clean_up, compaction, empty_a_fragment, some_version};
use crate::support::{Db, update};

/// The tables. The last one is small.
pub const TABLES: &[&str] = &["a", "b", "d"];

/// The tables under change: of each, the next id, and whether its row ids are
/// stable.
pub struct Sources {
    tables: HashMap<&'static str, (i64, bool)>,
}

/// What the queries read.
fn columns() -> Vec<Field> {
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let of = |name: &str, data_type| Field::new(name, data_type, true);
    vec![
        of("id", DataType::Int64),
        of("k", DataType::Int64),
        of("f", DataType::Float64),
        of("g", DataType::Float64),
        of("s", DataType::Utf8),
        of("tags", DataType::List(item)),
    ]
}

impl Sources {
    pub async fn new(db: &Db, random: &mut StdRng) -> lance::Result<Sources> {
        let mut sources = Sources {
            tables: HashMap::new(),
        };
        for table in TABLES {
            sources.tables.insert(*table, (0, random.random_bool(0.5)));
            let count = random.random_range(0..sources.most(table));
            sources.create(db, table, count, random).await?;
        }
        Ok(sources)
    }

    /// The most rows that are added at a time.
    fn most(&self, table: &str) -> i64 {
        match table {
            "d" => 6,
            _ => 25,
        }
    }

    async fn create(
        &mut self,
        db: &Db,
        table: &'static str,
        count: i64,
        random: &mut StdRng,
    ) -> lance::Result<()> {
        let schema = Arc::new(Schema::new(columns()));
        let ids = self.new_ids(table, count);
        let per_file = random.random_range(3..40);
        self.write(db, table, &schema, &ids, WriteMode::Create, per_file)
            .await
    }

    fn new_ids(&mut self, table: &'static str, count: i64) -> Vec<i64> {
        let next = &mut self.tables.get_mut(table).unwrap().0;
        *next += count;
        (*next - count..*next).collect()
    }

    async fn write(
        &self,
        db: &Db,
        table: &str,
        schema: &SchemaRef,
        ids: &[i64],
        mode: WriteMode,
        max_rows_per_file: usize,
    ) -> lance::Result<()> {
        let params = WriteParams {
            mode,
            max_rows_per_file,
            enable_stable_row_ids: self.tables[table].1,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new([Ok(rows(schema, ids, 0))], schema.clone());
        Dataset::write(reader, &db.path(table), Some(params)).await?;
        Ok(())
    }

    /// Changes some table somehow, and tells how.
    pub async fn change(&mut self, db: &Db, random: &mut StdRng) -> lance::Result<String> {
        let table = ["a", "a", "b", "b", "d"][random.random_range(0..5)];
        self.change_table(db, table, random)
            .await
            .map(|told| format!("{table}: {told}"))
    }

    /// A small change to some table: most of its fragments stay as they are.
    pub async fn touch(&mut self, db: &Db, random: &mut StdRng) -> lance::Result<String> {
        let table = TABLES[random.random_range(0..TABLES.len())];
        if !Path::new(&db.path(table)).exists() || random.random_bool(0.2) {
            return self.change(db, random).await;
        }
        let mut source = db.open(table).await;
        if random.random_bool(0.3) {
            let id = random.random_range(0..self.tables[table].0.max(1));
            source.delete(&format!("id = {id}")).await?;
            return Ok(format!("{table}: delete {id}"));
        }
        let schema = Arc::new(Schema::from(source.schema()).with_metadata(HashMap::new()));
        let count = random.random_range(1..6);
        let ids = self.new_ids(table, count);
        self.write(db, table, &schema, &ids, WriteMode::Append, 10)
            .await?;
        Ok(format!("{table}: append {count}"))
    }

    async fn change_table(
        &mut self,
        db: &Db,
        table: &'static str,
        random: &mut StdRng,
    ) -> lance::Result<String> {
        let count = random.random_range(0..self.most(table));
        if !Path::new(&db.path(table)).exists() {
            self.create(db, table, count, random).await?;
            return Ok(format!("is created again, with {count}"));
        }
        let mut source = db.open(table).await;
        let schema: SchemaRef =
            Arc::new(Schema::from(source.schema()).with_metadata(HashMap::new()));
        let here = |name: &str| schema.column_with_name(name).is_some();
        if let Some(missing) = columns().iter().find(|field| !here(field.name()))
            && random.random_bool(0.7)
        {
            return self.add_again(db, table, missing, random).await;
        }
        let next = self.tables[table].0;
        let low = random.random_range(0..next.max(1));
        let high = low + random.random_range(1..12);
        let which = format!("id >= {low} AND id < {high}");
        match random.random_range(0..40) {
            10..=11 => {
                source.delete(&format!("id % 9 = {}", low % 9)).await?;
                Ok("delete here and there".into())
            }
            12 => {
                source.delete(&which).await?;
                Ok(format!("delete where {which}"))
            }
            13..=16 => {
                let (column, value) = [
                    ("f", "CAST('NaN' AS DOUBLE)"),
                    ("f", "CAST('-0.0' AS DOUBLE)"),
                    ("f", "NULL"),
                    ("g", "CAST('-inf' AS DOUBLE)"),
                    ("g", "g + 1"),
                    ("k", "NULL"),
                    ("k", "k + 1"),
                    ("s", "'changed'"),
                ][random.random_range(0..8)];
                if !here(column) {
                    return Ok("nothing".into());
                }
                update(source, &which, column, value).await?;
                Ok(format!("update {column} to {value} where {which}"))
            }
            17..=18 => {
                let mut ids: Vec<i64> = (low..high.min(next)).collect();
                ids.extend(self.new_ids(table, 2));
                let batch = rows(&schema, &ids, random.random_range(1..1000));
                merge(source, batch, WhenNotMatched::InsertAll).await?;
                Ok(format!("merge-insert {ids:?}"))
            }
            19..=20 => {
                let others: Vec<&str> = ["k", "f", "g", "s"]
                    .into_iter()
                    .filter(|n| here(n))
                    .collect();
                let Some(column) = others.get(random.random_range(0..4)) else {
                    return Ok("nothing".into());
                };
                fill(source, &schema, column, low..high, random).await?;
                Ok(format!("write column {column} anew where {which}"))
            }
            21..=23 => {
                compact_files(&mut source, compaction(random), None).await?;
                Ok("compact".into())
            }
            24 => {
                compact_files(&mut source, compaction(random), None).await?;
                clean_up(&source).await?;
                Ok("compact and clean up".into())
            }
            25..=26 => {
                let at = some_version(&source, random).await?;
                source.checkout_version(at).await?.restore().await?;
                Ok(format!("restore {at}"))
            }
            27 => {
                let again = random.random_bool(0.5);
                let ids: Vec<i64> = match again {
                    true => (0..next.min(count)).collect(),
                    false => self.new_ids(table, count),
                };
                self.write(db, table, &schema, &ids, WriteMode::Overwrite, 15)
                    .await?;
                Ok(format!("overwrite with {ids:?}"))
            }
            28 => {
                match random.random_bool(0.5) {
                    true => source.truncate_table().await?,
                    false => source.delete("true").await.map(|_| ())?,
                }
                Ok("truncate".into())
            }
            29..=30 => {
                drop(source);
                tokio::fs::remove_dir_all(db.path(table)).await?;
                if random.random_bool(0.3) {
                    return Ok("is dropped".into());
                }
                if random.random_bool(0.5) {
                    let ids: Vec<i64> = (0..next).collect();
                    let schema = Arc::new(Schema::new(columns()));
                    self.write(db, table, &schema, &ids, WriteMode::Create, 15)
                        .await?;
                    return Ok(format!("is dropped, and created again with 0..{next}"));
                }
                self.create(db, table, count, random).await?;
                Ok(format!("is dropped, and created again with {count}"))
            }
            31 => {
                let name = format!("other{}", schema.fields().len());
                let how = NewColumnTransform::SqlExpressions(vec![(name, "id * 5".into())]);
                source.add_columns(how, None, None).await?;
                Ok("add a column".into())
            }
            32 => {
                let other = |f: &&Arc<Field>| f.name().starts_with("other");
                let Some(other) = schema.fields().iter().find(other) else {
                    return Ok("nothing".into());
                };
                source.drop_columns(&[other.name()]).await?;
                Ok("drop a column that nobody reads".into())
            }
            33..=35 => {
                let column = ["k", "f", "g", "s", "tags"][random.random_range(0..5)];
                if !here(column) {
                    return Ok("nothing".into());
                }
                source.drop_columns(&[column]).await?;
                if random.random_bool(0.3) {
                    return Ok(format!("drop column {column}"));
                }
                let field = schema.field_with_name(column).unwrap();
                let told = self.add_again(db, table, field, random).await?;
                Ok(format!("drop column {column}, {told}"))
            }
            36 => {
                if !here("f") || !here("g") {
                    return Ok("nothing".into());
                }
                for (from, to) in [("f", "between"), ("g", "f"), ("between", "g")] {
                    let alteration = ColumnAlteration::new(from.into()).rename(to.into());
                    source.alter_columns(&[alteration]).await?;
                }
                Ok("f and g change their names".into())
            }
            37 => empty_a_fragment(source, random).await,
            38 => {
                clean_up(&source).await?;
                Ok("clean up".into())
            }
            _ => {
                let ids = self.new_ids(table, count);
                let per_file = random.random_range(3..40);
                self.write(db, table, &schema, &ids, WriteMode::Append, per_file)
                    .await?;
                Ok(format!("append {count}"))
            }
        }
    }

    /// Adds a column that was dropped.
    async fn add_again(
        &self,
        db: &Db,
        table: &str,
        field: &Field,
        random: &mut StdRng,
    ) -> lance::Result<String> {
        let mut source = db.open(table).await;
        let column = field.name().as_str();
        let value = match column {
            "k" => "id % 5",
            "s" => "CAST(id AS STRING)",
            "f" | "g" => "CAST(id AS DOUBLE) / 4",
            _ => "",
        };
        if random.random_bool(0.5) && !value.is_empty() {
            let how =
                NewColumnTransform::SqlExpressions(vec![(column.to_string(), value.to_string())]);
            source.add_columns(how, None, None).await?;
            return Ok(format!("add column {column} again"));
        }
        let how = NewColumnTransform::AllNulls(Arc::new(Schema::new(vec![field.clone()])));
        source.add_columns(how, None, None).await?;
        let next = self.tables[table].0;
        let schema = Arc::new(Schema::from(source.schema()).with_metadata(HashMap::new()));
        if random.random_bool(0.7) {
            fill(source, &schema, column, 0..next, random).await?;
            return Ok(format!("add column {column} again, and fill it"));
        }
        Ok(format!("add column {column} again, empty"))
    }
}

/// Writes `column` anew, and no other.
async fn fill(
    source: Dataset,
    schema: &SchemaRef,
    column: &str,
    ids: std::ops::Range<i64>,
    random: &mut StdRng,
) -> lance::Result<()> {
    let field = |name: &str| schema.field_with_name(name).unwrap().clone();
    let some = Arc::new(Schema::new(vec![field("id"), field(column)]));
    let batch = rows(
        &some,
        &ids.collect::<Vec<i64>>(),
        random.random_range(1..1000),
    );
    merge(source, batch, WhenNotMatched::DoNothing).await
}

async fn merge(source: Dataset, batch: RecordBatch, others: WhenNotMatched) -> lance::Result<()> {
    let schema = batch.schema();
    let reader = RecordBatchIterator::new([Ok(batch)], schema);
    let mut builder = MergeInsertBuilder::try_new(Arc::new(source), vec!["id".to_string()])?;
    builder
        .when_matched(WhenMatched::UpdateAll)
        .when_not_matched(others);
    builder
        .try_build()?
        .execute_reader(Box::new(reader))
        .await?;
    Ok(())
}

/// Rows of these ids: all that depends on anything depends on the id, the
/// column's name, and `variant`.
fn rows(schema: &SchemaRef, ids: &[i64], variant: u64) -> RecordBatch {
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| {
            let name = field.name().as_str();
            let drawn = ids.iter().map(|id| {
                let mut hasher = DefaultHasher::new();
                (name, id, variant).hash(&mut hasher);
                hasher.finish()
            });
            match name {
                "id" => Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef,
                "k" => Arc::new(Int64Array::from_iter(
                    drawn.map(|h| (h % 8 != 7).then_some((h >> 8) as i64 % 6)),
                )),
                "f" | "g" | "between" => Arc::new(Float64Array::from_iter(drawn.map(float))),
                "s" => Arc::new(StringArray::from_iter(drawn.map(|h| match h % 8 {
                    0 => None,
                    1 => Some(String::new()),
                    _ => Some(format!("s{}", (h >> 8) % 5)),
                }))),
                "tags" => lists(field.data_type(), drawn.collect()),
                _ => Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| id * 5))),
            }
        })
        .collect();
    RecordBatch::try_new(schema.clone(), columns).unwrap()
}

/// Often something special, and else a multiple of a quarter: their sums are
/// the same in any order.
fn float(h: u64) -> Option<f64> {
    match h % 16 {
        0 => None,
        1 => Some(f64::NAN),
        2 => Some(-0.0),
        3 => Some(0.0),
        4 => Some(f64::INFINITY),
        5 => Some(f64::NEG_INFINITY),
        _ => Some(((h >> 8) % 16) as f64 / 4.0 - 1.0),
    }
}

fn lists(of: &DataType, drawn: Vec<u64>) -> ArrayRef {
    let DataType::List(item) = of else {
        unreachable!("tags are lists")
    };
    let lengths: Vec<usize> = drawn.iter().map(|h| (h % 4) as usize).collect();
    let items = drawn.iter().flat_map(|h| {
        (0..h % 4)
            .map(move |i| (h >> 8) % 7 + i)
            .map(|v| (v != 5).then_some(v as i32))
    });
    Arc::new(ListArray::new(
        item.clone(),
        OffsetBuffer::from_lengths(lengths),
        Arc::new(Int32Array::from_iter(items)),
        Some(NullBuffer::from_iter(
            drawn.iter().map(|h| (h >> 16) % 5 > 0),
        )),
    ))
}
