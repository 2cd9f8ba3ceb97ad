//! The refresh engine against real Lance tables: everything that needs no
//! Kubernetes.

mod architecture;
mod histories;
mod scenarios;
mod support;
