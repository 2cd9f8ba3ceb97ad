//! Where nobody reads what is printed, or it cannot be written.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use serde_json::json;
use tokio::process::Command;

use crate::api::{Api, list, ok, refresh, said, watched};

/// An API server whose refreshes end so at once.
async fn ending(phase: &'static str) -> Api {
    Api::that(move |asked| {
        let end = refresh("mine", phase, "so it ended");
        match asked.what().as_str() {
            "POST materializedviewrefreshes" => {
                let mut made = asked.body.clone();
                made["metadata"]["uid"] = json!("u-1");
                ok(&made)
            }
            "GET materializedviewrefreshes" => list("MaterializedViewRefresh", &[end]),
            "WATCH materializedviewrefreshes" => watched("MODIFIED", &[]),
            _ => ok(&end),
        }
    })
    .await
}

fn full() -> Stdio {
    let full = std::fs::File::options().write(true).open("/dev/full");
    full.unwrap().into()
}

#[tokio::test]
async fn output_that_cannot_be_written_is_an_error_and_takes_no_code_from_the_refresh() {
    let name = "--name=mine";
    for (phase, arguments, code) in [
        ("Succeeded", &["status"][..], 8),
        ("Succeeded", &["refresh", "v", name], 8),
        ("Succeeded", &["refresh", "v", name, "--wait"], 8),
        ("Succeeded", &["wait", "mine", "-oyaml"], 8),
        ("Failed", &["refresh", "v", name, "--wait"], 1),
        ("Failed", &["wait", "mine", "-ojson"], 1),
        ("Cancelled", &["wait", "mine", "-ojson"], 3),
    ] {
        let api = ending(phase).await;
        let mut command = api.plugin(arguments);
        let output = command.stdout(full()).spawn().unwrap();
        let output = output.wait_with_output().await.unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
        assert!(err.contains("standard output cannot be written"), "{err}");
        let made = arguments[0] == "refresh";
        assert!(!made || err.contains("mine"), "{err}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_no_waiting() {
    for (phase, code) in [("Succeeded", 0), ("Failed", 1)] {
        let api = ending(phase).await;
        let mut child = api.plugin(&["refresh", "v", "--wait"]).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().await.unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert!(err.contains(phase), "{err}");
    }
}

#[tokio::test]
async fn without_a_standard_error_the_code_is_the_same() {
    let api = ending("Failed").await;
    let plugin = api.plugin(&["wait", "mine", "--output=no-such"]);
    let plugin = plugin.as_std();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", r#"exec "$0" "$@" 2>&-"#])
        .arg(plugin.get_program())
        .args(plugin.get_args());
    assert_eq!(said(shell).await.code, 2);
    let mut shell = Command::new("sh");
    let kubeconfig = api.file("nothing", "current-context: none");
    shell
        .args(["-c", r#"exec "$0" kubectl status 2>/dev/full"#])
        .arg(env!("CARGO_BIN_EXE_relance"))
        .env("KUBECONFIG", kubeconfig);
    assert_eq!(said(shell).await.code, 2);
}

#[tokio::test]
async fn words_that_are_no_text_are_completed_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("kubectl_complete-relance");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_relance"), &link).unwrap();
    let mut command = Command::new(link);
    command.arg(OsStr::from_bytes(b"\xff"));
    let said = said(command).await;
    assert_eq!((said.code, said.out.as_str()), (0, ":4\n"), "{said:?}");
}
