//! The command line: what may be said, and nothing of what it does.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::catalog::Source;
use crate::kubectl::args::Plugin;
use crate::resources::names;

/// Environment variable that says how log lines are written.
pub const LOG_FORMAT_ENV: &str = "RELANCE_LOG_FORMAT";

/// Refreshes Lance materialized views, on Kubernetes or right here.
#[derive(Debug, Parser)]
#[command(
    name = "relance",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// How log lines are written to standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = LOG_FORMAT_ENV)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinitions as YAML, for `kubectl apply -f -`.
    Crds,
    /// Run the operator: the REST API, the controller, or both.
    Serve(ServeArgs),
    /// Bring one view up to date, here and now, without Kubernetes.
    Refresh(RefreshArgs),
    /// List the views of a catalog and how stale each one is.
    Views(ViewsArgs),
    /// Make an API key: the key to standard error, and to standard output the manifest that adds its hash to the Secret of keys.
    Key(KeyArgs),
    /// Ask a REST API whether it answers and reaches its Kubernetes API.
    Check {
        /// Its URL, such as http://relance:2333.
        url: String,
        /// Take whatever certificate it shows. Nothing secret is sent.
        #[arg(long)]
        insecure: bool,
    },
    /// Ask for refreshes on a cluster and follow them, as kubectl's plug-in `kubectl relance` does.
    Kubectl(Plugin),
    /// Do the work of a refresh inside a Job's pod; the controller's Jobs call this.
    #[command(hide = true)]
    Worker,
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Where tables are found.
#[derive(Clone, Debug, Args)]
pub struct CatalogArgs {
    /// The catalog: `dir:///path`, `dir://s3://bucket/path` and so on, or the URL of a REST catalog, `https://host/prefix`, whose credential is in the environment variable RELANCE_CATALOG_TOKEN or RELANCE_CATALOG_API_KEY.
    #[arg(long, env = "RELANCE_CATALOG", value_name = "URI")]
    pub catalog: String,
    /// An option of the object store that is no secret, such as region=eu-west-1; may be given again, or several joined by commas, so that no value may hold one. Credentials come from the environment.
    #[arg(long = "storage-option", value_name = "KEY=VALUE", value_parser = key_value, env = "RELANCE_STORAGE_OPTIONS", value_delimiter = ',')]
    pub storage_options: Vec<(String, String)>,
    /// An HTTP header that is sent to a REST catalog and is no secret, such as x-lancedb-database=sales; may be given again, or several joined by commas, so that no value may hold one.
    #[arg(long = "catalog-header", value_name = "NAME=VALUE", value_parser = key_value, env = "RELANCE_CATALOG_HEADERS", value_delimiter = ',')]
    pub catalog_headers: Vec<(String, String)>,
}

impl CatalogArgs {
    /// Where tables are found; of a key that is given twice, the last.
    pub fn source(&self) -> Source {
        Source {
            uri: self.catalog.clone(),
            options: self.storage_options.iter().cloned().collect(),
            headers: self.catalog_headers.iter().cloned().collect(),
        }
    }
}

/// `relance serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Serve the REST API; alone, if --controller is not given too.
    #[arg(long)]
    pub rest: bool,
    /// Run the controller; alone, if --rest is not given too.
    #[arg(long)]
    pub controller: bool,
    /// Where views are found.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Address of the REST API.
    #[arg(
        long,
        env = "RELANCE_LISTEN",
        default_value = "127.0.0.1:2333",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,
    /// Who is let in to the REST API.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Address of /livez, /readyz and /metrics.
    #[arg(
        long,
        env = "RELANCE_HEALTH_LISTEN",
        default_value = "127.0.0.1:8081",
        value_name = "ADDRESS"
    )]
    pub health_listen: SocketAddr,
    /// Image of worker pods whose RefreshCluster names none: that of the operator itself.
    #[arg(
        long,
        env = "RELANCE_WORKER_IMAGE",
        default_value = "relance",
        value_name = "IMAGE"
    )]
    pub worker_image: String,
    /// Lease of the namespace by which the replicas of one controller agree on who acts.
    #[arg(long, env = "RELANCE_LEASE", default_value = names::CONTROLLER_LEASE, value_name = "NAME")]
    pub lease: String,
    /// Seconds without a renewal after which another replica takes over from the one that acts.
    #[arg(
        long,
        env = "RELANCE_LEASE_SECONDS",
        default_value_t = 15,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u16).range(1..=3600)
    )]
    pub lease_seconds: u16,
    /// Kubernetes namespace of the refreshes. Default: the service account's, or that of the current kubeconfig context.
    #[arg(long, short, env = "RELANCE_NAMESPACE")]
    pub namespace: Option<String>,
}

impl ServeArgs {
    /// Whether to serve REST: if asked for, or if nothing was.
    pub fn rest(&self) -> bool {
        self.rest || !self.controller
    }

    /// Whether to run the controller: if asked for, or if nothing was.
    pub fn controller(&self) -> bool {
        self.controller || !self.rest
    }
}

/// Who is let in to the REST API, and how much each may ask.
#[derive(Clone, Debug, Args)]
pub struct AccessArgs {
    /// How callers of the REST API are known; may be given again. It does not start without this or --open-access.
    #[arg(
        long,
        env = "RELANCE_AUTH",
        value_enum,
        value_delimiter = ',',
        value_name = "WAY",
        conflicts_with = "open_access"
    )]
    pub auth: Vec<Way>,
    /// Let everybody in to the REST API, to everything.
    #[arg(long)]
    pub open_access: bool,
    /// Audience that tokens must be meant for, as in `kubectl create token --audience`.
    #[arg(
        long,
        env = "RELANCE_AUDIENCE",
        default_value = "relance",
        value_name = "NAME",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub audience: String,
    /// Show callers' own credentials to the REST catalog, in place of the operator's: when their views are looked at, and by the workers of their refreshes, which have them from a Secret that is deleted at the end.
    #[arg(long, env = "RELANCE_FORWARD_CREDENTIALS")]
    pub forward_credentials: bool,
    /// Requests a second that one caller may send.
    #[arg(
        long,
        env = "RELANCE_CALLER_RATE",
        default_value_t = 100,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub caller_rate: u32,
    /// Requests at work at a time that one caller may have.
    #[arg(
        long,
        env = "RELANCE_CALLER_CONCURRENCY",
        default_value_t = 100,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub caller_concurrency: u32,
    /// PEM file with the REST API's certificate and those that signed it; read again when it changes. Without it, plain HTTP is served.
    #[arg(
        long,
        env = "RELANCE_TLS_CERTIFICATE",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    #[arg(
        long,
        env = "RELANCE_TLS_KEY",
        value_name = "FILE",
        requires = "tls_certificate"
    )]
    pub tls_key: Option<PathBuf>,
}

/// A way to know a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Kubernetes tokens, as `Authorization: Bearer`.
    Tokens,
    /// API keys, as `x-api-key`.
    Keys,
}

/// `relance key`.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// The Kubernetes user that whoever shows the key is, as RoleBindings name it.
    #[arg(long)]
    pub user: String,
    /// A group that it is in; may be given again.
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Name of the key's entry in the Secret, to revoke it by. Default: made from the user's.
    #[arg(long)]
    pub name: Option<String>,
}

impl KeyArgs {
    /// The name of the key's entry.
    pub fn name(&self) -> String {
        let fitting = |c: char| match c.is_ascii_alphanumeric() || "-_.".contains(c) {
            true => c,
            false => '-',
        };
        let of_user = || self.user.chars().map(fitting).collect();
        self.name.clone().unwrap_or_else(of_user)
    }
}

/// `relance refresh`.
#[derive(Clone, Debug, Args)]
pub struct RefreshArgs {
    /// Where the view is found.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// The view: its namespaces and name, joined by `$`.
    pub view: String,
    /// Source version to bring the view to. Default: the latest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub src_version: Option<u64>,
    /// Recompute every row, also where what is there is already right.
    #[arg(long)]
    pub full: bool,
    /// Most rows in a fragment that is written.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4_294_967_295))]
    pub max_rows_per_fragment: Option<u64>,
    /// Then bring the view's indices up to date, so that they cover its new rows too.
    #[arg(long)]
    pub optimize_indices: bool,
    /// Print the result as one JSON object on the last line, and no progress bar.
    #[arg(long)]
    pub json: bool,
}

/// `relance views`.
#[derive(Clone, Debug, Args)]
pub struct ViewsArgs {
    /// Where the views are found.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Print JSON objects, one a line.
    #[arg(long)]
    pub json: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err("must be KEY=VALUE".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn serve(arguments: &[&str]) -> ServeArgs {
        let line = ["relance", "serve", "--catalog", "dir:///t"];
        match Cli::parse_from(line.iter().chain(arguments)).command {
            Command::Serve(args) => args,
            other => panic!("not serve: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_runs_both_halves_unless_one_is_named() {
        let halves = |args: ServeArgs| (args.rest(), args.controller());
        assert_eq!(halves(serve(&[])), (true, true));
        assert_eq!(halves(serve(&["--rest"])), (true, false));
        assert_eq!(halves(serve(&["--controller"])), (false, true));
        assert_eq!(halves(serve(&["--rest", "--controller"])), (true, true));
    }

    #[test]
    fn a_refresh_takes_no_numbers_that_cannot_be() {
        let refresh = |flag: &str| {
            let line = ["relance", "refresh", "--catalog", "dir:///t", "v", flag];
            Cli::try_parse_from(line).is_ok()
        };
        for (flag, fits) in [
            ("--max-rows-per-fragment=1", true),
            ("--max-rows-per-fragment=4294967295", true),
            ("--max-rows-per-fragment=0", false),
            ("--max-rows-per-fragment=4294967296", false),
            ("--src-version=1", true),
            ("--src-version=0", false),
        ] {
            assert_eq!(refresh(flag), fits, "{flag}");
        }
    }

    #[test]
    fn a_storage_option_is_split_at_its_first_equals_sign() {
        let args = serve(&["--storage-option", "endpoint=http://h/?a=b"]);
        assert_eq!(args.catalog.source().options["endpoint"], "http://h/?a=b");
    }
}
