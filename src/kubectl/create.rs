//! `refresh`: stores a MaterializedViewRefresh, judged by the CRD's own rules
//! first. A create that is not answered is looked for under its name before
//! it is tried again, so that a network that breaks makes no second refresh.

use std::time::Duration;

use kube::api::PostParams;
use serde_json::{Map, Value, json};

use super::access::Access;
use super::args::{self, Output, RefreshArgs};
use super::error::PluginError;
use super::{exit, follow, status};
use crate::resources::refresh::KEPT_SECONDS;
use crate::resources::{MaterializedViewRefresh, MaterializedViewRefreshSpec, names, validate};

/// How often a create is tried whose fate is unknown, and the pause between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Does it.
pub async fn refresh(access: &Access, args: &RefreshArgs) -> Result<i32, PluginError> {
    let own = uuid::Uuid::now_v7().to_string();
    let name = args.name.clone().unwrap_or(own);
    let refresh = asked(&name, args)?;
    let stored = store(access, &refresh, args.name.is_some()).await?;
    let at_the_end = args.wait && matches!(args.output, Some(Output::Json | Output::Yaml));
    let mut printed = match at_the_end {
        true => Ok(()),
        false => status::print_one(&stored, args.output),
    };
    if !args.wait {
        return status::answered(exit::OK, printed).map_err(|error| made(&name, error));
    }
    let end = follow::to_the_end(access, &stored, args.timeout).await;
    let (code, last) = end.map_err(|error| match error {
        gone @ PluginError::Deleted(_) => gone,
        error => made(&name, error),
    })?;
    if at_the_end {
        printed = status::print_one(&last, args.output);
    }
    status::answered(code, printed)
}

/// What went wrong once it was made, with its name, which may be printed nowhere else.
fn made(name: &str, error: PluginError) -> PluginError {
    PluginError::Made {
        name: name.to_string(),
        error: Box::new(error),
    }
}

/// The resource; fields are copied as they were given, and the CRD's rules judge them.
fn asked(name: &str, args: &RefreshArgs) -> Result<MaterializedViewRefresh, PluginError> {
    let ttl = args.ttl_seconds_after_finished.unwrap_or(KEPT_SECONDS);
    let fields = [
        ("view", json!(args::view(&args.view))),
        ("cluster", json!(args.cluster)),
        ("srcVersion", json!(args.src_version)),
        ("full", json!(args.full)),
        ("concurrency", json!(args.concurrency)),
        (
            "intraApplierConcurrency",
            json!(args.intra_applier_concurrency),
        ),
        ("maxRowsPerFragment", json!(args.max_rows_per_fragment)),
        ("sourceTaskSize", json!(args.source_task_size)),
        ("outputLimit", json!(args.output_limit)),
        ("expectedIncarnation", json!(args.expected_incarnation)),
        ("optimizeIndices", json!(args.optimize_indices)),
        ("activeDeadlineSeconds", json!(args.active_deadline_seconds)),
        ("backoffLimit", json!(args.backoff_limit)),
        ("priority", json!(args.priority)),
        ("ttlSecondsAfterFinished", json!(ttl)),
    ];
    let given = fields.into_iter().filter(|(_, value)| !value.is_null());
    let spec: Map<String, Value> = given.map(|(key, value)| (key.to_string(), value)).collect();
    let object = json!({"metadata": {"name": name}, "spec": spec});
    if let Some(violation) = validate::refresh(&object).first() {
        let flag = flag(&violation.path);
        return Err(PluginError::Usage(violation.sentence(&flag)));
    }
    let spec: MaterializedViewRefreshSpec = serde_json::from_value(Value::Object(spec))
        .map_err(|error| PluginError::Usage(format!("the refresh cannot be written: {error}")))?;
    Ok(MaterializedViewRefresh::asked(name, spec))
}

/// The flag that gives the field at `path`.
fn flag(path: &str) -> String {
    let field = path.strip_prefix("spec.").unwrap_or(path);
    if field.starts_with("view") {
        return "VIEW".to_string();
    }
    let kebab = field.chars().flat_map(|c| {
        let dash = c.is_ascii_uppercase().then_some('-');
        dash.into_iter().chain([c.to_ascii_lowercase()])
    });
    format!("--{}", kebab.collect::<String>())
}

/// Stores it. Where the name is `chosen` by the caller, one that is there and
/// asks for the same is as good; where it is not, one that is there is this
/// one, of a create whose answer was lost.
async fn store(
    access: &Access,
    refresh: &MaterializedViewRefresh,
    chosen: bool,
) -> Result<MaterializedViewRefresh, PluginError> {
    let name = refresh.metadata.name.as_deref().unwrap_or_default();
    let post = PostParams {
        field_manager: Some(names::KUBECTL_MANAGER.to_string()),
        ..PostParams::default()
    };
    let mut attempt = 1;
    loop {
        let error = match access.refreshes.create(&post, refresh).await {
            Ok(stored) => return Ok(stored),
            Err(error) => error,
        };
        let again = match &error {
            kube::Error::Api(status) if status.is_already_exists() => {
                match access.refreshes.get_opt(name).await {
                    Ok(Some(found)) if found.spec.asks_the_same(&refresh.spec) => return Ok(found),
                    Ok(Some(_)) => {
                        return Err(PluginError::Usage(format!(
                            "refresh '{name}' is there already and asks for something else; choose another --name, or none"
                        )));
                    }
                    // It went in between.
                    Ok(None) => true,
                    Err(error) if chosen => return Err(access.error(&error)),
                    Err(error) => return Err(made(name, access.error(&error))),
                }
            }
            // Somebody else's change came in between, such as of a quota.
            kube::Error::Api(status) if status.is_conflict() => true,
            kube::Error::Api(status) => status.code >= 500,
            _ => true,
        };
        if !again || attempt == ATTEMPTS {
            return Err(access.error(&error));
        }
        tokio::time::sleep(PAUSE).await;
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::args::{Act, Plugin};
    use super::*;

    fn spec(line: &str) -> Result<MaterializedViewRefreshSpec, String> {
        let words = ["kubectl-relance", "refresh"].into_iter();
        let plugin = Plugin::try_parse_from(words.chain(line.split(' '))).expect("well formed");
        let Act::Refresh(args) = plugin.act else {
            panic!("not a refresh");
        };
        let refresh = asked(args.name.as_deref().unwrap_or("r"), &args);
        refresh.map(|r| r.spec).map_err(|error| error.to_string())
    }

    #[test]
    fn a_view_alone_is_asked_for_as_rest_does() {
        let mut expected = MaterializedViewRefreshSpec::of(["sales", "daily"]);
        expected.ttl_seconds_after_finished = Some(KEPT_SECONDS);
        assert_eq!(spec("sales/daily"), Ok(expected));
    }

    #[test]
    fn every_flag_reaches_the_spec() {
        let spec = spec(
            "v --cluster c --src-version 7 --full --concurrency 3 --intra-applier-concurrency 2 \
             --max-rows-per-fragment 1000 --source-task-size 5 --output-limit 9 \
             --expected-incarnation i --optimize-indices --active-deadline-seconds 60 \
             --backoff-limit 1 --priority -3 --ttl-seconds-after-finished 5",
        );
        let expected = json!({
            "view": ["v"], "cluster": "c", "srcVersion": 7, "full": true, "concurrency": 3,
            "intraApplierConcurrency": 2, "maxRowsPerFragment": 1000, "sourceTaskSize": 5,
            "outputLimit": 9, "expectedIncarnation": "i", "optimizeIndices": true,
            "activeDeadlineSeconds": 60, "backoffLimit": 1, "priority": -3,
            "ttlSecondsAfterFinished": 5,
        });
        assert_eq!(spec, Ok(serde_json::from_value(expected).expect("a spec")));
    }

    #[test]
    fn what_breaks_a_rule_is_told_by_its_flag() {
        assert_eq!(
            spec("v --concurrency 0").unwrap_err(),
            "--concurrency is 0 and must be at least 1"
        );
        assert_eq!(
            spec("v --src-version 0").unwrap_err(),
            "--src-version is 0 and must be at least 1"
        );
        assert!(spec("a//b").unwrap_err().starts_with("VIEW"));
        assert!(spec("v --name UP").unwrap_err().contains("metadata.name"));
    }
}
