//! Random views over a random schema. The same text defines the view for
//! lancedb and, with the row ids of the older form, for the evaluation from
//! scratch.

use arrow_schema::{DataType, Field, Schema};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::data::{is_number, is_text, new_name};
use crate::support::{Db, Form};

/// A view and how it is evaluated from scratch.
#[derive(Clone, Debug)]
pub struct View {
    /// Its table.
    pub name: String,
    /// The same view, refreshed by lancedb alone, where lancedb can.
    pub twin: Option<String>,
    pub form: Form,
    pub limit: Option<usize>,
    items: Items,
    from: From,
    rest: String,
    /// The types that the query gave when the view was created.
    pub types: Vec<DataType>,
}

#[derive(Clone, Debug)]
enum Items {
    /// Expressions and their names.
    Some(Vec<(String, String)>),
    /// The columns that the source had when the view was created.
    Star(Vec<(String, String)>),
}

#[derive(Clone, Debug, PartialEq)]
enum From {
    Table,
    Unnest(String),
    Groups,
    /// A whole query, beyond what lancedb reads.
    Any(String),
}

/// `name` in SQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl View {
    /// A random view over a source of `schema`.
    pub fn new(random: &mut StdRng, schema: &Schema, key: &str, form: Form, n: usize) -> View {
        if random.random_bool(0.2) {
            return View::general(random, schema, key, n);
        }
        let lists: Vec<&Field> = schema
            .fields()
            .iter()
            .map(AsRef::as_ref)
            .filter(|f| matches!(f.data_type(), DataType::List(_)))
            .collect();
        let kind = random.random_range(0..10);
        let mut items = Vec::new();
        let mut taken = vec!["el".to_string()];
        let mut item = |random: &mut StdRng, expression: String| {
            let name = new_name(random, &taken);
            taken.push(name.clone());
            items.push((expression, name));
        };
        let mut from = From::Table;
        let mut rest = String::new();
        let mut limit = None;
        let mut star = false;
        match kind {
            0..=1 if !lists.is_empty() => {
                let list = lists.choose(random).unwrap();
                let DataType::List(element) = list.data_type() else {
                    unreachable!("only lists were kept")
                };
                let element = Field::new("el", element.data_type().clone(), true);
                from = From::Unnest(list.name().clone());
                let expression = expression(random, &element);
                item(random, expression);
                item(random, quoted(key));
                let other = any(random, schema);
                if other.name() != list.name() {
                    let expression = expression_of(random, other);
                    item(random, expression);
                }
                if random.random_bool(0.5) {
                    rest = format!(" WHERE {}", predicate(random, &element));
                }
            }
            2..=3 => {
                from = From::Groups;
                let keys = random.random_range(1..3);
                let mut groups: Vec<String> = Vec::new();
                for _ in 0..keys {
                    let field = groupable(random, schema);
                    let group = match field.data_type() {
                        DataType::Int64 => format!("{} % 7", quoted(field.name())),
                        _ => quoted(field.name()),
                    };
                    if !groups.contains(&group) {
                        groups.push(group);
                    }
                }
                for group in &groups {
                    item(random, group.clone());
                }
                for _ in 0..random.random_range(1..4) {
                    let field = any(random, schema);
                    let q = quoted(field.name());
                    let aggregate = match random.random_range(0..7) {
                        0 => "count(*)".to_string(),
                        1 if is_number(field.data_type()) => format!("sum({q})"),
                        2 if is_number(field.data_type()) => format!("avg({q})"),
                        3 if ordered(field.data_type()) => format!("min({q})"),
                        4 if ordered(field.data_type()) => format!("max({q})"),
                        5 if ordered(field.data_type()) => format!("count(DISTINCT {q})"),
                        _ => format!("count({q})"),
                    };
                    item(random, aggregate);
                }
                if random.random_bool(0.5) {
                    rest = filter(random, schema);
                }
                rest = format!("{rest} GROUP BY {}", groups.join(", "));
            }
            4 => {
                star = true;
                if random.random_bool(0.5) {
                    rest = filter(random, schema);
                }
            }
            _ => {
                for _ in 0..random.random_range(1..5) {
                    let field = any(random, schema);
                    let expression = expression_of(random, field);
                    item(random, expression);
                }
                if random.random_bool(0.6) {
                    rest = filter(random, schema);
                }
                if kind == 5 {
                    limit = Some(random.random_range(0..60));
                }
            }
        }
        View {
            name: format!("v{n}"),
            twin: Some(format!("twin{n}")),
            form,
            limit,
            items: if star {
                let all = schema.fields().iter();
                Items::Star(all.map(|f| (quoted(f.name()), f.name().clone())).collect())
            } else {
                Items::Some(items)
            },
            from,
            rest,
            types: Vec::new(),
        }
    }

    /// A random view that is more than lancedb reads.
    fn general(random: &mut StdRng, schema: &Schema, key: &str, n: usize) -> View {
        let key = quoted(key);
        let one = any(random, schema);
        let other = groupable(random, schema);
        let (one_q, other_q) = (quoted(one.name()), quoted(other.name()));
        let sql = match random.random_range(0..7) {
            0 => format!(
                "SELECT DISTINCT {other_q} AS d FROM src{}",
                filter(random, schema)
            ),
            1 => format!(
                "SELECT {key} AS k, {one_q} AS o FROM src{} UNION ALL SELECT {key} AS a, {one_q} AS b FROM src{}",
                filter(random, schema),
                filter(random, schema)
            ),
            2 => format!(
                "SELECT l.{key} AS k, r.{one_q} AS o FROM src l JOIN src r ON l.{key} = r.{key} + 1"
            ),
            3 => format!("SELECT {key} AS k, row_number() OVER (ORDER BY {key}) AS n FROM src"),
            4 => format!(
                "SELECT {key} AS k, {one_q} AS o FROM src ORDER BY {key} DESC LIMIT {}",
                random.random_range(1..40)
            ),
            5 => format!("SELECT {key} AS k FROM src WHERE {key} > (SELECT avg({key}) FROM src)"),
            _ => format!(
                "WITH g AS (SELECT {other_q} AS d, count(*) AS n FROM src GROUP BY {other_q}) \
                 SELECT s.{key} AS k, g.n FROM src s JOIN g ON s.{other_q} = g.d"
            ),
        };
        View {
            name: format!("v{n}"),
            twin: None,
            form: Form::Plain,
            limit: None,
            items: Items::Some(Vec::new()),
            from: From::Any(sql),
            rest: String::new(),
            types: Vec::new(),
        }
    }

    /// The query that defines the view.
    pub fn sql(&self) -> String {
        if let From::Any(sql) = &self.from {
            return sql.clone();
        }
        let items = match &self.items {
            Items::Star(_) => "*".to_string(),
            Items::Some(items) => list(items),
        };
        let from = match &self.from {
            From::Unnest(column) => format!("src, UNNEST({}) AS el", quoted(column)),
            _ => "src".to_string(),
        };
        let limit = self
            .limit
            .map(|n| format!(" LIMIT {n}"))
            .unwrap_or_default();
        format!("SELECT {items} FROM {from}{}{limit}", self.rest)
    }

    /// The query for the evaluation from scratch.
    fn oracle(&self, form: Form) -> String {
        if let From::Any(sql) = &self.from {
            return sql.clone();
        }
        let (Items::Star(items) | Items::Some(items)) = &self.items;
        let mut items = list(items);
        if form == Form::Provenance {
            items.push_str(match self.from {
                From::Groups => ", min(_rowid) AS __source_row_id",
                _ => ", _rowid AS __source_row_id",
            });
        }
        let from = match &self.from {
            From::Unnest(column) => {
                format!("(SELECT *, unnest({}) AS el FROM src)", quoted(column))
            }
            _ => "src".to_string(),
        };
        format!("SELECT {items} FROM {from}{}", self.rest)
    }

    /// What the view's columns and rows should be, or why nothing can be said.
    pub async fn evaluated(
        &self,
        db: &Db,
        form: Form,
        version: u64,
    ) -> Result<(Vec<DataType>, Vec<String>), String> {
        let evaluated = async |sql: String| {
            let found = db.evaluated_sql(&sql, self.limit, version).await;
            found.map_err(|e| e.to_string())
        };
        let sql = self.oracle(form);
        match evaluated(sql.clone()).await {
            Err(error) if self.twin.is_some() => {
                let source = db.open("src").await.checkout_version(version).await;
                let schema = Schema::from(source.unwrap().schema());
                let scanned = self.scanned(&schema).oracle(form);
                match scanned == sql {
                    true => Err(error),
                    false => evaluated(scanned).await,
                }
            }
            found => found,
        }
    }

    /// The view as a scan of lance reads a source of `schema`: where no column is
    /// called just as the view says, it takes one that is but for the case of its
    /// letters. DataFusion does not.
    fn scanned(&self, schema: &Schema) -> View {
        let mut view = self.clone();
        let mut rename = |from: &str, to: &str| {
            let renamed = |text: &str| text.replace(&quoted(from), &quoted(to));
            let (Items::Star(items) | Items::Some(items)) = &mut view.items;
            for (expression, _) in items {
                *expression = renamed(expression);
            }
            if let From::Unnest(column) = &mut view.from
                && column == from
            {
                *column = to.to_string();
            }
            view.rest = renamed(&view.rest);
        };
        for field in schema.fields() {
            let name = field.name();
            for other in [name.to_lowercase(), name.to_uppercase()] {
                if schema.field_with_name(&other).is_err() {
                    rename(&other, name);
                }
            }
        }
        view
    }
}

fn list(items: &[(String, String)]) -> String {
    let items: Vec<String> = items
        .iter()
        .map(|(expression, name)| format!("{expression} AS {}", quoted(name)))
        .collect();
    items.join(", ")
}

fn any<'a>(random: &mut StdRng, schema: &'a Schema) -> &'a Field {
    schema.field(random.random_range(0..schema.fields().len()))
}

fn ordered(of: &DataType) -> bool {
    is_number(of) || is_text(of) || *of == DataType::Date32
}

fn groupable<'a>(random: &mut StdRng, schema: &'a Schema) -> &'a Field {
    loop {
        let field = any(random, schema);
        let of = field.data_type();
        if ordered(of) || matches!(of, DataType::Boolean | DataType::Dictionary(_, _)) {
            return field;
        }
    }
}

fn filter(random: &mut StdRng, schema: &Schema) -> String {
    let field = any(random, schema);
    let mut text = predicate(random, field);
    if random.random_bool(0.3) {
        let field = any(random, schema);
        let word = if random.random_bool(0.5) { "AND" } else { "OR" };
        text = format!("{text} {word} {}", predicate(random, field));
    }
    format!(" WHERE {text}")
}

fn predicate(random: &mut StdRng, field: &Field) -> String {
    let q = quoted(field.name());
    let n = random.random_range(-20..100);
    match (field.data_type(), random.random_range(0..4)) {
        (DataType::Int64 | DataType::Int32, 0) => format!("{q} > {n}"),
        (DataType::Int64 | DataType::Int32, 1) => format!("{q} % 3 = 1"),
        (DataType::Int64 | DataType::Int32, 2) => format!("{q} BETWEEN {n} AND {}", n + 40),
        (DataType::Float64, 0 | 1) => format!("{q} <= {n}.5"),
        (DataType::Utf8, 0) => format!("{q} LIKE '%1%'"),
        (of, 1) if is_text(of) => format!("{q} <> 'row 4'"),
        (DataType::Boolean, 0..=2) => q,
        (DataType::Dictionary(_, _), 0 | 1) => format!("{q} = 'red'"),
        (_, 3) => format!("{q} IS NULL"),
        _ => format!("{q} IS NOT NULL"),
    }
}

fn expression_of(random: &mut StdRng, field: &Field) -> String {
    expression(random, field)
}

/// An expression that reads `field`.
fn expression(random: &mut StdRng, field: &Field) -> String {
    let q = quoted(field.name());
    match (field.data_type(), random.random_range(0..8)) {
        (of, 0) if is_number(of) => format!("{q} * 2"),
        (of, 1) if is_number(of) => format!("coalesce({q}, 0) + 7"),
        (DataType::Int64, 2) => format!("{q} % 5"),
        (of, 3) if is_number(of) => format!("{q} > 20"),
        (DataType::Int64, 4) => format!("{q} / ({q} - 7)"),
        (DataType::Utf8, 0) => format!("upper({q})"),
        (DataType::Utf8, 1) => format!("{q} || '!'"),
        (DataType::Utf8, 2) => format!("lower(concat({q}, 'Ü'))"),
        (DataType::Utf8, 3) => format!("length({q})"),
        (DataType::Boolean, 0) => format!("NOT {q}"),
        (DataType::Struct(fields), 0..=3) => format!("{q}.{}", quoted(fields[0].name())),
        (_, 6) => format!("{q} IS NULL"),
        _ => q,
    }
}
