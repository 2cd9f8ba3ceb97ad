"""A kill schedule: refreshes over several views and two clusters, while whatever takes part dies at random.

    make kills                                                 200 kills, 300 refreshes over 30 views
    RELANCE_SEED=7 RELANCE_KILLS=20 RELANCE_KILLS_REFRESHES=40 make kills
    tests/run --kills                                          a short one, as in CI

Kills come at exponential intervals; parts of a control plane at most once a minute. Then nothing dies any more,
and within five minutes every refresh must be over: none lost, none stuck, none committed twice, each view equal
to its definition at the source version that its last refresh reports. Killed are operators, worker processes,
and the parts of both clusters; each comes back within seconds. The seed fixes who dies and when; what each is
doing then, it does not.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import lance
import pyarrow as pa

NAMESPACE = "kills"
FAR_NAMESPACE = "kills-jobs"
REFRESH_PROPERTY = "relance.refresh"
PATIENCE = 300
CONTROL_PLANE = ("apiserver", "etcd", "controller-manager", "scheduler")
NODE = ("kubelet", "containerd")
CONTROL_PLANE_PAUSE = 60


def number(name, default):
    return type(default)(os.environ.get(name, default))


SEED = number("RELANCE_SEED", random.SystemRandom().randrange(1 << 32))
REFRESHES = number("RELANCE_KILLS_REFRESHES", 24)
VIEWS = number("RELANCE_KILLS_VIEWS", 6)
KILLS = number("RELANCE_KILLS", 12)
MEAN = number("RELANCE_KILLS_MEAN_SECONDS", 4.0)
REPLICAS = number("RELANCE_KILLS_REPLICAS", 2)


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Cluster:
    """One of the two, by the cluster script and its own kubectl."""

    def __init__(self, name):
        self.name = name
        self.script = os.environ["RELANCE_TEST_CLUSTER_SCRIPT"]
        self.kubeconfig = self.run("kubeconfig").strip()

    def run(self, *arguments, check=True):
        done = subprocess.run(
            [self.script, *arguments, "--name", self.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if check and done.returncode != 0:
            sys.exit(f"cluster {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def kubectl(self, *arguments, **more):
        """The output, or None where the API server did not take it."""
        output, self.error = self.kubectl_with_error(*arguments, **more)
        return output

    def kubectl_with_error(self, *arguments, namespace=NAMESPACE, stdin=None):
        command = ["kubectl", "--kubeconfig", self.kubeconfig, "-n", namespace, "--request-timeout=10s", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        return (done.stdout if done.returncode == 0 else None), done.stderr

    def apply(self, *objects, namespace=NAMESPACE):
        items = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        arguments = ("apply", "--server-side", "--force-conflicts", "-f", "-")
        # The machine may be busy with what just came up.
        for _ in range(10):
            if self.kubectl(*arguments, namespace=namespace, stdin=items) is not None:
                return
            time.sleep(3)
        sys.exit(f"{self.name}: {self.error}")

    def fresh(self, namespace):
        # What an earlier run was ended in the midst of is held, and nobody is there to let it go.
        held = self.kubectl("get", "mvr", "-o", "name", namespace=namespace) or ""
        for refresh in held.split():
            free = ("patch", refresh, "--type=merge", "-p", '{"metadata": {"finalizers": []}}')
            self.kubectl(*free, namespace=namespace)
        self.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=120s")
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    def workers(self):
        """Processes of this cluster's worker containers, as this machine sees them."""
        number = (Path(self.kubeconfig).parent / "number").read_text().strip()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                if b"worker" in command[1:2] and f"/relance{number}/" in (process / "cgroup").read_text():
                    found.append(int(process.name))
            except OSError:
                pass
        return found


class Operator:
    """A replica of `relance serve`."""

    def __init__(self, at, kubeconfig, tables, folder):
        self.command = [
            str(folder / "relance"), "serve", "--controller", "--namespace", NAMESPACE,
            "--catalog", f"dir://{tables}", "--health-listen", "127.0.0.1:0",
        ]  # fmt: skip
        self.environment = {**os.environ, "KUBECONFIG": kubeconfig, "HOSTNAME": f"replica-{at}"}
        self.log = open(folder / f"operator-{at}.log", "ab")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self.command, env=self.environment, stdout=self.log, stderr=self.log)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


def refresh_cluster(name, tables, spec):
    worker = {
        "name": "worker",
        "imagePullPolicy": "Never",
        "volumeMounts": [{"name": "tables", "mountPath": tables}],
    }
    volumes = [{"name": "tables", "persistentVolumeClaim": {"claimName": "tables"}}]
    return {
        "apiVersion": "relance.dev/v1alpha1",
        "kind": "RefreshCluster",
        "metadata": {"name": name},
        "spec": {
            "image": os.environ["RELANCE_TEST_IMAGE"],
            "template": {"spec": {"containers": [worker], "volumes": volumes}},
            # Workers die for no fault of theirs here.
            "backoffLimit": 50,
            "maxActiveRefreshes": 4,
            **spec,
        },
    }


def same_tables_far(far, folder):
    """A claim in the second cluster over the first one's folder."""
    far.kubectl("delete", "pv", "kills-tables", "--ignore-not-found")
    capacity = {"storage": "1Gi"}
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "kills-tables"},
        "spec": {
            **common,
            "capacity": capacity,
            "hostPath": {"path": folder},
            "claimRef": {"namespace": FAR_NAMESPACE, "name": "tables"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "tables"},
        "spec": {**common, "volumeName": "kills-tables", "resources": {"requests": capacity}},
    }
    far.apply(volume, claim, namespace=FAR_NAMESPACE)


class Tables:
    """The source and its views, as a user's own clients see them."""

    def __init__(self, folder):
        import lancedb

        self.folder = folder
        self.rows = 0
        rows = self.some(400)
        db = lancedb.connect(folder)
        db.create_table("src", rows, storage_options={"new_table_enable_stable_row_ids": "true"})
        for _ in range(3):
            db.open_table("src").add(self.some(100))
        for at in range(VIEWS):
            db.create_materialized_view(f"v{at}", "src", select=["id", "part"], where=f"part <> {at}", with_no_data=True)

    def some(self, rows):
        ids = range(self.rows, self.rows + rows)
        self.rows += rows
        return pa.table({"id": pa.array(ids, pa.int64()), "part": pa.array([i % (VIEWS + 1) for i in ids], pa.int64())})

    def append(self):
        lance.write_dataset(self.some(10), f"{self.folder}/src.lance", mode="append")

    def open(self, name, version=None):
        return lance.dataset(f"{self.folder}/{name}.lance", version=version)

    def commits(self, view):
        """How many versions of a view each refresh's UID stands in."""
        dataset = self.open(view)
        counted = Counter()
        for version in range(1, dataset.latest_version + 1):
            transaction = dataset.read_transaction(version)
            properties = (transaction and transaction.transaction_properties) or {}
            uid = properties.get(REFRESH_PROPERTY)
            if uid:
                counted[uid] += 1
        return counted

    def ids(self, name, at=None, version=None):
        rows = self.open(name, version).to_table(columns=["id", "part"])
        if at is not None:
            rows = rows.filter(pa.compute.not_equal(rows["part"], at))
        return sorted(rows["id"].to_pylist())


class Schedule:
    def __init__(self, home, far, operators, tables):
        self.dice = random.Random(SEED)
        self.home, self.far, self.operators, self.tables = home, far, operators, tables
        self.killed = Counter()
        self.control_plane_at = 0.0
        self.down = []  # (when it is started again, how)
        self.asked = {}

    def create(self):
        """Asks for one more refresh, however often it takes."""
        at = len(self.asked)
        view = self.dice.randrange(VIEWS)
        spec = {
            "view": [f"v{view}"],
            "cluster": self.dice.choice(["default", "far"]),
            "full": self.dice.random() < 0.5,
            "concurrency": self.dice.choice([1, 1, 2]),
            "priority": self.dice.randrange(3),
        }
        refresh = {
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "MaterializedViewRefresh",
            "metadata": {"name": f"r{at}"},
            "spec": spec,
        }
        self.asked[f"r{at}"] = (view, refresh)
        self.unsent.append((refresh, self.dice.random() < 0.5))

    def send(self):
        """Sends what is asked for until `self.sent`: each as often as it takes, beside the kills."""
        while not (self.sent.is_set() and not self.unsent):
            if not self.unsent:
                time.sleep(0.1)
                continue
            refresh, more = self.unsent[0]
            if more:
                self.tables.append()
                self.unsent[0] = (refresh, False)
            sent, error = self.home.kubectl_with_error("create", "-f", "-", stdin=json.dumps(refresh))
            if sent is None and "AlreadyExists" not in error:
                time.sleep(0.5)
                continue
            self.unsent.pop(0)

    def victims(self):
        now = time.monotonic()
        victims = [("operator", at) for at in range(len(self.operators))] * 2
        for cluster in (self.home, self.far):
            victims += [(cluster, "worker")] * 3
            victims += [(cluster, part) for part in NODE]
            if now - self.control_plane_at >= CONTROL_PLANE_PAUSE:
                victims += [(cluster, part) for part in CONTROL_PLANE]
        return victims

    def kill(self):
        """True if something died."""
        where, part = self.dice.choice(self.victims())
        back = time.monotonic() + self.dice.uniform(0.2, 5)
        if where == "operator":
            operator = self.operators[part]
            if operator.process is None:
                return False
            operator.kill()
            self.down.append((back, operator.start))
            name = "operator"
        elif part == "worker":
            # They live for a moment only.
            for _ in range(30):
                workers = where.workers()
                if workers:
                    break
                time.sleep(0.1)
            else:
                return False
            try:
                os.kill(self.dice.choice(workers), signal.SIGKILL)
            except ProcessLookupError:
                return False
            name = f"worker of {where.name}"
        else:
            if any(key == (where.name, part) for _, _, *key_ in self.down for key in key_):
                return False
            where.run("kill", part)
            self.down.append((back, lambda: where.run("start", part), (where.name, part)))
            name = f"{part} of {where.name}"
            if part in CONTROL_PLANE:
                self.control_plane_at = time.monotonic()
        self.killed[name] += 1
        return True

    def revive(self, everything=False):
        due = [down for down in self.down if everything or down[0] <= time.monotonic()]
        self.down = [down for down in self.down if down not in due]
        for _, start, *_ in due:
            start()

    def run(self):
        self.unsent, self.sent = [], threading.Event()
        sender = threading.Thread(target=self.send, daemon=True)
        sender.start()
        begun = time.monotonic()
        last = KILLS * MEAN * 0.8
        next_kill = begun + self.dice.expovariate(1 / MEAN)
        while sum(self.killed.values()) < KILLS or len(self.asked) < REFRESHES:
            now = time.monotonic()
            due = min(REFRESHES, int((now - begun) / last * REFRESHES) + 1)
            if len(self.asked) < due:
                self.create()
            self.revive()
            if now >= next_kill and sum(self.killed.values()) < KILLS:
                # A part that is not there to be killed is no kill: another one is looked for.
                while not self.kill():
                    self.revive()
                count = sum(self.killed.values())
                if count % 20 == 0:
                    say(f"{count} kills, {len(self.asked)} refreshes")
                next_kill += self.dice.expovariate(1 / MEAN)
            time.sleep(0.1)
        self.quiet = time.monotonic()
        say(f"quiet: {sum(self.killed.values())} kills in {self.quiet - begun:.0f} s")
        self.sent.set()
        self.revive(everything=True)
        self.mend()

    def mend(self):
        """Whatever died with another (an init, a shim) comes back as well."""
        for cluster in (self.home, self.far):
            cluster.run("up")

    def settle(self):
        """The refreshes once all are over, and how long that took."""
        quiet = mended = self.quiet
        while True:
            listed = self.home.kubectl("get", "mvr", "-o", "json")
            if listed and not self.unsent:
                found = {item["metadata"]["name"]: item for item in json.loads(listed)["items"]}
                open_ = [n for n, r in found.items() if r["status"]["phase"] not in ("Succeeded", "Failed", "Cancelled")]
                if not open_:
                    return found, time.monotonic() - quiet
                if time.monotonic() - quiet > PATIENCE:
                    for name in open_:
                        say(f"stuck: {name}: {json.dumps(found[name]['status'])}")
                    return found, None
            elif time.monotonic() - quiet > PATIENCE:
                sys.exit("the API server did not come back")
            if time.monotonic() - mended > 15:
                # A kubelet that finds containerd beginning ends, as often as somebody starts it.
                self.mend()
                mended = time.monotonic()
            time.sleep(2)


def judge(schedule, found, seconds):
    """What is wrong, in sentences."""
    wrong = []
    if seconds is None:
        wrong.append("some refreshes are not over after five minutes of quiet")
    lost = set(schedule.asked) - set(found)
    if lost:
        wrong.append(f"lost: {sorted(lost)}")
    ends = Counter()
    newest = {}
    for name, refresh in found.items():
        status = refresh["status"]
        reason = status["conditions"][-1]["reason"] if status.get("conditions") else ""
        ends[f"{status['phase']}/{reason}/{status.get('mode', '-')}"] += 1
        if status["phase"] == "Succeeded":
            view, _ = schedule.asked[name]
            version = (status["viewVersion"], status["sourceVersion"])
            newest[view] = max(newest.get(view, (0, 0)), version)
        else:
            wrong.append(f"{name} is {status['phase']}: {status.get('message')}")
    commits = {view: schedule.tables.commits(f"v{view}") for view in range(VIEWS)}
    doubled = 0
    for name, refresh in found.items():
        view, _ = schedule.asked[name]
        count = commits[view][refresh["metadata"]["uid"]]
        written = refresh["status"].get("mode") in ("Incremental", "Rebuild")
        if count > 1 or (refresh["status"]["phase"] == "Succeeded" and written and count != 1):
            doubled += count > 1
            wrong.append(f"{name} has {count} commits: {json.dumps(refresh['status'])}")
    for view, (_, source) in sorted(newest.items()):
        if schedule.tables.ids(f"v{view}") != schedule.tables.ids("src", view, source):
            wrong.append(f"view v{view} is not what its definition says at source version {source}")
    say(f"ends: {dict(ends)}")
    say(f"kills: {dict(sorted(schedule.killed.items()))}")
    over = "not all were" if seconds is None else f"{seconds:.0f} s"
    say(
        f"seed {SEED}: {len(schedule.asked)} refreshes, {VIEWS} views, {sum(schedule.killed.values())} kills; "
        f"over after {over}; {len(lost)} lost, {doubled} doubled, {len(wrong)} wrong"
    )
    return wrong


def main():
    # However it is ended, it leaves nothing running.
    for number_ in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number_, lambda *_: sys.exit("ended by a signal"))
    say(f"seed {SEED}: {REFRESHES} refreshes over {VIEWS} views, {KILLS} kills every {MEAN:g} s, {REPLICAS} operators")
    home = Cluster(os.environ["RELANCE_TEST_CLUSTER"])
    far = Cluster(f"{home.name}-far")
    for plural in ("materializedviewrefreshes", "refreshclusters"):
        crd = Path(__file__).parents[2] / "crds" / f"{plural}.relance.dev.yaml"
        if home.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd)) is None:
            sys.exit(home.error)
    time.sleep(2)
    home.fresh(NAMESPACE)
    far.fresh(FAR_NAMESPACE)
    folder = home.run("storage", NAMESPACE).strip()
    subprocess.run(f"rm -rf {folder}/*", shell=True, check=True)
    same_tables_far(far, folder)
    scratch = Path(tempfile.mkdtemp(prefix="relance-kills-"))
    # A copy: whoever builds meanwhile must not change what is started again.
    shutil.copy(os.environ["RELANCE_TEST_BINARY"], scratch / "relance")
    # Pods cannot enter the folders above the claim's.
    link = Path(f"/var/tmp/relance-kills-{os.getpid()}")
    link.symlink_to(folder)
    operators = []
    wrong = ["it did not end"]
    try:
        tables = Tables(str(link))
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "far"},
            "stringData": {"kubeconfig": Path(far.kubeconfig).read_text()},
        }
        there = {"kubeconfigSecretRef": {"name": "far"}, "namespace": FAR_NAMESPACE}
        home.apply(secret, refresh_cluster("default", str(link), {}), refresh_cluster("far", str(link), there))
        operators = [Operator(at, home.kubeconfig, link, scratch) for at in range(REPLICAS)]
        for operator in operators:
            operator.start()
        schedule = Schedule(home, far, operators, tables)
        schedule.run()
        found, seconds = schedule.settle()
        wrong = judge(schedule, found, seconds)
        for sentence in wrong:
            say(sentence)
        held = [n for n, r in found.items() if r["metadata"].get("finalizers")]
        start = time.monotonic()
        while held and time.monotonic() - start < 60:
            time.sleep(2)
            listed = json.loads(home.kubectl("get", "mvr", "-o", "json") or '{"items": []}')
            held = [r["metadata"]["name"] for r in listed["items"] if r["metadata"].get("finalizers")]
        if held:
            wrong.append(f"held for ever: {held}")
            say(wrong[-1])
    finally:
        for operator in operators:
            operator.kill()
        if wrong:
            (scratch / "relance").unlink()
            say(f"the operators' logs are in {scratch}; again by RELANCE_SEED={SEED}")
        else:
            shutil.rmtree(scratch)
        link.unlink()
        for cluster in (home, far):
            cluster.run("up", check=False)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
