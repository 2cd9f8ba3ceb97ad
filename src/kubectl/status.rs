//! `status`: one refresh in words, or many in a table.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use serde_json::{Value, json};

use super::access::Access;
use super::args::{self, Output, StatusArgs};
use super::error::PluginError;
use super::exit;
use crate::resources::{MaterializedViewRefresh, Phase};
use crate::terminal;

/// Does it.
pub async fn status(access: &Access, args: &StatusArgs) -> Result<i32, PluginError> {
    if let Some(name) = &args.name {
        let refresh = access.get(name).await?;
        match args.output {
            None => print(&summary(&refresh, Timestamp::now()))?,
            output => print_one(&refresh, output)?,
        }
        return Ok(exit::OK);
    }
    let mut all = access.list().await?;
    if let Some(view) = &args.view {
        let view = args::view(view);
        all.retain(|refresh| refresh.spec.view == view);
    }
    let listed = newest(all, args.limit);
    match args.output {
        None => print(&table(&listed, args, access)),
        Some(Output::Name) => print(&listed.iter().map(named).collect::<String>()),
        Some(output) => {
            let items: Vec<Value> = listed.iter().map(object).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
            print(&written(&list, output))
        }
    }?;
    Ok(exit::OK)
}

/// Those that have not ended, oldest first, and of the others the newest `limit`, newest first.
fn newest(all: Vec<MaterializedViewRefresh>, limit: usize) -> Vec<MaterializedViewRefresh> {
    let (mut ended, mut active): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|refresh| refresh.phase().is_terminal());
    let created = |refresh: &MaterializedViewRefresh| {
        refresh.meta().creation_timestamp.as_ref().map(|at| at.0)
    };
    active.sort_by_key(created);
    ended.sort_by_key(|refresh| std::cmp::Reverse(created(refresh)));
    ended.truncate(limit);
    active.append(&mut ended);
    active
}

fn table(listed: &[MaterializedViewRefresh], args: &StatusArgs, access: &Access) -> String {
    if listed.is_empty() {
        let of = args.view.as_ref();
        let of = of.map(|view| format!(" of view '{view}'"));
        return format!(
            "No refreshes{} in namespace {}\n",
            of.unwrap_or_default(),
            access.namespace
        );
    }
    let now = Timestamp::now();
    let heads = [
        "NAME", "VIEW", "CLUSTER", "PHASE", "PROGRESS", "MODE", "ROWS", "AGE", "MESSAGE",
    ];
    let mut rows = vec![heads.map(str::to_string)];
    rows.extend(listed.iter().map(|refresh| {
        let status = refresh.status.clone().unwrap_or_default();
        let progress = status.progress.unwrap_or_default();
        let message = status.message.unwrap_or_default();
        let created = refresh.meta().creation_timestamp.as_ref();
        let rows = match progress.summary.is_empty() {
            true => String::new(),
            false => progress.rows_written.to_string(),
        };
        [
            refresh.meta().name.clone().unwrap_or_default(),
            view(refresh),
            refresh.spec.cluster.clone(),
            format!("{:?}", status.phase),
            progress.summary,
            status.mode.map(|m| format!("{m:?}")).unwrap_or_default(),
            rows,
            since(created, now),
            // What went well needs no words.
            match status.phase {
                Phase::Succeeded => String::new(),
                _ => message,
            },
        ]
        .map(or_dash)
    }));
    terminal::aligned(&rows)
}

fn or_dash(cell: String) -> String {
    if cell.is_empty() {
        "-".to_string()
    } else {
        cell
    }
}

/// One refresh in words.
fn summary(refresh: &MaterializedViewRefresh, now: Timestamp) -> String {
    let (spec, status) = (&refresh.spec, refresh.status.clone().unwrap_or_default());
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut row = |key: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            rows.push([format!("{key}:"), value]);
        }
    };
    let reason = status
        .conditions
        .iter()
        .find(|c| c.status == "True")
        .map(|c| format!(" ({})", c.reason));
    row("Name", refresh.meta().name.clone());
    row("View", Some(view(refresh)));
    row(
        "Phase",
        Some(format!("{:?}{}", status.phase, reason.unwrap_or_default())),
    );
    row("Message", status.message.clone());
    let asked = [
        spec.full.then_some("a full refresh".to_string()),
        spec.src_version.map(|v| format!("source version {v}")),
        spec.concurrency.map(|n| format!("{n} worker pods")),
        (spec.priority != 0).then(|| format!("priority {}", spec.priority)),
        spec.suspend.then_some("suspended".to_string()),
        spec.cancel.then_some("cancelled".to_string()),
    ];
    row(
        "Asked for",
        Some(asked.into_iter().flatten().collect::<Vec<_>>().join(", ")),
    );
    row(
        "Progress",
        status.progress.map(|p| {
            format!(
                "{} units, {} rows and {} written",
                p.summary,
                p.rows_written,
                bytes(p.bytes_written)
            )
        }),
    );
    row("Mode", status.mode.map(|m| format!("{m:?}")));
    row(
        "Source version",
        status.source_version.map(|v| v.to_string()),
    );
    row("View version", status.view_version.map(|v| v.to_string()));
    row(
        "Unindexed rows",
        status.unindexed_rows.map(|v| v.to_string()),
    );
    let job = status.job.as_ref();
    row("Cluster", Some(spec.cluster.clone()));
    row(
        "Job",
        job.map(|job| format!("{} in namespace {}", job.name, job.namespace)),
    );
    let ago = |at: Option<&Time>| at.map(|at| format!("{} ({} ago)", at.0, since(Some(at), now)));
    row("Created", ago(refresh.meta().creation_timestamp.as_ref()));
    row("Started", ago(status.start_time.as_ref()));
    row("Ended", ago(status.completion_time.as_ref()));
    row(
        "Took",
        status.start_time.as_ref().and_then(|start| {
            let end = status.completion_time.as_ref()?;
            Some(age(end.0.duration_since(start.0)))
        }),
    );
    terminal::aligned(&rows)
}

/// Prints one object as it is wished: its bare name, unless that is said.
pub fn print_one(
    refresh: &MaterializedViewRefresh,
    output: Option<Output>,
) -> Result<(), PluginError> {
    match output {
        None => {
            let name = refresh.meta().name.as_deref().unwrap_or_default();
            print(&format!("{name}\n"))
        }
        Some(Output::Name) => print(&named(refresh)),
        Some(output) => print(&written(&object(refresh), output)),
    }
}

fn object(refresh: &MaterializedViewRefresh) -> Value {
    let mut refresh = refresh.clone();
    refresh.metadata.managed_fields = None;
    serde_json::to_value(&refresh).unwrap_or_default()
}

fn named(refresh: &MaterializedViewRefresh) -> String {
    let name = refresh.meta().name.as_deref().unwrap_or_default();
    let kind = MaterializedViewRefresh::kind(&()).to_ascii_lowercase();
    format!("{kind}.{}/{name}\n", MaterializedViewRefresh::group(&()))
}

fn written(value: &Value, output: Output) -> String {
    match output {
        Output::Yaml => serde_yaml::to_string(value).unwrap_or_default(),
        _ => format!("{value:#}\n"),
    }
}

fn print(text: &str) -> Result<(), PluginError> {
    Ok(terminal::print(text)?)
}

/// The code of what was done, also where its answer could not be printed: how
/// a refresh ended counts for more than who reads it.
pub fn answered(code: i32, printed: Result<(), PluginError>) -> Result<i32, PluginError> {
    match printed {
        Ok(()) | Err(PluginError::Closed) => Ok(code),
        Err(error) if code == exit::OK => Err(error),
        Err(error) => {
            terminal::complain(&error.to_string());
            Ok(code)
        }
    }
}

/// A view's path in one word, which is read as the same path again.
pub fn view(refresh: &MaterializedViewRefresh) -> String {
    match refresh.spec.view.as_slice() {
        [name] if name.contains('$') => format!("/{name}"),
        parts => parts.join("/"),
    }
}

fn since(at: Option<&Time>, now: Timestamp) -> String {
    at.map(|at| age(now.duration_since(at.0)))
        .unwrap_or_default()
}

/// A time as kubectl tells ages: exact where it is short.
fn age(time: SignedDuration) -> String {
    let seconds = time.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn bytes(count: i64) -> String {
    indicatif::HumanBytes(u64::try_from(count).unwrap_or(0)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refresh(name: &str, second: i64, phase: &str) -> MaterializedViewRefresh {
        serde_json::from_value(json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "MaterializedViewRefresh",
            "metadata": {"name": name, "creationTimestamp": Timestamp::from_second(second).unwrap()},
            "spec": {"view": ["sales", "v"], "full": true},
            "status": {
                "phase": phase, "message": "All is well",
                "progress": {"unitsDone": 2, "unitsTotal": 3, "rowsWritten": 5, "bytesWritten": 2048, "summary": "2/3"},
            },
        }))
        .unwrap()
    }

    #[test]
    fn what_runs_is_listed_first_and_of_what_ended_the_newest() {
        let all = vec![
            refresh("old", 1, "Succeeded"),
            refresh("new", 3, "Failed"),
            refresh("second", 5, "Queued"),
            refresh("first", 4, "Running"),
        ];
        let names = |limit| {
            let listed = newest(all.clone(), limit).into_iter();
            listed.map(|r| r.metadata.name.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names(20), ["first", "second", "new", "old"]);
        assert_eq!(names(1), ["first", "second", "new"]);
        assert_eq!(names(0), ["first", "second"]);
    }

    #[test]
    fn a_summary_tells_what_is_known_and_leaves_out_the_rest() {
        let text = summary(
            &refresh("r", 0, "Running"),
            Timestamp::from_second(90).unwrap(),
        );
        assert_eq!(
            text,
            "Name:        r\n\
             View:        sales/v\n\
             Phase:       Running\n\
             Message:     All is well\n\
             Asked for:   a full refresh\n\
             Progress:    2/3 units, 5 rows and 2.00 KiB written\n\
             Cluster:     default\n\
             Created:     1970-01-01T00:00:00Z (90s ago)\n"
        );
    }

    #[test]
    fn a_view_is_told_so_that_it_can_be_said() {
        for path in [&["v"][..], &["sales", "v"], &["sales", "v$1"], &["v$1"]] {
            let mut refresh = refresh("r", 0, "Queued");
            refresh.spec.view = path.iter().map(|part| (*part).to_string()).collect();
            assert_eq!(args::view(&view(&refresh)), path);
        }
    }

    #[test]
    fn the_end_of_a_refresh_is_told_whoever_reads_what_is_printed() {
        let full = || PluginError::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        let answered = |code, printed| answered(code, printed).map_err(|error| error.code());
        assert_eq!(answered(exit::OK, Err(PluginError::Closed)), Ok(exit::OK));
        assert_eq!(answered(exit::OK, Err(full())), Err(exit::UNWRITTEN));
        assert_eq!(answered(exit::CANCELLED, Err(full())), Ok(exit::CANCELLED));
        assert_eq!(
            answered(exit::FAILED, Err(PluginError::Closed)),
            Ok(exit::FAILED)
        );
    }

    #[test]
    fn ages_are_told_as_kubectl_does() {
        let told = |seconds| age(SignedDuration::from_secs(seconds));
        assert_eq!(
            [told(-3), told(90), told(600), told(9_000), told(400_000)],
            ["0s", "90s", "10m", "2h", "4d"]
        );
    }
}
