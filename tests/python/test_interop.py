"""Views of Python lancedb 0.40, refreshed by relance, read back, and refreshed again by lancedb.

RELANCE_TEST_BINARY names the relance binary.
"""

import json
import os
import subprocess

import lancedb
import pyarrow as pa
import pytest

RELANCE = os.environ["RELANCE_TEST_BINARY"]


def relance(folder, view, *options):
    done = subprocess.run(
        [RELANCE, "refresh", "--catalog", f"dir://{folder}", view, "--json", *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def db(tmp_path):
    db = lancedb.connect(
        str(tmp_path), storage_options={"new_table_enable_stable_row_ids": "true"}
    )
    db.folder = str(tmp_path)
    db.create_table("src", rows(0, 50))
    return db


def rows(start, end):
    ids = list(range(start, end))
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "x": pa.array([i * 7 % 31 for i in ids], pa.int64()),
            "name": pa.array([f"row {i}" for i in ids]),
        }
    )


VIEWS = {
    "filtered": dict(select=["id", ("y", "x * 2")], where="x > 10"),
    "everything": dict(),
    "limited": dict(select=["id"], limit=10),
}


def ids(view):
    return sorted(view.table.to_arrow()["id"].to_pylist())


def expected(db, name):
    source = db.open_table("src").to_arrow().to_pylist()
    if name == "filtered":
        source = [row for row in source if row["x"] > 10]
    found = sorted(row["id"] for row in source)
    return found


@pytest.mark.parametrize("with_no_data", [True, False])
@pytest.mark.parametrize("name", sorted(VIEWS))
def test_lancedb_goes_on_where_relance_left(db, name, with_no_data):
    db.create_materialized_view(name, "src", with_no_data=with_no_data, **VIEWS[name])
    first = relance(db.folder, name)
    view = db.open_materialized_view(name)
    if name == "limited":
        assert len(ids(view)) == 10
    else:
        assert ids(view) == expected(db, name)

    # lancedb itself finds that nothing is left to do.
    again = view.refresh()
    assert str(again.mode).lower().replace("_", "") == "noop", again
    assert again.source_version == first["sourceVersion"]

    # It goes on incrementally from relance's refresh, and relance from its.
    source = db.open_table("src")
    source.add(rows(50, 60))
    source.delete("id = 3")
    source.update(where="id = 9", values_sql={"x": "x + 100"})
    third = view.refresh()
    if name != "limited":
        assert third.mode == "incremental", third
        assert ids(view) == expected(db, name)
    source.add(rows(60, 70))
    source.delete("id = 17")
    fourth = relance(db.folder, name)
    assert fourth["mode"] in ("Incremental", "Rebuild")
    view = db.open_materialized_view(name)
    if name != "limited":
        assert ids(view) == expected(db, name)
        check_row_ids(db, view)
    assert relance(db.folder, name)["mode"] == "NoOp"
    assert str(view.refresh().mode).lower().replace("_", "") == "noop"


def check_row_ids(db, view):
    """The provenance column names the source's rows as lancedb itself would."""
    stored = {row["id"]: row["__source_row_id"] for row in view.table.to_arrow().to_pylist()}
    source = db.open_table("src").to_lance().to_table(columns=["id"], with_row_id=True).to_pylist()
    actual = {row["id"]: row["_rowid"] for row in source}
    assert stored == {key: actual[key] for key in stored}


def test_a_view_is_listed_with_how_stale_it_is(db):
    db.create_materialized_view("filtered", "src", **VIEWS["filtered"])

    def states():
        done = subprocess.run(
            [RELANCE, "views", "--catalog", f"dir://{db.folder}", "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        return {row["view"]: row["state"] for row in map(json.loads, done.stdout.splitlines())}

    assert states() == {"filtered": "Stale"}
    relance(db.folder, "filtered")
    assert states() == {"filtered": "Current"}
    db.open_table("src").add(rows(50, 60))
    assert states() == {"filtered": "Stale"}


def test_exit_codes_tell_what_happened(db):
    def code(*arguments):
        return subprocess.run([RELANCE, "refresh", *arguments], capture_output=True).returncode

    assert code("--catalog", f"dir://{db.folder}", "nothing") == 65
    assert code("--catalog", f"dir://{db.folder}", "src") == 65
    assert code("--catalog", f"dir://{db.folder}") == 2
