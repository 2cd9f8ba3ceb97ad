"""The OpenAPI document, driven by schemathesis against the running server: every answer has a documented status and
shape, what breaks the document is refused, and none is a 5xx.

    RELANCE_FUZZ_CASES    how many requests at random (default 400; `make fuzz` sends 10,000), beside some 600 that
                          try each corner of the document's schemas
    RELANCE_SEED          which (default 1)
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.request

CASES = int(os.environ.get("RELANCE_FUZZ_CASES", "400"))
SEED = os.environ.get("RELANCE_SEED", "1")

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def jobs(url, kubernetes):
    """Jobs in every state."""
    made = [post(url, "/v1/materialized_view/v/refresh", {})["job_id"] for _ in range(6)]
    progress = {"unitsDone": 1, "unitsTotal": 1, "rowsWritten": 8, "bytesWritten": 1, "summary": "1/1"}
    late = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}  # fmt: skip
    for job, status in zip(made, [
        {"phase": "Succeeded", "mode": "Rebuild", "sourceVersion": 1, "viewVersion": 3, "progress": progress},
        {"phase": "Failed", "message": "why", "completionTime": "2026-01-01T00:00:00Z"},
        {"phase": "Failed", "message": "why", "conditions": [late]},
        {"phase": "Running", "progress": progress, "startTime": "2026-01-01T00:00:00Z"},
    ]):  # fmt: skip
        kubernetes.end(job, status)
    return made


def test_every_answer_is_a_documented_one(relance, kubernetes, tmp_path):
    with urllib.request.urlopen(f"{relance}/openapi.yaml", timeout=30) as answer:
        document = answer.read()
    (tmp_path / "openapi.yaml").write_bytes(document)
    # Of the document itself there is one request only.
    operations = document.count(b"operationId:") - 1
    command = [
        str(pathlib.Path(sys.executable).parent / "st"), "run", str(tmp_path / "openapi.yaml"), "--url", relance,
        "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--seed", SEED,
        "--max-examples", str(-(-CASES // operations)), "--continue-on-failure", "--workers", "2",
        "--suppress-health-check", "all", "--request-timeout", "60", "--warnings", "off", "--no-color",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": str(pathlib.Path(__file__).with_name("fuzz_hooks.py")),
        "RELANCE_FUZZ_JOBS": json.dumps(jobs(relance, kubernetes)),
    }
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(done.stdout[-20_000:], done.stderr[-2_000:])
    assert done.returncode == 0, "see what schemathesis says above"
    generated = re.search(r"([\d,]+) generated", done.stdout)
    assert generated and int(generated[1].replace(",", "")) >= CASES
