//! relance refreshes Lance materialized views on Kubernetes.

pub mod cli;
pub mod engine;
pub mod protocol;
pub mod resources;
pub mod telemetry;
