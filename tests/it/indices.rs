//! The indices of a view, as a refresh on a real cluster leaves them.

use lancedb::index::Index;
use lancedb::index::scalar::BTreeIndexBuilder;
use serde_json::json;

use crate::operator::Operator;

#[tokio::test]
async fn the_status_tells_what_indices_do_not_cover_and_an_option_covers_it() {
    let operator = Operator::running().await;
    operator.apply("first", json!({"view": ["v"]})).await;
    let status = operator.succeeded("first").await;
    assert_eq!(status.unindexed_rows, None, "the view has no index");

    let folder = operator.tables.display().to_string();
    let connection = lancedb::connect(&folder).execute().await.unwrap();
    let view = connection.open_table("v").execute().await.unwrap();
    let index = Index::BTree(BTreeIndexBuilder::default());
    view.create_index(&["id"], index).execute().await.unwrap();
    operator.append("src", 10..15).await;
    operator.apply("second", json!({"view": ["v"]})).await;
    let status = operator.succeeded("second").await;
    assert_eq!(status.unindexed_rows, Some(5));

    // Nothing is left to compute; the indices are.
    let spec = json!({"view": ["v"], "optimizeIndices": true});
    operator.apply("third", spec).await;
    let status = operator.succeeded("third").await;
    assert_eq!(status.unindexed_rows, Some(0));
}
