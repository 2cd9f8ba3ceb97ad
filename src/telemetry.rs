//! Logs to standard error, and the registry of metrics.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// What is logged unless `RUST_LOG` says otherwise by what runs for long:
/// libraries' warnings, and what relance does.
pub const STEPS: &str = "warn,relance=info";

/// The same by a command whose result is all that is asked for.
pub const WARNINGS: &str = "warn";

/// Starts logging to standard error: what `RUST_LOG` names, or `unless_told`.
pub fn start_logging(format: LogFormat, unless_told: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(unless_told));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}

/// The metrics of this process; every name begins with `relance_`.
#[derive(Debug)]
pub struct Metrics(Mutex<Registry>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Mutex::new(Registry::with_prefix("relance")))
    }
}

impl Metrics {
    /// The registry, to register metrics with.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All metrics in OpenMetrics' text form.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry())?;
        Ok(text)
    }
}
