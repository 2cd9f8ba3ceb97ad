//! The plug-in's command line: what may be said, and nothing of what it does.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::exit;
use crate::resources::names;

/// Refreshes Lance materialized views on a Kubernetes cluster that runs relance.
#[derive(Clone, Debug, Parser)]
#[command(
    name = super::PLUGIN,
    bin_name = "kubectl relance",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = exit::HELP
)]
pub struct Plugin {
    /// How to reach the cluster.
    #[command(flatten)]
    pub reach: Reach,
    /// What to do.
    #[command(subcommand)]
    pub act: Act,
}

/// Which cluster and namespace, as kubectl is told.
#[derive(Clone, Debug, Default, Args)]
pub struct Reach {
    /// The kubeconfig file. Default: KUBECONFIG, ~/.kube/config, or the service account of the pod.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig. Default: the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace of the refreshes. Default: the context's.
    #[arg(long, short, global = true, value_name = "NAME", value_parser = namespace)]
    pub namespace: Option<String>,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Act {
    /// Ask for a refresh of a view, and print its name.
    #[command(after_help = exit::HELP)]
    Refresh(Box<RefreshArgs>),
    /// Tell how one refresh stands, or list them.
    Status(StatusArgs),
    /// Wait for a refresh's end, and end with a code that tells it.
    #[command(after_help = exit::HELP)]
    Wait(WaitArgs),
    /// Print the logs of all worker pods of a refresh, merged.
    Logs(LogsArgs),
    /// End a refresh; the view stays as it was.
    Cancel(Named),
    /// Hold a refresh; what it has computed is kept.
    Suspend(Named),
    /// Let a refresh that was suspended go on.
    Resume(Named),
    /// Once no operator runs any more: stop the Jobs of refreshes in other clusters, and let go of the refreshes, so that they and their namespace can be deleted. They go on if relance is installed again.
    Release(ReleaseArgs),
    /// Print a completion script for the command `kubectl-relance`. That of `kubectl relance` is kubectl's own: link this program as `kubectl_complete-relance` on the PATH.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// `refresh`.
#[derive(Clone, Debug, Args)]
pub struct RefreshArgs {
    /// The view: its namespaces and name, joined by `/` or `$`; after a leading `/`, by `/` alone.
    #[arg(value_name = "VIEW")]
    pub view: String,
    /// Name of the refresh, so that the command can be repeated: one of that name that asks for the same is taken for it. Default: a new one.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The RefreshCluster whose Jobs run it. Default: `default`.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Version of the source to bring the view to. Default: the latest.
    #[arg(long, value_name = "N")]
    pub src_version: Option<i64>,
    /// Compute every row again, also where what is there is right.
    #[arg(long)]
    pub full: bool,
    /// Worker pods that share the work. Default: the cluster's.
    #[arg(long, value_name = "N")]
    pub concurrency: Option<i64>,
    /// Units of work that one pod computes at a time.
    #[arg(long, value_name = "N")]
    pub intra_applier_concurrency: Option<i64>,
    /// Most rows in a fragment that is written.
    #[arg(long, value_name = "N")]
    pub max_rows_per_fragment: Option<i64>,
    /// Source rows in one work item; for chunker views.
    #[arg(long, value_name = "N")]
    pub source_task_size: Option<i64>,
    /// Most rows that the view may have; for chunker views.
    #[arg(long, value_name = "N")]
    pub output_limit: Option<i64>,
    /// Fail unless the view is this creation of it.
    #[arg(long, value_name = "ID")]
    pub expected_incarnation: Option<String>,
    /// Bring the view's indices up to date too.
    #[arg(long)]
    pub optimize_indices: bool,
    /// Seconds after its start at which it is stopped. Default: the cluster's.
    #[arg(long, value_name = "SECONDS")]
    pub active_deadline_seconds: Option<i64>,
    /// How often a failed worker pod is replaced. Default: the cluster's.
    #[arg(long, value_name = "N")]
    pub backoff_limit: Option<i64>,
    /// Among refreshes that wait, the one with the higher number goes first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub priority: Option<i64>,
    /// Seconds after its end at which it is deleted. Default: a week.
    #[arg(long, value_name = "SECONDS")]
    pub ttl_seconds_after_finished: Option<i64>,
    /// Wait for its end, and end with a code that tells it.
    #[arg(long, short)]
    pub wait: bool,
    /// Wait no longer than this, such as 90s or 1h30m; the refresh goes on.
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "wait")]
    pub timeout: Option<Duration>,
    /// What to print. With --wait, json and yaml are printed at the end. Default: the bare name.
    #[arg(long, short, value_enum, value_name = "FORMAT")]
    pub output: Option<Output>,
}

/// `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// The refresh. Default: a list of them.
    #[arg(value_name = "NAME", value_parser = name)]
    pub name: Option<String>,
    /// List those of this view only, said as for `refresh`.
    #[arg(long, value_name = "VIEW", conflicts_with = "name")]
    pub view: Option<String>,
    /// List no more than so many that have ended, the newest.
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "name")]
    pub limit: usize,
    /// What to print. Default: a text for people.
    #[arg(long, short, value_enum, value_name = "FORMAT")]
    pub output: Option<Output>,
}

/// `wait`.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// The refresh.
    #[arg(value_name = "NAME", value_parser = name)]
    pub name: String,
    /// Wait no longer than this, such as 90s or 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Print the refresh at the end.
    #[arg(long, short, value_enum, value_name = "FORMAT")]
    pub output: Option<Output>,
}

/// `logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The refresh.
    #[arg(value_name = "NAME", value_parser = name)]
    pub name: String,
    /// Go on, with pods that come later too, until the refresh has ended.
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines of each pod.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
    /// Put the time of each line before it.
    #[arg(long)]
    pub timestamps: bool,
    /// The kubeconfig's context for the cluster that the Job runs in, if that is another one.
    #[arg(long, value_name = "NAME")]
    pub job_context: Option<String>,
}

/// A refresh.
#[derive(Clone, Debug, Args)]
pub struct Named {
    /// The refresh.
    #[arg(value_name = "NAME", value_parser = name)]
    pub name: String,
}

/// `release`.
#[derive(Clone, Debug, Args)]
pub struct ReleaseArgs {
    /// How long to wait until the operator has ended.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1m")]
    pub timeout: Duration,
    /// The Lease by which the operator acts.
    #[arg(long, value_name = "NAME", default_value = names::CONTROLLER_LEASE)]
    pub lease: String,
}

/// How an object is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Resource and name, as kubectl takes them.
    Name,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// A refresh's name, or `mvr/NAME` as kubectl prints it.
fn name(text: &str) -> Result<String, String> {
    let name = text.rsplit_once('/').map_or(text, |(_, name)| name);
    match names::is_refresh_name(name) {
        true => Ok(name.to_string()),
        false => Err("no refresh can be called so; `status` lists their names".to_string()),
    }
}

/// A namespace; empty is none, as for kubectl.
fn namespace(text: &str) -> Result<String, String> {
    match text.is_empty() || names::is_namespace(text) {
        true => Ok(text.to_string()),
        false => Err("no namespace can be called so".to_string()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a duration such as 90s, 10m or 1h30m".to_string();
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(parsed).map_err(|_| wrong())
}

/// The parts of a view's path. Neither delimiter is usual in names, and a `/`
/// cannot be in one: so a leading one tells that a `$` is part of a name.
pub fn view(text: &str) -> Vec<String> {
    if let Some(path) = text.strip_prefix('/') {
        return path.split('/').map(str::to_string).collect();
    }
    let delimiter = if text.contains('/') { '/' } else { '$' };
    text.split(delimiter).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Plugin::command().debug_assert();
    }

    #[test]
    fn a_view_is_split_at_either_delimiter() {
        assert_eq!(view("v"), ["v"]);
        assert_eq!(view("sales/daily"), ["sales", "daily"]);
        assert_eq!(view("sales$daily"), ["sales", "daily"]);
        assert_eq!(view("a/b$c"), ["a", "b$c"]);
        assert_eq!(view("/b$c"), ["b$c"]);
        assert_eq!(view("/a/b"), ["a", "b"]);
    }

    #[test]
    fn a_name_may_be_said_as_kubectl_prints_it() {
        assert_eq!(name("r"), Ok("r".into()));
        assert_eq!(name("mvr/r"), Ok("r".into()));
        let long = "materializedviewrefresh.relance.dev/r";
        assert_eq!(name(long), Ok("r".into()));
        assert!(name("R").is_err() && name("").is_err());
    }

    #[test]
    fn durations_are_read_as_kubectls_are() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "soon", "-1s", "1x"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_timeout_is_for_those_who_wait() {
        let parsed = |line: &str| Plugin::try_parse_from(line.split(' '));
        assert!(parsed("k refresh v --timeout 5s").is_err());
        assert!(parsed("k refresh v --timeout 5s --wait -n ns").is_ok());
        assert!(parsed("k -n ns status").is_ok());
        assert!(parsed("k status r --view v").is_err());
        assert!(parsed("k status -n Up/../down").is_err());
        assert!(parsed("k status --namespace=").is_ok());
    }
}
