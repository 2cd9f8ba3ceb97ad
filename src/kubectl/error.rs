//! Why the plug-in could not do what it was asked: a sentence and a code.

use thiserror::Error;

use super::exit;

/// See the module.
#[derive(Debug, Error)]
pub enum PluginError {
    /// A value is wrong.
    #[error("{0}")]
    Usage(String),
    /// There is no such refresh.
    #[error("there is no refresh '{name}' in namespace '{namespace}'; `{list}` lists them")]
    NotFound {
        /// The refresh.
        name: String,
        /// Where it was looked for.
        namespace: String,
        /// The command that lists those there are.
        list: String,
    },
    /// It went while it was waited for.
    #[error("refresh '{0}' is gone, and had not ended when it was last seen; its Job goes with it")]
    Deleted(String),
    /// A refresh is made, and what was to follow could not be done.
    #[error("refresh '{name}' was asked for and goes on, but {error}")]
    Made {
        /// The refresh.
        name: String,
        /// Why nothing followed.
        error: Box<PluginError>,
    },
    /// There are no logs.
    #[error("{0}")]
    NoLogs(String),
    /// The API server refuses the caller.
    #[error("{0}; ask whoever governs that namespace for the right, or use another --context")]
    Forbidden(String),
    /// The refresh has ended.
    #[error("refresh '{name}' has ended already ({phase}), so there is nothing to {act}")]
    Ended {
        /// The refresh.
        name: String,
        /// How it ended.
        phase: String,
        /// What was to be done.
        act: &'static str,
    },
    /// An operator is there, which lets go itself when it is time.
    #[error(
        "an operator acts by Lease '{lease}' ({holder}): delete or cancel refreshes and it lets go of them itself, or take it away first"
    )]
    Acting {
        /// The Lease.
        lease: String,
        /// Who holds it.
        holder: String,
    },
    /// The API server refuses what was asked.
    #[error("the Kubernetes API refuses it: {0}")]
    Refused(String),
    /// relance's definitions are not there.
    #[error("the cluster knows no refreshes; install relance there, or use another --context")]
    NotInstalled,
    /// No answer, or none that helps.
    #[error(
        "the Kubernetes API of {server} cannot be asked: {why}; look whether `kubectl version` answers"
    )]
    Unavailable {
        /// Its URL.
        server: String,
        /// The client's words.
        why: String,
    },
    /// No kubeconfig that can be used.
    #[error("no cluster is configured: {0}; give --kubeconfig or --context, as for kubectl")]
    Kubeconfig(String),
    /// What is printed cannot be written.
    #[error("standard output cannot be written: {0}")]
    Unwritten(std::io::Error),
    /// Nobody reads what is printed.
    #[error("")]
    Closed,
}

impl From<std::io::Error> for PluginError {
    /// Of standard output.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Unwritten(error),
        }
    }
}

impl PluginError {
    /// The code to end with.
    pub fn code(&self) -> i32 {
        match self {
            Self::Usage(_) | Self::Kubeconfig(_) | Self::Refused(_) => exit::USAGE,
            Self::NotFound { .. } | Self::Deleted(_) | Self::NoLogs(_) => exit::NOT_FOUND,
            Self::Forbidden(_) => exit::FORBIDDEN,
            Self::Ended { .. } | Self::Acting { .. } => exit::FAILED,
            Self::NotInstalled | Self::Unavailable { .. } => exit::UNAVAILABLE,
            Self::Made { error, .. } => error.code(),
            Self::Unwritten(_) => exit::UNWRITTEN,
            Self::Closed => exit::OK,
        }
    }

    /// What `error` of the API of `server` means, unless it is a refresh that is not there.
    pub fn of(error: &kube::Error, server: &str) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                401 => Self::Forbidden("the cluster does not know you (401)".to_string()),
                403 => Self::Forbidden(status.message.clone()),
                // A route that is not there is told in plain text, without a name.
                404 if status.details.is_none() => Self::NotInstalled,
                // Not the caller's: time ran out, others came before, it is
                // too old, or there is too much of it.
                408 | 410 | 429 => Self::unavailable(error, server),
                409 if status.is_conflict() => Self::unavailable(error, server),
                400..=499 => Self::Refused(status.message.clone()),
                _ => Self::unavailable(error, server),
            },
            error => Self::unavailable(error, server),
        }
    }

    fn unavailable(error: &kube::Error, server: &str) -> Self {
        let why = match error {
            kube::Error::Api(status) if !status.message.is_empty() => {
                format!("{} ({})", status.message, status.code)
            }
            error => in_full(error),
        };
        Self::Unavailable {
            server: server.to_string(),
            why,
        }
    }
}

/// An error with what brought it about, each said once.
pub fn in_full(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !said.contains(&why) {
            said = format!("{said}: {why}");
        }
        cause = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, details: bool) -> i32 {
        let mut status = Status::failure("said", "reason").with_code(code);
        let none = serde_json::from_str("{}").expect("details");
        status.details = details.then_some(none);
        PluginError::of(&kube::Error::Api(status.boxed()), "s").code()
    }

    #[test]
    fn what_the_api_server_refuses_has_a_code_that_says_whose_turn_it_is() {
        assert_eq!(api(401, true), exit::FORBIDDEN);
        assert_eq!(api(403, true), exit::FORBIDDEN);
        assert_eq!(api(404, false), exit::UNAVAILABLE);
        assert_eq!(api(404, true), exit::USAGE);
        assert_eq!(api(422, true), exit::USAGE);
        for passing in [408, 410, 429, 500, 504] {
            assert_eq!(api(passing, true), exit::UNAVAILABLE, "{passing}");
        }
    }

    #[test]
    fn a_name_that_is_taken_is_another_matter_than_a_change_that_came_before() {
        let conflict = |reason: &str| {
            let status = Status::failure("said", reason).with_code(409);
            PluginError::of(&kube::Error::Api(status.boxed()), "s").code()
        };
        assert_eq!(conflict("Conflict"), exit::UNAVAILABLE);
        assert_eq!(conflict("AlreadyExists"), exit::USAGE);
    }

    #[test]
    fn output_that_nobody_reads_is_no_error_and_one_that_cannot_be_written_is() {
        let code = |kind: std::io::ErrorKind| PluginError::from(std::io::Error::from(kind)).code();
        assert_eq!(code(std::io::ErrorKind::BrokenPipe), exit::OK);
        assert_eq!(code(std::io::ErrorKind::StorageFull), exit::UNWRITTEN);
    }
}
