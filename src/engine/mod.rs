//! The refresh engine: brings one view to exactly what its definition says at
//! one version of its source. No word of Kubernetes or HTTP here.
//!
//! # The protocol
//!
//! **Pieces** ([`unit`]). A source, at one version, is a list of Lance
//! fragments; a piece is one of them, or a slice of a huge one. The
//! [`fingerprint`] of a piece covers exactly what the view reads of it: equal
//! fingerprints give equal rows. A view's rows come of its pieces one by one,
//! or of all of them together; with LIMIT, of the first ones ([`prefix`]).
//!
//! **Claims.** A [`ledger::Claim`] says that certain view files hold exactly
//! the rows of certain pieces. That is true for ever. Committed claims are in
//! one [`ledger`] object for each commit and stand while their files are
//! *whole* in the view's current Lance manifest ([`standing`]). Staged claims are objects of
//! their own while a refresh runs. A compaction moves rows without changing
//! them: claims are carried over it ([`carry`]), in the source and in the view.
//!
//! **The judgement** ([`plan::judge`]) covers the sources' pieces by claims. It
//! gives what is kept, what is added from staged files, what is missing and
//! must be computed, and which view fragments nothing accounts for and must
//! go. Incremental refresh, drift repair, retry and resume are this one act.
//!
//! **A refresh** ([`refresh`]):
//! 1. *Plan.* Open source and view (at once, by a [`guess`]), judge, cut what
//!    is missing into units ([`unit`]), choose small fragments to put together
//!    ([`merge`]), and write the plan, put-if-absent: the first worker fixes the
//!    source versions and the units for all of them.
//! 2. *Compute* ([`compute`]). Each worker does its share of the units, then
//!    what others left ([`share`], [`pulse`]): files that no version refers to
//!    ([`execute`]), then the claim, put-if-absent: the first one wins. Of a unit
//!    that lost a few rows only these are taken out, by a deletion file ([`trim`]).
//! 3. *Commit* ([`commit`]). Whoever sees all units done: reopens the view (the
//!    first time while the last of them are computed, if that does not take
//!    long), checks that it is still the same one, judges again, writes the
//!    ledger, looks whether the staged files are all there and the version that
//!    was judged still is, and commits adding and
//!    dropping in one Lance `Update`, with a key that no two refreshes can
//!    both carry through. Then it compares the version that landed, as Lance
//!    wrote it, with what was meant, and looks whether a clean-up took the files
//!    before any version had them. Whatever differs at any point: again from
//!    the reopening, or from the plan. Nothing is ever committed from a handle
//!    that planned. Where the plan found the view right already, and
//!    all agreed on it, that is the end: the commit would look again and find
//!    the same.
//! 4. *Record* ([`outcome`], [`freshness`]): what was done, by the refresh's
//!    UID, and which source version the view now equals.
//!
//! A view with GROUP BY is one unit, merged from [`partials`]: the aggregates of
//! parts of the source, which later refreshes use again.
//!
//! How a refresh went is told, by its UID or its job's id, by [`account`].
//!
//! Readers see the commit or do not. Whoever dies at whatever point leaves a
//! view as it was or as it shall be, and work that the next one finds.

pub mod account;
pub mod carry;
pub mod catalog;
pub mod commit;
pub mod compute;
pub mod error;
pub mod execute;
pub mod fingerprint;
pub mod freshness;
pub mod guess;
pub mod history;
pub mod indices;
mod landed;
pub mod ledger;
pub mod memory;
pub mod merge;
pub mod outcome;
pub mod partials;
pub mod paths;
pub mod plan;
mod pool;
pub mod prefix;
pub mod processors;
pub mod pulse;
pub mod refresh;
pub mod request;
mod scan;
pub mod share;
pub mod staged;
pub mod standing;
pub mod store;
pub mod tidy;
pub mod trim;
pub mod unit;
pub mod view;
pub mod watermark;
mod width;
pub mod words;
pub mod work;
mod young;
