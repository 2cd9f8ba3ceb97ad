//! From a refresh and its cluster to the Job that runs it. Pure.
//!
//! An Indexed Job whose pods all bring the view to the same place: any one of
//! them that exits 0 has seen the commit, so one success is the Job's success.
//! Indices are not work: there is no back-off limit for each of them.

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule, SuccessPolicy, SuccessPolicyRule,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use std::collections::BTreeMap;
use thiserror::Error;

use super::pod::template;
use crate::catalog::Source;
use crate::protocol::{Task, exit};
use crate::resources::{MaterializedViewRefresh, RefreshClusterSpec, names, reasons};
use crate::telemetry::trace::Origin;

/// Seconds for which a finished Job is kept at most: a net, should the
/// operator be away for good. Its refresh takes it along when it goes.
const KEEP_FINISHED_SECONDS: i32 = 24 * 60 * 60;

/// What does not come from the refresh or its cluster.
#[derive(Clone, Debug)]
pub struct Home {
    /// The id of the cluster that the refresh lives in.
    pub id: String,
    /// The operator's own image, for clusters that name none.
    pub image: String,
    /// The catalog, as workers reach it.
    pub catalog: Source,
    /// Variables that every worker's environment has. No secrets.
    pub environment: Vec<(String, String)>,
}

/// Where a Job is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// In another cluster, where nothing can be owned by the refresh.
    pub remote: bool,
}

/// Why a cluster makes no Job.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JobError {
    /// Its template is none.
    #[error("{0}; mend it")]
    Template(String),
    /// An image is not on the list of its policy.
    #[error(
        "image '{0}' is not among spec.policy.images; add it there, or have the pods run another"
    )]
    Image(String),
    /// Its storage Secret can be none.
    #[error(
        "spec.storageSecretRef.name is '{0}', which no Secret can be called; name the Secret with the object store's credentials"
    )]
    StorageSecret(String),
}

impl JobError {
    /// A stable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            JobError::Template(_) | JobError::StorageSecret(_) => reasons::INVALID_TEMPLATE,
            JobError::Image(_) => reasons::IMAGE_NOT_ALLOWED,
        }
    }
}

/// How many worker pods share the work of a refresh.
fn concurrency(refresh: &MaterializedViewRefresh, cluster: &RefreshClusterSpec) -> i32 {
    cluster.concurrency(refresh.spec.concurrency)
}

/// The Job of a refresh.
pub fn job(
    refresh: &MaterializedViewRefresh,
    cluster: &RefreshClusterSpec,
    home: &Home,
    place: Place<'_>,
) -> Result<Job, JobError> {
    let pods = concurrency(refresh, cluster);
    let labels = labels(refresh, home);
    let template = template(refresh, cluster, home, &labels)?;
    allowed(&template, cluster)?;
    let theirs = template.metadata.clone().unwrap_or_default();
    let owner = owner(refresh).filter(|_| !place.remote);
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(name(refresh, home)),
            namespace: Some(place.namespace.to_string()),
            labels: Some(of_kueue(theirs.labels).chain(labels).collect()),
            annotations: Some(of_kueue(theirs.annotations).collect())
                .filter(|all: &BTreeMap<_, _>| !all.is_empty()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            completion_mode: Some("Indexed".into()),
            completions: Some(pods),
            parallelism: Some(pods),
            backoff_limit: Some(cluster.retries(refresh.spec.backoff_limit)),
            active_deadline_seconds: Some(
                cluster.deadline_seconds(refresh.spec.active_deadline_seconds),
            ),
            ttl_seconds_after_finished: Some(KEEP_FINISHED_SECONDS),
            success_policy: Some(SuccessPolicy {
                rules: vec![SuccessPolicyRule {
                    succeeded_count: Some(1),
                    succeeded_indexes: None,
                }],
            }),
            pod_failure_policy: Some(failure_policy()),
            template,
            // `suspend` is left out: a queue of Kueue's sets it, and takes it back.
            ..JobSpec::default()
        }),
        status: None,
    })
}

/// Kueue reads its labels from the Job, and a template has none but its pods'.
fn of_kueue(theirs: Option<BTreeMap<String, String>>) -> impl Iterator<Item = (String, String)> {
    let theirs = theirs.into_iter().flatten();
    theirs.filter(|(key, _)| key.starts_with(names::KUEUE_PREFIX))
}

/// Refuses a pod with an image that the cluster's policy does not list.
fn allowed(template: &PodTemplateSpec, cluster: &RefreshClusterSpec) -> Result<(), JobError> {
    let policy = cluster.policy();
    let spec = template.spec.iter();
    let containers = spec.flat_map(|spec| {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
    });
    let mut images = containers.filter_map(|container| container.image.as_ref());
    match images.find(|image| !policy.allows_image(image)) {
        Some(image) => Err(JobError::Image(image.clone())),
        None => Ok(()),
    }
}

/// The name of a refresh's Job.
pub fn name(refresh: &MaterializedViewRefresh, home: &Home) -> String {
    let meta = &refresh.metadata;
    names::job(
        meta.name.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
        &home.id,
    )
}

/// Whether a Job was made for this refresh, by its UID label.
pub fn is_of(job: &Job, refresh: &MaterializedViewRefresh) -> bool {
    let labels = job.metadata.labels.as_ref();
    let uid = labels.and_then(|labels| labels.get(names::REFRESH_UID_LABEL));
    uid.is_some() && uid == refresh.metadata.uid.as_ref()
}

fn labels(refresh: &MaterializedViewRefresh, home: &Home) -> BTreeMap<String, String> {
    let meta = &refresh.metadata;
    let uri = refresh.status.as_ref().and_then(|s| s.view_uri.as_ref());
    let view = uri.map(|uri| (names::VIEW_LABEL, names::view_digest(uri)));
    [
        (names::MANAGED_BY.0, names::MANAGED_BY.1.to_string()),
        (names::REFRESH_LABEL, meta.name.clone().unwrap_or_default()),
        (
            names::REFRESH_UID_LABEL,
            meta.uid.clone().unwrap_or_default(),
        ),
        (names::CLUSTER_LABEL, refresh.spec.cluster.clone()),
        (names::HOME_LABEL, home.id.clone()),
    ]
    .into_iter()
    .chain(view)
    .map(|(key, value)| (key.to_string(), value))
    .collect()
}

/// The Job goes with its refresh. It does not keep the refresh from going:
/// a Job that is slow to end must not make `kubectl delete mvr` hang.
fn owner(refresh: &MaterializedViewRefresh) -> Option<OwnerReference> {
    let owner = refresh.controller_owner_ref(&())?;
    Some(OwnerReference {
        block_owner_deletion: Some(false),
        ..owner
    })
}

/// - A refresh that can never succeed as asked fails at once.
/// - So does one whose view others kept changing: a new pod would lose as
///   this one did after its many attempts, and its message says what to do.
/// - A pod that was evicted or preempted does not count.
/// - All other ends (store away, a bug, killed for memory) count against the
///   back-off limit.
fn failure_policy() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "FailJob".into(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    container_name: Some(names::WORKER_CONTAINER.into()),
                    operator: "In".into(),
                    values: exit::FINAL.to_vec(),
                }),
                on_pod_conditions: None,
            },
            PodFailurePolicyRule {
                action: "Ignore".into(),
                on_exit_codes: None,
                on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                    type_: "DisruptionTarget".into(),
                    status: "True".into(),
                }]),
            },
        ],
    }
}

/// What a worker shall do.
pub fn task(refresh: &MaterializedViewRefresh, cluster: &RefreshClusterSpec, home: &Home) -> Task {
    let spec = &refresh.spec;
    Task {
        refresh_uid: refresh.metadata.uid.clone().unwrap_or_default(),
        job_id: refresh.metadata.name.clone().unwrap_or_default(),
        catalog: home.catalog.uri.clone(),
        catalog_headers: home.catalog.headers.clone(),
        as_caller: spec.forwarded_credential,
        storage_options: home.catalog.options.clone(),
        view: spec.view.clone(),
        src_version: spec.src_version.and_then(|v| u64::try_from(v).ok()),
        full: spec.full,
        expected_incarnation: spec.expected_incarnation.clone(),
        max_rows_per_fragment: spec
            .max_rows_per_fragment
            .and_then(|v| u64::try_from(v).ok()),
        concurrency: u32::try_from(concurrency(refresh, cluster)).ok(),
        intra_applier_concurrency: spec
            .intra_applier_concurrency
            .and_then(|v| u32::try_from(v).ok()),
        optimize_indices: spec.optimize_indices,
    }
}

/// The trace that a refresh belongs to.
pub fn origin(refresh: &MaterializedViewRefresh) -> Origin {
    let uid = refresh.metadata.uid.as_deref().unwrap_or_default();
    let annotations = refresh.metadata.annotations.as_ref();
    let annotation = annotations.and_then(|a| a.get(names::TRACEPARENT));
    Origin::of(uid, annotation.map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;
    use serde_json::{Value, json};

    fn refresh(spec: Value) -> MaterializedViewRefresh {
        let mut refresh = MaterializedViewRefresh::new("r", serde_json::from_value(spec).unwrap());
        refresh.metadata.namespace = Some("ns".into());
        refresh.metadata.uid = Some("3f0c0000-0000-4000-8000-000000000001".into());
        refresh
    }

    fn home() -> Home {
        Home {
            id: "home-1".into(),
            image: "relance:1".into(),
            catalog: Source {
                uri: "dir:///tables".into(),
                options: BTreeMap::from([("region".into(), "eu".into())]),
                headers: BTreeMap::from([("x-database".into(), "sales".into())]),
            },
            environment: Vec::new(),
        }
    }

    const HERE: Place<'static> = Place {
        namespace: "ns",
        remote: false,
    };

    fn made(spec: Value, cluster: Value) -> Value {
        let cluster: RefreshClusterSpec = serde_json::from_value(cluster).unwrap();
        serde_json::to_value(job(&refresh(spec), &cluster, &home(), HERE).unwrap()).unwrap()
    }

    #[test]
    fn a_job_in_another_cluster_is_owned_by_nothing_and_found_by_its_labels() {
        let place = Place {
            namespace: "there",
            remote: true,
        };
        let refresh = refresh(json!({"view": ["v"]}));
        let job = job(&refresh, &RefreshClusterSpec::default(), &home(), place).unwrap();
        assert_eq!(job.metadata.namespace.as_deref(), Some("there"));
        assert_eq!(job.metadata.owner_references, None);
        assert!(is_of(&job, &refresh));
        let labels = job.metadata.labels.unwrap();
        assert_eq!(labels[names::HOME_LABEL], "home-1");
        assert_eq!(labels[names::REFRESH_LABEL], "r");
    }

    #[test]
    fn a_queue_of_kueues_is_named_on_the_job_and_its_suspension_is_left_to_it() {
        let queue = "kueue.x-k8s.io/queue-name";
        let job = made(
            json!({"view": ["v"]}),
            json!({"template": {"metadata": {
                "labels": {queue: "team-a", "team": "a"},
                "annotations": {"kueue.x-k8s.io/podset-required-topology": "rack", "note": "n"},
            }}}),
        );
        assert_eq!(job["metadata"]["labels"][queue], "team-a");
        assert!(job["metadata"]["labels"].get("team").is_none());
        assert_eq!(
            job["metadata"]["annotations"],
            json!({"kueue.x-k8s.io/podset-required-topology": "rack"})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["team"], "a");
        assert!(job["spec"].get("suspend").is_none());
    }

    #[test]
    fn deadline_and_retries_are_the_refreshs_within_the_clusters_ceilings() {
        let job = made(
            json!({"view": ["v"], "activeDeadlineSeconds": 900, "backoffLimit": 1}),
            json!({"activeDeadlineSeconds": 60, "maxActiveDeadlineSeconds": 600, "backoffLimit": 3}),
        );
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 600);
        assert_eq!(job["spec"]["backoffLimit"], 1);
    }

    #[test]
    fn an_image_that_the_policy_does_not_list_makes_no_job_wherever_it_stands() {
        let refused = |cluster: Value| {
            let cluster: RefreshClusterSpec = serde_json::from_value(cluster).unwrap();
            let refresh = refresh(json!({"view": ["v"]}));
            job(&refresh, &cluster, &home(), HERE).err()
        };
        let policy = json!({"images": ["relance:1"]});
        assert_eq!(refused(json!({"policy": policy})), None);
        assert_eq!(
            refused(json!({"policy": policy, "image": "relance:2"})),
            Some(JobError::Image("relance:2".into()))
        );
        for kind in ["containers", "initContainers"] {
            let template = json!({"spec": {kind: [{"name": "side", "image": "side:1"}]}});
            assert_eq!(
                refused(json!({"policy": policy, "template": template})),
                Some(JobError::Image("side:1".into())),
                "{kind}"
            );
        }
    }

    #[test]
    fn a_storage_secret_that_can_be_none_makes_no_job() {
        let storage = json!({"storageSecretRef": {"name": "my secret"}});
        let cluster: RefreshClusterSpec = serde_json::from_value(storage).unwrap();
        let refresh = refresh(json!({"view": ["v"]}));
        let refused = job(&refresh, &cluster, &home(), HERE).unwrap_err();
        assert_eq!(refused, JobError::StorageSecret("my secret".into()));
        assert_eq!(refused.reason(), reasons::INVALID_TEMPLATE);
    }

    fn worker(job: &Value) -> &Value {
        &job["spec"]["template"]["spec"]["containers"][0]
    }

    fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
        let env = container["env"].as_array()?;
        env.iter().find(|variable| variable["name"] == name)
    }

    #[test]
    fn the_threads_of_a_pod_are_those_that_the_refresh_asks_for() {
        let asked = made(
            json!({"view": ["v"], "intraApplierConcurrency": 3}),
            json!({}),
        );
        for name in protocol::THREADS_ENV {
            assert_eq!(variable(worker(&asked), name).unwrap()["value"], "3");
        }
        let silent = made(json!({"view": ["v"]}), json!({}));
        assert!(variable(worker(&silent), "TOKIO_WORKER_THREADS").is_none());
    }

    #[test]
    fn one_success_of_an_indexed_job_is_enough() {
        let job = made(json!({"view": ["v"], "concurrency": 4}), json!({}));
        assert_eq!(job["spec"]["completionMode"], "Indexed");
        assert_eq!(job["spec"]["completions"], 4);
        assert_eq!(job["spec"]["parallelism"], 4);
        assert_eq!(
            job["spec"]["successPolicy"]["rules"],
            json!([{"succeededCount": 1}])
        );
        assert!(job["spec"].get("backoffLimitPerIndex").is_none());
    }

    #[test]
    fn concurrency_is_asked_for_or_the_clusters_and_never_above_its_ceiling() {
        let pods = |spec, cluster| made(spec, cluster)["spec"]["completions"].clone();
        assert_eq!(pods(json!({"view": ["v"]}), json!({})), 1);
        assert_eq!(
            pods(json!({"view": ["v"]}), json!({"defaultConcurrency": 3})),
            3
        );
        assert_eq!(
            pods(
                json!({"view": ["v"], "concurrency": 9}),
                json!({"defaultConcurrency": 3, "maxConcurrency": 5})
            ),
            5
        );
        assert_eq!(
            pods(
                json!({"view": ["v"]}),
                json!({"defaultConcurrency": 8, "maxConcurrency": 5})
            ),
            5
        );
    }

    #[test]
    fn every_job_has_a_deadline_and_a_time_to_live() {
        let job = made(json!({"view": ["v"]}), json!({}));
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 86_400);
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 86_400);
        let job = made(json!({"view": ["v"]}), json!({"activeDeadlineSeconds": 60}));
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 60);
    }

    #[test]
    fn what_can_never_succeed_fails_the_job_and_a_disruption_does_not_count() {
        let job = made(json!({"view": ["v"]}), json!({}));
        let rules = &job["spec"]["podFailurePolicy"]["rules"];
        assert_eq!(rules[0]["action"], "FailJob");
        assert_eq!(
            rules[0]["onExitCodes"]["values"],
            json!([exit::USAGE, exit::PERMANENT, exit::CONTENDED])
        );
        let mut sorted = [exit::USAGE, exit::PERMANENT, exit::CONTENDED];
        sorted.sort();
        assert_eq!(
            sorted,
            [exit::USAGE, exit::PERMANENT, exit::CONTENDED],
            "the API server wants them ordered"
        );
        assert_eq!(rules[1]["action"], "Ignore");
        assert_eq!(rules[1]["onPodConditions"][0]["type"], "DisruptionTarget");
    }

    #[test]
    fn the_pod_is_restricted_and_holds_no_token() {
        let job = made(json!({"view": ["v"]}), json!({}));
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let security = &worker(&job)["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    }

    #[test]
    fn the_job_belongs_to_its_refresh_and_does_not_hold_it_back() {
        let job = made(json!({"view": ["v"]}), json!({}));
        let owner = &job["metadata"]["ownerReferences"][0];
        assert_eq!(owner["kind"], "MaterializedViewRefresh");
        assert_eq!(owner["controller"], true);
        assert_eq!(owner["blockOwnerDeletion"], false);
        for labels in [
            &job["metadata"]["labels"],
            &job["spec"]["template"]["metadata"]["labels"],
        ] {
            assert_eq!(
                labels[names::REFRESH_UID_LABEL],
                "3f0c0000-0000-4000-8000-000000000001"
            );
            assert_eq!(labels[names::HOME_LABEL], "home-1");
        }
    }

    #[test]
    fn a_job_and_its_pods_say_which_view_they_work_on() {
        let mut refresh = refresh(json!({"view": ["v"]}));
        refresh.status.get_or_insert_default().view_uri = Some("mem://v".into());
        let job = job(&refresh, &RefreshClusterSpec::default(), &home(), HERE).unwrap();
        let digest = Some(names::view_digest("mem://v"));
        let template = job.spec.unwrap().template.metadata.unwrap();
        for labels in [job.metadata.labels, template.labels] {
            assert_eq!(labels.unwrap().get(names::VIEW_LABEL).cloned(), digest);
        }
    }

    #[test]
    fn the_task_says_what_the_refresh_asks_and_holds_no_secret() {
        let job = made(
            json!({"view": ["a", "v"], "srcVersion": 7, "full": true, "maxRowsPerFragment": 10}),
            json!({"storageSecretRef": {"name": "s3"}}),
        );
        let task = variable(worker(&job), protocol::TASK_ENV).unwrap()["value"]
            .as_str()
            .unwrap();
        let task: Task = serde_json::from_str(task).unwrap();
        assert_eq!(task.view, ["a", "v"]);
        assert_eq!((task.src_version, task.full), (Some(7), true));
        assert_eq!(task.max_rows_per_fragment, Some(10));
        assert_eq!(task.storage_options["region"], "eu");
        assert_eq!(worker(&job)["envFrom"][0]["secretRef"]["name"], "s3");
    }

    #[test]
    fn a_forwarded_credential_is_taken_from_the_refreshs_own_secret_and_no_other() {
        let spec = json!({"view": ["v"], "forwardedCredential": true});
        let theirs = json!({"template": {"spec": {"containers": [{
            "name": "worker",
            "env": [{"name": "RELANCE_CALLER_TOKEN", "value": "forged"}],
        }]}}});
        let job = made(spec, theirs);
        for (name, key) in [
            ("RELANCE_CALLER_TOKEN", "token"),
            ("RELANCE_CALLER_API_KEY", "api-key"),
        ] {
            assert_eq!(
                variable(worker(&job), name).unwrap(),
                &json!({"name": name, "valueFrom": {"secretKeyRef": {
                    "name": "r-credential", "key": key, "optional": true,
                }}})
            );
        }
        let task = variable(worker(&job), protocol::TASK_ENV).unwrap();
        let task: Task = serde_json::from_str(task["value"].as_str().unwrap()).unwrap();
        assert!(task.as_caller);
        assert_eq!(task.catalog_headers["x-database"], "sales");
        let without = made(json!({"view": ["v"]}), json!({}));
        assert!(variable(worker(&without), "RELANCE_CALLER_TOKEN").is_none());
    }

    #[test]
    fn the_clusters_template_is_merged_by_name_and_by_path() {
        let job = made(
            json!({"view": ["v"]}),
            json!({
                "image": "mine:2",
                "storageSecretRef": {"name": "s3"},
                "template": {
                    "metadata": {"labels": {"team": "a", names::HOME_LABEL: "forged"}},
                    "spec": {
                        "nodeSelector": {"disk": "fast"},
                        "restartPolicy": "OnFailure",
                        "containers": [
                            {
                                "name": "worker",
                                "resources": {"limits": {"memory": "1Gi"}},
                                "env": [
                                    {"name": "AWS_REGION", "value": "eu"},
                                    {"name": "TMPDIR", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                                    {"name": protocol::TASK_ENV, "value": "forged"},
                                ],
                                "envFrom": [{"configMapRef": {"name": "theirs"}}],
                                "volumeMounts": [{"name": "tables", "mountPath": "/tables"}],
                            },
                            {"name": "side", "image": "side:1"},
                        ],
                        "volumes": [
                            {"name": "tables", "persistentVolumeClaim": {"claimName": "tables"}},
                            {"name": "tmp", "ephemeral": {}},
                        ],
                    },
                },
            }),
        );
        let template = &job["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["team"], "a");
        assert_eq!(template["metadata"]["labels"][names::HOME_LABEL], "home-1");
        let pod = &template["spec"];
        assert_eq!(pod["nodeSelector"]["disk"], "fast");
        assert_eq!(pod["restartPolicy"], "Never");
        let worker = worker(&job);
        assert_eq!(worker["image"], "mine:2");
        assert_eq!(worker["args"], json!(["worker"]));
        assert_eq!(worker["resources"]["limits"]["memory"], "1Gi");
        assert_eq!(variable(worker, "AWS_REGION").unwrap()["value"], "eu");
        assert!(variable(worker, "TMPDIR").unwrap().get("value").is_none());
        assert_ne!(
            variable(worker, protocol::TASK_ENV).unwrap()["value"],
            "forged"
        );
        assert_eq!(worker["envFrom"][0]["configMapRef"]["name"], "theirs");
        assert_eq!(worker["envFrom"][1]["secretRef"]["name"], "s3");
        assert_eq!(worker["volumeMounts"].as_array().unwrap().len(), 2);
        let volumes = pod["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 2);
        let tmp = volumes.iter().find(|v| v["name"] == "tmp").unwrap();
        assert!(
            tmp.get("emptyDir").is_none(),
            "a volume of two kinds: {tmp}"
        );
        assert_eq!(pod["containers"][1]["name"], "side");
        assert_eq!(
            worker["securityContext"]["readOnlyRootFilesystem"], true,
            "what the template does not name stays"
        );
    }
}
