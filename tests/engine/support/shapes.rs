//! Every shape that views of one source can have.

use super::Form;

/// A kind of view: its defining query, and the same for DataFusion.
pub struct Shape {
    pub name: &'static str,
    pub sql: &'static str,
    pub oracle: fn(Form) -> String,
    pub limit: Option<usize>,
}

fn with_row_id(form: Form, columns: &str, row_id: &str, rest: &str) -> String {
    match form {
        Form::Plain => format!("SELECT {columns} {rest}"),
        Form::Provenance => format!("SELECT {columns}, {row_id} AS __source_row_id {rest}"),
    }
}

/// The shape of that name.
pub fn shape(name: &str) -> &'static Shape {
    let mut all = SHAPES.iter().chain(GENERAL);
    all.find(|s| s.name == name).unwrap()
}

const BRANCHES: &str = "SELECT id, name FROM src WHERE x > 60 \
                        UNION ALL SELECT id, upper(name) FROM src WHERE x < 40";
const WINDOW: &str = "SELECT id, sum(x) OVER (ORDER BY id) AS running FROM src WHERE id > 3";

/// Shapes that lancedb does not know.
pub const GENERAL: &[Shape] = &[
    Shape {
        name: "branches",
        sql: BRANCHES,
        oracle: |_| BRANCHES.to_string(),
        limit: None,
    },
    Shape {
        name: "window",
        sql: WINDOW,
        oracle: |_| WINDOW.to_string(),
        limit: None,
    },
];

/// Every shape that views of one source can have.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "filtered",
        sql: "SELECT id, x * 2 AS y, name FROM src WHERE x > 20",
        oracle: |form| {
            with_row_id(
                form,
                "id, x * 2 AS y, name",
                "_rowid",
                "FROM src WHERE x > 20",
            )
        },
        limit: None,
    },
    Shape {
        name: "expressions",
        sql: "SELECT id, upper(name) AS shout, coalesce(x, -1) AS x0 FROM src",
        oracle: |form| {
            with_row_id(
                form,
                "id, upper(name) AS shout, coalesce(x, -1) AS x0",
                "_rowid",
                "FROM src",
            )
        },
        limit: None,
    },
    Shape {
        name: "carried",
        sql: "SELECT tags, id, name AS title FROM src WHERE id <> 12",
        oracle: |form| {
            with_row_id(
                form,
                "tags, id, name AS title",
                "_rowid",
                "FROM src WHERE id <> 12",
            )
        },
        limit: None,
    },
    Shape {
        name: "unnested",
        sql: "SELECT id, t + 1 AS t1 FROM src, UNNEST(tags) AS t WHERE t > 30 OR t IS NULL",
        oracle: |form| {
            with_row_id(
                form,
                "id, t + 1 AS t1",
                "_rowid",
                "FROM (SELECT id, _rowid, unnest(tags) AS t FROM src) WHERE t > 30 OR t IS NULL",
            )
        },
        limit: None,
    },
    Shape {
        name: "grouped",
        sql: "SELECT x, count(*) AS n, max(id) AS largest FROM src WHERE id > 2 GROUP BY x",
        oracle: |form| {
            with_row_id(
                form,
                "x, count(*) AS n, max(id) AS largest",
                "min(_rowid)",
                "FROM src WHERE id > 2 GROUP BY x",
            )
        },
        limit: None,
    },
    Shape {
        name: "limited",
        sql: "SELECT id, name FROM src WHERE x > 10 LIMIT 25",
        oracle: |form| with_row_id(form, "id, name", "_rowid", "FROM src WHERE x > 10"),
        limit: Some(25),
    },
];
