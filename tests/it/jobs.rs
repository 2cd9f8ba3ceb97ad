//! The jobs API over a real Kubernetes API, without a controller: what a
//! controller would write to a refresh's status, these tests write themselves.

use std::collections::BTreeSet;
use std::io::Cursor;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use kube::ResourceExt;
use relance::engine::catalog::Catalog;
use relance::engine::refresh::{Progress, Request, refresh};
use relance::resources::names;
use serde_json::{Value, json};

use crate::support::{Answer, Server, World};

async fn ask(server: &Server, operation: &str, body: Value) -> Answer {
    server
        .post(&format!("/v1/jobs/{operation}"), body.to_string())
        .await
}

async fn events(server: &Server, body: Value) -> RecordBatch {
    let request = server
        .request(reqwest::Method::POST, "/v1/jobs/query_events")
        .body(body.to_string());
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(
        answer.headers()["content-type"],
        "application/vnd.apache.arrow.stream"
    );
    let bytes = answer.bytes().await.expect("a body");
    let reader = StreamReader::try_new(Cursor::new(bytes), None).expect("an Arrow stream");
    let schema = reader.schema();
    let batches: Vec<RecordBatch> = reader.map(|batch| batch.expect("a batch")).collect();
    arrow_select::concat::concat_batches(&schema, &batches).expect("one batch")
}

fn text(events: &RecordBatch, column: &str) -> Vec<String> {
    let column = events.column_by_name(column).expect("the column");
    let column = column.as_string::<i32>();
    column
        .iter()
        .map(|value| value.unwrap_or_default().to_string())
        .collect()
}

/// Runs the refresh's work right here, as its worker would.
async fn work(world: &World, job_id: &str) {
    let stored = world.space.refreshes.get(job_id).await.expect("stored");
    let uri = format!("dir://{}", world.folder.path().display());
    let catalog = Catalog::connect(&uri, &Default::default())
        .await
        .expect("the catalog");
    let request = Request {
        view: stored.spec.view.clone(),
        refresh: stored.uid().expect("a UID"),
        job: Some(job_id.to_string()),
        ..Default::default()
    };
    let (progress, _) = tokio::sync::watch::channel(Progress::default());
    refresh(&catalog, &request, &progress)
        .await
        .expect("refreshed");
}

#[tokio::test]
async fn another_replica_knows_a_job_as_soon_as_it_is_accepted() {
    let world = World::new().await;
    let replica = world.replica().await;
    for _ in 0..20 {
        let job_id = world.refresh("").await.job_id();
        let told = ask(&replica, "describe", json!({ "job_id": job_id })).await;
        assert_eq!(told.body["job_state"], "IN_PROGRESS", "{told:?}");
    }
}

#[tokio::test]
async fn jobs_are_listed_in_pages_that_survive_what_comes_and_goes() {
    let world = World::new().await;
    let mut made = BTreeSet::new();
    for _ in 0..7 {
        made.insert(world.refresh("").await.job_id());
    }
    let mut told: Vec<String> = Vec::new();
    let mut tokens = BTreeSet::new();
    let mut body = json!({"limit": 3});
    loop {
        let page = ask(&world.server, "list", body.clone()).await;
        assert_eq!(page.status, 200, "{page:?}");
        let jobs = page.body["jobs"].as_array().expect("jobs");
        assert!(jobs.len() <= 3, "{page:?}");
        for job in jobs {
            assert_eq!(job["table"], "v");
            assert_eq!(job["job_type"], "refresh_materialized_view");
            assert_eq!(job["state"], "IN_PROGRESS");
            assert!(job["created_at_millis"].as_i64().is_some_and(|ms| ms > 0));
            told.push(job["job_id"].as_str().expect("an id").to_string());
        }
        // One comes before all others, and one that was told goes.
        let mut early = relance::resources::MaterializedViewRefresh::new(
            &format!("0-{}", told.len()),
            relance::resources::MaterializedViewRefreshSpec::of(["v"]),
        );
        early.metadata.namespace = Some(world.space.namespace.clone());
        let created = world
            .space
            .refreshes
            .create(&Default::default(), &early)
            .await;
        created.expect("created");
        let deleted = world
            .space
            .refreshes
            .delete(&told[told.len() - 1], &Default::default())
            .await;
        deleted.expect("deleted");
        let Some(token) = page.body["page_token"].as_str() else {
            break;
        };
        assert!(tokens.insert(token.to_string()), "a token came again");
        body["page_token"] = json!(token);
    }
    assert_eq!(told.iter().cloned().collect::<BTreeSet<_>>(), made);
    assert_eq!(told.len(), made.len(), "each once");
}

#[tokio::test]
async fn jobs_are_filtered_by_table_type_and_state() {
    let world = World::new().await;
    let waiting = world.refresh("").await.job_id();
    let joined = world
        .server
        .post("/v1/materialized_view/joined/refresh", "")
        .await
        .job_id();
    let done = world.refresh("").await.job_id();
    world.end(&done, json!({"phase": "Succeeded"})).await;
    let late = world.refresh("").await.job_id();
    let overdue = json!({"type": "Failed", "status": "True", "reason": "DeadlineExceeded",
        "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    world
        .end(
            &late,
            json!({"phase": "Failed", "message": "m", "conditions": [overdue]}),
        )
        .await;
    let listed = async |body: Value| {
        let page = ask(&world.server, "list", body.clone()).await;
        assert_eq!(page.status, 200, "{page:?}");
        let jobs = page.body["jobs"].as_array().expect("jobs").clone();
        let ids = jobs
            .iter()
            .map(|job| job["job_id"].as_str().expect("an id"));
        ids.map(str::to_string).collect::<BTreeSet<_>>()
    };
    let set = |ids: &[&String]| ids.iter().map(|id| id.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(
        listed(json!({})).await,
        set(&[&waiting, &joined, &done, &late])
    );
    assert_eq!(listed(json!({"table": "joined"})).await, set(&[&joined]));
    assert_eq!(listed(json!({"table": "nope"})).await, set(&[]));
    assert_eq!(listed(json!({"state": "done"})).await, set(&[&done]));
    assert_eq!(listed(json!({"state": "TIMED_OUT"})).await, set(&[&late]));
    assert_eq!(listed(json!({"state": "FAILED"})).await, set(&[]));
    assert_eq!(
        listed(json!({"state": "in_progress", "table": "v"})).await,
        set(&[&waiting])
    );
    assert_eq!(listed(json!({"job_type": "create_index"})).await, set(&[]));
    let told = ask(&world.server, "describe", json!({ "job_id": late })).await;
    assert_eq!(told.body["job_state"], "TIMED_OUT", "{told:?}");
    for (body, says) in [
        (json!({"state": "asleep"}), "state is 'asleep'"),
        (json!({"limit": 0}), "limit is 0"),
        (json!({"limit": "3"}), "limit is a string"),
        (json!({"table": ["v"]}), "table is an array"),
        (json!({"page_token": "x y"}), "page_token"),
        (json!({"page_token": "nonsense"}), "page_token"),
        (json!({"page_token": "a".repeat(5_000)}), "page_token"),
    ] {
        let said = ask(&world.server, "list", body.clone()).await;
        assert!(said.error(400, 13).contains(says), "{body}: {said:?}");
    }
}

#[tokio::test]
async fn a_job_is_paused_resumed_and_cancelled_by_its_spec() {
    let world = World::new().await;
    let job_id = world.refresh("").await.job_id();
    let steer = async |operation: &str| {
        let told = ask(&world.server, operation, json!({ "job_id": job_id })).await;
        assert_eq!(told.status, 200, "{told:?}");
        let spec = world.spec(&job_id).await;
        (told.body, spec.suspend, spec.cancel)
    };
    let said = |fields: Value| {
        let mut answer = json!({ "job_id": job_id });
        let all = answer.as_object_mut().expect("an object");
        all.extend(fields.as_object().expect("an object").clone());
        answer
    };
    let idle = said(json!({"resumed": false, "still_pausing": false}));
    assert_eq!(steer("resume").await, (idle.clone(), false, false));
    let paused = said(json!({"paused": true, "committing": false}));
    assert_eq!(steer("pause").await, (paused, true, false));
    let before = said(json!({"paused": false, "committing": false}));
    assert_eq!(steer("pause").await, (before, true, false));
    let resumed = said(json!({"resumed": true, "still_pausing": false}));
    assert_eq!(steer("resume").await, (resumed, false, false));
    let cancelled = said(json!({"cancelled": true}));
    assert_eq!(steer("cancel").await, (cancelled.clone(), false, true));
    assert_eq!(steer("cancel").await, (cancelled, false, true));

    world
        .end(&job_id, json!({"phase": "Cancelled", "message": "m"}))
        .await;
    let version = world.space.refreshes.get(&job_id).await.expect("there");
    assert_eq!(steer("cancel").await.0, said(json!({"cancelled": false})));
    assert_eq!(steer("resume").await.0, idle);
    let refused = ask(&world.server, "pause", json!({ "job_id": job_id })).await;
    assert!(refused.error(409, 14).contains("has ended"), "{refused:?}");
    let after = world.space.refreshes.get(&job_id).await.expect("there");
    assert_eq!(
        after.resource_version(),
        version.resource_version(),
        "what has ended is not written to"
    );
}

#[tokio::test]
async fn unknown_jobs_and_missing_ids_are_refused_by_every_operation() {
    let world = World::new().await;
    for operation in ["describe", "cancel", "pause", "resume", "query_events"] {
        for unknown in ["nope", "../secrets/x", "UPPER", "\u{0}", "a/status"] {
            let said = ask(&world.server, operation, json!({ "job_id": unknown })).await;
            said.error(404, 10);
        }
        let said = ask(&world.server, operation, json!({})).await;
        assert_eq!(said.error(400, 13), "job_id is missing");
        let said = ask(&world.server, operation, json!({"job_id": 3})).await;
        assert_eq!(said.error(400, 13), "job_id is 3 and must be a string");
    }
}

#[tokio::test]
async fn two_who_pause_and_cancel_at_once_are_both_heard() {
    let world = World::new().await;
    let replica = world.replica().await;
    for _ in 0..5 {
        let job_id = world.refresh("").await.job_id();
        let body = json!({ "job_id": job_id });
        let (paused, cancelled) = tokio::join!(
            ask(&world.server, "pause", body.clone()),
            ask(&replica, "cancel", body)
        );
        assert_eq!((paused.status, cancelled.status), (200, 200));
        let spec = world.spec(&job_id).await;
        assert!(spec.suspend && spec.cancel);
    }
}

#[tokio::test]
async fn the_events_of_a_job_are_what_happened_to_it() {
    let world = World::new().await;
    let job_id = world.refresh("").await.job_id();
    let told = events(&world.server, json!({ "job_id": job_id })).await;
    assert_eq!(text(&told, "state"), ["queued"]);
    assert_eq!(text(&told, "updated_by"), [names::REST_MANAGER]);
    let columns = [
        "state",
        "updated_by",
        "emitted_from",
        "emitted_by",
        "claim_entity",
    ];
    for column in columns {
        assert!(told.column_by_name(column).is_some(), "{column}");
    }

    work(&world, &job_id).await;
    let stored = world.space.refreshes.get(&job_id).await.expect("there");
    let made = stored.creation_timestamp().expect("a time").0;
    world
        .end(
            &job_id,
            json!({
                "phase": "Succeeded", "startTime": made.to_string(), "message": "the view is right",
                "completionTime": "2100-01-01T00:00:00Z",
                "job": {"name": "the-job", "namespace": "n", "cluster": "default"},
            }),
        )
        .await;
    let told = events(&world.server, json!({ "job_id": job_id })).await;
    assert_eq!(
        text(&told, "state"),
        ["queued", "launched", "claim_complete", "committed", "done"]
    );
    let uid = stored.uid().expect("a UID");
    assert_eq!(text(&told, "updated_by")[2..4], [uid.clone(), uid]);
    assert_eq!(text(&told, "emitted_from")[2], "Job/the-job");
    assert!(!text(&told, "claim_entity")[2].is_empty());
    assert_eq!(text(&told, "message")[4], "the view is right");
    let rows = told.column_by_name("rows_processed").expect("rows");
    let rows = rows.as_primitive::<arrow_array::types::Int64Type>();
    assert_eq!((rows.value(2), rows.value(3)), (8, 8));
    assert!(rows.is_null(0));

    let states = async |body: Value| {
        let mut asked = json!({ "job_id": job_id });
        let all = asked.as_object_mut().expect("an object");
        all.extend(body.as_object().expect("an object").clone());
        text(&events(&world.server, asked).await, "state")
    };
    let filter = json!({"filter": "state = 'claim_complete'"});
    assert_eq!(states(filter).await, ["claim_complete"]);
    let filter = json!({"filter": "emitted_by = 'worker' and rows_processed > 3", "limit": 1});
    assert_eq!(states(filter).await, ["claim_complete"]);
    let nothing = json!({"filter": "state = 'nothing'"});
    assert!(states(nothing).await.is_empty(), "the schema alone");
    assert_eq!(states(json!({"limit": 2})).await, ["queued", "launched"]);
    for filter in ["state", "colour = 'red'", "repeat(state, 9) = ''", "("] {
        let body = json!({"job_id": job_id, "filter": filter});
        let said = ask(&world.server, "query_events", body).await;
        assert!(
            said.error(400, 13).starts_with("filter is no boolean"),
            "{said:?}"
        );
    }
}

#[tokio::test]
async fn a_running_refresh_tells_what_it_has_computed_so_far() {
    let world = World::new().await;
    let job_id = world.refresh("").await.job_id();
    work(&world, &job_id).await;
    // As it stood a moment before its commit: the claim staged, no outcome yet.
    let stored = world.space.refreshes.get(&job_id).await.expect("there");
    let uid = stored.uid().expect("a UID");
    let folder = world.folder.path().join("v.lance/_relance");
    let ledger = std::fs::read_dir(folder.join("ledgers"))
        .expect("ledgers")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.to_string_lossy().contains(&uid))
        .expect("its ledger");
    let ledger: Value =
        serde_json::from_slice(&std::fs::read(ledger).expect("readable")).expect("JSON");
    let claims = folder.join(format!("plans/{uid}/claims"));
    std::fs::create_dir_all(&claims).expect("a folder");
    let claim = ledger["claims"][0].to_string();
    std::fs::write(claims.join("a-unit.json"), claim).expect("written");
    std::fs::remove_file(folder.join(format!("outcomes/{uid}.json"))).expect("removed");
    let told = events(&world.server, json!({ "job_id": job_id })).await;
    assert_eq!(text(&told, "state"), ["queued", "claim_complete"]);
    assert_eq!(text(&told, "claim_entity")[1], "a-unit");
}

#[tokio::test]
async fn a_job_whose_resource_is_gone_is_told_of_by_what_it_left_with_the_view() {
    let world = World::new().await;
    let job_id = world.refresh("").await.job_id();
    work(&world, &job_id).await;
    let failed = world.refresh("").await.job_id();
    for name in [&job_id, &failed] {
        let deleted = world
            .space
            .refreshes
            .delete(name, &Default::default())
            .await;
        deleted.expect("deleted");
    }
    let replica = world.replica().await;
    let told = ask(&replica, "describe", json!({ "job_id": job_id })).await;
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(told.body["job_state"], "DONE");
    assert_eq!(told.body["spec"]["id"], json!(["v"]));
    assert_eq!(
        told.body["result"],
        json!({"mode": "rebuild", "rows_written": 8, "source_version": 1,
            "version": told.body["result"]["version"]})
    );
    let told = events(&replica, json!({ "job_id": job_id })).await;
    assert_eq!(
        text(&told, "state"),
        ["queued", "claim_complete", "committed", "done"]
    );
    let told = ask(&replica, "cancel", json!({ "job_id": job_id })).await;
    assert_eq!((told.status, &told.body["cancelled"]), (200, &json!(false)));
    let told = ask(&replica, "resume", json!({ "job_id": job_id })).await;
    assert_eq!(told.body["resumed"], false, "{told:?}");
    ask(&replica, "pause", json!({ "job_id": job_id }))
        .await
        .error(409, 14);
    ask(&replica, "describe", json!({ "job_id": failed }))
        .await
        .error(404, 10);

    // When the record is gone too, the view's own history has the commit.
    let before = ask(&replica, "describe", json!({ "job_id": job_id })).await;
    let kept = world.folder.path().join("v.lance/_relance");
    std::fs::remove_dir_all(kept).expect("what relance keeps");
    // One that does not remember what it found just now.
    let replica = world.replica().await;
    let told = ask(&replica, "describe", json!({ "job_id": job_id })).await;
    assert_eq!((told.status, &told.body), (200, &before.body));
    let told = events(&replica, json!({ "job_id": job_id })).await;
    assert_eq!(text(&told, "state"), ["queued", "committed", "done"]);
    // A version that was cleaned up tells nothing.
    let view = world.folder.path().join("v.lance").display().to_string();
    let mut view = lance::Dataset::open(&view).await.expect("the view");
    let later = view.update_config([("a", "later version")]).await;
    later.expect("a version");
    let cleaned = view.cleanup_old_versions(chrono::TimeDelta::zero(), Some(true), None);
    cleaned.await.expect("cleaned up");
    let replica = world.replica().await;
    ask(&replica, "describe", json!({ "job_id": job_id }))
        .await
        .error(404, 10);
}

#[tokio::test]
async fn the_document_is_served_as_yaml() {
    let world = World::new().await;
    let request = world
        .server
        .request(reqwest::Method::GET, "/openapi.yaml")
        .send();
    let answer = request.await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.headers()["content-type"], "application/yaml");
    let text = answer.text().await.expect("a body");
    let document: Value = serde_yaml::from_str(&text).expect("YAML");
    assert_eq!(document, relance::rest::openapi::build().expect("built"));
    assert_eq!(
        document["paths"]["/v1/jobs/cancel"]["post"]["x-kubernetes-permissions"],
        json!(["patch materializedviewrefreshes"])
    );
}
