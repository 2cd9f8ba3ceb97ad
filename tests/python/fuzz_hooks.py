"""What the HTTP fuzzer cannot guess: the names of views and jobs that are there.

Half of the requests that are well-formed are about one of them; the choice hangs on the request alone, so that a
seed gives the same requests again."""

import json
import os
import zlib

import schemathesis

JOBS = json.loads(os.environ.get("RELANCE_FUZZ_JOBS", "[]"))
TABLES = ["v", "src"]
FILTERS = ["state = 'claim_complete'", "claim_entity is null", "rows_processed > 3 or state like 'q%'", "true"]


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    body = case.body if isinstance(case.body, dict) else None
    chance = zlib.crc32(json.dumps([case.path_parameters, body], default=repr, sort_keys=True).encode())
    if chance % 2:
        return
    chance //= 2
    if "id" in (case.path_parameters or {}):
        case.path_parameters["id"] = TABLES[chance % len(TABLES)]
        case.query = {}
        if body is not None:
            body.pop("id", None)
            if chance % 3:
                body.pop("cluster", None)
                body.pop("expected_incarnation", None)
                body.pop("output_limit", None)
                body.pop("manifest", None)
    elif body is not None and "job_id" in body and JOBS:
        body["job_id"] = JOBS[chance % len(JOBS)]
        if body.get("filter") is not None:
            body["filter"] = FILTERS[chance // 7 % len(FILTERS)]
    elif body is not None and chance % 3:
        body.pop("page_token", None)
        body.pop("state", None)
