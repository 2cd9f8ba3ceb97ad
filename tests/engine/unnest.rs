//! Rows expanded by the elements of a list: what is wide is not copied for all of
//! them at a time.

use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use lance::dataset::WriteMode;

use crate::support::{Db, Form};

#[tokio::test]
async fn a_large_document_is_cut_into_many_pieces() {
    let offsets: Vec<usize> = (1..=500).collect();
    let body: String = (0..5_000_000)
        .map(|at| char::from(b'a' + (at % 23) as u8))
        .collect();
    let mut lists = ListBuilder::new(Int64Builder::new());
    lists.append_value(offsets.iter().map(|at| Some(*at as i64)));
    lists.append_null();
    lists.append_value([Some(3)]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from(vec![0, 1, 2]))),
        (
            "body",
            Arc::new(StringArray::from(vec![body.as_str(), "none", "small"])),
        ),
        ("offsets", Arc::new(lists.finish())),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    );
    let mut right: Vec<String> = offsets
        .iter()
        .map(|at| format!("0 | {at} | {}", &body[..*at]))
        .collect();
    right.push("2 | 3 | sma".to_string());
    right.sort();
    for form in [Form::Plain, Form::Provenance] {
        let db = Db::new(true);
        db.write(rows.as_ref().unwrap().clone(), WriteMode::Create, 100)
            .await;
        let sql = "SELECT id, o, left(body, o) AS piece FROM src, UNNEST(offsets) AS o";
        db.create_view("v", sql, form).await;
        db.refresh("v").await.unwrap();
        let mut found = db.rows("v").await;
        if form == Form::Provenance {
            // The source's row id is the last column.
            for row in &mut found {
                row.truncate(row.rfind(" | ").unwrap());
            }
        }
        assert!(found == right, "{form:?}");
    }
}
