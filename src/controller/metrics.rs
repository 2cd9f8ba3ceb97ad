//! The controller's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::telemetry::Metrics;

/// How a refresh ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    /// `Succeeded`, `Failed` or `Cancelled`.
    pub phase: String,
    /// The reason of its condition.
    pub reason: String,
}

/// The controller's metrics.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    /// Passes over refreshes.
    pub passes: Counter,
    /// Passes that ended in an error.
    pub errors: Counter,
    /// Jobs that were created.
    pub launches: Counter,
    /// Refreshes that ended.
    pub ended: Family<Ended, Counter>,
    /// Seconds from a refresh's creation to its end.
    pub seconds: Histogram,
}

impl ControllerMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let new = Self {
            passes: Counter::default(),
            errors: Counter::default(),
            launches: Counter::default(),
            ended: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.1, 4.0, 10)),
        };
        let mut registry = metrics.registry();
        registry.register(
            "controller_passes",
            "Passes over refreshes",
            new.passes.clone(),
        );
        registry.register(
            "controller_errors",
            "Passes over refreshes that ended in an error",
            new.errors.clone(),
        );
        registry.register(
            "controller_launches",
            "Jobs that were created",
            new.launches.clone(),
        );
        registry.register(
            "refreshes_ended",
            "Refreshes that reached a final phase",
            new.ended.clone(),
        );
        registry.register(
            "refresh_seconds",
            "Seconds from a refresh's creation to its final phase",
            new.seconds.clone(),
        );
        drop(registry);
        new
    }
}
