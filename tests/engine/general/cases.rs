//! The queries that are tried.

/// A query, and which change leaves some of its units as they are.
pub struct Case {
    pub name: &'static str,
    pub sql: &'static str,
    /// Whether rows appended to `orders` cost just those.
    pub by_orders: bool,
}

const fn whole(name: &'static str, sql: &'static str) -> Case {
    Case {
        name,
        sql,
        by_orders: false,
    }
}

const fn by_orders(name: &'static str, sql: &'static str) -> Case {
    Case {
        name,
        sql,
        by_orders: true,
    }
}

/// The queries.
pub const CASES: &[Case] = &[
    by_orders(
        "join",
        "SELECT o.id, o.amount, c.name FROM orders o JOIN customers c ON o.customer = c.id \
         WHERE o.amount > 10",
    ),
    by_orders(
        "join the other way round",
        "SELECT c.name, o.id FROM customers c JOIN orders o ON o.customer = c.id AND c.region <> 'r1'",
    ),
    by_orders(
        "left join",
        "SELECT o.id, c.name FROM orders o LEFT JOIN customers c ON o.customer = c.id",
    ),
    by_orders(
        "right join",
        "SELECT o.id, c.name FROM customers c RIGHT JOIN orders o ON o.customer = c.id",
    ),
    whole(
        "full join",
        "SELECT o.id, c.name FROM orders o FULL JOIN customers c ON o.customer = c.id",
    ),
    by_orders(
        "three tables",
        "SELECT o.id, c.name, r.title FROM orders o JOIN customers c ON o.customer = c.id \
         JOIN regions r ON c.region = r.code",
    ),
    by_orders(
        "join with groups of the other side",
        "SELECT o.id, n.customers FROM orders o JOIN customers c ON o.customer = c.id \
         JOIN (SELECT region, count(*) AS customers FROM customers GROUP BY region) n \
         ON n.region = c.region",
    ),
    whole(
        "join with a sum of floats",
        "SELECT o.id FROM orders o JOIN (SELECT region, sum(score) AS s FROM customers \
         GROUP BY region) c ON o.amount > c.s",
    ),
    whole(
        "join with the first rows",
        "SELECT o.id, c.id AS c FROM orders o JOIN (SELECT id FROM customers ORDER BY id LIMIT 3) c \
         ON o.customer = c.id",
    ),
    by_orders(
        "in",
        "SELECT id FROM orders WHERE customer IN (SELECT id FROM customers WHERE score > 3)",
    ),
    by_orders(
        "not exists",
        "SELECT id FROM orders o WHERE NOT EXISTS (SELECT 1 FROM customers c WHERE c.id = o.customer)",
    ),
    by_orders(
        "not in",
        "SELECT id FROM orders WHERE customer NOT IN (SELECT id FROM customers WHERE id > 9)",
    ),
    whole(
        "self join",
        "SELECT a.id AS a, b.id AS b FROM orders a JOIN orders b ON a.id = b.id + 1",
    ),
    by_orders(
        "union all",
        "SELECT id, amount FROM orders WHERE amount > 50 UNION ALL SELECT id, score FROM customers",
    ),
    by_orders(
        "projection of a union",
        "SELECT v * 2 AS twice FROM (SELECT id AS v FROM orders UNION ALL SELECT id AS w FROM customers \
         UNION ALL SELECT customer FROM orders) u WHERE v % 3 = 0",
    ),
    by_orders(
        "common table expressions",
        "WITH big AS (SELECT id, customer FROM orders WHERE amount > 40), \
         named AS (SELECT big.id, c.name FROM big JOIN customers c ON c.id = big.customer) \
         SELECT id, name FROM named",
    ),
    by_orders(
        "union all with groups",
        "SELECT id, amount FROM orders UNION ALL SELECT region_n, s FROM \
         (SELECT count(*) AS region_n, max(score) AS s FROM customers GROUP BY region) g",
    ),
    by_orders(
        "names that need quotes",
        "SELECT o.\"id\" AS \"The id\", `amount` FROM \"orders\" o",
    ),
    whole(
        "union",
        "SELECT customer AS c FROM orders UNION SELECT id FROM customers",
    ),
    whole("distinct", "SELECT DISTINCT customer FROM orders"),
    whole(
        "except",
        "SELECT id FROM customers EXCEPT SELECT customer FROM orders",
    ),
    whole(
        "intersect",
        "SELECT id FROM customers INTERSECT SELECT customer FROM orders",
    ),
    whole(
        "window",
        "SELECT id, row_number() OVER (PARTITION BY customer ORDER BY amount, id) AS n FROM orders",
    ),
    whole(
        "first rows by an order",
        "SELECT id, amount FROM orders ORDER BY amount DESC, id LIMIT 7 OFFSET 2",
    ),
    whole(
        "groups of a join",
        "SELECT c.region, count(*) AS n, max(o.amount) AS most FROM orders o \
         JOIN customers c ON o.customer = c.id GROUP BY c.region HAVING count(*) > 1",
    ),
    whole("count", "SELECT count(*) AS n FROM orders, regions"),
    whole(
        "scalar subquery",
        "SELECT id FROM orders WHERE amount > (SELECT avg(score) FROM customers)",
    ),
    whole(
        "recursion",
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 5) \
         SELECT n.i, count(*) AS c FROM n JOIN orders o ON o.id % 5 + 1 = n.i GROUP BY n.i",
    ),
    by_orders(
        "expressions",
        "SELECT CASE WHEN o.amount IS NULL THEN 'none' ELSE upper(c.name) END AS label, \
         coalesce(o.amount, 0) AS a FROM orders o CROSS JOIN regions r JOIN customers c \
         ON c.id = o.customer AND c.region = r.code",
    ),
];
