//! How a Job stands, from the Job, its pods and its Events. Pure.

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::engine::outcome::Outcome;
use crate::protocol::{Ending, exit};
use crate::resources::{names, reasons};

/// The Job controller's reason for a Job that a worker's exit code ended.
const POD_FAILURE_POLICY: &str = "PodFailurePolicy";

/// The state of a Job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobState {
    /// Its UID.
    pub uid: String,
    /// It is being deleted; pods of it may still run.
    pub deleting: bool,
    /// Then, when it and the last of those pods were to be gone. None: one of
    /// them was not told to end yet.
    pub due: Option<Timestamp>,
    /// How it ended, if it has.
    pub end: Option<JobEnd>,
    /// Why it does not move, if it does not.
    pub stuck: Option<String>,
}

impl JobState {
    /// Whether it has ended, and what its workers said at the end is not known
    /// whole: pods that were not shown yet may have more of it.
    pub fn lacks_last_word(&self) -> bool {
        matches!(
            self.end,
            Some(JobEnd::Succeeded(None) | JobEnd::Failed { .. })
        )
    }

    /// Whether it is being deleted and stays, for so long that its pods are taken
    /// to be on a node that is lost.
    pub fn is_lost(&self, now: Timestamp) -> bool {
        self.deleting && self.due.is_some_and(|due| is_past(due, now))
    }
}

/// How a Job ended.
#[derive(Clone, Debug, PartialEq)]
pub enum JobEnd {
    /// A worker ended well; what it said of its result, if that was readable.
    Succeeded(Option<Outcome>),
    /// No worker will try again.
    Failed {
        /// A stable reason.
        reason: String,
        /// Why, and what to do.
        message: String,
    },
}

/// The state of `job`, some of whose pods are among `pods`.
pub fn of<'a>(job: &Job, pods: impl IntoIterator<Item = &'a Pod>) -> JobState {
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let pods = pods.into_iter().filter(|pod| is_pod_of(pod, &uid));
    let pods: Vec<&Pod> = pods.collect();
    JobState {
        deleting: job.metadata.deletion_timestamp.is_some(),
        due: deletion(&job.metadata).and_then(|at| due(at, &pods)),
        end: end(job, &pods),
        stuck: pods
            .iter()
            .find_map(|pod| why_stuck(pod))
            .or_else(|| why_again(&pods))
            .or_else(|| why_held(job)),
        uid,
    }
}

/// The state of the Job with this UID, which is gone, while a worker of it may
/// still run among `pods`. A Job that is deleted in the foreground outlives its
/// pods, but for a garbage collector that has yet to learn of them; one that
/// others deleted may go first.
pub fn of_survivors<'a>(uid: &str, pods: impl IntoIterator<Item = &'a Pod>) -> Option<JobState> {
    let pods = pods.into_iter();
    let pods: Vec<&Pod> = pods
        .filter(|pod| is_pod_of(pod, uid) && !is_over(pod))
        .collect();
    let first = pods.first()?;
    Some(JobState {
        uid: uid.to_string(),
        deleting: true,
        due: deletion(&first.metadata).and_then(|at| due(at, &pods)),
        ..JobState::default()
    })
}

/// The latest of `deleted` and of when each of `pods` that has not ended was to
/// be gone, where all of them were told to end.
fn due(deleted: Timestamp, pods: &[&Pod]) -> Option<Timestamp> {
    let mut at_work = pods.iter().filter(|pod| !is_over(pod));
    at_work.try_fold(deleted, |due, pod| Some(due.max(deletion(&pod.metadata)?)))
}

/// When an object was to be gone; None: it is not being deleted.
fn deletion(of: &ObjectMeta) -> Option<Timestamp> {
    of.deletion_timestamp.as_ref().map(|at| at.0)
}

/// Whether no container of a pod runs any more, nor will.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// How long after its deletion was due a pod is taken to be at work: a node that
/// is lost keeps its pods for ever.
const LOST: SignedDuration = SignedDuration::from_secs(60);

/// Whether a pod may still do something.
pub fn may_work(pod: &Pod, now: Timestamp) -> bool {
    !is_over(pod) && deletion(&pod.metadata).is_none_or(|due| !is_past(due, now))
}

fn is_past(due: Timestamp, now: Timestamp) -> bool {
    now.duration_since(due) > LOST
}

/// Whether a pod belongs to the Job with this UID.
pub fn is_pod_of(pod: &Pod, job_uid: &str) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.uid == job_uid)
}

/// Whether a pod's worker runs now, so that its log can be asked.
pub fn works(pod: &Pod) -> bool {
    state(pod).is_some_and(|state| state.running.is_some())
}

/// `SuccessCriteriaMet` comes with the first success, `Complete` when the last
/// pod is gone; and a pod's own end is seen a second before either, since the
/// Job controller batches its work.
fn end(job: &Job, pods: &[&Pod]) -> Option<JobEnd> {
    let succeeded = pods.iter().any(|pod| exit_code(pod) == Some(exit::OK));
    let said = || {
        pods.iter().find_map(|pod| match ending(pod)? {
            Ending::Done(outcome) => Some(outcome),
            Ending::Failed { .. } => None,
        })
    };
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_ref());
    let met = |type_: &str| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.find(|c| c.type_ == type_ && c.status == "True")
    };
    if succeeded || met("SuccessCriteriaMet").is_some() || met("Complete").is_some() {
        return Some(JobEnd::Succeeded(said()));
    }
    let failed = met("Failed")?;
    let (reason, message) = failure(failed, pods);
    Some(JobEnd::Failed { reason, message })
}

/// What of a Job's failure is to be told: what made the Job give up comes
/// first, and of its workers only what led to that. A worker that was replaced
/// long ago has no part in it.
fn failure(failed: &JobCondition, pods: &[&Pod]) -> (String, String) {
    let given = failed.reason.as_deref().unwrap_or_default();
    let mut ends = ends(pods).into_iter();
    let led_to_it = match given {
        reasons::DEADLINE_EXCEEDED => {
            let mut message = "the Job ran longer than activeDeadlineSeconds of the refresh or its RefreshCluster allows; raise it and refresh again: what was finished is kept".to_string();
            if let Some(before) = ends.find_map(End::message) {
                message += &format!(". A worker before had failed: {before}");
            }
            return (given.to_string(), message);
        }
        // The newest end was one too many.
        reasons::BACKOFF_LIMIT_EXCEEDED => ends.next(),
        POD_FAILURE_POLICY => ends.find(|end| exit::FINAL.contains(&end.code)),
        _ => ends.find(|end| end.said.is_some()),
    };
    let died = led_to_it.as_ref().and_then(|end| end.died.clone());
    match led_to_it.and_then(|end| end.said) {
        Some(said) => said,
        None if given == reasons::BACKOFF_LIMIT_EXCEEDED => {
            let died = died
                .unwrap_or_else(|| "the workers failed more often than backoffLimit allows".into());
            let message = format!("{died}; look at the workers' logs and refresh again");
            (given.to_string(), message)
        }
        None => {
            let why = failed.message.as_deref().unwrap_or(given);
            let message =
                format!("the Job failed ({why}); look at the workers' logs and refresh again");
            (reasons::WORKERS_FAILED.to_string(), message)
        }
    }
}

/// How a worker ended that was not stopped by others.
struct End {
    code: i32,
    /// Reason and message, where it could tell them.
    said: Option<(String, String)>,
    /// How it died, where that is known.
    died: Option<String>,
}

impl End {
    fn message(self) -> Option<String> {
        self.said.map(|(_, message)| message).or(self.died)
    }
}

/// How the workers failed, the last one first.
fn ends(pods: &[&Pod]) -> Vec<End> {
    let mut ends: Vec<_> = pods
        .iter()
        .filter_map(|pod| {
            let terminated = state(pod)?.terminated.as_ref()?;
            let at = terminated.finished_at.as_ref().map(|time| time.0);
            let said = match ending(pod) {
                Some(Ending::Failed {
                    reason, message, ..
                }) => Some((reason, message)),
                _ => None,
            };
            let end = End {
                code: terminated.exit_code,
                said,
                died: death(terminated),
            };
            // One that is deleted is killed if it does not end when it is told to.
            let deleted = pod.metadata.deletion_timestamp.is_some();
            let stopped = end.code == exit::STOPPED || (deleted && end.said.is_none());
            (end.code != exit::OK && !stopped).then_some((at, end))
        })
        .collect();
    ends.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    ends.into_iter().map(|(_, end)| end).collect()
}

/// How a worker ended that could not say it.
fn death(terminated: &ContainerStateTerminated) -> Option<String> {
    match terminated.reason.as_deref()? {
        "OOMKilled" => Some("the worker was killed for using too much memory: raise resources.limits.memory of the worker in the RefreshCluster's template".to_string()),
        reason => Some(format!("the worker ended with exit code {} ({reason})", terminated.exit_code)),
    }
}

/// Why a pod does not start.
fn why_stuck(pod: &Pod) -> Option<String> {
    if is_over(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let unscheduled = conditions
        .filter(|c| c.type_ == "PodScheduled" && c.status == "False")
        .find_map(|c| c.message.as_deref());
    if let Some(message) = unscheduled {
        return Some(format!(
            "Waiting for a node that takes the worker pod: {message}"
        ));
    }
    let init = status.init_container_statuses.iter().flatten();
    let containers = status.container_statuses.iter().flatten();
    init.chain(containers).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        // These come and go with every start.
        if matches!(reason, "ContainerCreating" | "PodInitializing") {
            return None;
        }
        let message = waiting.message.as_deref().unwrap_or("no more is known");
        Some(format!(
            "Container {} of the worker pod does not start: {reason}: {message}",
            container.name
        ))
    })
}

/// A Job that is suspended is so by others: relance stops Jobs by deleting them.
fn why_held(job: &Job) -> Option<String> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let held = conditions
        .iter()
        .any(|c| c.type_ == "Suspended" && c.status == "True");
    let name = job.metadata.name.as_deref().unwrap_or_default();
    held.then(|| {
        format!("Job {name} is suspended: it waits until its queue admits it, or whoever suspended it lets it go on")
    })
}

/// What the worker before this one failed of, until this one runs.
fn why_again(pods: &[&Pod]) -> Option<String> {
    if pods.iter().any(|pod| works(pod)) {
        return None;
    }
    let message = ends(pods).into_iter().next()?.message()?;
    Some(format!("A worker failed and is replaced: {message}"))
}

fn worker(pod: &Pod) -> Option<&ContainerStatus> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers
        .iter()
        .find(|container| container.name == names::WORKER_CONTAINER)
}

fn state(pod: &Pod) -> Option<&ContainerState> {
    worker(pod)?.state.as_ref()
}

fn exit_code(pod: &Pod) -> Option<i32> {
    Some(state(pod)?.terminated.as_ref()?.exit_code)
}

fn ending(pod: &Pod) -> Option<Ending> {
    let message = state(pod)?.terminated.as_ref()?.message.as_deref()?;
    serde_json::from_str(message).ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::lean::Lean;
    use serde_json::{Value, json};

    fn job(conditions: Value) -> Job {
        serde_json::from_value(json!({
            "metadata": {"name": "j", "uid": "job-uid"},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "p",
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "job-uid"}],
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_may_work_until_it_has_ended_or_its_node_is_taken_to_be_lost() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let due = |ago: i64| {
            let mut pod = pod(json!({"phase": "Running"}));
            let at = Timestamp::from_second(1_000_000 - ago).unwrap();
            pod.metadata.deletion_timestamp = Some(Time(at));
            pod
        };
        assert!(may_work(&pod(json!({"phase": "Running"})), now));
        assert!(may_work(&pod(json!({"phase": "Pending"})), now));
        assert!(!may_work(&pod(json!({"phase": "Failed"})), now));
        assert!(may_work(&due(-20), now), "it has its grace period");
        assert!(may_work(&due(60), now));
        assert!(!may_work(&due(61), now));
    }

    fn ended(code: i32, ending: Option<Ending>, second: u8) -> Pod {
        pod(json!({
            "phase": if code == 0 { "Succeeded" } else { "Failed" },
            "containerStatuses": [{
                "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {
                    "exitCode": code,
                    "finishedAt": format!("2026-01-01T00:00:{second:02}Z"),
                    "message": ending.map(|e| serde_json::to_string(&e).unwrap()),
                    "reason": if code == 137 { "OOMKilled" } else { "Error" },
                }},
            }],
        }))
    }

    fn failed(reason: &str) -> Option<Ending> {
        Some(Ending::Failed {
            reason: reason.into(),
            message: "why".into(),
            retryable: true,
        })
    }

    fn outcome() -> Outcome {
        serde_json::from_value(json!({
            "mode": "Rebuild", "sourceVersion": 1, "viewVersion": 2, "rowsWritten": 3,
            "bytesWritten": 4, "unitsTotal": 5, "unitsKept": 0,
        }))
        .unwrap()
    }

    fn true_(type_: &str, reason: &str) -> Value {
        json!([{"type": type_, "status": "True", "reason": reason, "message": "m"}])
    }

    #[test]
    fn a_worker_that_exited_0_is_the_jobs_success_before_the_job_knows() {
        let done = ended(0, Some(Ending::Done(outcome())), 1);
        let state = of(&job(json!([])), [&done]);
        assert_eq!(state.end, Some(JobEnd::Succeeded(Some(outcome()))));
    }

    #[test]
    fn success_is_seen_from_its_criteria_too() {
        let state = of(&job(true_("SuccessCriteriaMet", "SuccessPolicy")), []);
        assert_eq!(state.end, Some(JobEnd::Succeeded(None)));
    }

    #[test]
    fn the_last_word_is_looked_for_where_the_pods_that_were_shown_have_not_said_it() {
        let met = job(true_("Complete", "CompletionsReached"));
        let done = ended(0, Some(Ending::Done(outcome())), 1);
        assert!(of(&met, []).lacks_last_word());
        assert!(!of(&met, [&done]).lacks_last_word());
        let failed = job(true_("Failed", "BackoffLimitExceeded"));
        assert!(of(&failed, []).lacks_last_word());
        assert!(!of(&job(json!([])), []).lacks_last_word(), "it goes on");
    }

    #[test]
    fn a_failed_pod_is_not_the_jobs_end() {
        let state = of(&job(json!([])), [&ended(70, failed("Internal"), 1)]);
        assert_eq!(state.end, None);
    }

    #[test]
    fn what_a_worker_failed_of_is_said_until_the_next_one_runs() {
        let first = ended(69, failed("Unavailable"), 1);
        let stuck = of(&job(json!([])), [&first]).stuck.unwrap();
        assert!(stuck.ends_with("replaced: why"), "{stuck}");
        let next = pod(json!({"containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {}},
        }]}));
        assert_eq!(of(&job(json!([])), [&first, &next]).stuck, None);
    }

    #[test]
    fn the_worker_that_ended_last_has_the_word() {
        let first = ended(70, failed("Internal"), 1);
        let last = ended(69, failed("Unavailable"), 9);
        let state = of(
            &job(true_("Failed", "BackoffLimitExceeded")),
            [&first, &last],
        );
        let Some(JobEnd::Failed { reason, .. }) = state.end else {
            panic!("{state:?}");
        };
        assert_eq!(reason, "Unavailable");
    }

    #[test]
    fn a_worker_killed_for_memory_is_told_so() {
        let state = of(
            &job(true_("Failed", "BackoffLimitExceeded")),
            [&ended(137, None, 1)],
        );
        let Some(JobEnd::Failed { reason, message }) = state.end else {
            panic!("{state:?}");
        };
        assert_eq!(reason, reasons::BACKOFF_LIMIT_EXCEEDED);
        assert!(message.contains("memory"), "{message}");
    }

    #[test]
    fn a_job_past_its_deadline_is_told_so() {
        let state = of(&job(true_("Failed", "DeadlineExceeded")), []);
        let Some(JobEnd::Failed { reason, .. }) = state.end else {
            panic!("{state:?}");
        };
        assert_eq!(reason, reasons::DEADLINE_EXCEEDED);
    }

    /// Reason and message of a Job that failed for `given`.
    fn told(given: &str, pods: &[Pod]) -> (String, String) {
        match of(&job(true_("Failed", given)), pods).end {
            Some(JobEnd::Failed { reason, message }) => (reason, message),
            end => panic!("{end:?}"),
        }
    }

    #[test]
    fn a_deadline_is_told_first_and_what_a_replaced_worker_failed_of_after_it() {
        let mut killed = ended(137, None, 9);
        killed.metadata.deletion_timestamp =
            serde_json::from_value("2026-01-01T00:00:00Z".into()).unwrap();
        let pods = [
            ended(69, failed("Unavailable"), 1),
            ended(143, None, 9),
            killed,
        ];
        let (reason, message) = told("DeadlineExceeded", &pods);
        assert_eq!(reason, reasons::DEADLINE_EXCEEDED);
        assert!(message.starts_with("the Job ran longer"), "{message}");
        assert!(message.ends_with("had failed: why"), "{message}");
        let (_, message) = told("DeadlineExceeded", &pods[1..]);
        assert!(message.ends_with("is kept"), "{message}");
    }

    #[test]
    fn of_workers_that_failed_too_often_the_last_speaks_even_if_it_could_not() {
        let [first, killed] = [ended(69, failed("Unavailable"), 1), ended(137, None, 5)];
        let stopped = ended(143, None, 9);
        let pods = [stopped, first.clone(), killed.clone()];
        let (reason, message) = told("BackoffLimitExceeded", &pods);
        assert_eq!(reason, reasons::BACKOFF_LIMIT_EXCEEDED);
        assert!(message.contains("raise resources.limits"), "{message}");
        let stuck = of(&job(json!([])), [&first, &killed]).stuck.unwrap();
        assert!(stuck.contains("raise resources.limits"), "{stuck}");
    }

    #[test]
    fn a_job_that_an_exit_code_ended_is_told_by_a_worker_with_such_a_code() {
        let pods = [
            ended(65, failed("ViewNotFound"), 1),
            ended(69, failed("Unavailable"), 9),
        ];
        let (reason, _) = told("PodFailurePolicy", &pods);
        assert_eq!(reason, "ViewNotFound");
        let (reason, message) = told("PodFailurePolicy", &pods[1..]);
        assert_eq!(reason, reasons::WORKERS_FAILED);
        assert!(message.contains("the Job failed (m)"), "{message}");
    }

    #[test]
    fn a_pod_of_another_job_says_nothing() {
        let mut stranger = ended(0, None, 1);
        stranger.metadata.owner_references.as_mut().unwrap()[0].uid = "other".into();
        assert_eq!(of(&job(json!([])), [&stranger]).end, None);
    }

    #[test]
    fn a_job_that_is_gone_is_still_being_deleted_while_a_worker_of_it_may_run() {
        let running = pod(json!({"phase": "Running"}));
        let state = of_survivors("job-uid", [&ended(0, None, 1), &running]).unwrap();
        assert!(state.deleting && state.end.is_none(), "{state:?}");
        assert_eq!(of_survivors("job-uid", [&ended(70, None, 1)]), None);
        assert_eq!(of_survivors("another", [&running]), None);
    }

    #[test]
    fn a_job_that_is_deleted_is_lost_a_minute_after_its_last_worker_was_to_be_gone() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let told_to_end_by = |second| {
            let mut pod = pod(json!({"phase": "Running"}));
            pod.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
            pod
        };
        let mut deleted = job(json!([]));
        assert_eq!(of(&deleted, []).due, None, "it is not being deleted");
        deleted.metadata.deletion_timestamp = Some(Time(second(1_000)));
        let running = pod(json!({"phase": "Running"}));
        let (early, late) = (told_to_end_by(1_030), told_to_end_by(1_300));
        let over = ended(70, None, 1);
        for (pods, due) in [
            (vec![], Some(1_000)),
            (vec![&over], Some(1_000)),
            (vec![&early, &over], Some(1_030)),
            (vec![&late, &early], Some(1_300)),
            // The garbage collector has yet to come to it.
            (vec![&early, &running], None),
        ] {
            let state = of(&deleted, pods.clone());
            assert_eq!(state.due, due.map(second));
            let survivors = of_survivors("job-uid", pods.clone());
            if let Some(survivors) = survivors {
                assert_eq!(survivors.due, state.due);
            }
            assert!(!state.is_lost(second(due.unwrap_or(9_000) + 60)));
            assert_eq!(state.is_lost(second(9_000)), due.is_some());
        }
    }

    #[test]
    fn a_job_that_a_queue_holds_says_so() {
        let held = of(&job(true_("Suspended", "JobSuspended")), []);
        assert!(held.stuck.unwrap().contains("until its queue admits it"));
        assert_eq!(held.end, None);
    }

    #[test]
    fn a_pod_that_no_node_takes_says_why() {
        let waiting = pod(json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}],
        }));
        let stuck = of(&job(json!([])), [&waiting]).stuck.unwrap();
        assert!(stuck.contains("0/1 nodes are available"), "{stuck}");
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_named_and_a_starting_container_is_not() {
        let waiting = |reason: &str| {
            pod(json!({
                "phase": "Pending",
                "containerStatuses": [{
                    "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": reason, "message": "no such image"}},
                }],
            }))
        };
        let stuck = |reason| of(&job(json!([])), [&waiting(reason)]).stuck;
        assert_eq!(stuck("ContainerCreating"), None);
        assert!(
            stuck("ErrImageNeverPull")
                .unwrap()
                .contains("no such image")
        );
    }

    #[test]
    fn parsing_leanly_loses_nothing_that_is_read() {
        let waiting = pod(json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "message": "no node"}],
            "initContainerStatuses": [{
                "name": "init", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull", "message": "none"}},
            }],
        }));
        let ended_well = ended(0, Some(Ending::Done(outcome())), 1);
        let (held, complete) = (
            job(true_("Suspended", "JobSuspended")),
            job(true_("Complete", "CompletionsReached")),
        );
        for (job, pod) in [(&held, &waiting), (&complete, &ended_well)] {
            let Lean(lean_job): Lean<Job> = again(job);
            let Lean(lean_pod): Lean<Pod> = again(pod);
            assert_eq!(of(&lean_job, [&lean_pod]), of(job, [pod]));
        }
    }

    fn again<K: serde::Serialize, L: serde::de::DeserializeOwned>(object: &K) -> L {
        serde_json::from_value(serde_json::to_value(object).unwrap()).unwrap()
    }
}
