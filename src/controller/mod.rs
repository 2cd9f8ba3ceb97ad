//! The controller: takes every `MaterializedViewRefresh` to its end.
//!
//! # The life of a refresh
//!
//! | phase | what is true | goes on to |
//! |---|---|---|
//! | none, `Queued` | no Job of it exists | `Failed`: its view or cluster rules it out · `Succeeded`: the view is current already · `Running`: its turn has come, and the intent is written · `Suspended`, `Cancelled`: as `spec` asks |
//! | `Running`, no Job UID | the intent: its Job may or may not exist | the same with the UID: the Job was created, or found by its UID label · `Succeeded`: the view's history knows its commit · `Failed`: the API server refuses the Job |
//! | `Running`, Job UID | its Job was seen | `Succeeded`: the Job or the history says so · `Failed`: the Job failed, and the history knows no commit · back to the intent: the Job is gone, and the history knows no commit · `Suspended`, `Cancelled`: the Job was deleted and is gone, and the history knows no commit |
//! | `Suspended` | no Job of it exists, its claims are kept | `Queued`: no longer suspended · `Cancelled` |
//! | `Succeeded`, `Failed`, `Cancelled` | final | deletion, once `ttlSecondsAfterFinished` is over |
//!
//! # The protocol
//!
//! One pass over a refresh ([`reconcile`]) asks the pure [`refresh::decide`]
//! what to do, does it, and asks again. Every status write is whole, by
//! server-side apply of one field manager, and carries the resourceVersion
//! that it was decided on: whoever decided on an older state is refused.
//!
//! A launch is three writes: the intent to the status, the Job (whose name the
//! refresh's UID fixes, so that a second create meets the first), the Job's
//! UID to the status. Between any two of them the operator may die. The next
//! pass finds the intent, asks the view's history for this refresh's UID, and
//! creates the Job, or adopts the one that is there.
//!
//! The result's authority is the Lance commit that carries the refresh's UID.
//! What the Job and its pods say is when to look for it; a worker's
//! termination message stands in only where the history cannot be read.
//!
//! Whose turn it is ([`queue`]) is decided by one pass at a time, from a
//! fresh list of what runs; a turn that was given and is not yet written is
//! kept in memory until it is.

pub mod queue;
pub mod refresh;
mod status;

#[cfg(test)]
mod refresh_model;
#[cfg(test)]
mod refresh_table;
