"""A view that Airflow refreshes every night, for Airflow 3.

Put this file and relance.py into the dags folder, and add a connection `relance`: its host is the URL of
relance's REST API, its password a Kubernetes token (or, with {"api_key": true} in its extra, an API key).
The refresh is asked for under the run's own id, so that a task that is tried again finds the one that is
under way; a run that is cleared after it has ended asks for a new one. Waiting takes no worker's slot.
"""

import datetime

from airflow.exceptions import AirflowFailException
from airflow.sdk import BaseHook, PokeReturnValue, dag, task
from relance import RefreshError, Relance, Unavailable, key_of

VIEW = "sales$orders_by_day"


def api():
    connection = BaseHook.get_connection("relance")
    if connection.extra_dejson.get("api_key"):
        return Relance(connection.host, api_key=connection.password)
    return Relance(connection.host, token=connection.password)


@dag(
    schedule="15 3 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    max_active_runs=1,
    params={"view": VIEW, "full": False},
)
def refresh_orders_by_day():
    @task(retries=3, retry_delay=datetime.timedelta(minutes=1))
    def refresh(params=None, dag_run=None):
        try:
            return api().refresh(params["view"], key=key_of(dag_run), full=params["full"])
        except RefreshError as error:
            raise AirflowFailException(str(error)) from None

    @task.sensor(mode="reschedule", poke_interval=30, timeout=2 * 60 * 60)
    def wait(job_id):
        try:
            result = api().result(job_id)
        except RefreshError as error:
            raise AirflowFailException(str(error)) from None
        except Unavailable:
            result = None
        return PokeReturnValue(is_done=result is not None, xcom_value=result)

    wait(refresh())


refresh_orders_by_day()
