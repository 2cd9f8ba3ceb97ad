//! From a refresh to the Job that runs it ([`job`]), and what can be read of
//! that Job: how it stands ([`state`]) and how far it is ([`progress`]).

pub mod job;
pub mod progress;
pub mod state;
