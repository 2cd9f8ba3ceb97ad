//! The one home of labels, annotations and object names.

use sha2::{Digest, Sha256};

/// The API group of the custom resources.
pub const GROUP: &str = "relance.dev";

/// The plural name of MaterializedViewRefresh in the API.
pub const REFRESHES: &str = "materializedviewrefreshes";

/// The plural name of RefreshCluster in the API.
pub const CLUSTERS: &str = "refreshclusters";

/// Most characters in a refresh's name: the names of its Job and pods are made
/// from it and must fit 63.
pub const MAX_REFRESH_NAME: usize = 40;

/// Label: the name of the refresh that an object belongs to.
pub const REFRESH_LABEL: &str = "relance.dev/refresh";

/// Label: the UID of the refresh that an object belongs to. Decides whose a Job
/// is where names clash.
pub const REFRESH_UID_LABEL: &str = "relance.dev/refresh-uid";

/// Label: a digest of the URI of the view that a Job or pod works on. Says which
/// view is busy with it once its refresh is gone.
pub const VIEW_LABEL: &str = "relance.dev/view";

/// Label: the RefreshCluster that a Job was launched through.
pub const CLUSTER_LABEL: &str = "relance.dev/cluster";

/// Label: the id of the cluster that a Job's refresh lives in.
pub const HOME_LABEL: &str = "relance.dev/home";

/// Label and its value: who made an object.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "relance");

/// Finalizer of a refresh whose Job runs in another cluster, where no ownerReference takes it along.
pub const REMOTE_FINALIZER: &str = "relance.dev/remote-job";

/// What the labels and annotations of Kueue begin with: they belong on a Job, not only on its pods.
pub const KUEUE_PREFIX: &str = "kueue.x-k8s.io/";

/// Annotation and its value on every refresh: Velero shall restore its status
/// too, so that a restore does not run history again.
pub const RESTORE_STATUS: (&str, &str) = ("velero.io/restore-status", "true");

/// Annotation: the W3C trace context of the request that made a refresh.
pub const TRACEPARENT: &str = "relance.dev/traceparent";

/// Annotation: the user who asked REST for a refresh. REST makes refreshes as itself.
pub const REQUESTED_BY: &str = "relance.dev/requested-by";

/// Field manager of what the controller writes.
pub const CONTROLLER_MANAGER: &str = "relance-controller";

/// Lease that the replicas of a controller share, unless they are told another.
pub const CONTROLLER_LEASE: &str = "relance-controller";

/// Field manager of what REST writes.
pub const REST_MANAGER: &str = "relance-rest";

/// Field manager of what the kubectl plug-in writes.
pub const KUBECTL_MANAGER: &str = "kubectl-relance";

/// Name of the container that does the work in a worker pod.
pub const WORKER_CONTAINER: &str = "worker";

/// Key of the Geneva manifest in the Secret that `spec.manifestSecretRef` names.
pub const MANIFEST_KEY: &str = "manifest";

/// Name of the Secret with the salt of idempotency keys; made by REST, one a namespace.
pub const IDEMPOTENCY_SECRET: &str = "relance-idempotency";

/// Key of the salt in the Secret [`IDEMPOTENCY_SECRET`].
pub const SALT_KEY: &str = "salt";

/// Name of the Secret with the hashes of REST's API keys; made by those who give keys out, one a namespace.
pub const API_KEYS_SECRET: &str = "relance-api-keys";

/// Whether a refresh can be called so.
pub fn is_refresh_name(name: &str) -> bool {
    is_label(name, MAX_REFRESH_NAME)
}

/// Whether a namespace can be called so.
pub fn is_namespace(name: &str) -> bool {
    is_label(name, 63)
}

/// Whether a Secret can be called so.
pub fn is_secret_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|part| is_label(part, 253))
}

fn is_label(name: &str, most: usize) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    name.len() <= most
        && name.bytes().all(|byte| inner(&byte))
        && !name.is_empty()
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Name of the Secret that holds the Geneva manifest which came inline with
/// refresh `refresh`. Owned by the refresh, so it goes with it.
pub fn manifest_secret(refresh: &str) -> String {
    format!("{refresh}-manifest")
}

/// Name of the Secret that holds the credential of the caller who asked for
/// refresh `refresh`. Owned by the refresh, and deleted at its end.
pub fn credential_secret(refresh: &str) -> String {
    format!("{refresh}-credential")
}

/// Reporting controller of Events.
pub const EVENT_REPORTER: &str = "relance";

/// Selects the Jobs and pods that the operator of cluster `home` made.
pub fn launched_from(home: &str) -> String {
    let (label, value) = MANAGED_BY;
    format!("{label}={value},{HOME_LABEL}={home}")
}

/// Name of a refresh's Job: `<refresh>-<8 hex>`, the hex digits of the
/// refresh's UID and the home cluster's id, so that two homes that share a
/// remote cluster do not clash.
pub fn job(refresh: &str, refresh_uid: &str, home: &str) -> String {
    let digest = Sha256::digest(format!("{home}/{refresh_uid}"));
    format!("{refresh}-{}", hex::encode(&digest[..4]))
}

/// What [`VIEW_LABEL`] says of the view at `uri`.
pub fn view_digest(uri: &str) -> String {
    hex::encode(&Sha256::digest(uri)[..16])
}

#[cfg(test)]
mod tests {
    use kube::Resource;

    use super::*;
    use crate::resources::{MaterializedViewRefresh, RefreshCluster};

    #[test]
    fn the_resources_have_the_plural_names_that_their_definitions_give() {
        assert_eq!(MaterializedViewRefresh::plural(&()), REFRESHES);
        assert_eq!(RefreshCluster::plural(&()), CLUSTERS);
    }

    #[test]
    fn the_longest_names_still_fit_what_is_made_from_them() {
        let refresh = "r".repeat(MAX_REFRESH_NAME);
        let job = job(&refresh, "0d3c9a52-6a0f-4b0e-9a58-0f2f1b1c3d4e", "home");
        assert_eq!(job.len(), MAX_REFRESH_NAME + 9);
        // A pod of an Indexed Job: the Job's name, the index and 5 characters.
        assert!(format!("{job}-999-abcde").len() <= 63);
        assert!(manifest_secret(&refresh).len() <= 63);
        assert!(credential_secret(&refresh).len() <= 63);
    }

    #[test]
    fn a_secrets_name_is_a_dns_subdomain() {
        for name in ["s", "my-secret", "a.b-c.0", &"s".repeat(253)] {
            assert!(is_secret_name(name), "{name}");
        }
        let long = "s".repeat(254);
        for name in [
            "",
            "my secret",
            "100%",
            "a/b",
            "../x",
            "a..b",
            ".a",
            "A",
            "-a",
            "a?b",
            &long,
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn a_jobs_name_depends_on_the_refreshs_uid_and_on_the_home_cluster() {
        let name = job("r", "uid", "home");
        assert_eq!(name, job("r", "uid", "home"));
        assert_ne!(name, job("r", "other", "home"));
        assert_ne!(name, job("r", "uid", "elsewhere"));
    }
}
