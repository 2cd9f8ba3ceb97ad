//! What is shown to a REST catalog, and the environment variables and the
//! Secret's keys that hold it on its way.

use std::fmt;

/// A credential for a REST catalog. It is never logged, and its `Debug` says
/// nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// An API key, sent as `x-api-key`.
    Key(String),
    /// A token, sent as `Authorization: Bearer`.
    Token(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", self.way())
    }
}

impl Credential {
    /// `key` or `token`.
    pub fn way(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Token(_) => "token",
        }
    }

    /// The secret itself.
    pub fn secret(&self) -> &str {
        match self {
            Self::Key(secret) | Self::Token(secret) => secret,
        }
    }
}

/// Where a credential lies that is on its way to a catalog.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Name of what holds a token.
    pub token: &'static str,
    /// Name of what holds an API key.
    pub key: &'static str,
}

impl Place {
    /// Environment variables with the operator's own credential, of operator
    /// and workers.
    pub const OWN: Place = Place {
        token: "RELANCE_CATALOG_TOKEN",
        key: "RELANCE_CATALOG_API_KEY",
    };

    /// Environment variables of a worker with the credential of the caller who
    /// asked for its refresh.
    pub const CALLER: Place = Place {
        token: "RELANCE_CALLER_TOKEN",
        key: "RELANCE_CALLER_API_KEY",
    };

    /// Keys of the Secret with a caller's credential.
    pub const SECRET: Place = Place {
        token: "token",
        key: "api-key",
    };

    /// The name of what holds this credential.
    pub fn of(&self, credential: &Credential) -> &'static str {
        match credential {
            Credential::Key(_) => self.key,
            Credential::Token(_) => self.token,
        }
    }

    /// The credential that lies here, as `read` finds what the names say; of
    /// both kinds, the key, as callers' headers are read. Empty is none.
    pub fn credential(&self, read: impl Fn(&str) -> Option<String>) -> Option<Credential> {
        let found = |name| read(name).filter(|secret| !secret.is_empty());
        let key = found(self.key).map(Credential::Key);
        key.or_else(|| found(self.token).map(Credential::Token))
    }

    /// The same in this process's environment.
    pub fn in_environment(&self) -> Option<Credential> {
        self.credential(|name| std::env::var(name).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_both_kinds_the_key_counts_and_what_is_empty_is_none() {
        let lies = |token: &'static str, key: &'static str| {
            Place::SECRET.credential(move |name| match name {
                "token" => Some(token.to_string()),
                "api-key" => Some(key.to_string()),
                _ => None,
            })
        };
        assert_eq!(lies("t", "k"), Some(Credential::Key("k".into())));
        assert_eq!(lies("t", ""), Some(Credential::Token("t".into())));
        assert_eq!(lies("", ""), None);
    }

    #[test]
    fn it_does_not_show_itself() {
        for credential in [
            Credential::Key("hush".into()),
            Credential::Token("hush".into()),
        ] {
            assert!(!format!("{credential:?}").contains("hush"));
        }
    }
}
