//! Logs to standard error, and the registry of metrics.
//!
//! What is done for a refresh is done within a span that holds its `job_id`,
//! and every log line tells the spans it stands in.

mod json;
pub mod otlp;
pub mod trace;

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::registry::Registry;
use tracing::Span;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;
use otlp::{Exporter, TraceError};

/// What is logged unless `RUST_LOG` says otherwise by what runs for long:
/// libraries' warnings, and what relance does.
pub const STEPS: &str = "warn,relance=info";

/// The same by a command whose result is all that is asked for.
pub const WARNINGS: &str = "warn";

/// The same by a command that tells people itself what goes wrong, as it does
/// of each request that fails.
pub const ERRORS: &str = "error,kube_client::client::builder=off";

/// Starts logging to standard error: what `RUST_LOG` names, or `unless_told`.
pub fn start_logging(format: LogFormat, unless_told: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(unless_told));
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_writer(std::io::stderr),
            )
            .init(),
        LogFormat::Json => registry.with(json::layer(std::io::stderr)).init(),
    }
}

/// Starts to send traces, if the environment names where to.
pub fn start_tracing() -> Result<(), TraceError> {
    if let Some(exporter) = Exporter::configured(|name| std::env::var(name).ok())? {
        trace::export_to(exporter);
    }
    Ok(())
}

/// The span of work on the refresh `job_id`.
pub fn job_span(job_id: &str) -> Span {
    tracing::info_span!("refresh", job_id)
}

/// The span of a REST request; [`is_about`] tells which refresh it is about.
pub fn request_span() -> Span {
    tracing::info_span!("request", job_id = tracing::field::Empty)
}

/// Says that the request whose span this is in is about the refresh `job_id`.
pub fn is_about(job_id: &str) {
    Span::current().record("job_id", job_id);
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
