"""The stock Python clients call the REST API. No controller runs here: what a
controller would write to a refresh's status, these tests write themselves.
operator_clients.py has the whole way."""

import json
import threading
import time

import lancedb
import pytest
from lance_namespace_urllib3_client import (
    ApiClient,
    Configuration,
    Identity,
    MaterializedViewApi,
    RefreshMaterializedViewRequest,
)
from lance_namespace_urllib3_client.exceptions import ApiException, BadRequestException, NotFoundException


@pytest.fixture
def api(recorder):
    return MaterializedViewApi(ApiClient(Configuration(host=recorder.url)))


def connect(recorder):
    return lancedb.connect("db://demo", api_key="hush", host_override=recorder.url)


def test_the_namespace_client_sends_every_field(api, kubernetes, recorder):
    request = RefreshMaterializedViewRequest(
        identity=Identity(api_key="hush-key", auth_token="hush-token"),
        context={"header.x-trace": "1"},
        id=["v"],
        src_version=1,
        max_rows_per_fragment=1000,
        concurrency=2,
        intra_applier_concurrency=3,
        source_task_size=64,
        cluster="big",
    )
    job_id = api.refresh_materialized_view("v", refresh_materialized_view_request=request).job_id
    stored = kubernetes.refresh(job_id)
    assert stored["spec"] == {
        "view": ["v"], "srcVersion": 1, "maxRowsPerFragment": 1000, "concurrency": 2,
        "intraApplierConcurrency": 3, "sourceTaskSize": 64, "cluster": "big", "full": False, "optimizeIndices": False,
        "suspend": False, "cancel": False, "priority": 0, "ttlSecondsAfterFinished": 604800,
    }  # fmt: skip
    assert "hush" not in json.dumps(stored)


def test_the_namespace_client_sends_nothing_or_explicit_nulls(api, kubernetes, recorder):
    plain = kubernetes.refresh(api.refresh_materialized_view("v").job_id)["spec"]
    nulls = RefreshMaterializedViewRequest(
        src_version=None, max_rows_per_fragment=None, concurrency=None, intra_applier_concurrency=None,
        source_task_size=None, cluster=None, output_limit=None, manifest=None,
    )  # fmt: skip
    job_id = api.refresh_materialized_view("v", refresh_materialized_view_request=nulls).job_id
    assert kubernetes.refresh(job_id)["spec"] == plain
    sent = recorder.requests[-1][2]
    assert sent and all(value is None for value in sent.values()), "the client sends nulls"


def test_the_namespace_client_reads_the_errors(api):
    with pytest.raises(NotFoundException) as missing:
        api.refresh_materialized_view("ns.nope", delimiter=".")
    error = json.loads(missing.value.body)
    assert error["code"] == 4 and "ns$nope" in error["error"]
    for field, value in [("concurrency", 0), ("output_limit", 5), ("cluster", "small"), ("manifest", "x")]:
        request = RefreshMaterializedViewRequest(**{field: value})
        with pytest.raises(BadRequestException) as refused:
            api.refresh_materialized_view("v", refresh_materialized_view_request=request)
        error = json.loads(refused.value.body)
        assert error["code"] == 13 and field in error["error"].lower(), error


def test_the_namespace_client_may_retry_under_one_key(api):
    headers = {"Idempotency-Key": "nightly"}
    first = api.refresh_materialized_view("v", _headers=headers).job_id
    assert api.refresh_materialized_view("v", _headers=headers).job_id == first
    other = RefreshMaterializedViewRequest(concurrency=2)
    with pytest.raises(ApiException) as conflict:
        api.refresh_materialized_view("v", refresh_materialized_view_request=other, _headers=headers)
    assert conflict.value.status == 409


def test_lancedb_opens_a_view_and_starts_a_refresh(kubernetes, recorder):
    view = connect(recorder).open_materialized_view("v")
    assert "id > 1" in view.definition.query
    opened = list(recorder.requests)
    assert [(method, path) for method, path, _ in opened[:2]] == [
        ("POST", "/v1/table/v/describe/"),
        ("POST", "/v1/materialized_view/v/describe"),
    ]
    job = view.refresh_async()
    assert recorder.requests[-1] == ("POST", "/v1/materialized_view/v/refresh", {"full": False})
    assert kubernetes.refresh(job.id)["spec"]["full"] is False
    assert job.status().lower() in ("in_progress", "running")
    assert recorder.requests[-1] == ("POST", "/v1/jobs/describe", {"job_id": job.id})


def end_when_it_comes(kubernetes, recorder, status):
    """Ends the refresh that the client is about to start, from another thread."""

    def watch():
        for _ in range(200):
            for _, path, body in list(recorder.requests):
                if path == "/v1/jobs/describe":
                    kubernetes.end(body["job_id"], status)
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_lancedb_waits_for_a_refresh_and_reads_its_result(kubernetes, recorder):
    view = connect(recorder).open_materialized_view("v")
    progress = {"unitsDone": 1, "unitsTotal": 1, "rowsWritten": 8, "bytesWritten": 1, "summary": "1/1"}
    done = {"phase": "Succeeded", "mode": "Rebuild", "sourceVersion": 1, "viewVersion": 3, "progress": progress}
    thread = end_when_it_comes(kubernetes, recorder, done)
    result = view.refresh(full=True)
    thread.join()
    assert ("POST", "/v1/materialized_view/v/refresh", {"full": True}) in recorder.requests
    assert (result.rows_written, result.source_version, result.version) == (8, 1, 3)
    assert str(result.mode).lower().endswith("rebuild")


def test_lancedb_reads_why_a_refresh_failed(kubernetes, recorder):
    view = connect(recorder).open_materialized_view("v")
    thread = end_when_it_comes(kubernetes, recorder, {"phase": "Failed", "message": "the sentence that says why"})
    with pytest.raises(Exception, match="the sentence that says why"):
        view.refresh()
    thread.join()


def test_lancedb_hears_of_a_view_that_is_not_there(recorder):
    with pytest.raises(Exception, match="nope"):
        connect(recorder).open_materialized_view("nope")


def test_lancedb_lists_pauses_resumes_and_cancels_jobs(kubernetes, recorder):
    db = connect(recorder)
    job = db.open_materialized_view("v").refresh_async()
    listed = {info.job_id: info for info in db.list_jobs()}
    assert (listed[job.id].table, listed[job.id].state) == ("v", "running")
    assert listed[job.id].job_type == db.open_job(job.id).job_type
    assert db.resume_job(job.id) == "not_paused"
    assert [db.pause_job(job.id), db.pause_job(job.id)] == ["pausing", "already_paused"]
    assert kubernetes.refresh(job.id)["spec"]["suspend"] is True
    assert [db.resume_job(job.id), db.resume_job(job.id)] == ["resumed", "not_paused"]
    assert db.cancel_job(job.id) is True
    assert kubernetes.refresh(job.id)["spec"]["cancel"] is True
    kubernetes.end(job.id, {"phase": "Cancelled", "message": "as it was asked to"})
    assert job.status() == "cancelled"
    assert db.cancel_job(job.id) is True, "what has ended may be cancelled again"
    assert db.cancel_job("nope") is False
    with pytest.raises(Exception, match="nope"):
        db.open_job("nope")


def test_lancedb_reads_the_events_of_a_job(recorder):
    job = connect(recorder).open_materialized_view("v").refresh_async()
    events = job.events()
    assert events.column("state").to_pylist() == ["queued"]
    assert {"updated_by", "emitted_from", "emitted_by", "claim_entity", "rows_processed"} <= set(events.column_names)
    nothing = job.events(limit=500, filter="state = 'claim_complete'")
    assert (nothing.num_rows, nothing.schema) == (0, events.schema)
    with pytest.raises(Exception, match="filter is no boolean SQL expression"):
        job.events(filter="colour = 'red'")
