//! relance refreshes Lance materialized views on Kubernetes.

pub mod engine;
pub mod protocol;
pub mod resources;
