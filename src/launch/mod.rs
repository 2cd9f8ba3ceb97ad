//! From a refresh to the Job that runs it ([`job`]), the cluster it runs in
//! ([`target`], reached by a [`kubeconfig`] where it is another one), and what
//! can be read of that Job: how it stands ([`state`]) and how far it is
//! ([`progress`]).

pub mod job;
pub mod kubeconfig;
mod pod;
pub mod progress;
pub mod state;
pub mod target;
