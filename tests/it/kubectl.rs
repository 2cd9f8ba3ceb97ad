//! `kubectl relance`, by the real binary and once by kubectl itself.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use relance::kubectl::{COMPLETER, PLUGIN, exit};
use relance::resources::{MaterializedViewRefresh, Phase, names};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::far::{Far, slow_template};
use crate::operator::{Operator, PATIENCE};
use crate::support::kubeconfig;

/// The plug-in as it is installed: links to the program in a folder of the PATH.
struct Plugin {
    folder: TempDir,
    kubeconfig: PathBuf,
    namespace: String,
}

/// How a command ended.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// What it printed, if it ended so.
    fn out(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.out
    }

    /// What it said of what went wrong, if it ended so.
    fn err(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.err
    }
}

impl Plugin {
    fn of(operator: &Operator) -> Plugin {
        let folder = tempfile::tempdir().unwrap();
        for link in [PLUGIN, COMPLETER] {
            let program = env!("CARGO_BIN_EXE_relance");
            std::os::unix::fs::symlink(program, folder.path().join(link)).unwrap();
        }
        Plugin {
            folder,
            kubeconfig: kubeconfig().into(),
            namespace: operator.space.namespace.clone(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.folder.path().join(PLUGIN));
        command
            .args(arguments)
            .args(["-n", &self.namespace])
            .env("KUBECONFIG", &self.kubeconfig)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn says(&self, arguments: &[&str]) -> Said {
        said(self.command(arguments).output().unwrap())
    }

    /// The same beside the test.
    fn begins(&self, arguments: &[&str]) -> Beside {
        let mut child = self.command(arguments).spawn().unwrap();
        let err = BufReader::new(child.stderr.take().unwrap());
        let mut beside = Beside {
            child,
            err,
            told: String::new(),
        };
        // A first line tells that it waits.
        if arguments[0] == "wait" {
            beside.err.read_line(&mut beside.told).unwrap();
        }
        beside
    }

    /// kubectl, which finds the plug-in on the PATH.
    fn by_kubectl(&self, arguments: &[&str]) -> Said {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", self.folder.path().display());
        let output = Command::new("kubectl")
            .args(arguments)
            .env("PATH", path)
            .env("KUBECONFIG", &self.kubeconfig)
            .output();
        said(output.unwrap())
    }
}

fn said(output: std::process::Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A command that goes on beside the test.
struct Beside {
    child: Child,
    err: BufReader<std::process::ChildStderr>,
    told: String,
}

impl Beside {
    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    async fn ends(mut self) -> Said {
        let start = Instant::now();
        let out = std::thread::spawn({
            let mut out = self.child.stdout.take().unwrap();
            move || {
                let mut text = String::new();
                out.read_to_string(&mut text).unwrap();
                text
            }
        });
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "it does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.err.read_to_string(&mut self.told).unwrap();
        Said {
            code: self.child.wait().unwrap().code().unwrap_or(-1),
            out: out.join().unwrap(),
            err: std::mem::take(&mut self.told),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_refresh_is_asked_for_and_waited_for_and_its_end_is_an_exit_code() {
    let operator = Operator::running().await;
    let plugin = Plugin::of(&operator);
    let none = plugin.says(&["status"]).out(exit::OK);
    assert!(none.starts_with("No refreshes in namespace"), "{none}");

    let first = plugin.says(&["refresh", "v", "--wait"]);
    let told = format!("{first:?}");
    assert!(first.err.contains("Succeeded: The view equals"), "{told}");
    let name = first.out(exit::OK);
    let name = name.trim_end();
    assert!(!name.contains(char::is_whitespace), "{told}");
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());
    let by_rest = asked_by_rest(&operator).await;
    let asked = operator.space.refreshes.get(name).await.unwrap();
    assert_eq!(asked.spec, by_rest.spec);
    assert_eq!(asked.metadata.annotations, by_rest.metadata.annotations);

    let summary = plugin.says(&["status", name]).out(exit::OK);
    let summary = summary.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        summary.contains("Phase: Succeeded (Refreshed) Message: The view equals"),
        "{summary}"
    );
    assert!(
        summary.contains("Mode: Rebuild Source version: 1"),
        "{summary}"
    );

    // A name that the caller chose makes the command one that can be repeated.
    let again = ["refresh", "v", "--name", "again", "-o", "name"];
    let resource = "materializedviewrefresh.relance.dev/again\n";
    for _ in 0..2 {
        assert_eq!(plugin.says(&again).out(exit::OK), resource);
    }
    plugin
        .says(&["wait", resource.trim_end(), "--timeout", "3m"])
        .out(exit::OK);
    let object = plugin.says(&["refresh", "v", "--name=again", "--wait", "-ojson"]);
    let object: Value = serde_json::from_str(&object.out(exit::OK)).unwrap();
    assert_eq!(object["status"]["mode"], "NoOp");
    let other = plugin.says(&["refresh", "v", "--name", "again", "--full"]);
    assert!(other.err(exit::USAGE).contains("asks for something else"));

    let failed = plugin.says(&["refresh", "sales/nothing", "--wait"]);
    let missing = failed.out.trim_end().to_string();
    assert!(failed.err(exit::FAILED).contains("Failed: "), "no sentence");
    let listed = plugin.says(&["status"]).out(exit::OK);
    let line = |name: &str| listed.lines().find(|l| l.starts_with(name)).unwrap();
    assert!(line(&missing).contains("sales/nothing"), "{listed}");
    assert!(line(&missing).contains(" Failed "), "{listed}");
    assert!(line("again").contains(" NoOp "), "{listed}");
    let of_v = plugin
        .says(&["status", "--view", "v", "-o", "name"])
        .out(exit::OK);
    assert_eq!(of_v.lines().count(), 3, "{of_v}");
    let list = plugin.says(&["status", "-o", "yaml"]).out(exit::OK);
    let list: serde_yaml::Value = serde_yaml::from_str(&list).unwrap();
    assert_eq!(list["items"].as_sequence().unwrap().len(), 4);

    for (arguments, code, sentence) in [
        (
            &["refresh", "v", "--concurrency", "0"][..],
            exit::USAGE,
            "--concurrency is 0 and must be at least 1",
        ),
        (&["refresh", "v", "--timeout", "1s"], exit::USAGE, "--wait"),
        (
            &["wait", "nobody"],
            exit::NOT_FOUND,
            "there is no refresh 'nobody'",
        ),
        (
            &["status", "nobody"],
            exit::NOT_FOUND,
            "`kubectl relance status -n ",
        ),
        (
            &["cancel", "nobody"],
            exit::NOT_FOUND,
            "there is no refresh 'nobody'",
        ),
        (
            &["logs", "again"],
            exit::NOT_FOUND,
            "it ended Succeeded without one",
        ),
        (
            &["suspend", "again"],
            exit::FAILED,
            "has ended already (Succeeded)",
        ),
        (&["status", "--context", "no-such"], exit::USAGE, "no-such"),
    ] {
        let said = plugin.says(arguments).err(code);
        assert!(said.contains(sentence), "{arguments:?}: {said}");
    }

    on_a_terminal_it_draws(&plugin);
    as_kubectl_calls_it(&plugin);
    who_may_not_or_cannot_is_told_so(&plugin);
}

/// A refresh of the same view by REST.
async fn asked_by_rest(operator: &Operator) -> MaterializedViewRefresh {
    let url = format!("{}/v1/materialized_view/v/refresh", operator.url);
    let answer = reqwest::Client::new().post(url).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 202);
    let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let name = body["job_id"].as_str().unwrap();
    operator.succeeded(name).await;
    let mut refresh = operator.space.refreshes.get(name).await.unwrap();
    // Where a request came from and whose it was is its own.
    let annotations = refresh.metadata.annotations.as_mut().unwrap();
    annotations.remove(names::TRACEPARENT);
    annotations.remove(names::REQUESTED_BY);
    refresh
}

/// A bar that is drawn over and over, and gone at the end; the code is the same.
fn on_a_terminal_it_draws(plugin: &Plugin) {
    let program = plugin.folder.path().join(PLUGIN);
    let line = format!(
        "{} refresh v --full --wait -n {}",
        program.display(),
        plugin.namespace
    );
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("KUBECONFIG", &plugin.kubeconfig)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output();
    let drawn = said(output.unwrap()).out(exit::OK);
    assert!(drawn.matches("\u{1b}[2K").count() > 2, "{drawn:?}");
    assert!(drawn.contains("Running: "), "{drawn:?}");
    let end = drawn.trim_end().lines().last().unwrap();
    assert!(end.contains(" Succeeded: The view equals"), "{drawn:?}");
}

/// kubectl finds the plug-in, hands its exit code on, and asks it for completions.
fn as_kubectl_calls_it(plugin: &Plugin) {
    let namespace = ["-n", plugin.namespace.as_str()];
    let by_kubectl = |arguments: &[&str]| {
        let all: Vec<&str> = arguments.iter().chain(&namespace).copied().collect();
        plugin.by_kubectl(&all)
    };
    let summary = by_kubectl(&["relance", "status", "again"]).out(exit::OK);
    assert!(summary.contains("NoOp"), "{summary}");
    by_kubectl(&["relance", "wait", "nobody"]).err(exit::NOT_FOUND);
    let help = plugin.by_kubectl(&["relance", "wait", "--help"]).out(0);
    assert!(help.contains("Usage: kubectl relance wait"), "{help}");
    assert!(help.contains("4    the refresh had not ended"), "{help}");
    let completed = |words: &[&str]| {
        let all: Vec<&str> = ["__complete", "relance"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        plugin.by_kubectl(&all).out(0)
    };
    assert!(completed(&["su"]).starts_with("suspend\tHold a refresh"));
    let names = completed(&["-n", &plugin.namespace, "status", "ag"]);
    assert!(names.starts_with("again\tv Succeeded\n:4"), "{names}");
    let clusters = completed(&["-n", &plugin.namespace, "refresh", "v", "--cluster", ""]);
    assert!(clusters.starts_with("default\n"), "{clusters}");
    // What a shell is given for the command itself is a script that it takes.
    let script = plugin.says(&["completion", "bash"]).out(exit::OK);
    let check = format!("{script}\ncomplete -p {PLUGIN}");
    let bash = Command::new("bash").args(["-c", &check]).output().unwrap();
    assert!(bash.status.success(), "{bash:?}");
}

fn who_may_not_or_cannot_is_told_so(plugin: &Plugin) {
    let text = std::fs::read_to_string(&plugin.kubeconfig).unwrap();
    let mut file: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let by = |file: &serde_yaml::Value| {
        let path = plugin.folder.path().join("kubeconfig");
        std::fs::write(&path, serde_yaml::to_string(file).unwrap()).unwrap();
        move |arguments: &[&str]| {
            let path = path.display().to_string();
            let all: Vec<&str> = arguments
                .iter()
                .copied()
                .chain(["--kubeconfig", &path])
                .collect();
            plugin.says(&all)
        }
    };
    file["users"][0]["user"]["as"] = "nobody-much".into();
    let nobody = by(&file);
    for arguments in [
        &["status"][..],
        &["refresh", "v"],
        &["wait", "again"],
        &["cancel", "again"],
    ] {
        let said = nobody(arguments).err(exit::FORBIDDEN);
        assert!(
            said.contains("nobody-much") && said.contains("ask whoever governs"),
            "{said}"
        );
    }
    file["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1".into();
    let said = by(&file)(&["status"]).err(exit::UNAVAILABLE);
    assert!(said.contains("https://127.0.0.1:1"), "{said}");
    let no_home = plugin
        .command(&["status"])
        .env_remove("KUBECONFIG")
        .env("HOME", "/nowhere")
        .output();
    let said = said_of(no_home).err(exit::USAGE);
    assert!(said.contains("give --kubeconfig or --context"), "{said}");
}

fn said_of(output: std::io::Result<std::process::Output>) -> Said {
    said(output.unwrap())
}

#[tokio::test]
async fn a_refresh_that_runs_is_left_held_resumed_and_cancelled() {
    let operator = Operator::running().await;
    let plugin = Plugin::of(&operator);
    let slow = slow_template(&operator, 600);
    operator.cluster("default", json!({"template": slow})).await;
    let name = plugin.says(&["refresh", "v"]).out(exit::OK);
    let name = name.trim_end();
    let runs = |s: &relance::resources::MaterializedViewRefreshStatus| s.phase == Phase::Running;
    operator.until(name, "running", runs).await;

    let late = plugin.says(&["wait", name, "--timeout", "1s"]);
    let said = late.err(exit::TIMED_OUT);
    let cancel = format!(
        "`kubectl relance cancel {name} -n {}` ends it",
        plugin.namespace
    );
    assert!(said.contains("goes on") && said.contains(&cancel), "{said}");
    for (signal, code) in [("-INT", exit::INTERRUPTED), ("-TERM", exit::TERMINATED)] {
        let waiting = plugin.begins(&["wait", name]);
        assert!(waiting.told.contains("Running"), "{}", waiting.told);
        waiting.signal(signal);
        let said = waiting.ends().await.err(code);
        assert!(said.contains("goes on") && said.contains(&cancel), "{said}");
    }
    assert_eq!(operator.status(name).await.phase, Phase::Running);

    plugin.says(&["suspend", name]).out(exit::OK);
    operator
        .until(name, "suspended", |s| s.phase == Phase::Suspended)
        .await;
    plugin.says(&["resume", name]).out(exit::OK);
    operator.until(name, "running again", runs).await;

    let waiting = plugin.begins(&["wait", name]);
    plugin.says(&["cancel", name]).out(exit::OK);
    waiting.ends().await.err(exit::CANCELLED);
    plugin.says(&["cancel", name]).out(exit::OK);
    let said = plugin.says(&["resume", name]).err(exit::FAILED);
    assert!(said.contains("has ended already (Cancelled)"), "{said}");

    // One that is taken away while it is waited for.
    plugin
        .says(&["refresh", "v", "--name", "gone"])
        .out(exit::OK);
    operator.until("gone", "running", runs).await;
    let waiting = plugin.begins(&["wait", "gone"]);
    operator.kubectl(&["delete", "mvr", "gone"]);
    let said = waiting.ends().await.err(exit::NOT_FOUND);
    assert!(said.contains("'gone' is gone"), "{said}");
}

#[tokio::test]
async fn the_logs_of_all_pods_are_one_stream_also_of_those_that_come_later() {
    let operator = Operator::running().await;
    let plugin = Plugin::of(&operator);
    // The first pod fails, so that a third one comes, which the second one waits for.
    let script = "echo pod $JOB_COMPLETION_INDEX begins; cd $TABLES; \
        if [ $JOB_COMPLETION_INDEX = 1 ]; then while [ ! -e third ]; do sleep 1; done; sleep 5; \
        elif mkdir first; then echo fails; exit 70; \
        else touch third; fi; \
        exec relance worker";
    let mut template = slow_template(&operator, 0);
    let worker = &mut template["spec"]["containers"][0];
    worker["command"] = json!(["/bin/sh", "-c", script]);
    worker["env"] = json!([{"name": "TABLES", "value": operator.tables}]);
    operator
        .cluster("default", json!({"template": template}))
        .await;

    let name = plugin
        .says(&["refresh", "v", "--concurrency", "2"])
        .out(exit::OK);
    let name = name.trim_end();
    let logs = plugin
        .begins(&["logs", name, "-f"])
        .ends()
        .await
        .out(exit::OK);
    operator.succeeded(name).await;
    let count = |what: &str| logs.lines().filter(|line| line.ends_with(what)).count();
    assert_eq!(count("] pod 0 begins"), 2, "{logs}");
    assert_eq!(count("] pod 1 begins"), 1, "{logs}");
    assert_eq!(count("] fails"), 1, "{logs}");
    assert!(logs.contains(r#"{"relance":"progress""#), "{logs}");
    let prefix = format!("[{name}-");
    assert!(logs.lines().all(|line| line.starts_with(&prefix)), "{logs}");

    // All is over, and what is left of it is still told, in the order in which it was
    // said. A pod that the Job lets go ends in its own time: once more, if one has gone
    // in between.
    let pods = |logs: &str| -> std::collections::BTreeSet<String> {
        let first = logs.lines().filter_map(|line| line.split(' ').next());
        first.map(str::to_string).collect()
    };
    let told = || {
        ["--timestamps", "--tail=1", "-f"]
            .map(|how| plugin.says(&["logs", name, how]).out(exit::OK))
    };
    let mut looked = told();
    for _ in 0..3 {
        if pods(&looked[0]) == pods(&looked[2]) {
            break;
        }
        looked = told();
    }
    let [past, tail, again] = looked;
    let times: Vec<jiff::Timestamp> = past
        .lines()
        .map(|line| line.split(' ').nth(1).unwrap().parse().unwrap())
        .collect();
    assert!(times.is_sorted() && times.len() > 2, "{past}");
    assert!(past.contains(" fails"), "{past}");
    assert_eq!(tail.lines().count(), pods(&past).len(), "{tail}");
    assert_eq!(again.lines().count(), past.lines().count(), "{past}{again}");
}

#[tokio::test]
async fn logs_of_a_job_in_another_cluster_are_had_by_a_context_for_it() {
    let operator = Operator::running().await;
    let far = Far::of(&operator).await;
    let mut plugin = Plugin::of(&operator);
    let name = plugin.says(&["refresh", "v", "--cluster", "far", "--wait"]);
    let name = name.out(exit::OK);
    let name = name.trim_end();
    let said = plugin.says(&["logs", name]).err(exit::NOT_FOUND);
    assert!(said.contains("RefreshCluster 'far'"), "{said}");
    assert!(
        said.contains(&format!("kubectl logs -n {}", far.namespace)),
        "{said}"
    );
    plugin.kubeconfig = with_context(plugin.folder.path(), far.kubeconfig_of("relance").await);
    let logs = plugin
        .says(&["logs", name, "--job-context", "far"])
        .out(exit::OK);
    assert!(logs.contains(r#"{"relance":"progress""#), "{logs}");
}

/// The tests' kubeconfig with the context of another beside its own.
fn with_context(folder: &Path, other: Value) -> PathBuf {
    let own = std::fs::read_to_string(kubeconfig()).unwrap();
    let mut file: serde_yaml::Value = serde_yaml::from_str(&own).unwrap();
    let other = serde_yaml::to_value(other).unwrap();
    for list in ["contexts", "clusters", "users"] {
        let more = other[list][0].clone();
        file[list].as_sequence_mut().unwrap().push(more);
    }
    let path = folder.join("both");
    std::fs::write(&path, serde_yaml::to_string(&file).unwrap()).unwrap();
    path
}
