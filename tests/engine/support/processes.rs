//! Processes that refresh views: relance's own, and Python lancedb.

use std::process::Stdio;

use relance::protocol::{INDEX_ENV, TASK_ENV, Task};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::Db;

/// The binary under test.
const RELANCE: &str = env!("CARGO_BIN_EXE_relance");

/// A `relance worker`, as the pod of a Job runs it.
pub struct Worker {
    child: Child,
}

impl Worker {
    /// Starts worker `index` of the refresh that `task` tells of.
    pub fn spawn(db: &Db, task: &Task, index: u32) -> Worker {
        let task = Task {
            catalog: format!("dir://{}", db.folder.path().display()),
            ..task.clone()
        };
        let child = Command::new(RELANCE)
            .arg("worker")
            .env(TASK_ENV, serde_json::to_string(&task).unwrap())
            .env(INDEX_ENV, index.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Worker { child }
    }

    /// Its exit code, if it has ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().unwrap()?;
        Some(status.code().expect("nobody else kills workers"))
    }

    /// Ends it with SIGKILL. Returns whether it was still running.
    pub async fn kill(mut self) -> bool {
        if self.ended().is_some() {
            return false;
        }
        self.child.kill().await.unwrap();
        true
    }

    /// Its exit code, once it has ended.
    pub async fn wait(mut self) -> i32 {
        self.child.wait().await.unwrap().code().unwrap()
    }
}

/// `relance refresh VIEW`; returns its exit code and what it said.
pub async fn relance_refresh(db: &Db, view: &str) -> (i32, String) {
    let done = Command::new(RELANCE)
        .args(["refresh", "--json", "--catalog"])
        .arg(format!("dir://{}", db.folder.path().display()))
        .arg(view)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    (
        done.status.code().unwrap(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// A Python with lancedb 0.40 that does what it is told, one line at a time.
pub struct Python {
    _child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Python {
    /// Starts it, in the environment of the tests in `tests/python`.
    pub async fn start() -> Python {
        let tests = std::path::absolute("tests/python").unwrap();
        let python = match std::env::var("RELANCE_TEST_PYTHON") {
            Ok(python) => python,
            Err(_) => {
                let found = Command::new(tests.join("venv")).output().await.unwrap();
                assert!(found.status.success(), "tests/python/venv failed");
                String::from_utf8(found.stdout).unwrap().trim().to_string()
            }
        };
        let mut child = Command::new(python)
            .arg(tests.join("lancedb_peer.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Python {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }

    async fn ask(&mut self, question: Value) -> Result<Value, String> {
        let line = format!("{question}\n");
        self.stdin.write_all(line.as_bytes()).await.unwrap();
        let answer = self.stdout.next_line().await.unwrap();
        let answer: Value = serde_json::from_str(&answer.expect("Python ended")).unwrap();
        match answer["error"].as_str() {
            Some(error) => Err(error.to_string()),
            None => Ok(answer),
        }
    }

    /// Creates view `view` of `src`, empty: these columns, and those rows.
    pub async fn create_view(
        &mut self,
        db: &Db,
        view: &str,
        select: &[(&str, &str)],
        filter: &str,
    ) -> Result<(), String> {
        let folder = db.folder.path().display().to_string();
        self.ask(json!({
            "do": "create", "folder": folder, "view": view, "select": select, "where": filter,
        }))
        .await
        .map(|_| ())
    }

    /// Refreshes `view`; returns how.
    pub async fn refresh(&mut self, db: &Db, view: &str) -> Result<String, String> {
        let folder = db.folder.path().display().to_string();
        let answer = self
            .ask(json!({"do": "refresh", "folder": folder, "view": view}))
            .await?;
        Ok(answer["mode"].to_string())
    }
}
