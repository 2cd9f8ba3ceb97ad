//! The removal of what a refresh needed only on its way, and of what nobody
//! will ask for any more. It runs after the view is right, and is repeated by
//! each refresh: that a store does not answer now does no harm.

use std::time::SystemTime;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::error::Result;
use super::ledger::{self, STAGED_FOR};
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
    own: Vec<Path>,
    /// Those of each other refresh.
    others: Vec<Vec<Listed>>,
    outcomes: Vec<Listed>,
}

/// Lists what `refresh` and others left.
pub async fn look(objects: &Objects, refresh: &str) -> Result<Rubbish> {
    let plans = async {
        let mut folders = objects.folders(&paths::plans(objects.root())).await?;
        folders.retain(|folder| folder != refresh);
        folders.truncate(LEFTOVERS);
        futures::stream::iter(folders)
            .map(|folder| async move {
                let folder = paths::plan_folder(objects.root(), &folder);
                objects.list(&folder).await
            })
            .buffered(LEFTOVERS)
            .try_collect()
            .await
    };
    let (own, plans, outcomes) = (
        paths::plan_folder(objects.root(), refresh),
        plans,
        paths::outcomes(objects.root()),
    );
    let (own, others, outcomes) =
        futures::try_join!(objects.list(&own), plans, objects.list(&outcomes))?;
    Ok(Rubbish {
        own: own.into_iter().map(|listed| listed.path).collect(),
        others,
        outcomes,
    })
}

/// Removes what is there once `refresh`, of which `work` was done, has recorded
/// its outcome.
pub async fn remove(objects: &Objects, refresh: &str, work: &Work, rubbish: Rubbish) -> Result<()> {
    let old = async {
        if rubbish.others.is_empty() && rubbish.outcomes.is_empty() {
            return Ok(());
        }
        // Just written: so that is what the store's clock says.
        let recorded = paths::outcome(objects.root(), refresh);
        let Some(now) = objects.modified(&recorded).await? else {
            return Ok(());
        };
        objects
            .delete(old(&rubbish.others, &rubbish.outcomes, now))
            .await
    };
    futures::try_join!(
        objects.delete(rubbish.own),
        old,
        ledger::prune(objects),
        partials::prune(objects, work, refresh)
    )?;
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
