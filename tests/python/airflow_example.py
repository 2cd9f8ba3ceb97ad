"""examples/airflow against a whole operator: what its tasks call.

RELANCE_TEST_URL is the REST API of an operator with a view `v` that can be refreshed. The end-to-end tests
run this file, which pytest does not collect by itself."""

import sys
import time
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


def test_what_can_never_succeed_is_told_from_what_may_later(url):
    with pytest.raises(relance.RefreshError, match="404.*nothing"):
        relance.Relance(url).refresh("sales$nothing", "key")
    with pytest.raises(relance.RefreshError, match="404"):
        relance.Relance(url).result("nobody")
    with pytest.raises(relance.Unavailable, match="does not answer"):
        relance.Relance("http://127.0.0.1:1").result("nobody")
