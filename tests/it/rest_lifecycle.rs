//! What connections go through: shutdowns and clients that hang up.

use std::time::Duration;

use relance::resources::names;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::World;

fn head(length: usize) -> String {
    format!(
        "POST /v1/materialized_view/v/refresh HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    )
}

async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    text
}

#[tokio::test]
async fn a_shutdown_answers_every_request_that_had_come_in() {
    let world = World::new().await;
    let body = json!({"concurrency": 1}).to_string();
    let mut underway = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(world.server.address)
            .await
            .expect("connects");
        let (first, _) = body.split_at(5);
        stream
            .write_all(format!("{}{first}", head(body.len())).as_bytes())
            .await
            .expect("sent");
        underway.push(stream);
    }
    let mut idle = TcpStream::connect(world.server.address)
        .await
        .expect("connects");
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("sent");
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 404");

    world.server.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        TcpStream::connect(world.server.address).await.is_err(),
        "no new connections"
    );
    let mut accepted = 0;
    for mut stream in underway {
        stream
            .write_all(&body.as_bytes()[5..])
            .await
            .expect("still read");
        let answer = answer(stream).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        accepted += 1;
    }
    assert_eq!(world.stored().await, accepted);
    tokio::time::timeout(Duration::from_secs(5), world.server.served)
        .await
        .expect("ends once all are answered, idle connections or not")
        .expect("ends well");
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_half_made_refresh() {
    let world = World::new().await;
    let body = json!({"manifest": r#"{"name": "m"}"#}).to_string();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(world.server.address)
            .await
            .expect("connects");
        stream
            .write_all(format!("{}{body}", head(body.len())).as_bytes())
            .await
            .expect("sent");
        drop(stream);
    }
    world.server.shutdown.cancel();
    world.server.served.await.expect("ends well");
    let refreshes = world
        .space
        .refreshes
        .list(&Default::default())
        .await
        .expect("a list")
        .items;
    for refresh in &refreshes {
        let name = names::manifest_secret(refresh.metadata.name.as_deref().expect("a name"));
        world
            .space
            .secrets
            .get(&name)
            .await
            .expect("each refresh has its Secret");
    }
    let secrets = world
        .space
        .secrets
        .list(&Default::default())
        .await
        .expect("a list")
        .items;
    assert_eq!(secrets.len(), refreshes.len());
}
