//! lancedb's SQL views: `mv.definition` in the table's schema metadata.
//!
//! Two forms of the table itself. lancedb crate 0.41 keeps just the declared
//! columns. Crate and Python 0.38 to 0.40 keep [`SOURCE_ROW_ID`] as well (the
//! source's stable row id of each row, the smallest one of each group) and a
//! watermark in the schema metadata, by which they refresh incrementally.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use lancedb::materialized_view::{
    DEFINITION_META_KEY, LateralSource, MaterializedViewDefinition, StoredDefinition,
    read_definition, read_definition_sql_with_defaults,
};
use moka::sync::Cache;
use serde_json::Value;

use super::general::names::{Query, resolve_namespace};
use super::{Described, ViewKind, deep};

/// The column in which views of 0.38 to 0.40 keep the source's row ids.
pub const SOURCE_ROW_ID: &str = "__source_row_id";
/// Metadata: which creation of the view this is.
pub const INCARNATION: &str = "mv.incarnation";
/// Metadata: the source version of the last refresh.
pub const SOURCE_VERSION: &str = "mv.source_version";
/// Metadata: the timestamp of that version's manifest, in nanoseconds.
pub const SOURCE_VERSION_TS: &str = "mv.source_version_ts";
/// Metadata: the view version that the last refresh left.
pub const VIEW_VERSION: &str = "mv.view_version";
/// Metadata: when the last refresh ended, in milliseconds since 1970.
pub const REFRESHED_AT_MS: &str = "mv.refreshed_at_ms";

/// Metadata that changes while the definition stays.
const VOLATILE: [&str; 5] = [
    INCARNATION,
    SOURCE_VERSION,
    SOURCE_VERSION_TS,
    VIEW_VERSION,
    REFRESHED_AT_MS,
];

/// Most definitions that are kept parsed.
const MOST_KEPT: u64 = 256;

/// What the metadata says, if it is a lancedb view at all. Views are looked at
/// far more often than they are defined: what was read last is kept.
pub(super) fn describe(metadata: &HashMap<String, String>) -> Option<Described> {
    static KEPT: LazyLock<Cache<BTreeMap<String, String>, Described>> =
        LazyLock::new(|| Cache::new(MOST_KEPT));
    metadata.get(DEFINITION_META_KEY)?;
    let lasting = metadata
        .iter()
        .filter(|(key, _)| !VOLATILE.contains(&key.as_str()));
    let lasting: BTreeMap<_, _> = lasting.map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(known) = KEPT.get(&lasting) {
        return Some(known);
    }
    let described = parsed(metadata)?;
    KEPT.insert(lasting, described.clone());
    Some(described)
}

fn parsed(metadata: &HashMap<String, String>) -> Option<Described> {
    let raw = metadata.get(DEFINITION_META_KEY)?.clone();
    let stored = read_definition_sql_with_defaults(metadata).ok().flatten();
    let sql = stored.as_ref().map(|s| s.query.clone());
    let mut described = Described {
        kind: ViewKind::Sql,
        unsupported: None,
        sources: Vec::new(),
        sql,
        definition: None,
        query: None,
        raw,
    };
    let by_index = |sql: &str| calls(sql, "ivf_partition");
    if described.sql.as_deref().is_some_and(by_index) {
        described.general(Err(
            "it calls ivf_partition, which depends on an index of the source; keep the partition \
             in a column of the source instead"
                .to_string(),
        ));
        return Some(described);
    }
    // Before anything parses them.
    let texts = serde_json::from_str(&described.raw);
    if let Err(why) = texts.map_or(Ok(()), |value| shallow(&value)) {
        described.general(Err(why));
        return Some(described);
    }
    let stored = stored.as_ref();
    let database = stored.and_then(|s| s.default_database.as_deref());
    let namespace = stored
        .and_then(|s| s.default_namespace_path.as_deref())
        .unwrap_or_default();
    let query = || {
        let sql = stored.map(|s| s.query.as_str()).unwrap_or_default();
        Query::parse(sql, database, namespace)
    };
    match read_definition(metadata) {
        Ok(Some(StoredDefinition::Query(definition))) => match query() {
            Ok(query) if query.beyond_rows() => described.general(Ok(query)),
            query => {
                let definition = canonical(definition, database, namespace);
                let mut source = definition.source_namespace.clone();
                source.push(definition.source_table.clone());
                described.sources = vec![source];
                described.unsupported = refusal(&definition);
                // What lance's planner does not read, DataFusion's may.
                described.query = query
                    .ok()
                    .filter(|query| query.sources() == described.sources)
                    .map(Arc::new);
                described.definition = Some(definition);
            }
        },
        Ok(Some(StoredDefinition::Newer { format })) => {
            described.kind = ViewKind::Newer(format);
            described.unsupported = Some(
                "its format is not known to this version; upgrade relance, or refresh it with the \
                 client that wrote it"
                    .to_string(),
            );
        }
        Ok(_) | Err(_) if stored.is_some() => described.general(query()),
        Ok(_) | Err(_) => {
            described.kind = ViewKind::Newer("unknown".to_string());
            described.unsupported = Some(format!(
                "its {DEFINITION_META_KEY} cannot be read; drop the view and create it again"
            ));
        }
    }
    Some(described)
}

/// Checks every text in a definition: a query, or the expressions of one.
fn shallow(value: &Value) -> std::result::Result<(), String> {
    match value {
        Value::String(text) => deep::check(text),
        Value::Array(values) => values.iter().try_for_each(shallow),
        Value::Object(values) => values.values().try_for_each(shallow),
        _ => Ok(()),
    }
}

impl Described {
    /// A view in any SQL, if it could be read.
    fn general(&mut self, query: std::result::Result<Query, String>) {
        self.kind = ViewKind::GeneralSql;
        match query {
            Ok(query) => {
                self.sources = query.sources().to_vec();
                self.query = Some(Arc::new(query));
            }
            Err(why) => self.unsupported = Some(why),
        }
    }
}

/// The definition in lancedb's canonical spelling (the older structured
/// layouts hold expressions as they were typed), its source resolved as that of
/// any other SQL view is.
fn canonical(
    definition: MaterializedViewDefinition,
    database: Option<&str>,
    namespace: &[String],
) -> MaterializedViewDefinition {
    let mut definition =
        MaterializedViewDefinition::from_sql(&definition.to_sql()).unwrap_or(definition);
    definition.source_namespace =
        resolve_namespace(&definition.source_namespace, database, namespace);
    definition
}

fn refusal(definition: &MaterializedViewDefinition) -> Option<String> {
    match definition.lateral.as_ref().map(|l| &l.source) {
        Some(LateralSource::Function { name, .. }) => Some(format!(
            "it expands rows by the function '{name}', which only the server that holds the \
             function can run; use UNNEST over a stored list column"
        )),
        _ => None,
    }
}

/// Whether `sql` has a call of `function` in it.
fn calls(sql: &str, function: &str) -> bool {
    let sql = sql.to_lowercase();
    let mut starts = sql.match_indices(function);
    starts.any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let rest = sql[at + function.len()..].trim_start();
        !sql[..at].ends_with(is_part) && rest.starts_with('(')
    })
}

#[cfg(test)]
mod tests {
    use lancedb::materialized_view::{
        definition_metadata_from_sql, definition_metadata_from_sql_with_defaults,
    };

    use super::*;

    fn of(raw: &str) -> Described {
        let metadata = HashMap::from([(DEFINITION_META_KEY.to_string(), raw.to_string())]);
        describe(&metadata).unwrap()
    }

    #[test]
    fn a_plain_query_is_understood() {
        let view = of(&definition_metadata_from_sql(
            "SELECT id, x * 2 AS y FROM ns.src WHERE x > 1",
        ));
        assert_eq!(view.kind, ViewKind::Sql);
        assert_eq!(view.unsupported, None);
        assert_eq!(view.sources, [["ns", "src"]]);
    }

    #[test]
    fn a_name_is_resolved_against_the_writers_namespace() {
        let raw =
            definition_metadata_from_sql_with_defaults("SELECT id FROM src", "db", &["ns".into()]);
        assert_eq!(of(&raw).sources, [["ns", "src"]]);
    }

    #[test]
    fn a_name_means_the_same_whichever_grammar_reads_its_query() {
        for (name, source) in [
            ("src", vec!["ns", "src"]),
            ("public.src", vec!["src"]),
            ("db.public.src", vec!["src"]),
            ("db.\"a$b\".src", vec!["a", "b", "src"]),
            ("other.src", vec!["other", "src"]),
        ] {
            for (sql, kind) in [
                ("SELECT id FROM", ViewKind::Sql),
                ("SELECT DISTINCT id FROM", ViewKind::GeneralSql),
            ] {
                let sql = format!("{sql} {name}");
                let raw = definition_metadata_from_sql_with_defaults(&sql, "db", &["ns".into()]);
                let view = of(&raw);
                assert_eq!(view.kind, kind, "{sql}");
                assert_eq!(view.sources, std::slice::from_ref(&source), "{sql}");
            }
        }
        let raw =
            definition_metadata_from_sql_with_defaults("SELECT id FROM public.src", "db", &[]);
        assert_eq!(of(&raw).sources, [["src"]]);
        // Nothing is a database to a client that recorded none.
        let raw = definition_metadata_from_sql("SELECT id FROM public.src");
        assert_eq!(of(&raw).sources, [["public", "src"]]);
    }

    #[test]
    fn a_join_is_general_sql_with_all_its_sources() {
        let view = of(&definition_metadata_from_sql(
            "SELECT a.x FROM a JOIN ns.b ON a.id = b.id",
        ));
        assert_eq!(view.kind, ViewKind::GeneralSql);
        assert_eq!(view.unsupported, None);
        assert_eq!(view.sources, [vec!["a"], vec!["ns", "b"]]);
        let broken = of(&definition_metadata_from_sql("SELECT a FROM"));
        assert_eq!(broken.kind, ViewKind::GeneralSql);
        assert!(broken.unsupported.is_some());
    }

    #[test]
    fn newer_and_broken_definitions_are_views_all_the_same() {
        let newer = of(r#"{"format":9,"kind":"query","query":"SELECT id FROM t"}"#);
        assert_eq!(newer.kind, ViewKind::Newer("9".into()));
        assert!(newer.unsupported.is_some());
        assert!(of("{").unsupported.is_some());
        let function = of(&definition_metadata_from_sql(
            "SELECT c.x FROM docs, chunk(body) AS c",
        ));
        assert!(function.unsupported.unwrap().contains("chunk"));
    }

    #[test]
    fn what_is_too_deep_is_not_parsed() {
        let deep = vec!["id = 1"; 100_000].join(" OR ");
        let query = definition_metadata_from_sql(&format!("SELECT id FROM t WHERE {deep}"));
        let older = format!(
            r#"{{"kind":"select","source_table":"t","projections":[{{"output":"id","expression":"id"}}],"filter":"{deep}"}}"#
        );
        for raw in [query, older] {
            let why = of(&raw).unsupported.unwrap();
            assert!(why.contains("operators deep"), "{why}");
        }
    }

    #[test]
    fn groups_by_an_index_are_refused_in_words() {
        for key in ["ivf_partition(v)", "1 + IVF_PARTITION (v)"] {
            let sql = format!("SELECT {key} AS p, count(*) AS n FROM t GROUP BY {key}");
            let view = of(&definition_metadata_from_sql(&sql));
            assert!(view.unsupported.unwrap().contains("index"), "{sql}");
        }
        let sql = "SELECT my_ivf_partition AS p, ivf_partition AS q FROM t GROUP BY 1, 2";
        assert_eq!(of(&definition_metadata_from_sql(sql)).unsupported, None);
    }

    #[test]
    fn the_older_structured_layout_is_read() {
        let view = of(
            r#"{"kind":"select","source_table":"t","projections":[{"output":"id","expression":"id"}],"filter":"id > 1"}"#,
        );
        assert_eq!(view.kind, ViewKind::Sql);
        assert_eq!(view.sources, [["t"]]);
        assert_eq!(view.definition.unwrap().filter.as_deref(), Some("id > 1"));
    }
}
