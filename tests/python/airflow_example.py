"""examples/airflow against a whole operator: what its tasks call, and, where RELANCE_TEST_AIRFLOW is the
Python of an Airflow 3, the DAG itself by `airflow dags test`.

RELANCE_TEST_URL is the REST API of an operator with a view `v` that can be refreshed. The end-to-end tests
run this file, which pytest does not collect by itself."""

import json
import os
import pathlib
import subprocess
import sys
import time
import uuid

import pytest
from conftest import REPO, needed

EXAMPLE = REPO / "examples" / "airflow"
sys.path.insert(0, str(EXAMPLE))

import relance  # noqa: E402


@pytest.fixture(scope="module")
def url():
    return needed("RELANCE_TEST_URL", "it is the URL of an operator's REST API")


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


def dag_run(url, home, **params):
    """`airflow dags test` of the example as it stands, with a connection to `url`."""
    python = pathlib.Path(os.environ["RELANCE_TEST_AIRFLOW"])
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLE),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "false",
        "AIRFLOW_CONN_RELANCE": json.dumps({"conn_type": "http", "host": url, "password": "token"}),
    }
    airflow = [str(python), "-m", "airflow"]
    subprocess.run([*airflow, "db", "migrate"], env=environment, check=True, capture_output=True)
    command = [*airflow, "dags", "test", "refresh_orders_by_day", "--conf", json.dumps(params)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif("RELANCE_TEST_AIRFLOW" not in os.environ, reason="make example-airflow runs it")
def test_the_dag_runs(url, tmp_path):
    done = dag_run(url, tmp_path, view="v", full=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "state=success" in said, said
    failed = dag_run(url, tmp_path, view="nothing", full=False)
    said = failed.stdout + failed.stderr
    assert "state=failed" in said and "404" in said, said
