//! The binary itself: what it prints, how it starts and how it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Space, catalog, kubeconfig, repo};

pub fn relance() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relance"));
    command
        .env("KUBECONFIG", kubeconfig())
        .env_remove("RUST_LOG");
    command
}

pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address").port()
}

/// Ends the process if a test fails.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let answer = reqwest::get(url).await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

pub async fn until_ready(port: u16) {
    for _ in 0..200 {
        if get(port, "/readyz")
            .await
            .is_some_and(|(status, _)| status == 200)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not ready within ten seconds");
}

#[test]
fn crds_prints_what_the_crds_folder_holds() {
    let printed = relance().arg("crds").output().expect("runs");
    assert!(printed.status.success());
    let folder = repo("crds");
    let held: String = ["materializedviewrefreshes", "refreshclusters"]
        .map(|plural| {
            let file = folder.join(format!("{plural}.relance.dev.yaml"));
            format!("---\n{}", std::fs::read_to_string(file).expect("a file"))
        })
        .concat();
    assert_eq!(String::from_utf8_lossy(&printed.stdout), held);
}

#[test]
fn a_key_is_told_once_and_only_its_hash_is_to_be_stored() {
    let made = relance()
        .args(["key", "--user", "air flow", "--group", "etl"])
        .output()
        .expect("runs");
    assert!(made.status.success(), "{made:?}");
    let key = String::from_utf8(made.stderr).expect("text");
    let manifest = String::from_utf8(made.stdout).expect("text");
    let key = key.strip_suffix('\n').expect("one line");
    assert!(key.starts_with("relance_") && !key.contains(char::is_whitespace));
    assert!(!manifest.contains(key), "{manifest}");
    let secret: serde_yaml::Value = serde_yaml::from_str(&manifest).expect("YAML");
    let entry = secret["stringData"]["air-flow"].as_str().expect("an entry");
    let entry: serde_json::Value = serde_json::from_str(entry).expect("JSON");
    assert_eq!(entry["user"], "air flow");
    assert_eq!(entry["sha256"].as_str().expect("a hash").len(), 64);
    let reserved = relance()
        .args(["key", "--user", "a", "--group", "system:masters"])
        .output()
        .expect("runs");
    assert_eq!(reserved.status.code(), Some(2), "{reserved:?}");
}

#[test]
fn completions_are_there_for_the_common_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = relance()
            .args(["completions", shell])
            .output()
            .expect("runs");
        assert!(
            script.status.success() && !script.stdout.is_empty(),
            "{shell}"
        );
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    for arguments in [
        &["nonsense"][..],
        &["serve"],
        &["serve", "--catalog", "dir:///t", "--listen", "x"],
        // Nobody is let in, or everybody: that must be said.
        &["serve", "--catalog", "dir:///t"],
        &[
            "serve",
            "--catalog",
            "dir:///t",
            "--auth",
            "keys",
            "--open-access",
        ],
        &[
            "serve",
            "--catalog",
            "dir:///t",
            "--open-access",
            "--tls-key",
            "k",
        ],
        // A directory takes no credentials, and a URL holds none.
        &[
            "serve",
            "--catalog",
            "dir:///t",
            "--open-access",
            "--forward-credentials",
        ],
        &["serve", "--catalog", "https://u:p@h", "--open-access"],
        &["serve", "--catalog", "dir://bucket/tables", "--open-access"],
    ] {
        let ended = relance()
            .args(arguments)
            .env_remove("RELANCE_CATALOG")
            .env_remove("RELANCE_AUTH")
            .output()
            .expect("runs");
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}");
    }
}

#[tokio::test]
async fn serve_is_ready_tells_its_metrics_and_ends_on_sigterm() {
    let (space, folder) = tokio::join!(Space::new(), catalog());
    space.cluster("default").await;
    let (api, health) = (free_port(), free_port());
    let mut running = Running(
        relance()
            .args([
                "serve",
                "--rest",
                "--open-access",
                "--log-format",
                "json",
                "--namespace",
                &space.namespace,
            ])
            .args(["--catalog", &format!("dir://{}", folder.path().display())])
            .args([
                "--listen",
                &format!("0.0.0.0:{api}"),
                "--health-listen",
                &format!("127.0.0.1:{health}"),
            ])
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts"),
    );
    until_ready(health).await;
    assert_eq!(get(health, "/livez").await, Some((200, "ok".to_string())));
    let url = format!("http://127.0.0.1:{api}/v1/materialized_view/v/refresh");
    let answer = reqwest::Client::new()
        .post(&url)
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status().as_u16(), 202);
    let (status, metrics) = get(health, "/metrics").await.expect("metrics");
    assert_eq!(status, 200);
    let counted =
        r#"relance_rest_requests_total{route="/v1/materialized_view/{id}/refresh",status="202"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert!(metrics.contains("relance_catalog_up 1"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(
        get(api, "/metrics").await.map(|answer| answer.0),
        Some(404),
        "not on the API's listener"
    );

    let pid = running.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill runs")
            .success()
    );
    let log = BufReader::new(running.0.stderr.take().expect("stderr"));
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(&line.expect("text")).expect("one JSON object a line"))
        .collect();
    assert_eq!(running.0.wait().expect("ends").code(), Some(0));
    let warns = |line: &serde_json::Value| {
        line["level"] == "WARN"
            && line["message"]
                .as_str()
                .is_some_and(|m| m.contains("authenticates nobody"))
    };
    assert!(
        lines.iter().any(warns),
        "listening beyond loopback is warned of: {lines:?}"
    );
}

#[tokio::test]
async fn serve_says_what_to_do_when_an_address_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let ended = relance()
        .args([
            "serve",
            "--rest",
            "--auth",
            "tokens,keys",
            "--catalog",
            "dir:///t",
            "--health-listen",
            "127.0.0.1:0",
            "--listen",
            &address,
        ])
        .output()
        .expect("runs");
    assert_eq!(ended.status.code(), Some(69));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        said.contains(&format!("cannot listen on {address}")),
        "{said}"
    );
}
