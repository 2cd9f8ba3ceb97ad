"""The demo's tables, made and read by the stock lancedb client, as a user would.

    tables.py CATALOG create FILE      a table with one fragment a year, and a view over it, still empty
    tables.py CATALOG append FILE
    tables.py CATALOG show
"""

import sys

import lancedb
import pyarrow.compute as pc
import pyarrow.csv

TABLE = "strikes"
VIEW = "damaging_strikes"
COLUMNS = [
    "flight_date",
    "airport",
    "species",
    ("damage", "lower(damage)"),
    ("speed_kmh", "cast(round(speed_knots * 1.852) as int)"),
    "cost_usd",
]
WHERE = "damage <> 'None'"


def create(db, file):
    if TABLE in db.list_tables().tables:
        sys.exit(f"{db.uri} already holds a table named {TABLE}: name an empty place, or remove that table first")
    strikes = pyarrow.csv.read_csv(file)
    years = pc.year(strikes["flight_date"])
    table = None
    for year in pc.unique(years).sort():
        rows = strikes.filter(pc.equal(years, year))
        if table is None:
            table = db.create_table(TABLE, rows)
        else:
            table.add(rows)
    view = db.create_materialized_view(
        VIEW, TABLE, select=COLUMNS, where=WHERE, with_no_data=True
    )
    print(f"table {TABLE}: {table.count_rows():,} rows, version {table.version}")
    print(f"view {VIEW}: {view.definition.query}")


def append(db, file):
    table = db.open_table(TABLE)
    rows = pyarrow.csv.read_csv(file)
    table.add(rows)
    print(f"table {TABLE}: +{len(rows):,} rows, version {table.version}")


def show(db):
    view = db.open_materialized_view(VIEW).table
    rows = view.to_arrow().drop_columns(["__source_row_id"])
    rows = rows.sort_by([("flight_date", "descending"), ("airport", "ascending")])
    names = rows.column_names
    lines = [names] + [
        ["" if value is None else str(value) for value in row.values()]
        for row in rows.slice(0, 8).to_pylist()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print(f"… the latest 8 of {len(rows):,} rows, version {view.version}")
    cost = pc.sum(rows["cost_usd"]).as_py()
    print(f"damage that was given a price: ${cost:,}")


def main():
    catalog, command, *rest = sys.argv[1:]
    # A view's provenance needs row ids that stay; they cannot be added to a table later.
    db = lancedb.connect(
        catalog, storage_options={"new_table_enable_stable_row_ids": "true"}
    )
    {"create": create, "append": append, "show": show}[command](db, *rest)


if __name__ == "__main__":
    main()
