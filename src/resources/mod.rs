//! The custom resources of `relance.dev/v1alpha1`, and nothing else.
//!
//! [`refresh`] is one refresh of one view, [`cluster`] says how refresh Jobs
//! run, [`status`] is what the controller reports. [`reasons`] is the one home
//! of condition reasons and Event reasons, [`names`] of every label,
//! annotation, and object name. [`schema`] makes the CustomResourceDefinitions,
//! and [`validate`] runs their rules without an API server.

pub mod cluster;
pub mod names;
pub mod reasons;
pub mod refresh;
mod rules;
pub mod schema;
pub mod status;
pub mod validate;

pub use cluster::{
    ClusterPolicy, KubeconfigRef, PodTemplatePatch, RefreshCluster, RefreshClusterSpec,
    RefreshClusterStatus,
};
pub use refresh::{MaterializedViewRefresh, MaterializedViewRefreshSpec, SecretRef};
pub use status::{JobRef, MaterializedViewRefreshStatus, Mode, Phase, Progress, count};
