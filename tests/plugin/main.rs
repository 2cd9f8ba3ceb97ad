//! `kubectl relance` before a Kubernetes API that answers as a test will have
//! it: the real binary, and no cluster. Links next to nothing, so exit codes
//! are numbers here.

mod api;
mod logs;
mod output;
mod reach;
mod refresh;
mod release;
