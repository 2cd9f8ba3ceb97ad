"""Refreshes by relance's REST API, with Python's standard library alone."""

import json
import urllib.error
import urllib.request


class RefreshError(Exception):
    """A refresh did not succeed, or its request will never be taken as it is. It says why."""


class Unavailable(Exception):
    """The API did not answer, or is too busy: ask again."""


def key_of(dag_run):
    """What the refresh of an Airflow run is asked for under: the same as long as its tasks are tried again, and
    another one once the run has ended and was cleared, where Airflow counts that."""
    cleared = getattr(dag_run, "clear_number", None) or 0
    return f"{dag_run.dag_id}/{dag_run.run_id}/{cleared}"


class Relance:
    """A REST API, and who calls it: `token` is a Kubernetes token, `api_key` a key that relance knows."""

    def __init__(self, url, token=None, api_key=None):
        self.url = url.rstrip("/")
        self.headers = {"content-type": "application/json"}
        if token:
            self.headers["authorization"] = f"Bearer {token}"
        if api_key:
            self.headers["x-api-key"] = api_key

    def refresh(self, view, key, **fields):
        """Asks for a refresh of `view` (its namespaces and name, joined by `$`); its job_id. Asked again
        under the same `key`, it answers with the refresh that there is. `fields` are those of the API:
        `src_version`, `full`, `concurrency`, `cluster` and so on."""
        path = f"/v1/materialized_view/{urllib.request.quote(view, safe='')}/refresh"
        return self._post(path, fields, {"idempotency-key": key})["job_id"]

    def result(self, job_id):
        """What a refresh brought about, or None while it goes on. Raises if it did not succeed."""
        job = self._post("/v1/jobs/describe", {"job_id": job_id})
        if job["job_state"] == "IN_PROGRESS":
            return None
        if job["job_state"] != "DONE":
            raise RefreshError(f"refresh {job_id} {job['job_state']}: {job['failure']['message']}")
        return job["result"]

    def _post(self, path, body, headers=None):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {**self.headers, **(headers or {})}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            try:
                said = json.load(error)["error"]
            except (ValueError, KeyError):
                said = error.reason
            again = error.code == 429 or error.code >= 500
            raise (Unavailable if again else RefreshError)(f"{error.code}: {said}") from None
        except OSError as error:
            raise Unavailable(f"{self.url} does not answer: {error}") from None
