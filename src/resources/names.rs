//! The one home of labels, annotations and object names.

/// The API group of the custom resources.
pub const GROUP: &str = "relance.dev";
