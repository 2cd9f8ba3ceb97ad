//! Geneva's views: recognised, so that requests are judged rightly, and not
//! refreshed yet.

use std::collections::HashMap;

use super::{Described, ViewKind};

const QUERY: &str = "geneva::view::query";
const VERSION: &str = "geneva::view::version";
const BASE_TABLE: &str = "geneva::view::base_table";

/// What the metadata says, if it is a Geneva view at all.
pub(super) fn describe(metadata: &HashMap<String, String>) -> Option<Described> {
    let query = metadata.get(QUERY);
    let version = metadata.get(VERSION).map(String::as_str);
    if query.is_none() && version.is_none() {
        return None;
    }
    let kind = match version {
        Some("chunker") => ViewKind::GenevaChunker,
        Some("udtf") => ViewKind::GenevaUdtf,
        None | Some("1") | Some("2") => ViewKind::GenevaQuery,
        Some(other) => ViewKind::Newer(format!("Geneva {other}")),
    };
    let unsupported = Some(
        "its columns are computed by Python functions, and this version refreshes SQL views; \
         refresh it with Geneva"
            .to_string(),
    );
    Some(Described {
        kind,
        unsupported,
        sources: metadata
            .get(BASE_TABLE)
            .map(|name| vec![vec![name.clone()]])
            .unwrap_or_default(),
        sql: None,
        definition: None,
        query: None,
        raw: query.cloned().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(pairs: &[(&str, &str)]) -> Option<ViewKind> {
        let metadata = pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        describe(&metadata).map(|d| d.kind)
    }

    #[test]
    fn each_kind_is_told_by_its_version() {
        assert_eq!(kind(&[("other", "x")]), None);
        assert_eq!(kind(&[(QUERY, "{}")]), Some(ViewKind::GenevaQuery));
        assert_eq!(
            kind(&[(QUERY, "{}"), (VERSION, "2")]),
            Some(ViewKind::GenevaQuery)
        );
        assert_eq!(kind(&[(VERSION, "chunker")]), Some(ViewKind::GenevaChunker));
        assert_eq!(kind(&[(VERSION, "udtf")]), Some(ViewKind::GenevaUdtf));
        assert_eq!(
            kind(&[(VERSION, "7")]),
            Some(ViewKind::Newer("Geneva 7".into()))
        );
    }

    #[test]
    fn only_a_chunker_takes_an_output_limit() {
        assert!(ViewKind::GenevaChunker.takes_output_limit());
        assert!(!ViewKind::GenevaQuery.takes_output_limit());
        assert!(!ViewKind::Sql.takes_output_limit());
    }
}
