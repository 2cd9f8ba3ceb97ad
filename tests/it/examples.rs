//! What is in examples/, run.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use relance::resources::{Mode, Phase};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::far::slow_template;
use crate::operator::{Operator, PATIENCE, needed};
use crate::support::repo;

/// The documents of an example.
fn example(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(repo("examples").join(file)).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&text);
    documents
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn apply(operator: &Operator, verb: &str, object: &Value) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), object.to_string()).unwrap();
    operator
        .kubectl(&[verb, "-f", file.path().to_str().unwrap(), "-o", "name"])
        .trim()
        .to_string()
}

/// With this machine's image and this view in its place, and nothing else.
fn here(mut cronjob: Value, view: &str) -> Value {
    let worker = &mut cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0];
    worker["image"] = json!(needed("RELANCE_TEST_IMAGE"));
    worker["imagePullPolicy"] = json!("Never");
    assert_eq!(worker["args"][2], "sales/orders_by_day");
    worker["args"][2] = json!(view);
    cronjob
}

#[tokio::test]
async fn the_cronjob_refreshes_and_its_job_ends_as_the_refresh_does() {
    let operator = Operator::running().await;
    let mut documents = example("cronjob.yaml");
    let cronjob = documents.remove(0);
    for document in &documents {
        apply(&operator, "apply", document);
    }
    apply(&operator, "apply", &here(cronjob.clone(), "v"));
    let run = |job: &str, condition: &str| {
        operator.kubectl(&["create", "job", job, "--from=cronjob/orders-by-day"]);
        let job = format!("job/{job}");
        let condition = format!("--for=condition={condition}");
        operator.kubectl(&["wait", &condition, &job, "--timeout=180s"]);
        operator.kubectl(&["logs", &job])
    };
    let said = run("first", "Complete");
    assert!(
        said.contains("first\n") && said.contains("first Succeeded: "),
        "{said}"
    );
    let status = operator.status("first").await;
    assert_eq!(
        (status.phase, status.mode),
        (Phase::Succeeded, Some(Mode::Rebuild))
    );
    assert_eq!(operator.ids("v").await, (2..10).collect::<Vec<_>>());

    apply(&operator, "apply", &here(cronjob, "nothing"));
    let said = run("second", "Failed");
    assert!(said.contains("second Failed: "), "{said}");
    assert_eq!(operator.status("second").await.phase, Phase::Failed);
    // No other pod was tried.
    let pods = operator.kubectl(&["get", "pods", "-l", "job-name=second", "-o", "name"]);
    assert_eq!(pods.lines().count(), 1, "{pods}");
}

/// Whether a condition of Argo's holds for an object. Argo reads it as a label
/// selector over the paths of the object, so the API server judges it: with a
/// label of that path and value.
fn holds(operator: &Operator, condition: &str, object: &Value) -> bool {
    let path = condition.split_whitespace().next().unwrap();
    let value = path.split('.').fold(object, |value, key| &value[key]);
    let labels = BTreeMap::from([(path, value.as_str().unwrap_or_default())]);
    let name = "judged";
    let judged = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels},
    });
    apply(operator, "apply", &judged);
    let found = operator.kubectl(&["get", "configmaps", "-l", condition, "-o", "name"]);
    found.contains(name)
}

#[tokio::test]
async fn argos_step_creates_a_refresh_and_its_conditions_hold_when_it_has_ended() {
    let operator = Operator::running().await;
    let mut documents = example("argo-workflow-template.yaml");
    let template = documents.remove(0)["spec"]["templates"][0].take();
    for document in &documents {
        apply(&operator, "apply", document);
    }
    let resource = &template["resource"];
    let create = |view: &str| {
        let manifest = resource["manifest"].as_str().unwrap();
        let manifest = manifest
            .replace("{{inputs.parameters.view}}", view)
            .replace("{{inputs.parameters.cluster}}", "default");
        assert!(!manifest.contains("{{"), "{manifest}");
        let object: Value = serde_yaml::from_str(&manifest).unwrap();
        let name = apply(&operator, resource["action"].as_str().unwrap(), &object);
        name.rsplit_once('/').unwrap().1.to_string()
    };
    let judged = |name: &str| {
        let object = operator.kubectl(&["get", "mvr", name, "-o", "json"]);
        let object = serde_json::from_str(&object).unwrap();
        ["successCondition", "failureCondition"].map(|condition| {
            let condition = resource[condition].as_str().unwrap();
            holds(&operator, condition, &object)
        })
    };
    let name = create(r#"["v"]"#);
    operator.succeeded(&name).await;
    assert_eq!(judged(&name), [true, false]);
    for output in template["outputs"]["parameters"].as_array().unwrap() {
        let path = output["valueFrom"]["jsonPath"].as_str().unwrap();
        let value = operator.kubectl(&["get", "mvr", &name, "-o", &format!("jsonpath={path}")]);
        assert!(!value.is_empty(), "{output}");
    }
    let name = create(r#"["sales", "nothing"]"#);
    assert_eq!(operator.settled(&name).await.phase, Phase::Failed);
    assert_eq!(judged(&name), [false, true]);

    let slow = slow_template(&operator, 600);
    operator.cluster("default", json!({"template": slow})).await;
    operator.append("src", 10..20).await;
    let name = create(r#"["v"]"#);
    operator
        .until(&name, "running", |s| s.phase == Phase::Running)
        .await;
    assert_eq!(judged(&name), [false, false]);
    operator.patch(&name, json!({"cancel": true})).await;
    operator.settled(&name).await;
    assert_eq!(judged(&name), [false, true]);
    // Its service account may do what the step does.
    let account = format!(
        "system:serviceaccount:{}:refresh-views",
        operator.space.namespace
    );
    let start = Instant::now();
    for verb in ["create", "get"] {
        while !may(&operator, verb, &account) {
            assert!(start.elapsed() < PATIENCE, "it may not {verb}");
        }
    }
}

fn may(operator: &Operator, verb: &str, account: &str) -> bool {
    let answer = Command::new("kubectl")
        .args(["--kubeconfig", &crate::support::kubeconfig()])
        .args(["-n", &operator.space.namespace, "auth", "can-i", verb])
        .args(["materializedviewrefreshes.relance.dev", "--as", account])
        .output();
    answer.unwrap().stdout.starts_with(b"yes")
}

#[tokio::test]
async fn what_the_tasks_of_the_airflow_example_call_refreshes_a_view() {
    let operator = Operator::running().await;
    let mut files = vec![repo("tests/python/airflow_example.py")];
    // A whole Airflow is dear: `make example-airflow` brings it.
    if std::env::var_os("RELANCE_TEST_AIRFLOW").is_some() {
        files.push(repo("tests/python/airflow_dag.py"));
    }
    let python = Command::new(needed("RELANCE_TEST_PYTHON"))
        .args(["-m", "pytest", "-q"])
        .args(files)
        .env("RELANCE_TEST_URL", &operator.url)
        .output()
        .expect("Python runs");
    let said = String::from_utf8_lossy(&python.stdout);
    assert!(python.status.success(), "{said}");
}
