//! Thousands of refreshes: what they cost relance beside what they cost the
//! API server, with nodes and pods that are none ([`kubelet`]).
//!
//! Needs a whole cluster (`make bench-scale`). All on the same machine and in
//! the same run:
//!
//! 1. A bare client stores finished refreshes, and then Jobs as relance makes
//!    them. How fast, and how much processor time of the API server an object?
//! 2. Refreshes of as many views are asked for by REST, of each as often as a
//!    bare client created one. How much processor time of relance does one take,
//!    the first of a view and those that follow?
//! 3. The controller starts and launches them. How fast, at what cost?
//! 4. All run. How much memory does it hold, and how often does it write?
//! 5. The controller is ended and started again. How long until it has all in
//!    hand?
//! 6. All pods end. Every refresh succeeds.
//!
//! `RELANCE_STORED` and `RELANCE_RUNNING` set the numbers (10,000 and 1,000).
//! The bounds are held in an optimised build alone, and at full numbers.

#[path = "../../tests/it/callers.rs"]
#[allow(dead_code)]
mod callers;
mod kubelet;
mod process;
#[path = "../../tests/it/support.rs"]
#[allow(dead_code)]
mod support;

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
use arrow_schema::{DataType, Field, Schema};
use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use lance::Dataset;
use lancedb::materialized_view::{MaterializedViewDefinition, prepare_definition};
use relance::catalog::Source;
use relance::launch::job::{self, Home, Place};
use relance::resources::{
    MaterializedViewRefresh, MaterializedViewRefreshSpec, Phase, RefreshCluster,
};
use serde_json::json;

use callers::{AUDIENCE, Callers};
use kubelet::{FAKE, Fakes};
use process::{Process, Relance};
use support::{Space, kubeconfig};

/// Requests under way at a time.
const AT_ONCE: usize = 16;

/// How many times as many refreshes a bare client creates.
const BARE: usize = 5;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(900);

fn number(variable: &str, unless_told: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => unless_told,
    }
}

#[tokio::main]
async fn main() {
    let stored = number("RELANCE_STORED", 10_000);
    let running = number("RELANCE_RUNNING", 1_000);
    let bench = Bench::new(running).await;
    println!("{stored} stored, {running} running");

    // A bare client, before relance is there.
    let api_server = Process::api_server();
    bench.history("warm", 20).await;
    let (rate, refresh_cost) = bench
        .timed(&api_server, stored, bench.history("old", stored))
        .await;
    println!(
        "bare creates of refreshes: {rate:.0}/s, {:.2} ms of the API server's time each (a status write besides)",
        1e3 * refresh_cost
    );
    // So many that it counts whether the API server collects its garbage just then.
    let many = BARE * running;
    let (bare_posts, post_cost) = bench.timed(&api_server, many, bench.bare(many)).await;
    println!(
        "bare creates of refreshes alone: {bare_posts:.0}/s, {:.2} ms of the API server's time each",
        1e3 * post_cost
    );
    bench.forget_bare().await;
    let (bare_jobs, job_cost) = bench
        .timed(&api_server, running, bench.bare_jobs(running))
        .await;
    println!(
        "bare creates of Jobs: {bare_jobs:.0}/s, {:.2} ms of the API server's time each",
        1e3 * job_cost
    );
    bench.forget_bare_jobs().await;

    // By the way that costs most: a token, and what its user may do.
    let rest = bench
        .relance(&["--rest", "--auth=tokens", "--caller-rate=1000000"])
        .await;
    let post = rest.process();
    rest.post(0..5).await;
    let (rate, first) = bench.timed(&post, running - 5, rest.post(5..running)).await;
    println!(
        "accepted POSTs, the first of each view: {rate:.0}/s, {:.2} ms of relance's time each: {:.2} of the API server's",
        1e3 * first,
        first / post_cost
    );
    let launched = bench.names().await;
    let again = (BARE - 1) * running;
    let (rate, further) = bench
        .timed(&post, again, async {
            for _ in 1..BARE {
                rest.post(0..running).await;
            }
        })
        .await;
    println!(
        "accepted POSTs, the others: {rate:.0}/s, {:.2} ms of relance's time each: {:.2} of the API server's",
        1e3 * further,
        further / post_cost
    );
    let own_post = (first + (BARE - 1) as f64 * further) / BARE as f64;
    let post_ratio = own_post / post_cost;
    println!(
        "accepted POSTs, all: {:.2} ms of relance's time each: {post_ratio:.2} of the API server's",
        1e3 * own_post
    );
    bench.forget_all_but(&launched).await;

    let controller = bench.relance(&["--controller"]).await;
    let own = controller.process();
    let (launches, own_launch) = bench
        .timed(&own, running, bench.until_launched(running))
        .await;
    let launch_ratio = own_launch / job_cost;
    println!(
        "launches: {launches:.0}/s, {:.2} ms of relance's time each: {launch_ratio:.2} of the API server's",
        1e3 * own_launch
    );

    bench.until_pods_run(running).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let patches = controller
        .count("relance_kubernetes_requests_total{method=\"PATCH\"")
        .await;
    let began = Instant::now();
    let cpu = own.seconds();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let writes = controller
        .count("relance_kubernetes_requests_total{method=\"PATCH\"")
        .await
        - patches;
    let writes = writes / began.elapsed().as_secs_f64();
    let busy = (own.seconds() - cpu) / began.elapsed().as_secs_f64();
    let memory = own.anonymous_mb();
    println!(
        "{running} running and {stored} stored: {memory:.0} MB of anonymous memory, {writes:.1} writes/s, {:.0} % of a core",
        100.0 * busy
    );

    controller.end().await;
    let began = Instant::now();
    let controller = bench.relance(&["--controller"]).await;
    controller.until_steady(running).await;
    let restart = began.elapsed();
    println!(
        "restart to steady: {restart:.2?}, {:.0} MB",
        controller.process().anonymous_mb()
    );

    let began = Instant::now();
    bench.fakes.finish().await;
    bench.until_succeeded(running).await;
    println!(
        "all pods ended to all refreshes succeeded: {:.2?}",
        began.elapsed()
    );
    bench.fakes.stop().await;

    if cfg!(debug_assertions) || stored < 10_000 || running < 1_000 {
        println!("no bounds are held: not an optimised build at full numbers");
        return;
    }
    let bounds = [
        ("a POST's share of the API server's time", post_ratio, 0.3),
        (
            "a launch's share of the API server's time",
            launch_ratio,
            0.5,
        ),
        ("seconds between launches", 1.0 / launches, 1.0 / 20.0),
        ("MB of memory", memory, 100.0),
        ("writes a second", writes, 20.0),
        ("seconds to steady", restart.as_secs_f64(), 10.0),
    ];
    let broken: Vec<_> = bounds.iter().filter(|(_, is, most)| is > most).collect();
    assert!(broken.is_empty(), "(what, is, may be at most): {broken:?}");
}

struct Bench {
    space: Space,
    jobs: Api<Job>,
    tables: tempfile::TempDir,
    fakes: Fakes,
    caller: String,
}

impl Bench {
    /// A namespace, so many views that were never refreshed, and nodes.
    async fn new(views: usize) -> Bench {
        let space = Space::new().await;
        let tables = tempfile::tempdir().expect("a folder");
        make_views(tables.path(), views).await;
        let cluster = json!({
            "apiVersion": "relance.dev/v1alpha1",
            "kind": "RefreshCluster",
            "metadata": {"name": "default"},
            "spec": {
                "image": "fake",
                "maxActiveRefreshes": 2 * views,
                "template": {"spec": {
                    "nodeSelector": {FAKE: "true"},
                    "tolerations": [{"key": FAKE, "operator": "Exists"}],
                }},
            },
        });
        let force = PatchParams::apply("relance-bench").force();
        space
            .clusters
            .patch("default", &force, &Patch::Apply(cluster))
            .await
            .expect("a RefreshCluster");
        let fakes = Fakes::start(space.client.clone(), &space.namespace, views).await;
        let callers = Callers::of(&space);
        let user = callers.account("caller");
        callers.allow(&user, &["create"], &["default"]).await;
        let token = callers.token("caller", Some(AUDIENCE)).await;
        Bench {
            caller: format!("Bearer {token}"),
            jobs: Api::namespaced(space.client.clone(), &space.namespace),
            space,
            tables,
            fakes,
        }
    }

    /// How many a second, and how much of the process's time one takes.
    async fn timed(
        &self,
        process: &Process,
        count: usize,
        work: impl Future<Output = ()>,
    ) -> (f64, f64) {
        let (began, cpu) = (Instant::now(), process.seconds());
        work.await;
        let count = count as f64;
        (
            count / began.elapsed().as_secs_f64(),
            (process.seconds() - cpu) / count,
        )
    }

    /// Finished refreshes, with the time to live that REST gives.
    async fn history(&self, prefix: &str, count: usize) {
        let status = json!({"status": {
            "phase": "Succeeded",
            "observedGeneration": 1,
            "message": "The view equals its definition at source version 7: 10 rows written incrementally",
            "mode": "Incremental", "sourceVersion": 7, "viewVersion": 9,
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2100-01-01T00:00:00Z",
            "progress": {"unitsDone": 1, "unitsTotal": 1, "rowsWritten": 10, "bytesWritten": 1000, "summary": "1/1"},
            "viewUri": "/tables/v.lance",
            "job": {"name": "a-job-of-then", "namespace": "default", "cluster": "default", "uid": "7d0e"},
            "conditions": [{
                "type": "Complete", "status": "True", "reason": "Refreshed", "message": "done",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }});
        each(count, |at| {
            let name = format!("{prefix}-{at}");
            let (space, status) = (&self.space, &status);
            async move {
                let mut spec = MaterializedViewRefreshSpec::of([format!("v{at}")]);
                spec.ttl_seconds_after_finished = Some(7 * 24 * 3600);
                let refresh = MaterializedViewRefresh::new(&name, spec);
                let post = PostParams::default();
                space
                    .refreshes
                    .create(&post, &refresh)
                    .await
                    .expect("created");
                let params = PatchParams::default();
                let patch = Patch::Merge(status);
                let patched = space.refreshes.patch_status(&name, &params, &patch).await;
                patched.expect("written");
            }
        })
        .await;
    }

    async fn bare(&self, count: usize) {
        each(count, |at| {
            let refreshes = &self.space.refreshes;
            async move {
                let spec = MaterializedViewRefreshSpec::of([format!("v{at}")]);
                let refresh = MaterializedViewRefresh::new(&format!("bare-{at}"), spec);
                let created = refreshes.create(&PostParams::default(), &refresh).await;
                created.expect("created");
            }
        })
        .await;
    }

    async fn forget_bare(&self) {
        let queued = ListParams::default().fields("status.phase=Queued");
        let refreshes = &self.space.refreshes;
        let params = kube::api::DeleteParams::default();
        let deleted = refreshes.delete_collection(&params, &queued).await;
        deleted.expect("deleted");
    }

    /// The names of the refreshes that wait.
    async fn names(&self) -> HashSet<String> {
        let queued = ListParams::default().fields("status.phase=Queued");
        let list = self.space.refreshes.list_metadata(&queued).await;
        let list = list.expect("refreshes");
        list.iter().map(|refresh| refresh.name_any()).collect()
    }

    /// Deletes the refreshes that wait, but for `these`.
    async fn forget_all_but(&self, these: &HashSet<String>) {
        let names = self.names().await;
        let rest: Vec<&String> = names.difference(these).collect();
        each(rest.len(), |at| {
            let (refreshes, name) = (&self.space.refreshes, rest[at]);
            async move {
                let deleted = refreshes.delete(name, &Default::default()).await;
                deleted.expect("deleted");
            }
        })
        .await;
    }

    /// The Jobs that relance would make, held, so that no pods come of them.
    async fn bare_jobs(&self, count: usize) {
        let cluster: RefreshCluster = self.space.clusters.get("default").await.expect("it");
        let home = Home {
            id: "bare".into(),
            image: "fake".into(),
            catalog: Source {
                uri: self.catalog(),
                ..Default::default()
            },
            environment: Vec::new(),
        };
        each(count, |at| {
            let (cluster, home, jobs) = (&cluster.spec, &home, &self.jobs);
            async move {
                let spec = MaterializedViewRefreshSpec::of([format!("v{at}")]);
                let mut refresh = MaterializedViewRefresh::new(&format!("bare-{at}"), spec);
                refresh.metadata.uid = Some(uuid::Uuid::new_v4().to_string());
                let place = Place {
                    namespace: &self.space.namespace,
                    remote: false,
                };
                let mut job = job::job(&refresh, cluster, home, place).expect("a Job");
                job.metadata.owner_references = None;
                job.spec.as_mut().expect("a spec").suspend = Some(true);
                let created = jobs.create(&PostParams::default(), &job).await;
                created.expect("created");
            }
        })
        .await;
    }

    async fn forget_bare_jobs(&self) {
        let background = kube::api::DeleteParams::background();
        let all = ListParams::default();
        let deleted = self.jobs.delete_collection(&background, &all).await;
        deleted.expect("deleted");
        self.until("the bare Jobs are gone", async || {
            self.job_count().await == 0
        })
        .await;
    }

    fn catalog(&self) -> String {
        format!("dir://{}", self.tables.path().display())
    }

    async fn job_count(&self) -> usize {
        let some = ListParams::default().limit(1);
        let list = self.jobs.list_metadata(&some).await.expect("Jobs");
        let rest = list.metadata.remaining_item_count.unwrap_or(0);
        list.items.len() + usize::try_from(rest).expect("a number")
    }

    async fn until_launched(&self, count: usize) {
        self.until("launched", async || self.job_count().await >= count)
            .await;
    }

    async fn until_pods_run(&self, count: usize) {
        let pods: Api<k8s_openapi::api::core::v1::Pod> =
            Api::namespaced(self.space.client.clone(), &self.space.namespace);
        let running = ListParams::default().fields("status.phase=Running");
        self.until("running", async || {
            let list = pods.list_metadata(&running).await.expect("pods");
            list.items.len() >= count
        })
        .await;
    }

    async fn until_succeeded(&self, count: usize) {
        let rest = ListParams::default().fields(&Phase::none_of(&Phase::TERMINAL));
        self.until("succeeded", async || {
            let list = self.space.refreshes.list(&rest).await.expect("refreshes");
            list.items.is_empty()
        })
        .await;
        assert_eq!(self.job_count().await, count, "one Job each");
    }

    async fn until(&self, what: &str, wished: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !wished().await {
            assert!(start.elapsed() < PATIENCE, "not {what}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// `relance serve` as a process, ready.
    async fn relance(&self, arguments: &[&str]) -> Relance {
        let [api, health] = [(), ()].map(|()| {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            socket.local_addr().expect("an address").to_string()
        });
        let child = Command::new(env!("CARGO_BIN_EXE_relance"))
            .arg("serve")
            .args(arguments)
            .args(["--namespace", &self.space.namespace])
            .args(["--catalog", &self.catalog()])
            .args(["--listen", &api, "--health-listen", &health])
            .env("KUBECONFIG", kubeconfig())
            .env("RUST_LOG", "warn,kube_client=off")
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        let relance = Relance {
            child,
            api: format!("http://{api}"),
            health: format!("http://{health}"),
            caller: self.caller.clone(),
            http: reqwest::Client::new(),
        };
        self.until("ready", async || {
            let ready = relance.http.get(format!("{}/readyz", relance.health));
            ready.send().await.is_ok_and(|a| a.status().is_success())
        })
        .await;
        relance
    }
}

/// Does something for each number, some at a time.
async fn each<F: Future<Output = ()>>(count: usize, what: impl Fn(usize) -> F) {
    futures::stream::iter(0..count)
        .for_each_concurrent(AT_ONCE, what)
        .await;
}

/// One source, one view of it by lancedb, and copies of that under other names.
async fn make_views(folder: &Path, count: usize) {
    let root = folder.display().to_string();
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let rows = Int64Array::from_iter_values(0..10);
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(rows)]).expect("a batch");
    let reader = RecordBatchIterator::new([Ok(batch)], schema);
    Dataset::write(reader, &format!("{root}/src.lance"), None)
        .await
        .expect("the source");
    let connection = lancedb::connect(&root).execute().await.expect("connects");
    let source = connection.open_table("src").execute().await.expect("opens");
    let definition = MaterializedViewDefinition::from_sql("SELECT id FROM src WHERE id > 1");
    prepare_definition(&source, definition.expect("SQL"))
        .await
        .expect("prepares")
        .create("v0")
        .await
        .expect("the view");
    for at in 1..count {
        let copied = Command::new("cp")
            .arg("-r")
            .args(["v0.lance", &format!("v{at}.lance")].map(|name| folder.join(name)))
            .status();
        assert!(copied.expect("cp runs").success());
    }
}
