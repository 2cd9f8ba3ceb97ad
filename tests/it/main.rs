//! What needs a Kubernetes API: `RELANCE_TEST_KUBECONFIG` names a kubeconfig
//! that may do everything; `tests/cluster/cluster up` and `cluster env` give one.

mod chart;
mod rest;
mod rest_lifecycle;
mod serve;
mod support;
mod validation;
