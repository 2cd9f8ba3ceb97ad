//! The one home of condition reasons and Event reasons.
//!
//! Stable: scripts and alerts match on them. The documentation lists them all.
