//! What happens to a source between two refreshes.

use std::sync::Arc;

use clap::ValueEnum;
use lance::dataset::NewColumnTransform;
use lance::dataset::UpdateBuilder;
use lance::dataset::optimize::{CompactionOptions, compact_files};

use crate::database::Database;

/// A change to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Change {
    /// None: every row is computed anew.
    Full,
    /// None.
    Nothing,
    /// A hundredth more rows.
    Percent,
    /// The same number of rows at any size.
    Fixed,
    /// One row less.
    Delete,
    /// One row with another value.
    Update,
    /// A column that the view does not read.
    AddColumn,
    /// Pairs of fragments become one.
    Compact,
}

/// What [`Change::Fixed`] appends.
pub const FIXED_ROWS: u64 = 1_000;

impl Change {
    /// Every change, in an order that leaves the later ones comparable.
    pub const ALL: [Change; 8] = [
        Change::Full,
        Change::Nothing,
        Change::Fixed,
        Change::Percent,
        Change::Delete,
        Change::Update,
        Change::AddColumn,
        Change::Compact,
    ];

    /// What the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Change::Full => "full",
            Change::Nothing => "no-op",
            Change::Percent => "+1 %",
            Change::Fixed => "+1,000 rows",
            Change::Delete => "1 row deleted",
            Change::Update => "1 row updated",
            Change::AddColumn => "column added",
            Change::Compact => "source compacted",
        }
    }

    /// Makes the change, as the `round`th of its kind, from 0.
    pub async fn make(self, database: &mut Database, round: usize) {
        match self {
            Change::Full | Change::Nothing => {}
            Change::Percent => database.append(database.rows / 100).await,
            Change::Fixed => database.append(FIXED_ROWS).await,
            Change::Delete => {
                let filter = format!("id = {}", database.some_id(round));
                let mut source = database.open("src").await;
                source.delete(&filter).await.expect("deleted");
            }
            Change::Update => {
                let source = Arc::new(database.open("src").await);
                let update = UpdateBuilder::new(source)
                    .update_where(&format!("id = {}", database.some_id(round) + 3))
                    .expect("a filter")
                    .set("x", "x + 1")
                    .expect("an expression")
                    .build()
                    .expect("an update");
                let updated = update.execute().await.expect("updated");
                assert_eq!(updated.rows_updated, 1);
            }
            Change::AddColumn => {
                let column = (format!("extra{round}"), "x + 1".to_string());
                let mut source = database.open("src").await;
                source
                    .add_columns(NewColumnTransform::SqlExpressions(vec![column]), None, None)
                    .await
                    .expect("added");
            }
            Change::Compact => {
                let mut source = database.open("src").await;
                let options = CompactionOptions {
                    target_rows_per_fragment: (database.fragment_rows as usize) << (round + 1),
                    ..Default::default()
                };
                let done = compact_files(&mut source, options, None)
                    .await
                    .expect("compacted");
                assert!(done.fragments_removed > 0, "nothing was compacted");
            }
        }
    }
}
