"""A REST API of relance over a real Kubernetes API, and a recorder between it and its clients."""

import http.server
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field

import lancedb
import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]


def needed(name: str, how: str) -> str:
    """An environment variable that the tests cannot do without."""
    value = os.environ.get(name)
    if not value:
        pytest.fail(f"{name} is not set; {how}", pytrace=False)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Kubernetes:
    """A namespace of the test cluster."""

    kubeconfig: str
    namespace: str

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        command = ["kubectl", "--kubeconfig", self.kubeconfig, "-n", self.namespace, *args]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def refresh(self, job_id: str) -> dict:
        return json.loads(self.kubectl("get", "mvr", job_id, "-o", "json"))

    def end(self, job_id: str, status: dict) -> None:
        """Writes a status, as the controller would."""
        patch = json.dumps({"status": status})
        self.kubectl("patch", "mvr", job_id, "--subresource=status", "--type=merge", "-p", patch)


@dataclass
class Recorder:
    """Passes requests on and keeps what was asked."""

    target: str
    url: str = ""
    requests: list = field(default_factory=list)

    def start(self) -> http.server.ThreadingHTTPServer:
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                parsed = json.loads(body) if body else None
                recorder.requests.append((self.command, self.path, parsed))
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                request = urllib.request.Request(
                    recorder.target + self.path, data=body or None, headers=headers, method=self.command
                )
                try:
                    answer = urllib.request.urlopen(request, timeout=30)
                except urllib.error.HTTPError as error:
                    answer = error
                content = answer.read()
                self.send_response(answer.status)
                self.send_header("content-type", answer.headers["content-type"])
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = forward

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@pytest.fixture(scope="session")
def kubernetes():
    kubeconfig = needed(
        "RELANCE_TEST_KUBECONFIG",
        'run tests/cluster/cluster up --control-plane-only and eval "$(tests/cluster/cluster env)"',
    )
    space = Kubernetes(kubeconfig, f"py-{uuid.uuid4().hex[:12]}")
    space.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPO / "crds"))
    space.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    space.kubectl("create", "namespace", space.namespace)
    cluster = {"apiVersion": "relance.dev/v1alpha1", "kind": "RefreshCluster", "spec": {}}
    for name in ("default", "big"):
        cluster["metadata"] = {"name": name}
        for _ in range(50):
            try:
                space.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(cluster))
                break
            except AssertionError:
                # The definition's routes come a moment after it is established.
                time.sleep(0.2)
        else:
            pytest.fail("RefreshClusters cannot be created")
    yield space
    space.kubectl("delete", "namespace", space.namespace, "--wait=false")


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """A catalog with the table `src` and the view `v`, as Python lancedb 0.40 makes them."""
    folder = tmp_path_factory.mktemp("tables")
    db = lancedb.connect(str(folder), storage_options={"new_table_enable_stable_row_ids": "true"})
    db.create_table("src", [{"id": i, "name": f"n{i}"} for i in range(10)])
    db.create_materialized_view("v", "src", select=["id", ("up", "upper(name)")], where="id > 1")
    return folder


@pytest.fixture(scope="session")
def relance(kubernetes, tables):
    """`relance serve --rest`; gives its URL."""
    binary = needed("RELANCE_TEST_BINARY", "it is the path of the relance binary")
    api, health = free_port(), free_port()
    process = subprocess.Popen(
        [binary, "serve", "--rest", "--open-access", "--catalog", f"dir://{tables}",
         "--namespace", kubernetes.namespace, "--listen", f"127.0.0.1:{api}",
         "--health-listen", f"127.0.0.1:{health}"],
        env={**os.environ, "KUBECONFIG": kubernetes.kubeconfig},
    )  # fmt: skip
    try:
        for _ in range(200):
            assert process.poll() is None, "relance serve has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{health}/readyz", timeout=5).read()
                break
            except OSError:
                time.sleep(0.05)
        else:
            pytest.fail("relance serve is not ready within ten seconds")
        yield f"http://127.0.0.1:{api}"
    finally:
        process.terminate()
        assert process.wait(timeout=40) == 0


@pytest.fixture(scope="session")
def url():
    """The REST API of a whole operator that is there already, with a view `v` that can be refreshed."""
    return needed("RELANCE_TEST_URL", "it is the URL of an operator's REST API")


@pytest.fixture
def recorder(relance):
    recorder = Recorder(relance)
    server = recorder.start()
    yield recorder
    server.shutdown()
