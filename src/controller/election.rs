//! Holding the Lease: one replica acts, the others stand by.
//!
//! Whoever is elected acts until its [`Leadership`] ends: by itself, at a
//! moment that was fixed when the last renewal began, whether or not this
//! process hears of anything then. [`Leadership::fence`] makes a client whose
//! writes cannot be sent, or waited for, beyond that moment: a replica that was
//! stopped for a minute and goes on in the middle of a pass changes nothing.
//! What it had sent before is as harmless as what a dead one had sent: statuses
//! carry the resourceVersion they were decided on, Jobs a name of their own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::client::Body;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use thiserror::Error;

use super::lease::{Candidate, Step, Timing};
use crate::telemetry::Metrics;

/// Why a write was not sent.
#[derive(Debug, Error)]
#[error("another replica is to act: this one's lease has ended")]
struct NotLeader;

/// Whether this replica may act.
#[derive(Clone, Debug, Default)]
pub struct Leadership {
    until: Arc<Mutex<Option<Instant>>>,
    gauge: Gauge,
}

impl Leadership {
    /// Registers whether this replica leads.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.registry().register(
            "controller_leader",
            "Whether this replica is the one that acts (1) or stands by (0)",
            this.gauge.clone(),
        );
        this
    }

    fn set(&self, until: Option<Instant>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        self.gauge.set(until.is_some().into());
    }

    /// Until when this replica may act, as far as it knows now; None if it may not.
    pub fn until(&self) -> Option<Instant> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| Instant::now() < *until)
    }

    /// `client` for as long as this replica leads: it reads at any time, and
    /// sends no write, nor repeats one, once the leadership has ended.
    pub fn fence(&self, client: Client) -> Client {
        let leadership = self.clone();
        let namespace = client.default_namespace().to_string();
        let service = tower::service_fn(move |request: axum::http::Request<Body>| {
            let (client, leadership) = (client.clone(), leadership.clone());
            async move {
                if request.method() == axum::http::Method::GET {
                    return Ok(client.send(request).await?);
                }
                let Some(until) = leadership.until() else {
                    return Err(tower::BoxError::from(NotLeader));
                };
                match tokio::time::timeout_at(until.into(), client.send(request)).await {
                    Ok(answer) => Ok(answer?),
                    Err(_) => Err(NotLeader.into()),
                }
            }
        });
        Client::new(service, namespace)
    }
}

/// One replica's part in the election.
#[derive(Debug)]
pub struct Election {
    leases: Api<Lease>,
    name: String,
    candidate: Candidate,
    timing: Timing,
    leadership: Leadership,
}

/// What became of one look at the Lease.
enum Looked {
    Held,
    NotHeld(Duration),
}

impl Election {
    /// Stands for the Lease `name` in `namespace`, under the host's name and a
    /// suffix that makes it this process's own.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        timing: Timing,
        leadership: Leadership,
    ) -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "relance".to_string());
        let me = format!("{host}_{}", uuid::Uuid::new_v4());
        tracing::debug!(identity = me, lease = name, "standing for election");
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_string(),
            candidate: Candidate::new(me, timing),
            timing,
            leadership,
        }
    }

    /// Whether this replica may act.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// Waits until this replica is the one to act.
    pub async fn won(&mut self) {
        let mut told = false;
        loop {
            let looked = tokio::time::timeout(self.timing.deadline(), self.look()).await;
            match looked {
                Ok(Ok(Looked::Held)) => return,
                Ok(Ok(Looked::NotHeld(pause))) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(lease = self.name, "another replica acts; standing by");
                    }
                    tokio::time::sleep(pause).await;
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, %error, "the Lease cannot be had now");
                    tokio::time::sleep(self.timing.look_again()).await;
                }
                Err(_) => {
                    tracing::warn!(lease = self.name, "no answer about the Lease came in time")
                }
            }
        }
    }

    /// Keeps the lease, and returns when this replica may act no longer.
    pub async fn lost(&mut self) {
        while let Some(until) = self.leadership.until() {
            // Neither a pause nor a request that hangs may keep us from stopping in time.
            let renewed = async {
                tokio::time::sleep(self.timing.look_again()).await;
                self.look().await
            };
            match tokio::time::timeout_at(until.into(), renewed).await {
                Ok(Ok(Looked::Held)) => {}
                Ok(Ok(Looked::NotHeld(_))) => break,
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be renewed now"),
                Err(_) => break,
            }
        }
        self.leadership.set(None);
    }

    /// Gives the lease back. Nothing of this replica may act any more.
    pub async fn release(&mut self) {
        if self.leadership.until().is_none() {
            return;
        }
        self.leadership.set(None);
        let given = tokio::time::timeout(self.timing.look_again(), async {
            let mut lease = self.leases.get(&self.name).await?;
            let Some(spec) = lease.spec.as_ref().and_then(|s| self.candidate.release(s)) else {
                return Ok(());
            };
            lease.spec = Some(spec);
            self.leases
                .replace(&self.name, &PostParams::default(), &lease)
                .await
                .map(|_| ())
        });
        match given.await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "the lease is given back"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the lease could not be given back; it runs out by itself");
            }
            Err(_) => tracing::warn!("the lease could not be given back in time"),
        }
    }

    /// Looks at the Lease, and takes or renews it where it may.
    async fn look(&mut self) -> Result<Looked, kube::Error> {
        let began = Instant::now();
        let found = self.leases.get_opt(&self.name).await?;
        let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
        let step = self
            .candidate
            .decide(spec, Instant::now(), Timestamp::now());
        let spec = match step {
            Step::Write(spec) => spec,
            Step::Wait(pause) => {
                self.leadership.set(None);
                return Ok(Looked::NotHeld(pause));
            }
        };
        let post = PostParams::default();
        let written = match found {
            // The resourceVersion goes along: of two who take it, one does.
            Some(lease) => {
                let lease = Lease {
                    spec: Some(spec),
                    ..lease
                };
                self.leases.replace(&self.name, &post, &lease).await
            }
            None => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(spec),
                };
                self.leases.create(&post, &lease).await
            }
        };
        match written {
            Ok(_) => {
                self.leadership.set(Some(began + self.timing.deadline()));
                Ok(Looked::Held)
            }
            // Somebody was faster; if that was us, the next look shows it.
            Err(kube::Error::Api(status)) if status.code == 409 => match self.leadership.until() {
                Some(_) => Ok(Looked::Held),
                None => Ok(Looked::NotHeld(Duration::ZERO)),
            },
            Err(error) => Err(error),
        }
    }
}
