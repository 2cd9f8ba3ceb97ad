//! The pods of a Job: relance's own template under its cluster's. Pure.

use std::collections::BTreeMap;

use k8s_openapi::DeepMerge;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, EnvFromSource, EnvVar, EnvVarSource,
    PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile, SecretEnvSource,
    SecretKeySelector, SecurityContext, Volume, VolumeMount,
};

use super::job::{Home, JobError, origin, task};
use crate::catalog::credential::Place;
use crate::protocol;
use crate::resources::{MaterializedViewRefresh, RefreshClusterSpec, names};
use crate::telemetry::{otlp, trace};

/// Seconds between SIGTERM and SIGKILL. Workers end at once on SIGTERM: what
/// they finished is kept, the rest is not worth waiting for.
const GRACE_SECONDS: i64 = 5;

/// The user that worker pods run as: no root, and no user of common images.
const USER: i64 = 65_532;

/// Our pod template under the cluster's: lists merge by the keys that
/// Kubernetes gives them (containers, variables and volumes by name, mounts by
/// path), other lists are replaced. What makes the pod ours stays ours.
pub(super) fn template(
    refresh: &MaterializedViewRefresh,
    cluster: &RefreshClusterSpec,
    home: &Home,
    labels: &BTreeMap<String, String>,
) -> Result<PodTemplateSpec, JobError> {
    let mut template = ours(cluster.image.as_deref().unwrap_or(&home.image));
    let theirs = match &cluster.template {
        Some(patch) => patch.typed().map_err(JobError::Template)?,
        None => PodTemplateSpec::default(),
    };
    make_room(&mut template, &theirs);
    template.merge_from(theirs);

    let meta = template.metadata.get_or_insert_default();
    let ours = labels
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()));
    meta.labels.get_or_insert_default().extend(ours);
    let spec = template.spec.get_or_insert_default();
    // A Job's pods may not be restarted in place: each end is counted.
    spec.restart_policy = Some("Never".into());
    let workers = spec.containers.iter_mut();
    for worker in workers.filter(|c| c.name == names::WORKER_CONTAINER) {
        if let Some(secret) = &cluster.storage_secret_ref {
            if !names::is_secret_name(&secret.name) {
                // From before a rule forbade it.
                return Err(JobError::StorageSecret(secret.name.clone()));
            }
            worker.env_from.get_or_insert_default().push(EnvFromSource {
                secret_ref: Some(SecretEnvSource {
                    name: secret.name.clone(),
                    optional: None,
                }),
                ..EnvFromSource::default()
            });
        }
        let task = task(refresh, cluster, home);
        let threads = task.intra_applier_concurrency.map(|n| n.to_string());
        let mut ours: Vec<(&str, Option<String>)> =
            vec![(protocol::TASK_ENV, serde_json::to_string(&task).ok())];
        for (name, value) in &home.environment {
            ours.push((name, Some(value.clone())));
        }
        if ours.iter().any(|(name, _)| *name == otlp::ENDPOINT_ENV) {
            let context = origin(refresh).of_launch();
            ours.push((trace::TRACEPARENT_ENV, Some(context.to_string())));
        }
        if threads.is_some() {
            ours.extend(protocol::THREADS_ENV.map(|name| (name, threads.clone())));
        }
        let env = worker.env.get_or_insert_default();
        env.retain(|variable| ours.iter().all(|(name, _)| variable.name != *name));
        env.extend(ours.into_iter().map(|(name, value)| EnvVar {
            name: name.into(),
            value,
            value_from: None,
        }));
        if task.as_caller {
            let credential = of_caller(&task.job_id);
            env.retain(|variable| credential.iter().all(|ours| variable.name != ours.name));
            env.extend(credential);
        }
        worker.termination_message_path = Some(protocol::TERMINATION_LOG.into());
    }
    Ok(template)
}

/// The caller's credential. Where its Secret is gone the pod starts without,
/// and says so; a pod that waits for a Secret would say nothing.
fn of_caller(refresh: &str) -> [EnvVar; 2] {
    let variable = |name: &str, key: &str| EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: names::credential_secret(refresh),
                key: key.into(),
                optional: Some(true),
            }),
            ..EnvVarSource::default()
        }),
    };
    let (to, from) = (Place::CALLER, Place::SECRET);
    [variable(to.token, from.token), variable(to.key, from.key)]
}

/// Takes out of our template what the other one names again and a merge of
/// both would make invalid: a volume of two kinds, a variable of two sources.
fn make_room(ours: &mut PodTemplateSpec, theirs: &PodTemplateSpec) {
    let (Some(ours), Some(theirs)) = (&mut ours.spec, &theirs.spec) else {
        return;
    };
    let named = theirs.volumes.iter().flatten();
    let named: Vec<&str> = named.map(|volume| volume.name.as_str()).collect();
    if let Some(volumes) = &mut ours.volumes {
        volumes.retain(|volume| !named.contains(&volume.name.as_str()));
    }
    for container in &mut ours.containers {
        let theirs = theirs
            .containers
            .iter()
            .filter(|c| c.name == container.name);
        let named: Vec<&str> = theirs
            .flat_map(|c| c.env.iter().flatten())
            .map(|variable| variable.name.as_str())
            .collect();
        if let Some(env) = &mut container.env {
            env.retain(|variable| !named.contains(&variable.name.as_str()));
        }
    }
}

/// relance's own pod template; it meets the `restricted` Pod Security Standard.
fn ours(image: &str) -> PodTemplateSpec {
    let tmp = "tmp";
    PodTemplateSpec {
        metadata: None,
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![Container {
                name: names::WORKER_CONTAINER.into(),
                image: Some(image.into()),
                args: Some(vec!["worker".into()]),
                env: Some(vec![EnvVar {
                    name: "TMPDIR".into(),
                    value: Some("/tmp".into()),
                    value_from: None,
                }]),
                security_context: Some(SecurityContext {
                    allow_privilege_escalation: Some(false),
                    read_only_root_filesystem: Some(true),
                    capabilities: Some(Capabilities {
                        drop: Some(vec!["ALL".into()]),
                        add: None,
                    }),
                    ..SecurityContext::default()
                }),
                volume_mounts: Some(vec![VolumeMount {
                    name: tmp.into(),
                    mount_path: "/tmp".into(),
                    ..VolumeMount::default()
                }]),
                ..Container::default()
            }],
            volumes: Some(vec![Volume {
                name: tmp.into(),
                empty_dir: Some(EmptyDirVolumeSource::default()),
                ..Volume::default()
            }]),
            ..PodSpec::default()
        }),
    }
}
