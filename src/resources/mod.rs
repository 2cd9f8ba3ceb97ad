//! The custom resources of `relance.dev/v1alpha1`, and nothing else.
//!
//! [`refresh`] is one refresh of one view, [`cluster`] says how refresh Jobs
//! run, [`status`] is what the controller reports. [`reasons`] is the one home
//! of condition reasons and Event reasons, [`names`] of every label,
//! annotation, and object name.

pub mod cluster;
pub mod names;
pub mod reasons;
pub mod refresh;
pub mod status;

pub use cluster::{RefreshCluster, RefreshClusterSpec, RefreshClusterStatus};
pub use refresh::{MaterializedViewRefresh, MaterializedViewRefreshSpec};
pub use status::{MaterializedViewRefreshStatus, Mode, Phase, Progress};
