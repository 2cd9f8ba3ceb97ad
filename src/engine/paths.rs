//! The one home of storage paths: everything relance keeps beside a view.
//!
//! ```text
//! <view>/_relance/
//!   plans/<refresh>/plan-<n>.json     what an attempt set out to do; put-if-absent
//!   plans/<refresh>/claims/<id>.json  a unit that is computed and staged
//!   plans/<refresh>/pulses/<worker>.json   what a worker is at that takes long
//!   outcomes/<refresh>.json           what a refresh did, written after its commit
//!   outcomes/job-<id>.json            the same, by the id of the job that it was
//!   ledgers/<version>-<refresh>-<id>.json  committed claims, written before their commit
//!   partials/<id>.arrow               partial aggregates of a part of the source
//!   fresh.json                        which source version the view equals
//! ```
//!
//! Lance's own cleanup never touches the folder, and dropping the table
//! removes it.

use object_store::path::Path;

use super::fingerprint::Fingerprint;

/// The folder in a view's own folder.
pub const FOLDER: &str = "_relance";

/// The folder of one refresh's plan.
pub fn plan_folder(root: &Path, refresh: &str) -> Path {
    plans(root).join(refresh)
}

/// The folder of all plans that are under way.
pub fn plans(root: &Path) -> Path {
    root.clone().join(FOLDER).join("plans")
}

/// Attempt `n` of a refresh, from 1.
pub fn plan(root: &Path, refresh: &str, n: u32) -> Path {
    plan_folder(root, refresh).join(format!("plan-{n:04}.json"))
}

/// The folder of the staged claims of one refresh.
pub fn claims(root: &Path, refresh: &str) -> Path {
    plan_folder(root, refresh).join("claims")
}

/// The staged claim of one unit.
pub fn claim(root: &Path, refresh: &str, unit: &Fingerprint) -> Path {
    claims(root, refresh).join(format!("{unit}.json"))
}

/// The folder of what the workers of one refresh are at.
pub fn pulses(root: &Path, refresh: &str) -> Path {
    plan_folder(root, refresh).join("pulses")
}

/// What worker `index` of a refresh is at.
pub fn pulse(root: &Path, refresh: &str, index: u32) -> Path {
    pulses(root, refresh).join(format!("{index}.json"))
}

/// The folder of outcomes.
pub fn outcomes(root: &Path) -> Path {
    root.clone().join(FOLDER).join("outcomes")
}

/// The outcome of one refresh.
pub fn outcome(root: &Path, refresh: &str) -> Path {
    outcomes(root).join(format!("{refresh}.json"))
}

/// What the refresh did that was job `job`: among the outcomes, to be removed
/// with them.
pub fn job_outcome(root: &Path, job: &str) -> Path {
    outcomes(root).join(format!("job-{job}.json"))
}

/// The folder of ledgers.
pub fn ledgers(root: &Path) -> Path {
    root.clone().join(FOLDER).join("ledgers")
}

/// The ledger for a commit on top of view version `read_version`. Names sort
/// by version.
pub fn ledger(root: &Path, read_version: u64, refresh: &str, id: &str) -> Path {
    ledgers(root).join(format!("{read_version:020}-{refresh}-{id}.json"))
}

/// The part of a ledger's name that says the version; they compare as versions do.
pub fn ledger_version(name: &str) -> &str {
    name.split('-').next().unwrap_or_default()
}

/// The folder of partial aggregates.
pub fn partials(root: &Path) -> Path {
    root.clone().join(FOLDER).join("partials")
}

/// The name of one object of partial aggregates.
pub fn partial_name(id: &Fingerprint) -> String {
    format!("{id}.arrow")
}

/// One object of partial aggregates.
pub fn partial(root: &Path, id: &Fingerprint) -> Path {
    partials(root).join(partial_name(id))
}

/// The record of which source version the view equals.
pub fn fresh(root: &Path) -> Path {
    root.clone().join(FOLDER).join("fresh.json")
}
