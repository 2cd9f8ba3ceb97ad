//! What can go wrong in a refresh, sorted by what the caller should do.

use thiserror::Error;

/// Result of the engine's operations.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// The reason of [`EngineError::CatalogDenied`], which others than a worker may
/// have to give too.
pub const CATALOG_DENIED: &str = "CatalogDenied";

/// What went wrong. Each message is one sentence that names what was wrong and what to do.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The catalog has no table of that name.
    #[error("the catalog has no table '{view}'; check the identifier and its delimiter")]
    ViewNotFound {
        /// The identifier as asked for.
        view: String,
    },
    /// The table is there and is no materialized view.
    #[error("'{view}' is a table and no materialized view; name a view, or create one over it")]
    NotAView {
        /// The identifier as asked for.
        view: String,
    },
    /// A view of a kind that this version cannot refresh.
    #[error("'{view}' is {kind}, which relance cannot refresh: {why}")]
    Unsupported {
        /// The view.
        view: String,
        /// What kind of view it is, with its article.
        kind: String,
        /// What about it is not supported, and what to do.
        why: String,
    },
    /// A table that the definition reads is not in the catalog.
    #[error(
        "the source table '{table}' of view '{view}' is not in the catalog; restore it or drop the view"
    )]
    SourceNotFound {
        /// The view.
        view: String,
        /// The source table.
        table: String,
    },
    /// The source version asked for never was, or is no longer there.
    #[error(
        "version {version} of source table '{table}' is not there (cleaned up, or not yet written); ask for another or for the latest"
    )]
    SourceVersionGone {
        /// The source table.
        table: String,
        /// The version asked for.
        version: u64,
    },
    /// The source's latest version names a file that is not there.
    #[error(
        "a source table of view '{view}' is damaged, its latest version names a file that is gone ({why}); restore the file, or the table to a version before it, and refresh again"
    )]
    SourceDamaged {
        /// The view.
        view: String,
        /// The store's own words.
        why: String,
    },
    /// The stored definition cannot be evaluated over the source as it is now.
    #[error("the definition of view '{view}' no longer fits: {why}")]
    DefinitionMismatch {
        /// The view.
        view: String,
        /// What does not fit, and what to do.
        why: String,
    },
    /// A row of the source makes an expression of the definition fail.
    #[error(
        "the rows of view '{view}' cannot be computed ({why}); mend the source's rows or the view's query"
    )]
    EvaluationFailed {
        /// The view.
        view: String,
        /// The evaluator's own words.
        why: String,
    },
    /// Another view stands under the name now.
    #[error(
        "view '{view}' has incarnation {found}, and the refresh was asked for {expected}; the view was re-created: ask again"
    )]
    IncarnationMismatch {
        /// The view.
        view: String,
        /// What the caller expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Others kept committing to the view.
    #[error(
        "other writers kept changing view '{view}' ({attempts} attempts); refresh again when they are done"
    )]
    ViewContended {
        /// The view.
        view: String,
        /// How many commits were tried.
        attempts: u32,
    },
    /// The catalog does not take the credential of whoever asked for this.
    #[error(
        "the catalog refuses the caller's credential for '{table}': {why}; ask again with one that it takes"
    )]
    CatalogDenied {
        /// The table or view.
        table: String,
        /// The catalog's own words, without the credential.
        why: String,
    },
    /// A parameter has a value that cannot be.
    #[error("{0}")]
    InvalidInput(String),
    /// Catalog or object store did not answer, or refused.
    #[error("{what} cannot be reached: {why}")]
    Unavailable {
        /// What cannot be reached.
        what: String,
        /// The store's own words, without credentials.
        why: String,
    },
    /// A bug, or something that nobody foresaw.
    #[error("{0}")]
    Internal(String),
}

impl EngineError {
    /// Whether another attempt can succeed without anyone changing anything.
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            EngineError::Unavailable { .. }
                | EngineError::Internal(_)
                | EngineError::ViewContended { .. }
        )
    }

    /// A stable CamelCase reason.
    pub fn reason(&self) -> &'static str {
        match self {
            EngineError::ViewNotFound { .. } => "ViewNotFound",
            EngineError::NotAView { .. } => "NotAMaterializedView",
            EngineError::Unsupported { .. } => "Unsupported",
            EngineError::SourceNotFound { .. } => "SourceNotFound",
            EngineError::SourceVersionGone { .. } => "SourceVersionGone",
            EngineError::SourceDamaged { .. } => "SourceDamaged",
            EngineError::DefinitionMismatch { .. } => "DefinitionMismatch",
            EngineError::EvaluationFailed { .. } => "EvaluationFailed",
            EngineError::IncarnationMismatch { .. } => "IncarnationMismatch",
            EngineError::ViewContended { .. } => "ViewContended",
            EngineError::CatalogDenied { .. } => CATALOG_DENIED,
            EngineError::InvalidInput(_) => "InvalidInput",
            EngineError::Unavailable { .. } => "Unavailable",
            EngineError::Internal(_) => "Internal",
        }
    }
}
