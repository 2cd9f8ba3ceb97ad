//! What a refresh did, and how that is found again.
//!
//! The authority is the Lance commit: its transaction properties carry the
//! refresh's UID. The outcome object, written right after, is the quick way,
//! and the only record of a refresh that had nothing to commit.

use std::collections::BTreeMap;
use std::time::Duration;

use lance::Dataset;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::account;
use super::catalog::Catalog;
use super::error::{EngineError, Result};
use super::history::History;
use super::ledger::{self, Claim, Ledger};
use super::paths;
use super::plan::Plan;
use super::request::Request;
use super::standing::{Columns, Standing};
use super::store::{Objects, Store};
use super::young::{MANY, absent};

/// How long an outcome object is kept.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(14 * 24 * 3600);

/// How a view was brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Nothing had to be written.
    NoOp,
    /// What was still right was kept, the rest recomputed.
    Incremental,
    /// Every row was computed anew.
    Rebuild,
}

/// What a refresh did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How the view was brought up to date.
    pub mode: Mode,
    /// The source version that the view equals: of the first source by name,
    /// where the query reads several.
    pub source_version: u64,
    /// Where the query reads several sources: the version of each, by its
    /// identifier path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source_versions: BTreeMap<String, u64>,
    /// The view's version that the refresh left.
    pub view_version: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Bytes of data files written.
    pub bytes_written: u64,
    /// Units that the view consists of.
    pub units_total: u64,
    /// Units whose rows were already right when it planned what it committed.
    pub units_kept: u64,
    /// Rows of the view that one of its indices does not cover yet. Absent
    /// where the view has no index, or nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unindexed_rows: Option<u64>,
}

impl Outcome {
    /// What the view equals, in words: `source version 7`, or `source versions
    /// a 7, b 3`.
    pub fn sources(&self) -> String {
        if self.source_versions.is_empty() {
            return format!("source version {}", self.source_version);
        }
        let each: Vec<String> = self
            .source_versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        format!("source versions {}", each.join(", "))
    }
}

/// Looks for what refresh `refresh` did to view `id`: its outcome object, else
/// its commit in the view's history since its plan, else its ledger in the
/// view's current manifest. `Ok(None)`: it has committed nothing, or a clean-up
/// took that. Errors:
/// `ViewNotFound`, `Unavailable`.
pub async fn find(catalog: &Catalog, id: &[String], refresh: &str) -> Result<Option<Outcome>> {
    let uri = catalog.locate(id).await?;
    find_at(catalog.store(), &uri, id, refresh).await
}

/// What is known of a refresh without a look at the view's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// What it did, as it has recorded it. None: it has committed nothing.
    Outcome(Option<Outcome>),
    /// It has planned, and the view is here: its commit may be in the history,
    /// which [`find_at`] reads.
    Planned(String),
}

/// The quick part of [`find`]. Errors: `ViewNotFound`, `Unavailable`.
pub async fn known(catalog: &Catalog, id: &[String], refresh: &str) -> Result<Known> {
    let uri = catalog.locate(id).await?;
    known_at(catalog.store(), &uri, refresh).await
}

/// [`known`] for a view that is known to be at `uri`. Errors: `Unavailable`.
pub async fn known_at(store: &Store, uri: &str, refresh: &str) -> Result<Known> {
    let objects = store.objects(uri).await?;
    Ok(match traces(&objects, refresh).await? {
        (None, Some(_)) => Known::Planned(uri.to_string()),
        (outcome, _) => Known::Outcome(outcome),
    })
}

/// What a refresh leaves beside the view: its outcome, and its first plan. It
/// plans before it commits: without a plan there is no commit.
async fn traces(objects: &Objects, refresh: &str) -> Result<(Option<Outcome>, Option<Plan>)> {
    let planned = paths::plan(objects.root(), refresh, 1);
    let (outcome, plan) =
        futures::try_join!(recorded(objects, refresh), objects.get::<Plan>(&planned))?;
    if outcome.is_none() && plan.is_none() {
        // Between the two looks it may have recorded the one and removed the other.
        return Ok((recorded(objects, refresh).await?, None));
    }
    Ok((outcome, plan))
}

/// [`find`] for the view that is known to be at `uri`.
pub async fn find_at(
    store: &Store,
    uri: &str,
    id: &[String],
    refresh: &str,
) -> Result<Option<Outcome>> {
    let objects = store.objects(uri).await?;
    let (outcome, plan) = traces(&objects, refresh).await?;
    let (None, Some(plan)) = (&outcome, plan) else {
        return Ok(outcome);
    };
    let Some(table) = store.open(uri, None).await? else {
        return Err(EngineError::ViewNotFound {
            view: id.join(super::catalog::DELIMITER),
        });
    };
    // Whoever asks does not wait long, and a clean-up mostly takes all.
    committed(&objects, &table, refresh, &plan, MANY).await
}

/// What `refresh` has recorded that it did, if it has got that far.
pub(super) async fn recorded(objects: &Objects, refresh: &str) -> Result<Option<Outcome>> {
    objects.get(&paths::outcome(objects.root(), refresh)).await
}

/// What `refresh`, whose first plan is `plan`, has committed to the view as
/// `table` shows it. A commit whose files a clean-up took counts as none; no more than
/// `most` are looked for.
pub(super) async fn committed(
    objects: &Objects,
    table: &Dataset,
    refresh: &str,
    plan: &Plan,
    most: usize,
) -> Result<Option<Outcome>> {
    let history = History::read(table, refresh, plan.view_version).await?;
    if history.settled {
        let robbed = history.is_robbed(objects, table, most).await?;
        return Ok(history.outcome.filter(|_| !robbed));
    }
    if history.is_complete() || history.outcome.is_some() {
        // A commit that others' came before is for a worker to look at again.
        return Ok(None);
    }
    prepared(objects, table, refresh, most).await
}

/// Whether a ledger that `refresh` prepared stands in the view as it is now.
async fn prepared(
    objects: &Objects,
    table: &Dataset,
    refresh: &str,
    most: usize,
) -> Result<Option<Outcome>> {
    let names = table.schema().fields.iter().map(|f| f.name.as_str());
    let standing = Standing::new(table.fragments(), &Columns::new(table.schema(), names));
    for listed in ledger::list(objects)
        .await?
        .iter()
        .rev()
        .filter(|l| l.name.contains(refresh))
    {
        let Some(ledger) = objects.get::<Ledger>(&listed.path).await? else {
            continue;
        };
        let mine: Vec<_> = ledger
            .claims
            .iter()
            .filter(|c| c.refresh == refresh && !c.fragments.is_empty())
            .collect();
        let mut claims = ledger.claims.iter();
        if mine.is_empty() || !claims.all(|claim| standing.fragments_of(claim).is_some()) {
            continue;
        }
        let files = mine.into_iter().flat_map(Claim::paths).take(most).collect();
        if absent(objects, files).await?.is_empty() {
            return Ok(Some(ledger.outcome));
        }
    }
    Ok(None)
}

/// Records what the refresh of `request` did. The first record stays, unless it is of
/// a commit whose files are gone: then it is done `anew`.
pub async fn record(
    objects: &Objects,
    request: &Request,
    outcome: &Outcome,
    anew: bool,
) -> Result<Outcome> {
    let refresh = &request.refresh;
    let path = paths::outcome(objects.root(), refresh);
    let outcome = match anew {
        true => {
            objects.put(&path, outcome).await?;
            outcome.clone()
        }
        false => objects.agree(&path, outcome.clone()).await?,
    };
    if let Some(job) = &request.job
        && let Err(error) = account::record(objects, job, refresh, &outcome).await
    {
        warn!(%error, "the view is right; the job's own record could not be written");
    }
    Ok(outcome)
}
