//! Which cluster is meant, and what stands before it.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::api::{Api, list, said};

async fn empty() -> Api {
    Api::that(|_| list("MaterializedViewRefresh", &[])).await
}

/// A proxy that leads to `port` whatever it is asked for; where it is, and the
/// heads of what it was asked.
async fn proxy(port: u16) -> (String, Arc<Mutex<String>>) {
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = door.local_addr().unwrap().to_string();
    let heads: Arc<Mutex<String>> = Arc::default();
    let asked = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = door.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(inside.read_u8().await.unwrap());
            }
            asked
                .lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&head));
            inside.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                copy_bidirectional(&mut inside, &mut outside).await
            });
        }
    });
    (place, heads)
}

fn of(api: &Api, server: &str) -> Value {
    let mut kubeconfig = api.kubeconfig();
    kubeconfig["clusters"][0]["cluster"]["server"] = json!(server);
    kubeconfig
}

#[tokio::test]
async fn a_proxy_is_gone_through_with_its_password() {
    let api = empty().await;
    let (place, heads) = proxy(api.port).await;
    let url = format!("http://me:s3cret@{place}");
    let mut own = of(&api, "http://api.example:6443");
    let command = {
        let mut command = api.by(&own, &["status"]);
        command
            .env("HTTPS_PROXY", &url)
            .env("NO_PROXY", "127.0.0.0/8");
        command
    };
    let through = said(command).await;
    assert_eq!(through.code, 0, "{through:?}");
    own["clusters"][0]["cluster"]["proxy-url"] = json!(url);
    let mut command = api.by(&own, &["status"]);
    command.env("NO_PROXY", "api.example");
    let through = said(command).await;
    assert_eq!(through.code, 0, "{through:?}");
    let heads = heads.lock().unwrap().clone();
    assert_eq!(
        heads.matches("CONNECT api.example:6443").count(),
        2,
        "{heads}"
    );
    // me:s3cret
    assert_eq!(heads.matches("Basic bWU6czNjcmV0").count(), 2, "{heads}");
}

#[tokio::test]
async fn no_proxy_is_about_the_api_server() {
    let api = empty().await;
    // This machine under an address that is not its loopback's.
    let here = of(&api, &format!("http://0.0.0.0:{}", api.port));
    let mut past = api.by(&here, &["status"]);
    past.env("HTTPS_PROXY", "http://me:s3cret@127.0.0.1:1")
        .env("NO_PROXY", "example.org, 0.0.0.0,");
    let past = said(past).await;
    assert_eq!(past.code, 0, "{past:?}");
}

#[tokio::test]
async fn a_proxys_password_is_not_told() {
    let api = empty().await;
    let server = of(&api, "http://api.example:6443");
    for (proxy, code) in [
        ("http://me:s3cret@127.0.0.1:1", 7),
        ("https://me:s3cret@127.0.0.1:1", 7),
        ("socks5://me:s3cret@127.0.0.1:1", 7),
        ("ftp://me:s3cret@127.0.0.1:1", 2),
        ("http://me:s3cret oops@127.0.0.1:1", 2),
    ] {
        let mut own = server.clone();
        own["clusters"][0]["cluster"]["proxy-url"] = json!(proxy);
        let mut by_environment = api.by(&server, &["status"]);
        by_environment.env("HTTPS_PROXY", proxy);
        let by_environment = said(by_environment).await;
        let by_itself = said(api.by(&own, &["status"])).await;
        for told in [by_environment, by_itself] {
            assert_eq!(told.code, code, "{proxy}: {told:?}");
            assert!(!told.err.contains("s3cret"), "{told:?}");
            assert_eq!(told.err.lines().count(), 1, "{told:?}");
        }
    }
}

#[tokio::test]
async fn kubeconfigs_that_are_not_there_are_passed_over_and_wrong_ones_are_told() {
    let api = empty().await;
    let good = api.file("good", &api.kubeconfig().to_string());
    let wrong = api.file(
        "wrong",
        "users:\n- name: me\n  user:\n    token: t0ken\n   bad: [\n",
    );
    let status = |list: &[&std::path::Path]| {
        let mut command = api.plugin(&["status"]);
        command
            .env("KUBECONFIG", std::env::join_paths(list).unwrap())
            // As in a pod, whose cluster is not meant where a kubeconfig is wrong.
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", "1");
        said(command)
    };
    let none = std::path::Path::new("/no/such/file");
    assert_eq!(status(&[none, &good]).await.code, 0);
    assert_eq!(status(&[&good, none]).await.code, 0);
    let told = status(&[&wrong, &good]).await;
    assert_eq!(told.code, 2, "{told:?}");
    assert!(
        told.err.contains("wrong is no kubeconfig (line"),
        "{told:?}"
    );
    assert!(!told.err.contains("t0ken"), "{told:?}");
    let told = status(&[none]).await;
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.err.contains("there is no kubeconfig"), "{told:?}");
}

#[tokio::test]
async fn what_is_given_empty_is_not_given_and_no_namespace_is_a_path() {
    let api = empty().await;
    let told = api.says(&["status", "-n", "", "--context", ""]).await;
    assert_eq!(told.code, 0, "{told:?}");
    assert!(
        api.asked()[0].contains("/namespaces/ns/"),
        "{:?}",
        api.asked()
    );
    let told = api.says(&["status", "-n", "../secrets"]).await;
    assert_eq!(told.code, 2, "{told:?}");
    assert_eq!(api.asked().len(), 1);
}
