//! The controller's metrics: what it counts and times itself, and a census of
//! the refreshes that have not ended, taken when it is asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::resources::reasons::{self, condition};
use crate::resources::{MaterializedViewRefresh, MaterializedViewRefreshStatus, Phase};
use crate::telemetry::Metrics;

/// How a refresh ended, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    /// `Succeeded`, `Failed` or `Cancelled`.
    phase: String,
    /// The reason of its condition.
    reason: String,
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct At {
    phase: String,
    cluster: String,
}

/// The controller's metrics.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    /// Passes over refreshes.
    pub passes: Counter,
    /// Passes that ended in an error.
    pub errors: Counter,
    /// Jobs that were created.
    pub launches: Counter,
    /// What has not ended.
    pub census: Census,
    ended: Family<Ended, Counter>,
    seconds: Histogram,
    queue: Family<Of, Histogram>,
    run: Family<Of, Histogram>,
    rows: Family<Of, Counter>,
    bytes: Family<Of, Counter>,
}

impl ControllerMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        // From a tenth of a second to seven hours.
        let times = || Histogram::new(exponential_buckets(0.1, 4.0, 10));
        let new = Self {
            passes: Counter::default(),
            errors: Counter::default(),
            launches: Counter::default(),
            census: Census::default(),
            ended: Family::default(),
            seconds: times(),
            queue: Family::new_with_constructor(times),
            run: Family::new_with_constructor(times),
            rows: Family::default(),
            bytes: Family::default(),
        };
        let mut registry = metrics.registry();
        registry.register_collector(Box::new(new.census.clone()));
        registry.register(
            "controller_passes",
            "Passes over refreshes",
            new.passes.clone(),
        );
        registry.register(
            "controller_errors",
            "Passes over refreshes that ended in an error",
            new.errors.clone(),
        );
        registry.register(
            "controller_launches",
            "Jobs that were created",
            new.launches.clone(),
        );
        registry.register(
            "refreshes_ended",
            "Refreshes that reached a final phase",
            new.ended.clone(),
        );
        registry.register(
            "refresh_seconds",
            "Seconds from a refresh's creation to its final phase",
            new.seconds.clone(),
        );
        registry.register(
            "refresh_queue_seconds",
            "Seconds from a refresh's creation, or from when it was resumed, to its turn",
            new.queue.clone(),
        );
        registry.register(
            "refresh_run_seconds",
            "Seconds from a refresh's turn to its final phase",
            new.run.clone(),
        );
        registry.register(
            "rows_written",
            "Rows that refreshes wrote into views",
            new.rows.clone(),
        );
        registry.register(
            "bytes_written",
            "Bytes of data files that refreshes wrote",
            new.bytes.clone(),
        );
        drop(registry);
        new
    }

    /// Notes a step: the refresh as it was `before`, and as it was written.
    /// `has_cluster`: whether a watch shows the RefreshCluster that it names.
    pub fn stepped(
        &self,
        before: &MaterializedViewRefresh,
        after: &MaterializedViewRefresh,
        has_cluster: bool,
    ) {
        let (was, is) = (before.phase(), after.phase());
        let Some(status) = after.status.as_ref() else {
            return;
        };
        let reason = status.conditions.last().map(|c| c.reason.clone());
        let reason = reason.unwrap_or_default();
        let of = Of {
            cluster: cluster_of(after, status, &reason, has_cluster),
        };
        let created = after.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let start = status.start_time.as_ref().map(|t| t.0);
        if was != Phase::Running && is == Phase::Running {
            observe(
                |seconds| self.queue.get_or_create(&of).observe(seconds),
                resumed(status).or(created),
                start,
            );
        }
        if was.is_terminal() || !is.is_terminal() {
            return;
        }
        let end = status.completion_time.as_ref().map(|t| t.0);
        observe(|seconds| self.seconds.observe(seconds), created, end);
        // One that never had its turn makes no series of it either.
        observe(
            |seconds| self.run.get_or_create(&of).observe(seconds),
            start,
            end,
        );
        if let Some(progress) = &status.progress
            && is == Phase::Succeeded
        {
            let number = |value: i64| u64::try_from(value).unwrap_or(0);
            self.rows
                .get_or_create(&of)
                .inc_by(number(progress.rows_written));
            self.bytes
                .get_or_create(&of)
                .inc_by(number(progress.bytes_written));
        }
        let ended = Ended {
            phase: format!("{is:?}"),
            reason,
            cluster: of.cluster,
        };
        self.ended.get_or_create(&ended).inc();
    }
}

/// The label of a refresh's cluster. Of names that nothing bears there is no
/// end: one counts only where a RefreshCluster of it is there, or was when the
/// view was found through it.
fn cluster_of(
    refresh: &MaterializedViewRefresh,
    status: &MaterializedViewRefreshStatus,
    reason: &str,
    has_cluster: bool,
) -> String {
    let is_true = has_cluster || status.view_uri.is_some();
    match is_true && reason != reasons::CLUSTER_NOT_FOUND {
        true => refresh.spec.cluster.clone(),
        false => "none".to_string(),
    }
}

/// When a refresh was let go that had been held: it did not queue before.
fn resumed(status: &MaterializedViewRefreshStatus) -> Option<Timestamp> {
    let held = status.conditions.iter();
    let mut held = held.filter(|c| c.type_ == condition::SUSPENDED && c.status == "False");
    held.next().map(|c| c.last_transition_time.0)
}

fn observe(by: impl Fn(f64), from: Option<Timestamp>, to: Option<Timestamp>) {
    if let (Some(from), Some(to)) = (from, to) {
        by(to.duration_since(from).as_secs_f64().max(0.0));
    }
}

/// Counts the refreshes in a cache, whenever the metrics are read. Replicas
/// that stand by have none to count.
#[derive(Clone, Default)]
pub struct Census(Arc<Mutex<Option<Store<MaterializedViewRefresh>>>>);

impl Census {
    /// Counts those in `refreshes` until what this returns is dropped.
    pub fn of(&self, refreshes: Store<MaterializedViewRefresh>) -> Counted {
        *self.lock() = Some(refreshes);
        Counted(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Store<MaterializedViewRefresh>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a census when it is dropped.
#[derive(Debug)]
pub struct Counted(Census);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Census")
    }
}

impl Collector for Census {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(refreshes) = self.lock().clone() else {
            return Ok(());
        };
        let mut counts: BTreeMap<At, i64> = BTreeMap::new();
        for refresh in refreshes.state() {
            let phase = refresh.phase();
            let at = At {
                phase: format!("{phase:?}"),
                cluster: refresh.spec.cluster.clone(),
            };
            *counts.entry(at).or_default() += 1;
        }
        let mut metric = encoder.encode_descriptor(
            "refreshes",
            "Refreshes that have not ended, by phase",
            None,
            MetricType::Gauge,
        )?;
        for (at, count) in &counts {
            ConstGauge::new(*count).encode(metric.encode_family(at)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::runtime::{reflector, watcher};

    use super::*;
    use crate::resources::{MaterializedViewRefreshSpec, Progress};

    fn refresh(name: &str, phase: Phase) -> MaterializedViewRefresh {
        let at = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let spec = MaterializedViewRefreshSpec::of(["v"]);
        let mut refresh = MaterializedViewRefresh::new(name, spec);
        refresh.metadata.creation_timestamp = at(100);
        refresh.status = Some(MaterializedViewRefreshStatus {
            phase,
            start_time: at(107),
            completion_time: phase.is_terminal().then(|| at(140)).flatten(),
            progress: Some(Progress {
                rows_written: 11,
                bytes_written: 13,
                ..Progress::default()
            }),
            ..Default::default()
        });
        refresh
    }

    #[test]
    fn each_refresh_is_counted_once_with_how_long_it_waited_and_ran_and_what_it_wrote() {
        let all = Metrics::default();
        let metrics = ControllerMetrics::new(&all);
        let [queued, running, ended] =
            [Phase::Queued, Phase::Running, Phase::Succeeded].map(|phase| refresh("r", phase));
        metrics.stepped(&queued, &running, true);
        metrics.stepped(&running, &running, true);
        metrics.stepped(&running, &ended, true);
        let text = all.text().unwrap();
        for line in [
            r#"relance_refresh_queue_seconds_sum{cluster="default"} 7.0"#,
            r#"relance_refresh_queue_seconds_count{cluster="default"} 1"#,
            r#"relance_refresh_run_seconds_sum{cluster="default"} 33.0"#,
            "relance_refresh_seconds_sum 40.0",
            r#"relance_rows_written_total{cluster="default"} 11"#,
            r#"relance_bytes_written_total{cluster="default"} 13"#,
            r#"relance_refreshes_ended_total{phase="Succeeded",reason="",cluster="default"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    fn with_condition(
        mut refresh: MaterializedViewRefresh,
        (type_, value, reason): (&str, &str, &str),
        second: i64,
    ) -> MaterializedViewRefresh {
        let condition = serde_json::json!({
            "type": type_, "status": value, "reason": reason, "message": "",
            "lastTransitionTime": Timestamp::from_second(second).unwrap(),
        });
        let condition = serde_json::from_value(condition).unwrap();
        let status = refresh.status.get_or_insert_default();
        status.conditions.push(condition);
        refresh
    }

    /// One that ended before it had its turn.
    fn ended_early(cluster: &str, phase: Phase, reason: &str) -> MaterializedViewRefresh {
        let mut refresh = refresh("r", phase);
        refresh.spec.cluster = cluster.into();
        if let Some(status) = &mut refresh.status {
            status.start_time = None;
        }
        with_condition(refresh, (condition::FAILED, "True", reason), 140)
    }

    #[test]
    fn a_cluster_that_is_not_there_lends_its_name_to_no_series() {
        let all = Metrics::default();
        let metrics = ControllerMetrics::new(&all);
        let queued = refresh("r", Phase::Queued);
        let failed = ended_early("nowhere", Phase::Failed, reasons::CLUSTER_NOT_FOUND);
        metrics.stepped(&queued, &failed, false);
        // They end before anybody looks for their clusters.
        for made_up in ["neverland", "nirvana"] {
            let cancelled = ended_early(made_up, Phase::Cancelled, reasons::CANCELLED);
            metrics.stepped(&queued, &cancelled, false);
        }
        let text = all.text().unwrap();
        for line in [
            r#"relance_refreshes_ended_total{phase="Failed",reason="ClusterNotFound",cluster="none"} 1"#,
            r#"relance_refreshes_ended_total{phase="Cancelled",reason="Cancelled",cluster="none"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        for name in ["nowhere", "neverland", "nirvana"] {
            assert!(!text.contains(name), "{text}");
        }
        assert!(!text.contains("run_seconds_count{"), "{text}");
    }

    #[test]
    fn a_cluster_that_is_there_or_was_is_named_also_by_what_never_had_its_turn() {
        let all = Metrics::default();
        let metrics = ControllerMetrics::new(&all);
        let queued = refresh("r", Phase::Queued);
        let cancelled = ended_early("there", Phase::Cancelled, reasons::CANCELLED);
        metrics.stepped(&queued, &cancelled, true);
        let mut accepted = ended_early("gone", Phase::Cancelled, reasons::CANCELLED);
        accepted.status.get_or_insert_default().view_uri = Some("mem://v".into());
        metrics.stepped(&queued, &accepted, false);
        let text = all.text().unwrap();
        for cluster in ["there", "gone"] {
            let label = format!(r#"reason="Cancelled",cluster="{cluster}"}} 1"#);
            assert!(text.contains(&label), "{text}");
        }
    }

    #[test]
    fn what_was_held_has_queued_since_it_was_resumed() {
        let all = Metrics::default();
        let metrics = ControllerMetrics::new(&all);
        let resumed = (condition::SUSPENDED, "False", reasons::RESUMED);
        let running = with_condition(refresh("r", Phase::Running), resumed, 104);
        metrics.stepped(&refresh("r", Phase::Queued), &running, true);
        let text = all.text().unwrap();
        let waited = r#"relance_refresh_queue_seconds_sum{cluster="default"} 3.0"#;
        assert!(text.contains(waited), "{text}");
    }

    #[test]
    fn a_census_counts_what_a_cache_holds_for_as_long_as_this_replica_acts() {
        let all = Metrics::default();
        let metrics = ControllerMetrics::new(&all);
        let (store, mut writer) = reflector::store();
        for (name, phase) in [
            ("a", Phase::Queued),
            ("b", Phase::Queued),
            ("c", Phase::Running),
        ] {
            writer.apply_watcher_event(&watcher::Event::Apply(refresh(name, phase)));
        }
        let counted = metrics.census.of(store);
        let text = all.text().unwrap();
        assert!(
            text.contains(r#"relance_refreshes{phase="Queued",cluster="default"} 2"#),
            "{text}"
        );
        assert!(
            text.contains(r#"relance_refreshes{phase="Running",cluster="default"} 1"#),
            "{text}"
        );
        drop(counted);
        assert!(!all.text().unwrap().contains("relance_refreshes{"));
    }
}
