"""examples/airflow against a whole operator: its DAG, by `airflow dags test`.

RELANCE_TEST_URL is as in airflow_example.py, and RELANCE_TEST_AIRFLOW the Python of an Airflow 3:
`make example-airflow` brings one."""

import json
import os
import subprocess

from conftest import REPO, needed

EXAMPLE = REPO / "examples" / "airflow"


def dag_run(url, home, **params):
    """`airflow dags test` of the example as it stands, with a connection to `url`."""
    python = needed("RELANCE_TEST_AIRFLOW", "it is the Python of an Airflow 3")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLE),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "false",
        "AIRFLOW_CONN_RELANCE": json.dumps({"conn_type": "http", "host": url, "password": "token"}),
    }
    airflow = [python, "-m", "airflow"]
    subprocess.run([*airflow, "db", "migrate"], env=environment, check=True, capture_output=True)
    command = [*airflow, "dags", "test", "refresh_orders_by_day", "--conf", json.dumps(params)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_dag_runs(url, tmp_path):
    done = dag_run(url, tmp_path, view="v", full=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "state=success" in said, said
    failed = dag_run(url, tmp_path, view="nothing", full=False)
    said = failed.stdout + failed.stderr
    assert "state=failed" in said and "404" in said, said
