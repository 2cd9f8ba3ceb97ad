//! relance refreshes Lance materialized views on Kubernetes.

pub mod catalog;
pub mod check;
pub mod cli;
pub mod controller;
pub mod engine;
pub mod health;
pub mod kubectl;
pub mod kubernetes;
pub mod launch;
pub mod lean;
pub mod listener;
pub mod local;
pub mod panics;
pub mod protocol;
pub mod reach;
pub mod resources;
pub mod rest;
pub mod serve;
pub mod telemetry;
pub mod terminal;
pub mod tls;
pub mod worker;
pub mod world;
