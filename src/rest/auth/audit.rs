//! One line a request that says who asked for what, and what was decided.
//!
//! Its target is `relance::audit`. It holds the user's name and how it was
//! known, and never a credential, a query or a body.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::Method;

use super::User;

/// The target of audit lines, for `RUST_LOG`.
pub const TARGET: &str = "relance::audit";

/// Goes along with a request, to be told who its caller is.
#[derive(Clone, Debug, Default)]
pub struct Note(Arc<OnceLock<(Arc<User>, &'static str)>>);

impl Note {
    /// The caller is `user`, known by `way`.
    pub fn known(&self, user: Arc<User>, way: &'static str) {
        let _ = self.0.set((user, way));
    }
}

/// A request that was answered.
#[derive(Debug)]
pub struct Answered<'a> {
    /// Its method.
    pub method: &'a Method,
    /// What it asked for, by its id in the OpenAPI document; empty if nothing is there.
    pub operation: &'static str,
    /// Its path, as it was sent, without the query.
    pub path: &'a str,
    /// Where it came from.
    pub peer: Option<SocketAddr>,
    /// Whether everybody is let in.
    pub open: bool,
    /// The answer's status.
    pub status: u16,
    /// From the request's head to the answer's.
    pub took: Duration,
}

impl Answered<'_> {
    fn decision(&self, note: &Note) -> &'static str {
        match self.status {
            401 => "unauthenticated",
            403 => "denied",
            429 => "limited",
            _ if self.open => "open",
            _ if note.0.get().is_some() => "allowed",
            // Nobody is let in while who it is cannot be asked.
            500..=599 => "undecided",
            _ => "public",
        }
    }

    /// Writes the line, within the request's span, which knows the job_id.
    pub fn write(&self, note: &Note) {
        let (user, way) = note
            .0
            .get()
            .map_or(("", "none"), |(user, way)| (user.name.as_str(), *way));
        let peer = self.peer.map(|peer| peer.ip().to_string());
        tracing::info!(
            target: TARGET,
            operation = self.operation,
            method = self.method.as_str(),
            path = self.path,
            user,
            way,
            peer = peer.unwrap_or_default(),
            decision = self.decision(note),
            status = self.status,
            ms = (self.took.as_secs_f64() * 1000.0).round() as u64,
            "request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_is_told_also_where_nobody_could_be_asked() {
        let answered = |status| Answered {
            method: &Method::GET,
            operation: "",
            path: "/",
            peer: None,
            open: false,
            status,
            took: Duration::ZERO,
        };
        let nobody = Note::default();
        let known = Note::default();
        let user = User {
            name: "etl".into(),
            uid: None,
            groups: Vec::new(),
            extra: Default::default(),
        };
        known.known(Arc::new(user), "token");
        for (status, note, decision) in [
            (200, &known, "allowed"),
            (503, &known, "allowed"),
            (503, &nobody, "undecided"),
            (404, &nobody, "public"),
            (401, &nobody, "unauthenticated"),
        ] {
            assert_eq!(answered(status).decision(note), decision, "{status}");
        }
    }
}
