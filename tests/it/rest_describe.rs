//! The least that LanceDB's clients ask around a refresh.

use serde_json::{Value, json};

use crate::support::World;

#[tokio::test]
async fn jobs_describe_follows_the_refresh_to_its_end() {
    let world = World::new().await;
    let describe = async |body: Value| {
        world
            .server
            .post("/v1/jobs/describe", body.to_string())
            .await
    };
    let job_id = world.refresh("").await.job_id();
    let told = describe(json!({ "job_id": job_id })).await;
    assert_eq!(told.body["job_state"], "IN_PROGRESS", "{told:?}");
    assert_eq!(told.body["job_id"], job_id);
    assert!(
        told.body["creation_ms"]
            .as_i64()
            .is_some_and(|ms| ms > 1_600_000_000_000),
        "{told:?}"
    );
    let progress = json!({"unitsDone": 1, "unitsTotal": 1, "rowsWritten": 8, "bytesWritten": 9, "summary": "1/1"});
    world.end(&job_id, json!({
        "phase": "Succeeded", "mode": "Rebuild", "sourceVersion": 1, "viewVersion": 2, "progress": progress,
    }))
    .await;
    let told = describe(json!({ "job_id": job_id })).await;
    assert_eq!(told.body["job_state"], "DONE");
    assert_eq!(
        told.body["result"],
        json!({"mode": "rebuild", "rows_written": 8, "source_version": 1, "version": 2})
    );
    let job_id = world.refresh("").await.job_id();
    world
        .end(
            &job_id,
            json!({"phase": "Failed", "message": "the sentence"}),
        )
        .await;
    let told = describe(json!({ "job_id": job_id })).await;
    assert_eq!(
        (&told.body["job_state"], &told.body["failure"]["message"]),
        (&json!("FAILED"), &json!("the sentence"))
    );
    for unknown in ["nope", "../secrets/x", "a/status", "", "UPPER"] {
        let said = describe(json!({ "job_id": unknown })).await;
        assert!(said.error(404, 10).contains(unknown), "{said:?}");
    }
    assert_eq!(
        describe(json!({})).await.error(400, 13),
        "job_id is missing"
    );
    assert_eq!(
        describe(json!({"job_id": 3})).await.error(400, 13),
        "job_id is 3 and must be a string"
    );
}

#[tokio::test]
async fn tables_and_views_are_described_as_lancedb_reads_them() {
    let world = World::new().await;
    let post = async |path: &str, body: &str| world.server.post(path, body.to_string()).await;
    for path in ["/v1/table/src/describe/", "/v1/table/src/describe"] {
        let told = post(path, "{}").await;
        assert_eq!(told.status, 200, "{told:?}");
        assert_eq!(told.body["version"], 1);
        assert!(
            told.body["location"]
                .as_str()
                .is_some_and(|at| at.ends_with("src.lance")),
            "{told:?}"
        );
        let fields = json!([{"name": "id", "type": {"type": "int64"}, "nullable": false}]);
        assert_eq!(told.body["schema"]["fields"], fields);
    }
    assert_eq!(
        post("/v1/table/src/describe/", r#"{"version": 1}"#)
            .await
            .status,
        200
    );
    for version in ["0", "9", "18446744073709551615"] {
        let body = format!(r#"{{"version": {version}}}"#);
        let said = post("/v1/table/src/describe/", &body).await;
        assert!(said.error(404, 11).contains(version), "{said:?}");
    }
    let version_1 = post("/v1/table/v/describe/", r#"{"version": 1}"#).await;
    assert_eq!(version_1.body["version"], 1, "{version_1:?}");
    for field in ["tag", "branch"] {
        let body = json!({ field: "x" }).to_string();
        let said = post("/v1/table/src/describe/", &body).await;
        assert!(said.error(400, 13).starts_with(field), "{said:?}");
    }
    post("/v1/table/src/describe/", r#"{"version": "x"}"#)
        .await
        .error(400, 13);
    post("/v1/table/nope/describe/", "").await.error(404, 4);
    let told = post("/v1/materialized_view/v/describe", "").await;
    assert_eq!(
        (told.status, &told.body["source_table"]),
        (200, &json!("src")),
        "{told:?}"
    );
    assert!(
        told.body["query"]
            .as_str()
            .is_some_and(|sql| sql.starts_with("SELECT")),
        "{told:?}"
    );
    post("/v1/materialized_view/geneva_udtf/describe", "")
        .await
        .error(501, 0);
    post("/v1/materialized_view/src/describe", "")
        .await
        .error(400, 13);
}
