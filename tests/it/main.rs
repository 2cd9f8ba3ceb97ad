//! What needs a Kubernetes API: `RELANCE_TEST_KUBECONFIG` names a kubeconfig
//! that may do everything; `tests/cluster/cluster up` and `cluster env` give one.

mod agreement;
mod auth;
mod bounds;
mod callers;
mod chart;
mod controller;
mod crash;
mod crowd;
mod e2e;
mod far;
mod far_faults;
mod forged;
mod indices;
mod installed;
mod jobs;
mod kubectl;
mod leader;
mod objects;
mod operator;
mod planted;
mod raw_bytes;
mod reading;
mod remote;
mod rest;
mod rest_describe;
mod rest_faults;
mod rest_idempotency;
mod rest_lifecycle;
mod rest_rbac;
mod serve;
mod support;
mod telemetry;
mod tls;
mod upgrade;
mod validation;
