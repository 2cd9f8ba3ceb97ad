//! The refresh engine: brings one view to exactly what its definition says.
//!
//! No word of Kubernetes or HTTP here.

pub mod catalog;
pub mod error;
pub mod freshness;
pub mod outcome;
pub mod view;
