//! Imports go one way. Modules alone enforce nothing, so a test does.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn must_not_mention(room: &str, forbidden: &[&str]) {
    let root = Path::new("src").join(room);
    if !root.exists() {
        return;
    }
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(!files.is_empty(), "no sources in {}", root.display());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in forbidden {
                assert!(
                    !code.contains(word),
                    "{}:{} mentions {word}: {line}",
                    file.display(),
                    number + 1
                );
            }
        }
    }
}

#[test]
fn the_engine_has_no_word_of_kubernetes_or_http() {
    must_not_mention(
        "engine",
        &[
            "kube",
            "k8s_openapi",
            "axum",
            "hyper",
            "reqwest",
            "crate::rest",
            "crate::controller",
            "crate::launch",
            "crate::resources",
            "crate::worker",
            "crate::cli",
            "crate::protocol",
        ],
    );
}

#[test]
fn the_resources_know_nobody() {
    must_not_mention(
        "resources",
        &[
            "crate::rest",
            "crate::controller",
            "crate::launch",
            "crate::engine",
            "crate::worker",
        ],
    );
}

#[test]
fn launching_does_not_plan_or_serve() {
    must_not_mention(
        "launch",
        &[
            "crate::rest",
            "crate::controller",
            "crate::worker",
            "engine::refresh",
            "engine::plan",
        ],
    );
}
