//! The sources, the views over them, and what computes the same without a view.
//! Every value follows from its row's number.

use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder, StringBuilder};
use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int64Array, RecordBatch,
};
use arrow_schema::{DataType, Field};

use crate::Part;
use crate::memory::Large;

/// A source and a view over it.
#[derive(Debug)]
pub struct Workload {
    /// What the tables call it.
    pub name: &'static str,
    /// Rows `from..to` of the source.
    pub rows: fn(u64, u64) -> RecordBatch,
    /// The view.
    pub sql: &'static str,
    /// The view's columns and filter as a Lance scan takes them, where it can
    /// compute the view: then that is the floor, else DataFusion over Lance.
    pub scan: Option<Scan>,
    /// The view's query for DataFusion; in [`LARGE`], one that gives as many rows.
    pub oracle: &'static str,
    /// The share of `--shape-rows` that the source has: one in so many.
    pub part_of: u64,
    /// Whether lancedb's own grammar reads the view.
    pub lancedb: bool,
}

/// What a Lance scan computes.
#[derive(Debug)]
pub struct Scan {
    /// Names and expressions.
    pub columns: &'static [(&'static str, &'static str)],
    /// The filter.
    pub filter: &'static str,
}

/// Projection and filter: five columns, three of them expressions, four rows of five.
pub const ROWS: Workload = Workload {
    name: "rows",
    rows: plain,
    sql: "SELECT id, x * 2 + 1 AS y, price * 1.1 AS gross, upper(name) AS shout, category FROM src \
          WHERE x >= 20",
    scan: Some(Scan {
        columns: &[
            ("id", "id"),
            ("y", "x * 2 + 1"),
            ("gross", "price * 1.1"),
            ("shout", "upper(name)"),
            ("category", "category"),
        ],
        filter: "x >= 20",
    }),
    oracle: "SELECT id, x * 2 + 1 AS y, price * 1.1 AS gross, upper(name) AS shout, category FROM \
             src WHERE x >= 20",
    part_of: 1,
    lancedb: true,
};

/// A vector column carried through.
const WIDE: Workload = Workload {
    name: "wide",
    rows: wide,
    sql: "SELECT id, x * 2 AS y, vector FROM src WHERE x >= 20",
    scan: Some(Scan {
        columns: &[("id", "id"), ("y", "x * 2"), ("vector", "vector")],
        filter: "x >= 20",
    }),
    oracle: "SELECT id, x * 2 AS y, vector FROM src WHERE x >= 20",
    part_of: 100,
    lancedb: true,
};

/// The other shapes.
pub const SHAPES: &[(Part, Workload)] = &[
    (Part::Wide, WIDE),
    (
        Part::Grouped,
        Workload {
            name: "grouped",
            rows: plain,
            sql: "SELECT category, x, count(*) AS n, sum(price) AS total, max(id) AS largest FROM \
                  src WHERE x >= 20 GROUP BY category, x",
            scan: None,
            oracle: "SELECT category, x, count(*) AS n, sum(price) AS total, max(id) AS largest \
                     FROM src WHERE x >= 20 GROUP BY category, x",
            part_of: 1,
            lancedb: true,
        },
    ),
    (
        Part::Unnest,
        Workload {
            name: "unnest",
            rows: tagged,
            sql: "SELECT id, t + 1 AS t1 FROM src, UNNEST(tags) AS t WHERE t > 30",
            scan: None,
            oracle: "SELECT id, t + 1 AS t1 FROM (SELECT id, unnest(tags) AS t FROM src) WHERE t > \
                     30",
            part_of: 4,
            lancedb: true,
        },
    ),
    (
        Part::Joined,
        Workload {
            name: "joined",
            rows: plain,
            sql: "SELECT s.id, s.price * r.rate AS cost, s.name FROM src AS s JOIN rates AS r ON \
                  s.category = r.category WHERE s.x >= 20",
            scan: None,
            oracle: "SELECT s.id, s.price * r.rate AS cost, s.name FROM src AS s JOIN rates AS r \
                     ON s.category = r.category WHERE s.x >= 20",
            part_of: 4,
            lancedb: false,
        },
    ),
];

/// A text carried through.
const TEXTS: Workload = Workload {
    name: "texts of 8 KiB",
    rows: texts,
    sql: "SELECT id, x * 2 AS y, text FROM src WHERE x >= 20",
    scan: Some(Scan {
        columns: &[("id", "id"), ("y", "x * 2"), ("text", "text")],
        filter: "x >= 20",
    }),
    oracle: "SELECT id, x * 2 AS y, text FROM src WHERE x >= 20",
    part_of: 40,
    lancedb: true,
};

/// Each row of the source eight times, of which one is in the view.
const DISTINCT: Workload = Workload {
    name: "DISTINCT over eight scans of texts",
    rows: texts,
    sql: "SELECT DISTINCT id, x, text FROM (\
          SELECT id, x, text FROM src UNION ALL SELECT id, x, text FROM src UNION ALL \
          SELECT id, x, text FROM src UNION ALL SELECT id, x, text FROM src UNION ALL \
          SELECT id, x, text FROM src UNION ALL SELECT id, x, text FROM src UNION ALL \
          SELECT id, x, text FROM src UNION ALL SELECT id, x, text FROM src) AS u",
    scan: None,
    oracle: "SELECT id FROM src",
    part_of: 80,
    lancedb: false,
};

/// Views for a small pod's memory. The units of the first two are as large as that; the
/// others hold rows or groups, more of them than queries there may.
pub const LARGE: &[(Large, Workload)] = &[
    (
        Large::Vectors,
        Workload {
            name: "vectors of 1,536 floats",
            part_of: 40,
            ..WIDE
        },
    ),
    (Large::Texts, TEXTS),
    (Large::Distinct, DISTINCT),
    (
        Large::Joined,
        Workload {
            name: "a join of texts with texts",
            sql: "SELECT a.id, a.text, b.text AS other FROM src AS a JOIN src AS b ON a.id = b.id",
            ..DISTINCT
        },
    ),
    (
        Large::Side,
        Workload {
            name: "a join with texts that are fewer",
            sql: "SELECT a.id, a.x, b.text FROM src AS a JOIN (SELECT id, text FROM src WHERE id < \
                  95000) AS b ON a.id = b.id",
            oracle: "SELECT id FROM src WHERE id < 95000",
            ..DISTINCT
        },
    ),
    (
        Large::First,
        Workload {
            name: "the first 125,000 texts of an order",
            sql: "SELECT id, text FROM src ORDER BY text LIMIT 125000",
            oracle: "SELECT id FROM src LIMIT 125000",
            ..DISTINCT
        },
    ),
    (
        Large::Window,
        Workload {
            name: "a window over texts",
            sql: "SELECT id, text, row_number() OVER (PARTITION BY x ORDER BY text) AS n FROM src",
            ..DISTINCT
        },
    ),
    (
        Large::Sums,
        Workload {
            name: "a window over whole groups of texts",
            sql: "SELECT id, text, sum(id) OVER (PARTITION BY x) AS s FROM src",
            ..DISTINCT
        },
    ),
    (
        Large::States,
        Workload {
            name: "GROUP BY with a text for each row",
            sql: "SELECT id, max(text) AS largest, count(*) AS n FROM src GROUP BY id",
            lancedb: true,
            ..DISTINCT
        },
    ),
    (
        Large::Names,
        Workload {
            name: "GROUP BY with 7 million groups",
            rows: plain,
            sql: "SELECT name, count(*) AS n, sum(price) AS total, max(id) AS largest FROM src \
                  GROUP BY name",
            oracle: "SELECT DISTINCT name FROM src",
            part_of: 1,
            lancedb: true,
            ..DISTINCT
        },
    ),
];

/// The second source of the join.
pub fn rates() -> RecordBatch {
    let names: StringArrayOf = (0..CATEGORIES).map(category).collect();
    let rates: Float64Array = (0..CATEGORIES)
        .map(|c| Some(1.0 + c as f64 / 10.0))
        .collect();
    batch(vec![
        ("category", Arc::new(names) as ArrayRef),
        ("rate", Arc::new(rates)),
    ])
}

type StringArrayOf = arrow_array::StringArray;

const CATEGORIES: u64 = 16;
/// The length of the vectors.
const DIMENSIONS: usize = 1536;

/// SplitMix64: as good as random, and the same each time.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn category(of: u64) -> Option<String> {
    Some(format!("category {of:02}"))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
        .expect("columns of one length")
}

fn numbers(from: u64, to: u64) -> [(&'static str, ArrayRef); 2] {
    let ids: Int64Array = (from..to).map(|id| Some(id as i64)).collect();
    let xs: Int64Array = (from..to)
        .map(|id| Some((mixed(id) % 100) as i64))
        .collect();
    [
        ("id", Arc::new(ids) as ArrayRef),
        ("x", Arc::new(xs) as ArrayRef),
    ]
}

fn plain(from: u64, to: u64) -> RecordBatch {
    const TOWNS: [&str; 8] = [
        "Bergen", "Ghent", "Kyoto", "Lima", "Oslo", "Quito", "Riga", "Turin",
    ];
    let prices: Float64Array = (from..to)
        .map(|id| Some((mixed(id ^ 0xabc) % 1_000_000) as f64 / 100.0))
        .collect();
    let mut names = StringBuilder::new();
    let mut categories = StringBuilder::new();
    for id in from..to {
        let random = mixed(id ^ 0xdef);
        names.append_value(format!(
            "customer {:06} of {}",
            random % 1_000_000,
            TOWNS[(random >> 32) as usize % TOWNS.len()]
        ));
        categories.append_option(category((random >> 40) % CATEGORIES));
    }
    let mut columns = numbers(from, to).to_vec();
    columns.push(("price", Arc::new(prices)));
    columns.push(("name", Arc::new(names.finish())));
    columns.push(("category", Arc::new(categories.finish())));
    batch(columns)
}

fn wide(from: u64, to: u64) -> RecordBatch {
    let values: Float32Array = (from * DIMENSIONS as u64..to * DIMENSIONS as u64)
        .map(|n| Some((mixed(n) >> 40) as f32 / (1 << 24) as f32))
        .collect();
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let vectors = FixedSizeListArray::new(item, DIMENSIONS as i32, Arc::new(values), None);
    let mut columns = numbers(from, to).to_vec();
    columns.push(("vector", Arc::new(vectors)));
    batch(columns)
}

/// Texts that no encoding makes much smaller.
fn texts(from: u64, to: u64) -> RecordBatch {
    let mut texts = StringBuilder::new();
    for id in from..to {
        let words = (0..512).map(|at| mixed(id * 512 + at));
        let text: String = words.map(|word| format!("{word:016x}")).collect();
        texts.append_value(text);
    }
    let mut columns = numbers(from, to).to_vec();
    columns.push(("text", Arc::new(texts.finish())));
    batch(columns)
}

fn tagged(from: u64, to: u64) -> RecordBatch {
    let mut tags = ListBuilder::new(Int32Builder::new());
    for id in from..to {
        let random = mixed(id ^ 0x123);
        for at in 0..random % 9 {
            tags.values()
                .append_value((mixed(random ^ at) % 100) as i32);
        }
        tags.append(true);
    }
    let mut columns = numbers(from, to).to_vec();
    columns.push(("tags", Arc::new(tags.finish())));
    batch(columns)
}
