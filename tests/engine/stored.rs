//! Columns that tables hold otherwise than scans show them: JSON and blobs.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, Int64Array, LargeBinaryArray, RecordBatch, RecordBatchIterator, StringArray,
    StructArray,
};
use arrow_schema::{DataType, Field, Schema};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use lance_file::version::LanceFileVersion;
use lancedb::materialized_view::definition_metadata_from_sql;
use relance::engine::outcome::Mode;

use crate::support::{Db, render};

/// JSON texts, among them scalars whose bytes could be taken for others.
const DOCS: [Option<&str>; 8] = [
    Some(r#"{"a":1,"b":[1,2]}"#),
    Some(r#""SKU0001""#),
    Some("123456789"),
    Some(r#""foo bar""#),
    Some(r#""abcDEF12""#),
    Some("[1,2,3]"),
    Some("null"),
    None,
];

fn field(name: &str, data_type: DataType, key: &str, value: &str) -> Field {
    let metadata = HashMap::from([(key.to_string(), value.to_string())]);
    Field::new(name, data_type, true).with_metadata(metadata)
}

fn batch(column: Field, from: i64, values: ArrayRef) -> RecordBatch {
    let ids = Int64Array::from_iter_values(from..from + values.len() as i64);
    let fields = vec![Field::new("id", DataType::Int64, true), column];
    let schema = Arc::new(Schema::new(fields));
    RecordBatch::try_new(schema, vec![Arc::new(ids), values]).unwrap()
}

fn docs(from: i64) -> RecordBatch {
    let json = field("doc", DataType::Utf8, "ARROW:extension:name", "arrow.json");
    batch(json, from, Arc::new(StringArray::from_iter(DOCS)))
}

/// What a query of lance's gives over a table.
async fn scanned(table: &Dataset, columns: &[(&str, &str)]) -> Vec<String> {
    let mut scan = table.scan();
    scan.project_with_transform(columns).unwrap();
    let rows = scan.try_into_stream().await.unwrap();
    render(&rows.try_collect::<Vec<_>>().await.unwrap())
}

async fn assert_same_docs(db: &Db, view: &str) {
    let (source, view) = (db.open("src").await, db.open(view).await);
    for columns in [
        vec![("id", "id"), ("doc", "doc")],
        vec![("id", "id"), ("a", "json_extract(doc, '$.a')")],
    ] {
        let right = scanned(&source, &columns).await;
        assert_eq!(scanned(&view, &columns).await, right, "{columns:?}");
    }
}

#[tokio::test]
async fn json_is_the_same_json_in_the_view() {
    let db = Db::new(true);
    db.write(docs(0), WriteMode::Create, 100).await;
    let stored = db.open("src").await;
    let fields = Schema::from(stored.schema()).fields;
    let fields: Vec<Field> = fields.iter().map(|f| f.as_ref().clone()).collect();
    for (view, sql) in [
        ("v", "SELECT id, doc FROM src"),
        ("general", "SELECT DISTINCT id, doc FROM src"),
    ] {
        let definition = definition_metadata_from_sql(sql);
        db.create_stored(view, fields.clone(), definition).await;
        db.refresh(view).await.unwrap();
        assert_same_docs(&db, view).await;
    }
    let mut taken_out = false;
    // So many that small fragments are put together.
    for round in 1..=9 {
        db.write(docs(round * 100), WriteMode::Append, 100).await;
        db.refresh("v").await.unwrap();
    }
    assert!(db.open("v").await.fragments().len() < 9);
    for round in 1..=9 {
        // Rows of JSON too are taken out of what stands.
        let which = format!("id = {}", round * 100 + 1);
        db.open("src").await.delete(&which).await.unwrap();
        let done = db.refresh("v").await.unwrap();
        assert_eq!(done.mode, Mode::Incremental);
        taken_out |= done.rows_written == 0;
    }
    assert!(taken_out);
    assert_same_docs(&db, "v").await;
}

#[tokio::test]
async fn groups_by_what_is_in_json_are_right() {
    let db = Db::new(true);
    db.write(docs(0), WriteMode::Create, 100).await;
    let sql = "SELECT id % 2 AS odd, count(doc) AS n FROM src GROUP BY id % 2";
    db.create_view("v", sql, crate::support::Form::Plain).await;
    db.refresh("v").await.unwrap();
    assert_eq!(db.rows("v").await, ["0 | 4", "1 | 3"]);
    db.write(docs(8), WriteMode::Append, 100).await;
    db.refresh("v").await.unwrap();
    assert_eq!(db.rows("v").await, ["0 | 8", "1 | 6"]);
}

fn blobs(from: i64) -> RecordBatch {
    let blob = field("blob", DataType::LargeBinary, "lance-encoding:blob", "true");
    let values = (0..4).map(|at| (at != 2).then(|| vec![b'a' + at as u8; 50_000 * at]));
    batch(blob, from, Arc::new(LargeBinaryArray::from_iter(values)))
}

/// The bytes of each row's blob.
async fn bytes(table: Dataset) -> Vec<(i64, Option<Vec<u8>>)> {
    let mut scan = table.scan();
    scan.project(&["id"]).unwrap().with_row_id();
    let rows = scan.try_into_batch().await.unwrap();
    let ids = rows["id"].as_any().downcast_ref::<Int64Array>().unwrap();
    let table = Arc::new(table);
    let mut found = Vec::new();
    for (id, row) in ids
        .values()
        .iter()
        .zip(rows["_rowid"].to_data().buffers()[0].typed_data())
    {
        let blobs = table.take_blobs(&[*row], "blob").await.unwrap();
        for blob in blobs {
            let bytes = match blob {
                Some(blob) => Some(blob.read().await.unwrap().to_vec()),
                None => None,
            };
            found.push((*id, bytes));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn blobs_are_carried_through() {
    let db = Db::new(true);
    db.write(blobs(0), WriteMode::Create, 100).await;
    let stored = db.open("src").await;
    let fields = Schema::from(stored.schema()).fields;
    let fields: Vec<Field> = fields.iter().map(|f| f.as_ref().clone()).collect();
    let queries = [
        "SELECT id, blob FROM src WHERE id <> 1",
        "SELECT s.id, s.blob FROM src AS s JOIN src AS t ON s.id = t.id WHERE s.id <> 1",
    ];
    for (at, sql) in queries.into_iter().enumerate() {
        let definition = definition_metadata_from_sql(sql);
        let name = format!("v{at}");
        db.create_stored(&name, fields.clone(), definition).await;
        db.refresh(&name).await.unwrap();
    }
    for round in 1..=9 {
        db.write(blobs(round * 10), WriteMode::Append, 100).await;
        let done = db.refresh("v0").await.unwrap();
        assert_eq!((done.mode, done.rows_written), (Mode::Incremental, 4));
    }
    assert_eq!(db.refresh("v0").await.unwrap().mode, Mode::NoOp);
    // A blob that is taken out is not looked for among the others.
    db.open("src").await.delete("id = 23").await.unwrap();
    let done = db.refresh("v0").await.unwrap();
    assert_eq!((done.mode, done.rows_written), (Mode::Incremental, 3));
    db.refresh("v1").await.unwrap();
    let mut right = bytes(db.open("src").await).await;
    assert!(right.len() >= 30);
    right.retain(|(id, _)| *id != 1);
    assert_eq!(bytes(db.open("v0").await).await, right);
    assert_eq!(bytes(db.open("v1").await).await, right);
}

#[tokio::test]
async fn blobs_within_a_struct_are_carried_through() {
    let db = Db::new(true);
    let bytes = LargeBinaryArray::from_iter((0..4u8).map(|at| (at != 2).then(|| vec![at; 9000])));
    let blob = field("blob", DataType::LargeBinary, "lance-encoding:blob", "true");
    let fields = arrow_schema::Fields::from(vec![blob]);
    let values = StructArray::new(fields.clone(), vec![Arc::new(bytes)], None);
    let column = Field::new("s", DataType::Struct(fields), true);
    // As tables of the older blobs hold it.
    let params = WriteParams {
        data_storage_version: Some(LanceFileVersion::V2_0),
        ..Default::default()
    };
    let written = batch(column, 0, Arc::new(values));
    let rows = RecordBatchIterator::new([Ok(written.clone())], written.schema());
    let source = Dataset::write(rows, &db.path("src"), Some(params)).await;
    let stored = Schema::from(source.unwrap().schema()).fields;
    let plain = |field: &Field| field.clone().with_metadata(HashMap::new());
    for (view, sql) in [
        ("v", "SELECT id, s.blob AS b FROM src"),
        ("w", "SELECT DISTINCT id, s.blob AS b FROM src"),
    ] {
        let DataType::Struct(inner) = stored[1].data_type() else {
            panic!("{stored:?}");
        };
        let fields = vec![plain(&stored[0]), plain(&inner[0]).with_name("b")];
        let definition = definition_metadata_from_sql(sql);
        db.create_stored(view, fields, definition).await;
        db.refresh(view).await.unwrap();
        let found = db.open(view).await.scan().try_into_batch().await.unwrap();
        let found = found["b"].as_any().downcast_ref::<LargeBinaryArray>();
        let mut lengths: Vec<_> = found.unwrap().iter().map(|b| b.map(<[u8]>::len)).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [None, Some(9000), Some(9000), Some(9000)], "{sql}");
    }
}
