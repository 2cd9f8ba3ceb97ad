//! A general query as it is written: which tables it names, told by its text
//! alone.
//!
//! A name of one part is a table in the namespace that the view's writer had
//! as the default. With two or more, the last part is the table and those
//! before it the namespace. A writer that recorded its database (the SQL
//! server of lancedb) has the whole namespace in one part, joined by `$`,
//! calls the root `public`, and may put the database before it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use datafusion_common::TableReference;
use datafusion_sql::parser::{DFParserBuilder, Statement};
use datafusion_sql::resolve::resolve_table_references;
use datafusion_sql::sqlparser::ast::{
    Expr, GroupByExpr, Ident, ObjectName, SetExpr, Statement as SqlStatement, TableFactor, Visit,
    Visitor, visit_relations_mut,
};

use crate::engine::catalog::DELIMITER;
use crate::engine::words::first_line;

/// What the SQL server calls the namespace that has no name.
const ROOT: &str = "public";

/// How deep a query may be nested.
const DEPTH: usize = 64;

/// A query, and the tables that it names.
#[derive(Clone, Debug)]
pub struct Query {
    pub(super) statement: Statement,
    /// Each table as the query names it, and which of the sources it is.
    pub(super) tables: Vec<(TableReference, usize)>,
    sources: Vec<Vec<String>>,
}

impl Query {
    /// Reads `sql` as written by a client with these defaults. The error is the
    /// end of a sentence that says why the view cannot be refreshed.
    pub fn parse(
        sql: &str,
        database: Option<&str>,
        namespace: &[String],
    ) -> std::result::Result<Query, String> {
        let unreadable = |e: String| {
            format!(
                "its query cannot be read ({}); recreate the view",
                first_line(&e)
            )
        };
        let mut statements = DFParserBuilder::new(sql)
            .with_recursion_limit(DEPTH)
            .build()
            .and_then(|mut parser| parser.parse_statements())
            .map_err(|e| unreadable(e.to_string()))?;
        let mut statement = match (statements.pop_front(), statements.is_empty()) {
            (Some(Statement::Statement(inner)), true)
                if matches!(*inner, SqlStatement::Query(_)) =>
            {
                inner
            }
            _ => return Err("its query is no single SELECT; recreate the view".to_string()),
        };
        let mut refusal = Refusal(None);
        let _ = statement.visit(&mut refusal);
        if let Some(why) = refusal.0 {
            return Err(why);
        }
        // DataFusion takes names of three parts; a longer namespace goes into one.
        let _ = visit_relations_mut(&mut *statement, |name: &mut ObjectName| {
            shorten(name);
            ControlFlow::<()>::Continue(())
        });
        let statement = Statement::Statement(statement);
        let resolved = |folded| {
            let found = resolve_table_references(&statement, folded);
            found.map_err(|e| unreadable(e.to_string()))
        };
        let (mut references, _) = resolved(false)?;
        // What is a common table expression where case is folded is no table.
        let (folded, _) = resolved(true)?;
        references.retain(|table| folded.contains(table) || folded.contains(&lower(table)));
        let mut query = Query {
            statement,
            tables: Vec::new(),
            sources: Vec::new(),
        };
        let mut named: Vec<(Vec<String>, TableReference)> = references
            .into_iter()
            .map(|reference| (resolve(&reference, database, namespace), reference))
            .collect();
        named.sort();
        for (source, reference) in named {
            if query.sources.last() != Some(&source) {
                query.sources.push(source);
            }
            query.tables.push((reference, query.sources.len() - 1));
        }
        if query.sources.is_empty() {
            return Err("its query reads no table; recreate the view over one".to_string());
        }
        Ok(query)
    }

    /// Whether it is more than expressions over a row, though lancedb's grammar,
    /// which takes expressions as they are, may have read it: for a subquery, a
    /// window, or an aggregate without groups.
    pub fn beyond_rows(&self) -> bool {
        let mut beyond = Beyond {
            found: false,
            grouped: false,
        };
        if let Statement::Statement(statement) = &self.statement {
            if let SqlStatement::Query(query) = &**statement
                && let SetExpr::Select(select) = &*query.body
            {
                beyond.grouped = !matches!(&select.group_by,
                    GroupByExpr::Expressions(keys, _) if keys.is_empty());
            }
            let _ = statement.visit(&mut beyond);
        }
        beyond.found
    }

    /// The identifier paths of the tables that the query names, sorted.
    pub fn sources(&self) -> &[Vec<String>] {
        &self.sources
    }
}

/// Finds what makes a query more than expressions over a row.
struct Beyond {
    found: bool,
    grouped: bool,
}

impl Visitor for Beyond {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.found |= match expr {
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => true,
            Expr::Function(call) => {
                let name = call.name.to_string().to_lowercase();
                call.over.is_some()
                    || (!self.grouped && AGGREGATES.iter().any(|known| *known == name))
            }
            _ => false,
        };
        match self.found {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Every name of DataFusion's aggregates.
static AGGREGATES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let mut names = BTreeSet::new();
    for function in datafusion::functions_aggregate::all_default_aggregate_functions() {
        names.insert(function.name().to_lowercase());
        names.extend(function.aliases().iter().map(|alias| alias.to_lowercase()));
    }
    names
});

/// `table` as a server that folds case reads it without quotes.
fn lower(table: &TableReference) -> TableReference {
    let fold = |part: &str| part.to_lowercase();
    match table {
        TableReference::Bare { table } => TableReference::bare(fold(table)),
        TableReference::Partial { schema, table } => {
            TableReference::partial(fold(schema), fold(table))
        }
        TableReference::Full {
            catalog,
            schema,
            table,
        } => TableReference::full(fold(catalog), fold(schema), fold(table)),
    }
}

/// Puts a namespace of more than two parts into one.
fn shorten(name: &mut ObjectName) {
    let parts: Option<Vec<String>> = name
        .0
        .iter()
        .map(|part| part.as_ident().map(|ident| ident.value.clone()))
        .collect();
    if let Some(parts) = parts
        && parts.len() > 3
        && let Some((table, namespace)) = parts.split_last()
    {
        *name = ObjectName::from(vec![
            Ident::with_quote('"', namespace.join(DELIMITER)),
            Ident::with_quote('"', table),
        ]);
    }
}

/// The identifier path that `reference` means.
fn resolve(reference: &TableReference, database: Option<&str>, default: &[String]) -> Vec<String> {
    let (namespace, table) = match reference {
        TableReference::Bare { table } => (Vec::new(), table),
        TableReference::Partial { schema, table } => (vec![schema.to_string()], table),
        TableReference::Full {
            catalog,
            schema,
            table,
        } => (vec![catalog.to_string(), schema.to_string()], table),
    };
    let mut path = resolve_namespace(&namespace, database, default);
    path.push(table.to_string());
    path
}

/// The identifier path of the namespace that a client with these defaults wrote as
/// `written`, before the name of a table.
pub(in crate::engine::view) fn resolve_namespace(
    written: &[String],
    database: Option<&str>,
    default: &[String],
) -> Vec<String> {
    let parts = match written {
        [] => return default.to_vec(),
        [catalog, schema] if database == Some(catalog.as_str()) => std::slice::from_ref(schema),
        parts => parts,
    };
    match parts {
        [schema] if database.is_some() && schema == ROOT => Vec::new(),
        parts => parts
            .iter()
            .flat_map(|part| part.split(DELIMITER).map(str::to_string))
            .collect(),
    }
}

/// Finds what no refresh can read the same twice: tables that are functions,
/// samples, and versions that the query itself names.
struct Refusal(Option<String>);

impl Visitor for Refusal {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let why = match factor {
            TableFactor::Table {
                name,
                args,
                sample,
                version,
                ..
            } => {
                if args.is_some() {
                    format!("it calls the table function '{name}'")
                } else if sample.is_some() {
                    format!("it takes a sample of '{name}'")
                } else if version.is_some() {
                    format!("it names a version of '{name}'")
                } else {
                    return ControlFlow::Continue(());
                }
            }
            TableFactor::Function { name, .. } => format!("it calls the table function '{name}'"),
            TableFactor::TableFunction { expr, .. } => format!("it calls {expr}"),
            _ => return ControlFlow::Continue(()),
        };
        self.0 = Some(format!("{why}, and can read plain tables only"));
        ControlFlow::Break(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(sql: &str) -> Vec<String> {
        let query = Query::parse(sql, None, &[]).unwrap();
        query.sources().iter().map(|s| s.join("/")).collect()
    }

    fn refused(sql: &str) -> String {
        Query::parse(sql, None, &[]).unwrap_err()
    }

    #[test]
    fn every_table_counts_once_wherever_it_is_named() {
        assert_eq!(
            sources(
                "WITH c AS (SELECT id FROM one WHERE x IN (SELECT x FROM two)) \
                 SELECT a.id, (SELECT max(id) FROM three) AS m FROM c a \
                 JOIN one b ON a.id = b.id \
                 UNION ALL SELECT id, 1 FROM (SELECT id FROM four) q \
                 WHERE EXISTS (SELECT 1 FROM five WHERE five.id = q.id)"
            ),
            ["five", "four", "one", "three", "two"]
        );
    }

    #[test]
    fn names_of_common_table_expressions_are_no_tables_and_may_hide_one() {
        assert_eq!(
            sources("WITH t AS (SELECT 1 AS a FROM u) SELECT * FROM t"),
            ["u"]
        );
        assert_eq!(
            sources("WITH t AS (SELECT * FROM t) SELECT * FROM t"),
            ["t"]
        );
    }

    #[test]
    fn a_common_table_expression_is_found_in_any_case_unless_it_is_quoted() {
        let with = |name: &str, from: &str| {
            sources(&format!(
                "WITH {name} AS (SELECT id FROM t) SELECT id FROM {from}"
            ))
        };
        assert_eq!(with("Big", "big"), ["t"]);
        assert_eq!(with("Big", "BIG"), ["t"]);
        assert_eq!(with("Big", "\"BIG\""), ["BIG", "t"]);
        assert_eq!(with("big", "Orders"), ["Orders", "t"]);
    }

    #[test]
    fn namespaces_and_quoted_names_are_taken_as_written() {
        assert_eq!(sources("SELECT a FROM ns.t"), ["ns/t"]);
        assert_eq!(sources("SELECT a FROM a.b.t"), ["a/b/t"]);
        assert_eq!(sources("SELECT a FROM a.b.c.t"), ["a/b/c/t"]);
        assert_eq!(sources("SELECT a FROM \"Ns\".`My Table`"), ["Ns/My Table"]);
        assert_eq!(sources("SELECT a FROM \"a$b\".t"), ["a/b/t"]);
        assert_eq!(sources("SELECT a FROM Orders"), ["Orders"]);
    }

    #[test]
    fn the_servers_defaults_complete_a_name() {
        let of = |sql: &str| {
            Query::parse(sql, Some("db"), &["x".into(), "y".into()])
                .unwrap()
                .sources()
                .iter()
                .map(|s| s.join("/"))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("SELECT 1 AS a FROM t"), ["x/y/t"]);
        assert_eq!(of("SELECT 1 AS a FROM public.t"), ["t"]);
        assert_eq!(
            of("SELECT 1 AS a FROM db.public.t, db.\"n$m\".u"),
            ["n/m/u", "t"]
        );
    }

    #[test]
    fn subqueries_windows_and_lone_aggregates_are_more_than_rows() {
        let beyond = |sql: &str| Query::parse(sql, None, &[]).unwrap().beyond_rows();
        assert!(beyond("SELECT id FROM t WHERE x IN (SELECT x FROM u)"));
        assert!(beyond("SELECT id, (SELECT max(x) FROM u) AS m FROM t"));
        assert!(beyond(
            "SELECT id, row_number() OVER (ORDER BY id) AS n FROM t"
        ));
        assert!(beyond("SELECT COUNT(*) AS n FROM t"));
        assert!(!beyond("SELECT x, count(*) AS n FROM t GROUP BY x"));
        // What a planner does not read of these is the planner's to say.
        assert!(!beyond(
            "SELECT CASE x WHEN 1 THEN floor(x) END AS f FROM t WHERE floor(x) > 1"
        ));
        assert!(!beyond(
            "SELECT id, upper(name) AS n FROM t WHERE x IN (1, 2) LIMIT 3"
        ));
    }

    #[test]
    fn two_names_of_one_table_are_one_source() {
        let query = Query::parse(
            "SELECT a.i FROM t a JOIN ns.t b ON a.i = b.i",
            None,
            &["ns".into()],
        )
        .unwrap();
        assert_eq!(query.sources(), [["ns", "t"]]);
        assert_eq!(query.tables.len(), 2);
    }

    #[test]
    fn what_is_no_query_over_tables_is_refused() {
        assert!(refused("SELECT 1 AS a").contains("no table"));
        assert!(refused("SELECT a FROM t; SELECT b FROM t").contains("single SELECT"));
        assert!(refused("DROP TABLE t").contains("single SELECT"));
        assert!(refused("SELECT a FROM").contains("cannot be read"));
        assert!(refused("SELECT * FROM generate_series(1, 3)").contains("generate_series"));
        assert!(refused("SELECT * FROM t TABLESAMPLE BERNOULLI (10)").contains("sample"));
    }
}
