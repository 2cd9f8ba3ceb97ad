//! The operator under test, and what processes cost.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{PATIENCE, each};

/// `relance serve`.
pub struct Relance {
    pub child: Child,
    pub api: String,
    pub health: String,
    /// The header that callers show.
    pub caller: String,
    pub http: reqwest::Client,
}

impl Relance {
    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Asks for a refresh of each of these views.
    pub async fn post(&self, views: std::ops::Range<usize>) {
        let from = views.start;
        each(views.len(), |at| async move {
            let url = format!("{}/v1/materialized_view/v{}/refresh", self.api, from + at);
            let request = self.http.post(url).header("authorization", &self.caller);
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), 202);
        })
        .await;
    }

    /// The sum of the metrics whose lines begin so.
    pub async fn count(&self, begin: &str) -> f64 {
        let answer = self.http.get(format!("{}/metrics", self.health)).send();
        let text = answer.await.expect("metrics").text().await.expect("text");
        text.lines()
            .filter(|line| line.starts_with(begin))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// It knows all that run, and has passed over each.
    pub async fn until_steady(&self, running: usize) {
        let running = running as f64;
        let start = Instant::now();
        loop {
            let known = self.count("relance_refreshes{phase=\"Running\"").await;
            let passes = self.count("relance_controller_passes_total").await;
            if known >= running && passes >= running {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "not steady");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn end(mut self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill runs").success());
        while self.child.try_wait().expect("a child").is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Relance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process, by what /proc says of it.
pub struct Process(pub u32);

impl Process {
    pub fn api_server() -> Process {
        let script = std::env::var("RELANCE_TEST_CLUSTER_SCRIPT").expect("a whole cluster");
        let status = Command::new(script)
            .arg("status")
            .env(
                "NAME",
                std::env::var("RELANCE_TEST_CLUSTER").expect("its name"),
            )
            .output()
            .expect("its status");
        let text = String::from_utf8(status.stdout).expect("text");
        let line = text.lines().find(|line| line.starts_with("apiserver"));
        let pid = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        Process(pid.expect("the API server's pid"))
    }

    fn proc(&self, file: &str) -> String {
        let path: PathBuf = ["/proc", &self.0.to_string(), file].iter().collect();
        std::fs::read_to_string(path).expect("the process lives")
    }

    /// Processor time so far, user's and system's, in seconds.
    pub fn seconds(&self) -> f64 {
        let stat = self.proc("stat");
        // The name, in parentheses, may hold spaces.
        let fields = stat.rsplit(')').next().expect("fields");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
        // Fields 14 and 15 of proc(5), in hundredths of a second.
        (ticks(11) + ticks(12)) / 100.0
    }

    pub fn anonymous_mb(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kb = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kb.expect("RssAnon") / 1024.0
    }
}
