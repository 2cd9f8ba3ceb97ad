"""examples/airflow against a whole operator: what its tasks call.

RELANCE_TEST_URL is the REST API of an operator with a view `v` that can be refreshed. The end-to-end tests
run this file, which pytest does not collect by itself."""

import sys
import time
import types
import uuid

import pytest
from conftest import REPO

EXAMPLE = REPO / "examples" / "airflow"
sys.path.insert(0, str(EXAMPLE))

import relance  # noqa: E402


def result(api, job_id):
    """As the sensor asks, a little faster."""
    for _ in range(1800):
        if (found := api.result(job_id)) is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{job_id} does not end")


def test_a_task_that_is_tried_again_finds_its_refresh_and_hears_its_result(url):
    api, key = relance.Relance(url), f"nightly/{uuid.uuid4()}"
    job_id = api.refresh("v", key, full=True)
    assert api.refresh("v", key, full=True) == job_id
    assert result(api, job_id)["mode"] == "rebuild"
    assert result(api, api.refresh("v", f"other/{key}"))["mode"] == "no_op"


def test_a_run_that_was_cleared_asks_for_another_refresh(url):
    run = types.SimpleNamespace(dag_id="nightly", run_id=str(uuid.uuid4()))
    without, run.clear_number = relance.key_of(run), 0
    first = relance.key_of(run)
    assert first == without
    run.clear_number = 1
    api = relance.Relance(url)
    job_id = api.refresh("v", first)
    assert api.refresh("v", first) == job_id
    result(api, job_id)
    assert api.refresh("v", relance.key_of(run)) != job_id


def test_what_can_never_succeed_is_told_from_what_may_later(url):
    with pytest.raises(relance.RefreshError, match="404.*nothing"):
        relance.Relance(url).refresh("sales$nothing", "key")
    with pytest.raises(relance.RefreshError, match="404"):
        relance.Relance(url).result("nobody")
    with pytest.raises(relance.Unavailable, match="does not answer"):
        relance.Relance("http://127.0.0.1:1").result("nobody")
