//! Those who bring a view up to date, each timed from the outside: view and
//! source are opened within the time, connections are not.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use datafusion::physical_plan::SendableRecordBatchStream;
use lance::Dataset;
use lance::dataset::{InsertBuilder, WriteMode, WriteParams};
use lancedb::Connection;
use relance::engine::catalog::Catalog;
use relance::engine::outcome::Mode;
use relance::engine::refresh::{Progress, Request, refresh};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::database::Database;

/// Who brings a view up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// relance's engine.
    Relance,
    /// One scan with the view's expressions into one Lance write of a new table.
    Floor,
    /// Python lancedb 0.40.
    Lancedb040,
    /// The lancedb crate, 0.41.
    Lancedb041,
}

impl Peer {
    /// All of them, as the tables name them.
    pub const ALL: [(Peer, &'static str); 4] = [
        (Peer::Relance, "relance"),
        (Peer::Floor, "floor"),
        (Peer::Lancedb040, "lancedb 0.40"),
        (Peer::Lancedb041, "lancedb 0.41"),
    ];

    /// The table that it writes.
    pub fn view(self) -> &'static str {
        match self {
            Peer::Relance => "v_relance",
            Peer::Floor => "floor",
            Peer::Lancedb040 => "v_040",
            Peer::Lancedb041 => "v_041",
        }
    }
}

/// What one refresh took.
#[derive(Clone, Debug, Deserialize)]
pub struct Sample {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of processor time, of all threads.
    pub cpu: f64,
    /// What was done, in the peer's own words.
    pub mode: String,
}

/// The peers, connected to one database.
pub struct Peers {
    crate_041: Option<Connection>,
    python: Option<Python>,
    present: Vec<Peer>,
}

impl Peers {
    /// Connects those that can refresh the view of `database`, and creates it
    /// for each. Prints why one is left out.
    pub async fn connect(database: &Database, python: Option<&Path>, alone: bool) -> Peers {
        let mut present = vec![Peer::Relance, Peer::Floor];
        database.create_view(Peer::Relance.view(), false).await;
        let mut peers = Peers {
            crate_041: None,
            python: None,
            present: Vec::new(),
        };
        if database.workload.lancedb && !alone {
            database.create_view(Peer::Lancedb041.view(), false).await;
            let connection = lancedb::connect(&database.folder()).execute().await;
            peers.crate_041 = Some(connection.expect("connected"));
            present.push(Peer::Lancedb041);
            // 0.40 refuses sources without stable row ids.
            if let Some(python) = python.filter(|_| database.stable_row_ids) {
                let mut python = Python::start(python, &database.folder());
                match &database.workload.scan {
                    Some(scan) => {
                        let said = python.ask(&json!({
                            "do": "create", "view": Peer::Lancedb040.view(),
                            "select": scan.columns, "where": scan.filter,
                        }));
                        assert_eq!(said, json!({}), "lancedb 0.40 creates no view");
                    }
                    // Its Python API has no words for these views; it reads them.
                    None => database.create_view(Peer::Lancedb040.view(), true).await,
                }
                peers.python = Some(python);
                present.push(Peer::Lancedb040);
            }
        }
        peers.present = present;
        peers
    }

    /// Those that are connected.
    pub fn present(&self) -> &[Peer] {
        &self.present
    }

    /// Leaves `peer` out from now on.
    pub fn dismiss(&mut self, peer: Peer) {
        self.present.retain(|p| *p != peer);
    }

    /// Brings `peer`'s view up to date. Error: why it cannot.
    pub async fn refresh(
        &mut self,
        peer: Peer,
        database: &Database,
        full: bool,
    ) -> Result<Sample, String> {
        if let (Peer::Lancedb040, Some(python)) = (peer, &mut self.python) {
            let asked = json!({"do": "refresh", "view": peer.view(), "full": full});
            let said = python.ask(&asked);
            return match said.get("error") {
                Some(error) => Err(error.to_string()),
                None => serde_json::from_value(said).map_err(|e| e.to_string()),
            };
        }
        if peer == Peer::Floor {
            // Lance would keep the older version; the floor has none.
            let _ = std::fs::remove_dir_all(database.path(peer.view()));
        }
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        let mode = match (peer, &self.crate_041) {
            (Peer::Relance, _) => relance(&database.folder(), peer.view(), full).await?,
            (Peer::Lancedb041, Some(connection)) => lancedb_041(connection, peer.view()).await?,
            _ => floor(database).await?,
        };
        Ok(Sample {
            wall: wall.elapsed().as_secs_f64(),
            cpu: cpu_seconds() - cpu,
            mode,
        })
    }
}

async fn relance(folder: &str, view: &str, full: bool) -> Result<String, String> {
    let said = |e: relance::engine::error::EngineError| e.to_string();
    let uri = format!("dir://{folder}");
    let catalog = Catalog::connect(&uri, &BTreeMap::new())
        .await
        .map_err(said)?;
    let request = Request {
        view: vec![view.to_string()],
        refresh: uuid::Uuid::now_v7().to_string(),
        full,
        ..Default::default()
    };
    let (progress, _) = watch::channel(Progress::default());
    let outcome = refresh(&catalog, &request, &progress).await.map_err(said)?;
    Ok(match outcome.mode {
        Mode::NoOp => "NoOp".to_string(),
        _ => format!(
            "{:?}, {} of {} units kept, {} rows",
            outcome.mode, outcome.units_kept, outcome.units_total, outcome.rows_written
        ),
    })
}

async fn lancedb_041(connection: &Connection, view: &str) -> Result<String, String> {
    let said = |e: lancedb::Error| e.to_string();
    let view = connection
        .open_materialized_view(view)
        .await
        .map_err(said)?;
    let result = view.refresh().execute().await.map_err(said)?;
    Ok(format!("{:?}", result.mode))
}

async fn floor(database: &Database) -> Result<String, String> {
    let said = |e: lance::Error| e.to_string();
    let rows: SendableRecordBatchStream = match &database.workload.scan {
        Some(scan) => {
            let source = Dataset::open(&database.path("src")).await.map_err(said)?;
            let mut scanner = source.scan();
            scanner
                .filter(scan.filter)
                .and_then(|s| s.project_with_transform(scan.columns))
                .map_err(said)?;
            scanner.try_into_stream().await.map_err(said)?.into()
        }
        None => {
            let frame = database.frame(database.workload.oracle).await;
            frame.execute_stream().await.map_err(|e| e.to_string())?
        }
    };
    let path = database.path(Peer::Floor.view());
    let params = WriteParams {
        mode: WriteMode::Create,
        ..Default::default()
    };
    InsertBuilder::new(path.as_str())
        .with_params(&params)
        .execute_stream(rows)
        .await
        .map_err(said)?;
    Ok("rewritten".to_string())
}

/// The processor time of this process so far, in seconds.
pub fn cpu_seconds() -> f64 {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, the name, may hold blanks.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<f64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    // utime and stime are fields 14 and 15 of the line.
    fields.get(11..13).map_or(0.0, |f| f.iter().sum::<f64>()) / TICKS_A_SECOND
}

/// A Python process that refreshes views when it is told to.
struct Python {
    child: Child,
    asked: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn start(python: &Path, folder: &str) -> Python {
        let script = "benches/engine/peer.py";
        let mut child = Command::new(python)
            .args([script, folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let asked = child.stdin.take().expect("its input");
        let said = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut python = Python { child, asked, said };
        let version = python.hear();
        println!("lancedb of Python: {}", version["version"]);
        python
    }

    fn hear(&mut self) -> Value {
        let line = self.said.next().expect("Python answers").expect("a line");
        serde_json::from_str(&line).expect("JSON")
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.asked, "{question}").expect("Python listens");
        self.hear()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
