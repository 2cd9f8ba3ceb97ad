//! `kubectl relance`: refreshes from the command line, by the Kubernetes API
//! alone and with the caller's own kubeconfig.
//!
//! The same program as `relance`: found under the name `kubectl-relance` it is
//! kubectl's plug-in, and `relance kubectl …` says the same where there is no
//! such link. Standard output holds what was asked for and nothing else (a
//! name, a table, an object, log lines); how far a refresh is and how it ended
//! goes to standard error, as a bar on a terminal and as lines in a pipe.
//! [`exit`] is the one place of the codes that it ends with.

mod access;
pub mod args;
mod change;
pub mod complete;
mod create;
mod error;
pub mod exit;
mod follow;
mod logs;
mod release;
mod show;
mod status;
mod tail;

use futures::FutureExt;
use futures::future::BoxFuture;

use access::Access;
use args::{Act, Plugin};
pub use error::PluginError;

/// The file name under which kubectl finds the plug-in.
pub const PLUGIN: &str = "kubectl-relance";

/// The file name under which kubectl asks it for completions.
pub const COMPLETER: &str = "kubectl_complete-relance";

/// Does what `plugin` says; the code to end with. `said` is how the program
/// was called, such as `kubectl relance`, for sentences that name a command.
pub fn run<'a>(plugin: &'a Plugin, said: &'a str) -> BoxFuture<'a, Result<i32, PluginError>> {
    act(plugin, said).boxed()
}

async fn act(plugin: &Plugin, said: &str) -> Result<i32, PluginError> {
    if let Act::Completion { shell } = &plugin.act {
        return complete::script(*shell);
    }
    let access = Access::connect(&plugin.reach, said).await?;
    match &plugin.act {
        Act::Refresh(args) => create::refresh(&access, args).await,
        Act::Status(args) => status::status(&access, args).await,
        Act::Wait(args) => follow::wait(&access, args).await,
        Act::Logs(args) => logs::logs(&access, args).await,
        Act::Cancel(args) => change::change(&access, args, change::CANCEL).await,
        Act::Suspend(args) => change::change(&access, args, change::SUSPEND).await,
        Act::Resume(args) => change::change(&access, args, change::RESUME).await,
        Act::Release(args) => release::release(&access, args).await,
        Act::Completion { .. } => Ok(exit::OK),
    }
}
