//! Random queries over three tables of the same columns. All of them give
//! columns of the same names and types, so that a view of one can be made one
//! of any other.

use lancedb::materialized_view::{MaterializedViewDefinition, definition_metadata_from_sql};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::sources::TABLES;

const SHAPES: u32 = 38;

/// A query of columns `id`, `v` and `t`.
#[derive(Clone, Debug)]
pub struct Query {
    pub sql: String,
    /// It as the view's table stores it.
    pub stored: String,
    /// The same for DataFusion.
    pub evaluated: String,
    /// Whether zero and minus zero are the same: that of a sum depends on the
    /// order of its rows.
    pub zeros_alike: bool,
    shape: u32,
    tables: Vec<&'static str>,
}

/// Columns of the rows of `of`.
fn some(random: &mut StdRng, of: &str) -> String {
    format!(
        "SELECT {of}.id AS id, {} AS v, {of}.s AS t",
        value(random, &format!("{of}."))
    )
}

impl Query {
    pub fn new(random: &mut StdRng) -> Query {
        let mut tables = TABLES.to_vec();
        tables.shuffle(random);
        let shape = random.random_range(0..SHAPES);
        Query::of(random, shape, tables)
    }

    /// Another one: without some brackets, of the same shape, or any.
    pub fn edited(&self, random: &mut StdRng) -> Query {
        let mut other = self.clone();
        let opened = *["NOT (", "- ("].choose(random).unwrap();
        match random.random_range(0..3) {
            0 if self.sql.contains(opened) => {
                for sql in [&mut other.sql, &mut other.evaluated] {
                    *sql = without_brackets(sql, opened);
                }
                other.stored(random)
            }
            0 | 1 => Query::of(random, self.shape, self.tables.clone()),
            _ => Query::new(random),
        }
    }

    fn of(random: &mut StdRng, shape: u32, tables: Vec<&'static str>) -> Query {
        let (a, b, c) = (tables[0], tables[1], tables[2]);
        let n = random.random_range(0..9);
        let mut evaluated = None;
        let mut zeros_alike = false;
        let join = *["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]
            .choose(random)
            .unwrap();
        let sql = match shape {
            // Of one table, as lancedb reads it.
            0 => format!(
                "SELECT id, {} AS v, s AS t FROM {a} WHERE {}",
                row_value(random),
                filter(random, "")
            ),
            1 => {
                let filter = format!(
                    "WHERE (el > {n} OR el IS NULL) AND ({})",
                    filter(random, "")
                );
                evaluated = Some(format!(
                    "SELECT id + el AS id, f AS v, s AS t FROM (SELECT *, unnest(tags) AS el FROM {a}) {filter}"
                ));
                format!(
                    "SELECT id + el AS id, f AS v, s AS t FROM {a}, UNNEST(tags) AS el {filter}"
                )
            }
            2 => {
                zeros_alike = true;
                format!(
                    "SELECT k AS id, sum(g) AS v, min(s) AS t FROM {a} WHERE {} GROUP BY k",
                    filter(random, "")
                )
            }
            3 => format!(
                "SELECT count(*) AS id, f AS v, max(s) AS t FROM {a} WHERE {} GROUP BY f",
                filter(random, "")
            ),
            // Branches.
            4 => format!("{} UNION ALL {}", branch(random, a), branch(random, a)),
            5..=6 => {
                let count = random.random_range(2..5);
                let mut branches: Vec<String> = tables
                    .iter()
                    .cycle()
                    .take(count)
                    .map(|t| branch(random, t))
                    .collect();
                branches.shuffle(random);
                branches.join(" UNION ALL ")
            }
            7 => format!(
                "SELECT id, v, t FROM ({} UNION ALL {}) u WHERE v > {n} OR v IS NULL OR t = 's1'",
                branch(random, a),
                branch(random, b)
            ),
            8 => format!(
                "{} UNION ALL SELECT count(*), min(g), s FROM {b} WHERE NOT isnan(g) AND g <> 0 GROUP BY s",
                branch(random, a)
            ),
            // Joins.
            9 => format!("SELECT x.id, y.f AS v, x.s AS t FROM {a} x {join} d y ON x.k = y.id"),
            10 => format!(
                "SELECT x.id, y.f AS v, x.s AS t FROM d y {join} {a} x ON x.k = y.id AND {}",
                filter(random, "y.")
            ),
            11 => format!(
                "SELECT x.id, y.f AS v, y.s AS t FROM {a} x {join} {b} y ON x.k = y.k WHERE {}",
                filter(random, "x.")
            ),
            12 => format!("SELECT x.id, y.f AS v, y.s AS t FROM {a} x {join} {b} y ON x.f = y.f"),
            13 => format!(
                "{} FROM {a} x JOIN {b} y ON x.k = y.k JOIN {c} z ON z.id = y.k AND {}",
                some(random, "x"),
                filter(random, "z.")
            ),
            14 => format!(
                "SELECT x.id, y.f AS v, y.s AS t FROM {a} x {join} {a} y ON x.id = y.id + {}",
                n % 3
            ),
            15 => format!(
                "{} FROM {a} x {join} (SELECT k, count(*) AS n FROM {b} GROUP BY k) y ON x.k = y.k AND y.n > {}",
                some(random, "x"),
                n % 4
            ),
            16 => format!(
                "{} FROM {a} x JOIN (SELECT f, count(*) AS n FROM {b} GROUP BY f) y ON x.f = y.f WHERE n > {}",
                some(random, "x"),
                n % 3
            ),
            17 => format!(
                "{} FROM {a} x CROSS JOIN (VALUES (1), ({n})) w WHERE x.k = w.column1 OR {}",
                some(random, "x"),
                filter(random, "x.")
            ),
            // Sets.
            18 => format!(
                "{} FROM {a} x WHERE k IN (SELECT k FROM {b} WHERE {})",
                some(random, "x"),
                filter(random, "")
            ),
            19 => format!(
                "{} FROM {a} x WHERE f IN (SELECT f FROM {b} WHERE {})",
                some(random, "x"),
                filter(random, "")
            ),
            20 => format!(
                "{} FROM {a} x WHERE k NOT IN (SELECT k FROM {b} WHERE {})",
                some(random, "x"),
                filter(random, "")
            ),
            21 => format!(
                "{} FROM {a} x WHERE f NOT IN (SELECT f FROM {b} WHERE k = {n} AND f IS NOT NULL)",
                some(random, "x")
            ),
            22 => format!(
                "{} FROM {a} x WHERE EXISTS (SELECT 1 FROM {b} y WHERE y.k = x.k AND {})",
                some(random, "x"),
                filter(random, "y.")
            ),
            23 => format!(
                "{} FROM {a} x WHERE NOT EXISTS (SELECT 1 FROM {b} y WHERE y.k = x.k AND y.s = x.s)",
                some(random, "x")
            ),
            24 => format!(
                "{} FROM {a} x WHERE {} OR k IN (SELECT id FROM {b} WHERE g > 0)",
                some(random, "x"),
                filter(random, "x.")
            ),
            25 => format!(
                "SELECT DISTINCT k AS id, f AS v, s AS t FROM {a} WHERE {}",
                filter(random, "")
            ),
            26 => format!(
                "SELECT k AS id, f AS v, s AS t FROM {a} WHERE {} UNION SELECT k, g, s FROM {b}",
                filter(random, "")
            ),
            27 => {
                let word = ["EXCEPT", "INTERSECT"].choose(random).unwrap();
                format!(
                    "SELECT k AS id, f AS v, NULLIF(s, 's1') AS t FROM {a} {word} SELECT k, f, s FROM {b} WHERE {}",
                    filter(random, "")
                )
            }
            // Queries within queries.
            28 => format!(
                "WITH w AS (SELECT id, k, f, s FROM {a} WHERE {}) SELECT x.id, y.f AS v, x.s AS t FROM w x JOIN w y ON x.k = y.id",
                filter(random, "")
            ),
            29 => format!(
                "WITH w AS (SELECT id, k, f, s FROM {a} WHERE {}) SELECT id, f AS v, s AS t FROM w WHERE k > 1 UNION ALL SELECT w.id, y.f, w.s FROM w JOIN {b} y ON w.k = y.k",
                filter(random, "")
            ),
            30 => format!(
                "{} FROM {a} x WHERE id > (SELECT count(*) FROM {b} WHERE {})",
                some(random, "x"),
                filter(random, "")
            ),
            31 => format!(
                "SELECT (SELECT max(y.id) FROM {b} y WHERE y.k = x.k) AS id, f AS v, s AS t FROM {a} x"
            ),
            32 => format!(
                "SELECT CAST(u.el AS BIGINT) AS id, y.f AS v, u.s AS t FROM (SELECT s, unnest(tags) AS el FROM {a}) u {join} {b} y ON u.el = y.id"
            ),
            // Groups, orders and windows.
            33 => format!(
                "SELECT count(*) AS id, y.f AS v, y.s AS t FROM {a} x JOIN {b} y ON x.k = y.k GROUP BY y.f, y.s HAVING count(*) > {}",
                n % 3
            ),
            34 => {
                zeros_alike = true;
                format!("SELECT k AS id, sum(g) AS v, s AS t FROM {a} GROUP BY ROLLUP (k, s)")
            }
            35 => {
                let nulls = ["FIRST", "LAST"].choose(random).unwrap();
                format!(
                    "SELECT id, f AS v, s AS t FROM {a} ORDER BY f DESC NULLS {nulls}, id LIMIT {} OFFSET {}",
                    n + 1,
                    n % 3
                )
            }
            36 => {
                let frame = ["", " ROWS BETWEEN 2 PRECEDING AND CURRENT ROW"]
                    .choose(random)
                    .unwrap();
                format!(
                    "SELECT id, sum(g) OVER (PARTITION BY k ORDER BY id{frame}) AS v, s AS t FROM {a}"
                )
            }
            _ => format!(
                "SELECT n AS id, f AS v, t FROM (SELECT CAST(row_number() OVER (ORDER BY f, id) AS BIGINT) AS n, f, lag(s) OVER (ORDER BY s, id) AS t FROM {a}) w WHERE n % 2 = {}",
                n % 2
            ),
        };
        let evaluated = evaluated.unwrap_or_else(|| sql.clone());
        Query {
            sql,
            stored: String::new(),
            evaluated,
            zeros_alike,
            shape,
            tables,
        }
        .stored(random)
    }

    /// The query as it is stored: groups in one way by lancedb, and in another
    /// by a server.
    fn stored(mut self, random: &mut StdRng) -> Query {
        let (either, exact) = ("f = 0.0", "f IN (-0.0, 0.0)");
        let by_lancedb = self.shape < 2 || (self.shape < 4 && random.random_bool(0.5));
        match MaterializedViewDefinition::from_sql(&self.sql) {
            // To lance zero equals minus zero, and to DataFusion it does not.
            Ok(read) if by_lancedb => {
                self.stored = read.to_json().unwrap();
                self.evaluated = self.evaluated.replace(either, exact);
            }
            _ => {
                self.stored = definition_metadata_from_sql(&self.sql);
                self.evaluated = self.evaluated.replace(exact, either);
            }
        }
        self
    }

    /// `rows` as they are compared.
    pub fn compared(&self, mut rows: Vec<String>) -> Vec<String> {
        if self.zeros_alike {
            for row in &mut rows {
                *row = row.replace("-0.0", "0.0");
            }
            rows.sort();
        }
        rows
    }
}

/// `sql` without the brackets that the first `opened` opens.
fn without_brackets(sql: &str, opened: &str) -> String {
    let Some((before, after)) = sql.split_once(opened) else {
        return sql.to_string();
    };
    let (within, after) = after.split_once(')').unwrap();
    format!("{before}{}{within}{after}", opened.trim_end_matches('('))
}

fn branch(random: &mut StdRng, table: &str) -> String {
    format!(
        "SELECT id, {} AS v, s AS t FROM {table} WHERE {}",
        value(random, ""),
        filter(random, "")
    )
}

/// A float of a row whose columns are called `of` and their names.
fn value(random: &mut StdRng, of: &str) -> String {
    let n = random.random_range(0..4);
    match random.random_range(0..9) {
        0..=1 => format!("{of}f"),
        2 => format!("{of}g"),
        // As good as the same but for brackets.
        3 => format!("{of}g - ({of}f - {n})"),
        4 => format!("{of}g - {of}f - {n}"),
        5 => format!("-{of}f"),
        6 => format!("CASE WHEN NOT ({of}k > 1 AND {of}k < 4) THEN {of}f ELSE {of}g END"),
        7 => format!("CASE WHEN NOT {of}k > 1 AND {of}k < 4 THEN {of}f ELSE {of}g END"),
        _ => format!("coalesce({of}f, {of}g, -0.0)"),
    }
}

/// The same for a query that lancedb reads: lance has no `CASE`.
fn row_value(random: &mut StdRng) -> String {
    loop {
        let value = value(random, "");
        if !value.starts_with("CASE") {
            return value;
        }
    }
}

fn filter(random: &mut StdRng, of: &str) -> String {
    let n = random.random_range(0..6);
    match random.random_range(0..16) {
        0 => format!("{of}k > {n}"),
        1 => format!("NOT ({of}k > {n} AND {of}k < 4)"),
        2 => format!("NOT {of}k > {n} AND {of}k < 4"),
        3 => format!("{of}f > {n}"),
        4 => format!("{of}f = {of}f"),
        5 => format!("{of}f = 0.0"),
        6 => format!("{of}f <> {n}.25"),
        7 => format!("{of}g BETWEEN -1 AND {n}"),
        8 => format!("isnan({of}f) OR {of}k = {n}"),
        9 => format!("{of}f IS NULL OR {of}s LIKE '%{n}%'"),
        10 => format!("{of}k IN ({n}, 1, NULL)"),
        11 => format!("{of}k NOT IN ({n}, 1)"),
        12 => format!("{of}s <> 's{n}'"),
        13 => format!("{of}f < {of}g"),
        _ => format!("{of}id >= {n}"),
    }
}
