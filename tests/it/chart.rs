//! The Helm chart and what is rendered from it.

use std::path::Path;
use std::process::Command;

use crate::support::repo;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn helm(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("helm")
        .args(arguments)
        .output()
        .expect("helm on the PATH, as eval \"$(tests/cluster/cluster env)\" puts it there");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into(),
    )
}

#[test]
fn the_charts_definitions_are_the_types_own() {
    for (name, yaml) in relance::resources::schema::yaml().unwrap() {
        let path = repo("deploy/chart/crds").join(format!("{name}.yaml"));
        let copy = read(&path);
        assert!(copy.contains(&yaml), "{name} is stale: make manifests");
    }
}

#[test]
fn the_rendered_manifests_are_the_charts() {
    let output = Command::new(repo("deploy/render"))
        .arg("-")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let rendered = String::from_utf8(output.stdout).unwrap();
    assert!(
        rendered == read(&repo("deploy/relance.yaml")),
        "deploy/relance.yaml is stale: make manifests"
    );
}

/// The API server takes no resource before its definition is established.
#[test]
fn the_rendered_manifests_say_that_their_definitions_come_first() {
    let rendered = read(&repo("deploy/relance.yaml"));
    let head: Vec<&str> = rendered
        .lines()
        .take_while(|line| line.starts_with('#'))
        .collect();
    let at = |step: &str| {
        let found = head.iter().position(|line| line.contains(step));
        found.unwrap_or_else(|| panic!("{step} is not in the head"))
    };
    let wait = at("kubectl wait --for=condition=Established");
    for (name, _) in relance::resources::schema::yaml().unwrap() {
        assert!(head[wait].contains(&format!("crd/{name}")), "{name}");
    }
    let order = [
        at("apply --server-side -f crds/"),
        wait,
        at("create namespace relance"),
        at("create secret generic tables"),
        at("apply --server-side -f deploy/relance.yaml"),
    ];
    assert!(order.is_sorted(), "{head:?}");
}

#[test]
fn the_chart_says_what_it_needs_and_what_it_does_not_know() {
    let chart = repo("deploy/chart").display().to_string();
    let base = ["template", "r", &chart, "--kube-version", "1.34.0"];
    let with = |values: &[&str]| {
        let set = values.iter().flat_map(|value| ["--set", value]);
        helm(&base.iter().copied().chain(set).collect::<Vec<_>>())
    };
    let (ok, said) = with(&["image=x"]);
    assert!(!ok && said.contains("catalog"), "{said}");
    let (ok, said) = with(&["image=x", "catalog=dir:///t", "replicas=3"]);
    assert!(!ok && said.contains("replicas"), "{said}");
    let (ok, said) = with(&["image=x", "catalog=dir:///t"]);
    assert!(ok, "{said}");
    assert!(!said.contains("open-access"), "nobody asked for that");
    let nobody = ["rest.auth.tokens=false", "rest.auth.keys=false"];
    let nobody: Vec<&str> = [&["image=x", "catalog=dir:///t"][..], &nobody].concat();
    let (ok, said) = with(&nobody);
    assert!(!ok && said.contains("nobody gets in"), "{said}");
    let forward = "rest.auth.forwardCredentials=true";
    let (ok, said) = with(&["image=x", "catalog=dir:///t", forward]);
    assert!(!ok && said.contains("catalog is a directory"), "{said}");
    let (ok, said) = with(&["image=x", "catalog=https://user:pass@h"]);
    assert!(!ok && said.contains("catalog"), "{said}");
    let deleting = "resources: [secrets]\n    verbs: [get, delete]";
    let (ok, said) = with(&["image=x", "catalog=dir://bucket/tables"]);
    assert!(!ok && said.contains("catalog"), "{said}");
    let headers = "catalogHeaders.x-database=sales";
    let (ok, said) = with(&["image=x", "catalog=dir:///t"]);
    assert!(ok && !said.contains(deleting), "{said}");
    let (ok, said) = with(&["image=x", "catalog=https://h/p", headers]);
    // Credentials may have been forwarded before, and are to go.
    assert!(ok && said.matches(deleting).count() == 1, "{said}");
    assert!(
        said.contains(r#"RELANCE_CATALOG_HEADERS, value: "x-database=sales""#),
        "{said}"
    );
    let (ok, said) = with(&["image=x", "catalog=https://h/p", forward]);
    assert!(ok && said.contains("--forward-credentials"), "{said}");
    // The one right more, and no other.
    assert_eq!(said.matches(deleting).count(), 1, "{said}");
    let (ok, said) = with(&["image=x", "catalog=dir:///t", "rest.tls.secretName=web"]);
    assert!(ok && said.contains("secretName: web"), "{said}");
    assert!(
        said.contains("--tls-key=/etc/relance/tls/tls.key"),
        "{said}"
    );
}

#[test]
fn no_role_of_the_chart_lists_secrets_or_reaches_beyond_the_namespace() {
    let rendered = read(&repo("deploy/relance.yaml"));
    let mut rules = 0;
    for document in rendered.split("\n---\n") {
        let value: serde_yaml::Value = serde_yaml::from_str(document).unwrap();
        let kind = value["kind"].as_str().unwrap_or_default();
        if kind == "ClusterRole" {
            // The one thing that a Role cannot grant: to ask whose token it is.
            let only = r#"[{"apiGroups":["authentication.k8s.io"],"resources":["tokenreviews"],"verbs":["create"]}]"#;
            let rules: serde_json::Value = serde_yaml::from_value(value["rules"].clone()).unwrap();
            assert_eq!(rules.to_string(), only);
        }
        for rule in value["rules"].as_sequence().into_iter().flatten() {
            rules += 1;
            let text =
                |key: &str| -> Vec<String> { serde_yaml::from_value(rule[key].clone()).unwrap() };
            let (resources, verbs) = (text("resources"), text("verbs"));
            assert!(!verbs.contains(&"*".to_string()) && !resources.contains(&"*".to_string()));
            if resources.contains(&"secrets".to_string()) {
                assert!(
                    verbs.iter().all(|v| v == "get" || v == "create"),
                    "{verbs:?}"
                );
            }
        }
    }
    assert!(rules > 5, "no rules were found");
}

/// Every value has its documentation right above it, and its place in the schema.
#[test]
fn every_value_is_documented_and_in_the_schema() {
    let text = read(&repo("deploy/chart/values.yaml"));
    let lines: Vec<&str> = text.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut path: Vec<(usize, String)> = Vec::new();
    let schema: serde_json::Value =
        serde_json::from_str(&read(&repo("deploy/chart/values.schema.json"))).unwrap();
    let mut documented = 0;
    for (at, line) in lines.iter().enumerate() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let key = key.trim();
        if key.starts_with('#') || key.contains(' ') {
            continue;
        }
        path.retain(|(other, _)| *other < depth(line));
        path.push((depth(line), key.to_string()));
        if path.iter().any(|(_, key)| key == "requests") {
            // Within what Kubernetes itself defines.
            continue;
        }
        let mut of = &schema;
        for (_, key) in &path {
            of = &of["properties"][key];
        }
        assert!(of.is_object(), "{key} is not in the schema");
        let parent = value.trim().is_empty() && key != "resources";
        let comment = lines[..at]
            .iter()
            .rev()
            .take_while(|above| above.trim_start().starts_with('#'));
        let said = comment.into_iter().any(|line| line.contains("# -- "));
        assert!(said || parent, "{key} is not documented");
        documented += usize::from(said);
    }
    assert!(documented > 25, "{documented}");
}

#[test]
fn what_the_chart_makes_follows_its_values() {
    let chart = repo("deploy/chart").display().to_string();
    let rendered = |values: &[&str]| {
        let base = ["template", "r", &chart, "--kube-version", "1.34.0"];
        let set = ["image=x", "catalog=dir:///t"].iter().chain(values);
        let set = set.flat_map(|value| ["--set", *value]);
        let (ok, text) = helm(&base.iter().copied().chain(set).collect::<Vec<_>>());
        assert!(ok, "{text}");
        text
    };
    let kinds = |text: &str, kind: &str| {
        let line = format!("kind: {kind}");
        text.lines().filter(|other| **other == line).count()
    };
    let all = rendered(&[
        "serviceMonitor.create=true",
        "tracing.endpoint=http://c:4318",
    ]);
    for (kind, count) in [
        ("Deployment", 2),
        ("NetworkPolicy", 3),
        ("PodDisruptionBudget", 2),
        ("ServiceMonitor", 1),
        ("ValidatingAdmissionPolicy", 2),
        ("ValidatingAdmissionPolicyBinding", 2),
        ("ClusterRole", 1),
        ("ClusterRoleBinding", 1),
    ] {
        assert_eq!(kinds(&all, kind), count, "{kind}");
    }
    assert_eq!(all.matches("OTEL_EXPORTER_OTLP_ENDPOINT").count(), 2);
    let least = rendered(&[
        "networkPolicy.create=false",
        "podDisruptionBudget.create=false",
        "admissionPolicy.create=false",
        "rest.auth.tokens=false",
        "rest.replicas=1",
        "controller.replicas=1",
    ]);
    for kind in [
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ServiceMonitor",
        "ValidatingAdmissionPolicy",
        "ClusterRole",
        "ClusterRoleBinding",
    ] {
        assert_eq!(kinds(&least, kind), 0, "{kind}");
    }
    assert!(least.contains("--auth=keys\n"), "{least}");
    // Who is let in to the API is joined by the pod of `helm test`.
    let from = "networkPolicy.apiFrom[0].podSelector.matchLabels.app=web";
    let closed = rendered(&[from]);
    let policy = closed.split("\n---\n").find(|document| {
        document.contains("kind: NetworkPolicy\nmetadata:\n  name: relance-rest\n")
    });
    let policy: serde_yaml::Value = serde_yaml::from_str(policy.unwrap()).unwrap();
    let from = policy["spec"]["ingress"][0]["from"].as_sequence().unwrap();
    let components: Vec<_> = from
        .iter()
        .map(|from| &from["podSelector"]["matchLabels"])
        .map(|labels| (&labels["app"], &labels["app.kubernetes.io/component"]))
        .map(|(app, component)| app.as_str().or(component.as_str()))
        .collect();
    assert_eq!(components, [Some("web"), Some("test")]);
    // A budget for one replica would keep its node from being drained.
    let one = rendered(&["rest.replicas=1", "controller.replicas=1"]);
    assert_eq!(kinds(&one, "PodDisruptionBudget"), 0);
}
