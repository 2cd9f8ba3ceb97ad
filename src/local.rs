//! `relance refresh` and `relance views`: the engine without a cluster.

use std::io::IsTerminal;

use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use serde_json::json;
use tokio::sync::watch;

use crate::cli::{RefreshArgs, ViewsArgs};
use crate::engine::catalog::{Catalog, DELIMITER};
use crate::engine::error::EngineError;
use crate::engine::freshness::{self, Freshness};
use crate::engine::outcome::{Mode, Outcome};
use crate::engine::refresh::{Progress, Request, refresh};
use crate::engine::view::{self, ViewInfo};
use crate::terminal::{self, aligned, bar};

/// Brings one view up to date, with a progress bar on a terminal.
pub fn refresh_view(args: &RefreshArgs) -> BoxFuture<'_, Result<(), EngineError>> {
    // Boxed here, so that it is compiled once, and not into each program anew.
    run(args).boxed()
}

async fn run(args: &RefreshArgs) -> Result<(), EngineError> {
    let catalog = args.catalog.source().connect().await?;
    let request = Request {
        view: args.view.split(DELIMITER).map(str::to_string).collect(),
        refresh: uuid::Uuid::now_v7().to_string(),
        src_version: args.src_version,
        full: args.full,
        max_rows_per_fragment: args.max_rows_per_fragment,
        optimize_indices: args.optimize_indices,
        ..Default::default()
    };
    let (sender, receiver) = watch::channel(Progress::default());
    let bar = (!args.json && std::io::stderr().is_terminal())
        .then(|| tokio::spawn(draw(receiver, args.view.clone())));
    let result = refresh(&catalog, &request, &sender).await;
    drop(sender);
    if let Some(bar) = bar {
        // The bar clears itself when the sender is gone.
        let _ = bar.await;
    }
    let outcome = result?;
    print(&if args.json {
        let result = json!({
            "view": args.view,
            "mode": outcome.mode,
            "sourceVersion": outcome.source_version,
            "sourceVersions": outcome.source_versions,
            "viewVersion": outcome.view_version,
            "rowsWritten": outcome.rows_written,
            "bytesWritten": outcome.bytes_written,
            "unitsTotal": outcome.units_total,
            "unitsKept": outcome.units_kept,
            "unindexedRows": outcome.unindexed_rows,
        });
        format!("{result}\n")
    } else {
        sentence(&args.view, &outcome)
    })
}

/// Prints; that nobody reads it (`| head`) is no error.
fn print(text: &str) -> Result<(), EngineError> {
    match terminal::print(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(EngineError::Internal(
            format!("standard output cannot be written: {error}"),
        )),
        _ => Ok(()),
    }
}

fn sentence(view: &str, outcome: &Outcome) -> String {
    let sources = outcome.sources();
    let Outcome {
        view_version,
        rows_written,
        units_kept,
        ..
    } = outcome;
    match outcome.mode {
        Mode::NoOp => format!("{view}: already equal to {sources}\n"),
        Mode::Incremental => format!(
            "{view}: incremental to {sources}, {rows_written} rows written, \
             {units_kept} units kept, now version {view_version}\n"
        ),
        Mode::Rebuild => format!(
            "{view}: rebuilt at {sources}, {rows_written} rows written, now \
             version {view_version}\n"
        ),
    }
}

async fn draw(mut progress: watch::Receiver<Progress>, view: String) {
    let bar = bar(&view);
    while progress.changed().await.is_ok() {
        let now = *progress.borrow_and_update();
        bar.set_length(now.units_total);
        bar.set_position(now.units_done);
        bar.set_message(format!("{} rows", now.rows_written));
    }
    bar.finish_and_clear();
}

/// Lists the views of a catalog and how stale each one is.
pub fn list_views(args: &ViewsArgs) -> BoxFuture<'_, Result<(), EngineError>> {
    list(args).boxed()
}

async fn list(args: &ViewsArgs) -> Result<(), EngineError> {
    let catalog = args.catalog.source().connect().await?;
    let mut rows = Vec::new();
    for id in catalog.tables().await? {
        match view::open(&catalog, &id).await {
            Ok((info, table)) => rows.push(row(&catalog, &info, &table).await),
            // A plain table, or a name without a table behind it.
            Err(EngineError::NotAView { .. } | EngineError::ViewNotFound { .. }) => {}
            // It may be a view, and keeps none of the others from being listed.
            Err(error) => rows.push(unseen(&id, &error)),
        }
    }
    if args.json {
        for row in &rows {
            let value = json!({
                "view": row.view,
                "kind": row.kind,
                "source": row.source,
                "viewVersion": row.view_version,
                "state": row.state,
                "message": row.message,
            });
            print(&format!("{value}\n"))?;
        }
        return Ok(());
    }
    let mut table = vec![["VIEW", "SOURCE", "VERSION", "STATE", "MESSAGE"].map(str::to_string)];
    table.extend(rows.into_iter().map(|row| {
        [
            row.view,
            told(row.source),
            told(row.view_version.map(|v| v.to_string()).unwrap_or_default()),
            row.state.to_string(),
            row.message,
        ]
    }));
    print(&aligned(&table))
}

/// A cell of the table: a dash for what is not known, so that columns stay columns.
fn told(cell: String) -> String {
    match cell.is_empty() {
        true => "-".to_string(),
        false => cell,
    }
}

struct Row {
    view: String,
    kind: String,
    source: String,
    /// `None`: it cannot be looked into.
    view_version: Option<u64>,
    state: &'static str,
    message: String,
}

fn unseen(id: &[String], error: &EngineError) -> Row {
    Row {
        view: id.join(DELIMITER),
        kind: String::new(),
        source: String::new(),
        view_version: None,
        state: "Unseen",
        message: error.to_string(),
    }
}

async fn row(catalog: &Catalog, info: &ViewInfo, table: &Dataset) -> Row {
    let (state, message) = match info.require_refreshable() {
        Err(error) => ("Unsupported", error.to_string()),
        Ok(()) => match freshness::check(catalog, info, table, None).await {
            Ok(Freshness::Current(current)) => {
                let equals = format!("equals source version {}", current.source_version);
                ("Current", equals)
            }
            Ok(Freshness::Stale { why }) => ("Stale", why),
            Err(error) => ("Broken", error.to_string()),
        },
    };
    Row {
        view: info.name(),
        kind: info.kind.in_words(),
        source: info
            .sources
            .iter()
            .map(|s| s.join(DELIMITER))
            .collect::<Vec<_>>()
            .join(","),
        view_version: Some(info.version),
        state,
        message,
    }
}
