//! The removal of what a refresh needed only on its way, and of what nobody
//! will ask for any more. It runs after the view is right, and is repeated by
//! each refresh: that a store does not answer now does no harm.

use std::time::SystemTime;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::error::{EngineError, Result};
use super::ledger::{self, Known, STAGED_FOR};
use super::outcome::KEPT_FOR;
use super::partials;
use super::paths;
use super::store::{Listed, Objects};
use super::work::Work;

/// How many plans of refreshes that never ended are looked at.
const LEFTOVERS: usize = 64;

/// What there is to remove, as it was listed.
pub struct Rubbish {
    /// The refresh's own plans and staged claims.
    own: Vec<Listed>,
    /// Those of each other refresh.
    others: Vec<Vec<Listed>>,
    /// The refreshes of whose plans there is nothing but a folder.
    empty: Vec<String>,
    outcomes: Vec<Listed>,
    /// What nobody has a use for, whatever its age: surplus ledgers, say.
    useless: Vec<Path>,
}

impl Rubbish {
    /// This and the objects at `paths`.
    pub fn with(mut self, paths: Vec<Path>) -> Rubbish {
        self.useless.extend(paths);
        self
    }
}

/// Lists what `refresh` and others left.
pub async fn look(objects: &Objects, refresh: &str) -> Result<Rubbish> {
    let plans = async {
        let mut folders = objects.folders(&paths::plans(objects.root())).await?;
        folders.retain(|folder| folder != refresh);
        folders.truncate(LEFTOVERS);
        let listed = futures::stream::iter(folders)
            .map(|folder| async move {
                let path = paths::plan_folder(objects.root(), &folder);
                let listed = objects.list(&path).await?;
                Ok::<_, EngineError>((folder, listed))
            })
            .buffered(LEFTOVERS);
        listed.try_collect::<Vec<_>>().await
    };
    let (own, outcomes) = (
        paths::plan_folder(objects.root(), refresh),
        paths::outcomes(objects.root()),
    );
    let (own, others, outcomes, useless) = futures::try_join!(
        objects.list(&own),
        plans,
        objects.list(&outcomes),
        ledger::surplus(objects)
    )?;
    let (empty, others): (Vec<_>, Vec<_>) = others
        .into_iter()
        .partition(|(_, listed)| listed.is_empty());
    Ok(Rubbish {
        own,
        others: others.into_iter().map(|(_, listed)| listed).collect(),
        empty: empty.into_iter().map(|(folder, _)| folder).collect(),
        outcomes,
        useless,
    })
}

/// Removes what is there once `refresh`, of which `work` was done, has recorded
/// its outcome. `known` are the ledgers that it read.
pub async fn remove(
    objects: &Objects,
    refresh: &str,
    work: &Work,
    rubbish: Rubbish,
    known: &Known,
) -> Result<()> {
    // Its plan was written a while ago: later it is by the store's clock, and
    // nothing seems older than it is.
    let now = rubbish.own.iter().map(|listed| listed.modified).max();
    let old = now.map(|now| old(&rubbish.others, &rubbish.outcomes, now));
    let own = rubbish.own.into_iter().map(|listed| listed.path);
    let gone = own.chain(old.into_iter().flatten()).chain(rubbish.useless);
    futures::try_join!(
        objects.delete(gone.collect()),
        partials::prune(objects, work, refresh, known)
    )?;
    let root = objects.root();
    let folders = rubbish.empty.iter().map(String::as_str).chain([refresh]);
    let folders = folders.flat_map(|folder| {
        [
            paths::claims(root, folder),
            paths::pulses(root, folder),
            paths::plan_folder(root, folder),
        ]
    });
    objects.remove_empty(folders.collect()).await;
    Ok(())
}

/// What nobody can use any more at `now`: plans whose claims may not be
/// committed any longer, and outcomes that nobody asks for.
fn old(plans: &[Vec<Listed>], outcomes: &[Listed], now: SystemTime) -> Vec<Path> {
    let age = |listed: &Listed| now.duration_since(listed.modified).unwrap_or_default();
    let plans = plans
        .iter()
        .filter(|plan| plan.iter().all(|listed| age(listed) > STAGED_FOR))
        .flatten();
    let outcomes = outcomes.iter().filter(|listed| age(listed) > KEPT_FOR);
    plans
        .chain(outcomes)
        .map(|listed| listed.path.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_plans_that_are_old_altogether_and_old_outcomes_go() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100 * 24 * 3600);
        let listed = |name: &str, days: u64| Listed {
            path: Path::from(name),
            name: name.to_string(),
            modified: now - Duration::from_secs(days * 24 * 3600),
        };
        let plans = [
            vec![listed("old-plan", 9), listed("old-claim", 6)],
            vec![listed("long-plan", 9), listed("its-new-claim", 1)],
        ];
        let outcomes = [listed("forgotten", 15), listed("last-week", 7)];
        let gone = old(&plans, &outcomes, now);
        let gone: Vec<&str> = gone.iter().map(|path| path.as_ref()).collect();
        assert_eq!(gone, ["old-plan", "old-claim", "forgotten"]);
    }
}
