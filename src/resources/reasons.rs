//! The one home of condition reasons and Event reasons.
//!
//! Stable: scripts and alerts match on them. The documentation lists them all.
//! Why a refresh's work failed comes from the engine, whose errors have
//! reasons of their own ([`crate::engine::error::EngineError::reason`]).

/// Condition types of a refresh, as on a batch/v1 Job.
pub mod condition {
    /// True once the view equals its definition at `status.sourceVersion`.
    pub const COMPLETE: &str = "Complete";
    /// True once the refresh has ended without success, cancelled ones included.
    pub const FAILED: &str = "Failed";
    /// True while `spec.suspend` holds the refresh.
    pub const SUSPENDED: &str = "Suspended";
    /// True once the Secret with the caller's credential is deleted, of a refresh that had one, or can
    /// be there no more.
    pub const CREDENTIAL_DELETED: &str = "CredentialDeleted";
    /// On a RefreshCluster: whether refreshes can run through it.
    pub const READY: &str = "Ready";
}

/// `Complete`: the view had to be changed and was.
pub const REFRESHED: &str = "Refreshed";
/// `Complete`: the view was already right.
pub const UP_TO_DATE: &str = "UpToDate";
/// `Failed`: `spec.cancel` asked for it.
pub const CANCELLED: &str = "Cancelled";
/// `Failed`: the Job ran longer than the RefreshCluster's `activeDeadlineSeconds`.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// `Failed`: worker pods failed more often than the RefreshCluster's `backoffLimit`.
pub const BACKOFF_LIMIT_EXCEEDED: &str = "BackoffLimitExceeded";
/// `Failed`: the RefreshCluster that the refresh names is not there.
pub const CLUSTER_NOT_FOUND: &str = "ClusterNotFound";
/// `Failed`: the refresh waited, and its view, its cluster or what it needs of them could not be
/// looked at for as long as it might have run. Also a worker's word, [`EngineError::Unavailable`].
///
/// [`EngineError::Unavailable`]: crate::engine::error::EngineError::Unavailable
pub const UNAVAILABLE: &str = "Unavailable";
/// `Failed`: the cluster that the refresh's Job ran in was out of reach until the deadline.
pub const CLUSTER_LOST: &str = "ClusterLost";
/// `Failed`, and `Ready` is false on a RefreshCluster: the Secret with its kubeconfig is not there.
pub const KUBECONFIG_NOT_FOUND: &str = "KubeconfigNotFound";
/// `Failed`, and `Ready` is false on a RefreshCluster: its kubeconfig is not one that is taken.
pub const KUBECONFIG_REFUSED: &str = "KubeconfigRefused";
/// `Failed`: the RefreshCluster's policy allows no Geneva manifest that a refresh brings along.
pub const MANIFEST_NOT_ALLOWED: &str = "ManifestNotAllowed";
/// `Failed`, and `Ready` is false on a RefreshCluster: an image is not on the list of its policy.
pub const IMAGE_NOT_ALLOWED: &str = "ImageNotAllowed";
/// `Failed`: the Secret of `spec.manifestSecretRef` does not hold what `spec.manifestChecksum` says.
pub const MANIFEST_MISMATCH: &str = "ManifestMismatch";
/// `Failed`: the Secret with the caller's credential is not there, or is not the refresh's own.
pub const CREDENTIAL_NOT_FOUND: &str = "CredentialNotFound";
/// `Failed`: the caller's credential is to be forwarded where none is.
pub const CREDENTIAL_NOT_FORWARDED: &str = "CredentialNotForwarded";
/// `CredentialDeleted`: the refresh has ended.
pub const ENDED: &str = "Ended";
/// `Failed`: worker pods ended with an error that no other pod would mend, and said no more of it.
pub const WORKERS_FAILED: &str = "WorkersFailed";
/// `Failed`: the API server refuses the Job as it is written.
pub const JOB_REJECTED: &str = "JobRejected";
/// `Failed`: the Job's name is taken by a Job of something else.
pub const JOB_NAME_TAKEN: &str = "JobNameTaken";
/// `Failed`: the Job ended well, and no commit of it is to be found.
pub const OUTCOME_MISSING: &str = "OutcomeMissing";
/// `Suspended`: by `spec.suspend`.
pub const SUSPENDED_BY_SPEC: &str = "SuspendedBySpec";
/// `Suspended` is false again.
pub const RESUMED: &str = "Resumed";
/// `Ready` on a RefreshCluster: Jobs can be launched.
pub const CLUSTER_READY: &str = "Ready";
/// `Ready` is false on a RefreshCluster: its template makes no valid pod.
pub const INVALID_TEMPLATE: &str = "InvalidTemplate";
/// `Ready` is unknown on a RefreshCluster: its API server does not answer, does not say whether it
/// takes Jobs, or does not take the kubeconfig's credentials any more; or the Secret with the
/// kubeconfig cannot be read.
pub const CLUSTER_UNREACHABLE: &str = "Unreachable";

/// `Ready` is false on a RefreshCluster: its API server does not let the kubeconfig's user create
/// Jobs. The other rights that relance needs there are not tried beforehand.
pub const CLUSTER_FORBIDDEN: &str = "Forbidden";
/// `Ready` is false on a RefreshCluster: the namespace of its Jobs is not there.
pub const NAMESPACE_NOT_FOUND: &str = "NamespaceNotFound";

/// Event: the refresh's Job in another cluster could not be looked at or stopped any more; its own
/// deadline and time to live clean it up.
pub const REMOTE_JOB_LEFT: &str = "RemoteJobLeft";
/// Event: the refresh waits for its turn.
pub const QUEUED: &str = "Queued";
/// In logs and traces: its turn has come, and its Job is about to be created. No Event of its own:
/// [`JOB_CREATED`] follows at once.
pub const LAUNCHING: &str = "Launching";
/// Event: its Job exists.
pub const JOB_CREATED: &str = "JobCreated";
/// Event: its Job is gone without a result and is created again.
pub const JOB_VANISHED: &str = "JobVanished";

#[cfg(test)]
mod tests {
    #[test]
    fn the_documentation_names_every_reason() {
        let readme = include_str!("../../README.md");
        let own = include_str!("reasons.rs").lines();
        let own = own.filter(|line| line.trim_start().starts_with("pub const "));
        let engines = include_str!("../engine/error.rs").lines();
        let engines = engines.filter(|line| line.contains(" => \""));
        let mut named = 0;
        for line in own.chain(engines) {
            let reason = line.split('"').nth(1).unwrap();
            assert!(
                readme.contains(&format!("`{reason}`")),
                "README.md does not name {reason}"
            );
            named += 1;
        }
        assert!(named > 45, "{named}");
    }
}
