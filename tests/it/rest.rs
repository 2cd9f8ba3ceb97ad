//! The refresh endpoint, clause by clause.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use relance::resources::{MaterializedViewRefreshSpec, names};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::{Server, World, client};

const WEEK: i64 = 604_800;

async fn spec_of(world: &World, job_id: &str) -> MaterializedViewRefreshSpec {
    world
        .space
        .refreshes
        .get(job_id)
        .await
        .expect("stored")
        .spec
}

#[tokio::test]
async fn an_accepted_refresh_is_stored_under_its_job_id() {
    let world = World::new().await;
    let job_id = world.refresh("").await.job_id();
    assert_eq!(
        uuid::Uuid::parse_str(&job_id)
            .expect("a UUID")
            .get_version_num(),
        7
    );
    let stored = world.space.refreshes.get(&job_id).await.expect("stored");
    let mut expected = MaterializedViewRefreshSpec::of(["v"]);
    expected.ttl_seconds_after_finished = Some(WEEK);
    assert_eq!(stored.spec, expected);
    let (annotation, value) = names::RESTORE_STATUS;
    assert_eq!(
        stored.annotations().get(annotation).map(String::as_str),
        Some(value)
    );
}

#[tokio::test]
async fn every_field_reaches_the_resource_and_unknown_ones_are_ignored() {
    let world = World::new().await;
    world.space.cluster("big").await;
    let body = json!({
        "id": ["v"], "src_version": 1, "source_version": 1, "full": true,
        "max_rows_per_fragment": 1000, "concurrency": 3, "intra_applier_concurrency": 2,
        "source_task_size": 64, "cluster": "big", "output_limit": null, "manifest": null,
        "expected_incarnation": null, "identity": null, "context": {"header.x-a": "b"}, "new_field": [1],
    });
    let spec = spec_of(&world, &world.refresh(&body.to_string()).await.job_id()).await;
    let mut expected = MaterializedViewRefreshSpec::of(["v"]);
    expected.src_version = Some(1);
    expected.full = true;
    expected.max_rows_per_fragment = Some(1000);
    expected.concurrency = Some(3);
    expected.intra_applier_concurrency = Some(2);
    expected.source_task_size = Some(64);
    expected.cluster = "big".to_string();
    expected.ttl_seconds_after_finished = Some(WEEK);
    assert_eq!(spec, expected);
}

#[tokio::test]
async fn empty_bodies_and_explicit_nulls_ask_for_the_defaults() {
    let world = World::new().await;
    let nulls = json!({
        "identity": null, "context": null, "id": null, "src_version": null, "max_rows_per_fragment": null,
        "concurrency": null, "intra_applier_concurrency": null, "source_task_size": null, "cluster": null,
        "output_limit": null, "manifest": null, "full": null, "source_version": null, "expected_incarnation": null,
    })
    .to_string();
    let plain = spec_of(&world, &world.refresh("").await.job_id()).await;
    for body in ["{}", "null", " ", &nulls] {
        assert_eq!(
            spec_of(&world, &world.refresh(body).await.job_id()).await,
            plain,
            "{body}"
        );
    }
}

#[tokio::test]
async fn the_id_may_be_encoded_split_by_another_delimiter_and_repeated_in_the_body() {
    let world = World::new().await;
    let post = async |path: &str, body: &str| world.server.post(path, body.to_string()).await;
    for path in [
        "/v1/materialized_view/v/refresh",
        "/v1/materialized_view/v/refresh/",
        "/v1/table/v/refresh",
        "/v1/materialized_view/%76/refresh",
        "/v1/materialized_view/v/refresh?delimiter=.",
        "/v1/materialized_view/v/refresh?other=1&delimiter=%24",
    ] {
        let job_id = post(path, r#"{"id": ["v"]}"#).await.job_id();
        assert_eq!(spec_of(&world, &job_id).await.view, ["v"], "{path}");
    }
    let unknown = post("/v1/materialized_view/a.b/refresh?delimiter=.", "").await;
    assert!(unknown.error(404, 4).contains("'a$b'"), "{unknown:?}");
    for path in [
        "/v1/materialized_view//refresh",
        "/v1/materialized_view/$/refresh",
        "/v1/materialized_view/a$$v/refresh",
        "/v1/materialized_view/%24v/refresh",
        "/v1/materialized_view/v./refresh?delimiter=.",
    ] {
        let said = post(path, "").await;
        assert!(
            said.error(400, 13).contains("empty part"),
            "{path}: {said:?}"
        );
    }
    let said = post("/v1/materialized_view/v/refresh?delimiter=", "").await;
    assert!(
        said.error(400, 13).starts_with("delimiter is empty"),
        "{said:?}"
    );
    let said = post("/v1/materialized_view/%FF/refresh", "").await;
    assert!(said.error(400, 13).contains("UTF-8"), "{said:?}");
    let said = post("/v1/materialized_view/v/refresh", r#"{"id": ["w"]}"#).await;
    assert_eq!(
        said.error(400, 13),
        r#"id is ["w"] in the body and ["v"] in the path; leave it out of the body"#
    );
}

#[tokio::test]
async fn what_the_world_says_against_a_refresh_is_told_at_once() {
    let world = World::new().await;
    world.space.cluster("big").await;
    let post = async |id: &str, body: &str| {
        let path = format!("/v1/materialized_view/{id}/refresh");
        world.server.post(&path, body.to_string()).await
    };
    let said = post("nope", "").await;
    assert!(said.error(404, 4).contains("'nope'"), "{said:?}");
    assert_eq!(said.body["instance"], "/v1/materialized_view/nope/refresh");
    let said = post("ns$nope", "").await;
    assert!(said.error(404, 4).contains("'ns$nope'"), "{said:?}");
    let said = post("src", "").await;
    assert!(
        said.error(400, 13).contains("no materialized view"),
        "{said:?}"
    );
    let said = post("v", r#"{"cluster": "small"}"#).await;
    let sentence = said.error(400, 13);
    assert!(
        sentence.contains("'small'") && sentence.contains("big, default"),
        "{sentence}"
    );
    let said = post("v", r#"{"output_limit": 5}"#).await;
    assert!(said.error(400, 13).contains("output_limit"), "{said:?}");
    let said = post("joined", r#"{"src_version": 1}"#).await;
    let sentence = said.error(400, 13);
    assert!(
        sentence.contains("src_version") && sentence.contains("2 source tables"),
        "{sentence}"
    );
    let said = post("v", r#"{"expected_incarnation": "another"}"#).await;
    assert!(said.error(409, 14).contains("another"), "{said:?}");
    for (view, kind) in [
        ("geneva_1", "query"),
        ("geneva_chunker", "chunker"),
        ("geneva_udtf", "udtf"),
    ] {
        let said = post(view, "").await;
        assert!(said.error(501, 0).contains(kind), "{said:?}");
    }
    // Judged by the kind, though the kind cannot be refreshed yet.
    let said = post("geneva_1", r#"{"output_limit": 5}"#).await;
    assert!(said.error(400, 13).contains("output_limit"), "{said:?}");
    post("geneva_chunker", r#"{"output_limit": 5}"#)
        .await
        .error(501, 0);
    assert_eq!(world.stored().await, 0);
}

#[tokio::test]
async fn an_unreachable_catalog_is_503_and_takes_only_what_needs_it_offline() {
    let world = World::new().await;
    let job_id = world.refresh("").await.job_id();
    let options = [
        ("endpoint", "http://127.0.0.1:1"),
        ("region", "us-east-1"),
        ("access_key_id", "a"),
        ("secret_access_key", "hush-hush"),
        ("allow_http", "true"),
        ("client_max_retries", "0"),
        ("retry_timeout", "1"),
    ];
    let server = Server::with_options(
        client().await,
        &world.space.namespace,
        "dir://s3://bucket/t",
        &options,
    )
    .await;
    let said = server.post("/v1/materialized_view/v/refresh", "").await;
    let sentence = said.error(503, 17);
    assert!(
        sentence.contains("catalog") || sentence.contains("store"),
        "{sentence}"
    );
    assert!(!sentence.contains("hush"), "{sentence}");
    let told = server
        .post("/v1/jobs/describe", json!({"job_id": job_id}).to_string())
        .await;
    assert_eq!(told.status, 200, "{told:?}");
}

#[tokio::test]
async fn an_unreachable_kubernetes_api_is_503() {
    let world = World::new().await;
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().expect("a URL"));
    let uri = format!("dir://{}", world.folder.path().display());
    let server = Server::start(
        kube::Client::try_from(nowhere).expect("a client"),
        "ns",
        &uri,
    )
    .await;
    let said = server.post("/v1/materialized_view/v/refresh", "").await;
    assert!(said.error(503, 17).contains("Kubernetes API"), "{said:?}");
    let said = server.post("/v1/jobs/describe", r#"{"job_id": "x"}"#).await;
    said.error(503, 17);
}

#[tokio::test]
async fn bodies_over_one_mebibyte_are_413_and_others_are_read() {
    let world = World::new().await;
    let body = |size: usize| {
        let frame = r#"{"ignored": ""}"#;
        format!(r#"{{"ignored": "{}"}}"#, "x".repeat(size - frame.len()))
    };
    let limit = 1024 * 1024;
    world.refresh(&body(limit)).await.job_id();
    for size in [limit + 1, 5 * limit] {
        let said = world.refresh(&body(size)).await;
        assert!(said.error(413, 13).contains("1048576"), "{said:?}");
    }
}

#[tokio::test]
async fn every_malformed_request_gets_the_specs_error_body() {
    let world = World::new().await;
    let path = "/v1/materialized_view/v/refresh";
    let deep = format!(r#"{{"a": {}"#, "[".repeat(5000));
    let malformed: [&[u8]; 8] = [
        b"{",
        b"[]",
        b"\"v\"",
        b"17",
        b"{} x",
        b"{\"cluster\": \"\xff\"}",
        b"\x00",
        deep.as_bytes(),
    ];
    for body in malformed {
        let said = world.server.post(path, body.to_vec()).await;
        assert!(said.error(400, 13).contains("body"), "{said:?}");
    }
    let said = world
        .server
        .post_with(path, &[("content-encoding", "gzip")], "x")
        .await;
    assert!(said.error(415, 13).contains("gzip"), "{said:?}");
    for (method, path, status) in [
        (reqwest::Method::GET, "/v1/materialized_view/v/refresh", 405),
        (reqwest::Method::PUT, "/v1/jobs/describe", 405),
        (reqwest::Method::GET, "/", 404),
        (
            reqwest::Method::POST,
            "/v1/materialized_view/v/refreshh",
            404,
        ),
        (
            reqwest::Method::POST,
            "/v1/materialized_view/a/b/refresh",
            404,
        ),
    ] {
        let said = Server::send(world.server.request(method.clone(), path)).await;
        said.error(status, 0);
        assert_eq!(said.body["instance"], path);
        assert_eq!(said.allow.is_some(), status == 405, "{method} {path}");
    }
    assert_eq!(world.stored().await, 0);
}

/// What a caller shows for itself is in no object of the namespace.
#[tokio::test]
async fn credentials_are_kept_nowhere() {
    let world = World::new().await;
    let body = json!({
        "identity": {"api_key": "hush-body-key", "auth_token": "hush-body-token"},
        "context": {"header.authorization": "Bearer hush-context"},
    });
    let headers = [
        ("x-api-key", "hush-header-key"),
        ("authorization", "Bearer hush-header-token"),
        ("idempotency-key", "hush-idempotency"),
    ];
    let answer = world
        .server
        .post_with(
            "/v1/materialized_view/v/refresh",
            &headers,
            body.to_string(),
        )
        .await;
    answer.job_id();
    let refreshes = world
        .space
        .refreshes
        .list(&Default::default())
        .await
        .expect("a list")
        .items;
    let secrets = world
        .space
        .secrets
        .list(&Default::default())
        .await
        .expect("a list")
        .items;
    assert_eq!((refreshes.len(), secrets.len()), (1, 1));
    let mut everything =
        serde_json::to_string(&refreshes).expect("JSON") + &answer.body.to_string();
    for secret in &secrets {
        for value in secret.data.iter().flat_map(|data| data.values()) {
            everything += &String::from_utf8_lossy(&value.0);
        }
    }
    assert!(!everything.contains("hush"), "{everything}");
    for shown in [
        "hush-header-key",
        "hush-body-key",
        "hush-header-token",
        "hush-idempotency",
    ] {
        let hash = hex::encode(Sha256::digest(shown));
        assert!(!everything.contains(&hash[..16]), "a bare hash of {shown}");
    }
}

#[tokio::test]
async fn an_inline_geneva_manifest_goes_to_a_secret_that_the_refresh_owns() {
    let world = World::new().await;
    let manifest = r#"{"name": "m", "env_vars": {"TOKEN": "hush"}}"#;
    let body = json!({ "manifest": manifest }).to_string();
    let job_id = world.refresh(&body).await.job_id();
    let stored = world.space.refreshes.get(&job_id).await.expect("stored");
    assert!(
        !serde_json::to_string(&stored)
            .expect("JSON")
            .contains("hush")
    );
    let checksum = hex::encode(Sha256::digest(manifest));
    assert_eq!(
        stored.spec.manifest_checksum.as_deref(),
        Some(checksum.as_str())
    );
    let name = &stored
        .spec
        .manifest_secret_ref
        .as_ref()
        .expect("a Secret's name")
        .name;
    assert_eq!(*name, names::manifest_secret(&job_id));
    let secret: Secret = world.space.secrets.get(name).await.expect("the Secret");
    let data = secret.data.as_ref().expect("data");
    assert_eq!(data[names::MANIFEST_KEY].0, manifest.as_bytes());
    assert_eq!(
        secret.owner_references()[0].uid,
        stored.uid().expect("a UID")
    );

    for (manifest, says) in [
        ("hush", "no JSON"),
        ("[]", "JSON object"),
        (r#"{"hush": 1}"#, "none of"),
        (r#"{"pip": "hush"}"#, "manifest.pip is a string"),
    ] {
        let said = world
            .refresh(&json!({ "manifest": manifest }).to_string())
            .await;
        let sentence = said.error(400, 13);
        assert!(
            sentence.contains(says) && !sentence.contains("hush"),
            "{sentence}"
        );
    }
    assert_eq!(world.stored().await, 1);
}
