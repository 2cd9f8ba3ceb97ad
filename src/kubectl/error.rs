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
    #[error("there is no refresh '{name}' in namespace '{namespace}'; `{said} status` lists them")]
    NotFound {
        /// The refresh.
        name: String,
        /// Where it was looked for.
        namespace: String,
        /// How the plug-in is called.
        said: String,
    },
    /// It went while it was waited for.
    #[error("refresh '{0}' was deleted before it had ended; its Job goes with it")]
    Deleted(String),
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
    /// Nobody reads what is printed.
    #[error("")]
    Closed,
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
                400..=499 => Self::Refused(status.message.clone()),
                _ => Self::unavailable(error, server),
            },
            error => Self::unavailable(error, server),
        }
    }

    fn unavailable(error: &dyn std::error::Error, server: &str) -> Self {
        Self::Unavailable {
            server: server.to_string(),
            why: in_full(error),
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
        assert_eq!(api(500, true), exit::UNAVAILABLE);
    }
}
