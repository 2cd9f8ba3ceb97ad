//! Retried requests under an `Idempotency-Key`.

use kube::api::{Patch, PatchParams};
use relance::resources::names;
use serde_json::json;

use crate::support::World;

#[tokio::test]
async fn a_retried_post_returns_the_same_job_on_any_replica() {
    let world = World::new().await;
    let replica = world.replica().await;
    let path = "/v1/materialized_view/v/refresh";
    let body = json!({"concurrency": 2}).to_string();
    let key = [("idempotency-key", "nightly 7"), ("x-api-key", "a")];
    let racing = (0..16).map(|index| {
        let server = if index % 2 == 0 {
            &world.server
        } else {
            &replica
        };
        server.post_with(path, &key, body.clone())
    });
    let answers = futures::future::join_all(racing).await;
    let job_id = answers[0].job_id();
    assert!(
        answers.iter().all(|answer| answer.job_id() == job_id),
        "{answers:?}"
    );
    assert_eq!(world.stored().await, 1);
    let in_other_words =
        json!({"concurrency": 2, "cluster": "default", "full": false, "id": ["v"]}).to_string();
    assert_eq!(
        replica.post_with(path, &key, in_other_words).await.job_id(),
        job_id
    );

    let said = replica
        .post_with(path, &key, json!({"concurrency": 3}).to_string())
        .await;
    assert!(said.error(409, 14).contains("Idempotency-Key"), "{said:?}");
    let said = world
        .server
        .post_with(path, &[("idempotency-key", "")], "")
        .await;
    assert!(said.error(400, 13).contains("Idempotency-Key"), "{said:?}");

    let others = [("idempotency-key", "nightly 7"), ("x-api-key", "b")];
    assert_ne!(
        replica
            .post_with(path, &others, body.clone())
            .await
            .job_id(),
        job_id
    );
    let unkeyed = [("idempotency-key", "nightly 7")];
    assert_ne!(
        replica
            .post_with(path, &unkeyed, body.clone())
            .await
            .job_id(),
        job_id
    );

    // What may change does not make it another request, and a finished one is still the same.
    let patch = Patch::Merge(json!({"spec": {"priority": 9, "ttlSecondsAfterFinished": 5}}));
    world
        .space
        .refreshes
        .patch(&job_id, &PatchParams::default(), &patch)
        .await
        .expect("patched");
    world
        .end(&job_id, json!({"phase": "Failed", "message": "because"}))
        .await;
    assert_eq!(
        replica.post_with(path, &key, body.clone()).await.job_id(),
        job_id
    );

    // A retry is answered although the view is gone meanwhile.
    std::fs::remove_dir_all(world.folder.path().join("v.lance")).expect("dropped");
    assert_eq!(
        replica.post_with(path, &key, body.clone()).await.job_id(),
        job_id
    );
    world.refresh("").await.error(404, 4);

    // Once it is deleted, the key names a new refresh, which needs its view.
    world
        .space
        .refreshes
        .delete(&job_id, &Default::default())
        .await
        .expect("deleted");
    replica.post_with(path, &key, body).await.error(404, 4);
}

#[tokio::test]
async fn a_deleted_refreshs_key_makes_it_again_under_the_same_name() {
    let world = World::new().await;
    let path = "/v1/materialized_view/v/refresh";
    let key = [("idempotency-key", "k")];
    let job_id = world.server.post_with(path, &key, "").await.job_id();
    world
        .space
        .refreshes
        .delete(&job_id, &Default::default())
        .await
        .expect("deleted");
    assert_eq!(
        world.server.post_with(path, &key, "").await.job_id(),
        job_id
    );
    assert_eq!(world.stored().await, 1);
}

/// A death between the two writes leaves a refresh without its Secret; the retry mends it.
#[tokio::test]
async fn a_retry_adds_the_manifest_that_an_interrupted_request_left_out() {
    let world = World::new().await;
    let path = "/v1/materialized_view/v/refresh";
    let body = json!({"manifest": r#"{"name": "m"}"#}).to_string();
    let key = [("idempotency-key", "k")];
    let job_id = world
        .server
        .post_with(path, &key, body.clone())
        .await
        .job_id();
    let secret = names::manifest_secret(&job_id);
    world
        .space
        .secrets
        .delete(&secret, &Default::default())
        .await
        .expect("deleted");
    assert_eq!(
        world
            .server
            .post_with(path, &key, body.clone())
            .await
            .job_id(),
        job_id
    );
    world
        .space
        .secrets
        .get(&secret)
        .await
        .expect("added by the retry");
    let other = json!({"manifest": r#"{"name": "n"}"#}).to_string();
    world
        .server
        .post_with(path, &key, other)
        .await
        .error(409, 14);
}
