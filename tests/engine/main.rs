//! The refresh engine against real Lance tables: everything that needs no
//! Kubernetes.

mod architecture;
mod compaction;
mod faults;
mod general;
mod grouped;
mod histories;
mod indices;
mod interop;
mod kills;
mod limited;
mod looks;
mod lost;
mod overlays;
mod plans;
mod races;
mod records;
mod remote;
mod s3;
mod scenarios;
mod stored;
mod support;
mod threads;
mod throttling;
mod trims;
mod unnest;
