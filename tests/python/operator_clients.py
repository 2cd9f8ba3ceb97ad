"""The stock Python clients and a whole operator: REST, controller, Jobs.

RELANCE_TEST_URL is the REST API of an operator whose catalog is the folder
RELANCE_TEST_TABLES as this machine sees it. The end-to-end tests run this
file, which pytest does not collect by itself."""

import uuid

import lancedb
import pytest
from conftest import needed
from lance_namespace_urllib3_client import ApiClient, Configuration, MaterializedViewApi


@pytest.fixture(scope="module")
def url():
    return needed("RELANCE_TEST_URL", "it is the URL of an operator's REST API")


@pytest.fixture(scope="module")
def local():
    folder = needed("RELANCE_TEST_TABLES", "it is the folder of that operator's catalog")
    return lancedb.connect(folder, storage_options={"new_table_enable_stable_row_ids": "true"})


@pytest.fixture
def names(local):
    """A source table and a view over it, made by lancedb here."""
    suffix = uuid.uuid4().hex[:8]
    source, view = f"src_{suffix}", f"view_{suffix}"
    local.create_table(source, [{"id": i, "name": f"n{i}"} for i in range(100)])
    local.create_materialized_view(view, source, select=["id", ("up", "upper(name)")], where="id >= 10")
    return source, view


def rows(local, view):
    return sorted(local.open_table(view).to_arrow().select(["id", "up"]).to_pylist(), key=lambda row: row["id"])


def expected(ids):
    return [{"id": i, "up": f"N{i}"} for i in ids]


def test_lancedb_refreshes_a_view_through_the_operator_and_by_itself_again(url, local, names):
    source, name = names
    view = lancedb.connect("db://demo", api_key="any", host_override=url).open_materialized_view(name)
    local.open_table(source).add([{"id": i, "name": f"n{i}"} for i in range(100, 120)])
    result = view.refresh()
    assert result.source_version == local.open_table(source).version
    assert result.version == local.open_table(name).version
    assert rows(local, name) == expected(range(10, 120))
    again = view.refresh()
    assert str(again.mode).lower().replace("_", "").endswith("noop"), again
    local.open_table(source).delete("id < 20")
    local.open_materialized_view(name).refresh()
    assert rows(local, name) == expected(range(20, 120))
    local.open_table(source).add([{"id": 200, "name": "n200"}])
    assert view.refresh().rows_written > 0
    assert rows(local, name) == expected([*range(20, 120), 200])


def test_the_namespace_clients_refresh_reaches_the_view(url, local, names):
    source, name = names
    local.open_table(source).add([{"id": 300, "name": "n300"}])
    api = MaterializedViewApi(ApiClient(Configuration(host=url)))
    job_id = api.refresh_materialized_view(name).job_id
    job = lancedb.connect("db://demo", api_key="any", host_override=url).open_job(job_id)
    job.wait()
    assert rows(local, name) == expected([*range(10, 100), 300])


def test_the_events_of_a_job_tell_how_it_went(url, local, names):
    source, name = names
    local.open_table(source).add([{"id": i, "name": f"n{i}"} for i in range(400, 410)])
    job = lancedb.connect("db://demo", api_key="any", host_override=url).open_materialized_view(name).refresh_async()
    job.wait()
    events = job.events().to_pylist()
    states = [event["state"] for event in events]
    assert states[:2] == ["queued", "launched"] and states[-2:] == ["committed", "done"], states
    claims = [event for event in events if event["state"] == "claim_complete"]
    assert len(claims) == len(states) - 4 and claims
    written = next(event for event in events if event["state"] == "committed")["rows_processed"]
    assert sum(claim["rows_processed"] for claim in claims) == written > 0
    assert {claim["emitted_by"] for claim in claims} == {"worker"}
