//! The clusters that Jobs run in, each connected once.
//!
//! A RefreshCluster of another cluster is connected when it is first needed:
//! the Secret with its kubeconfig is read by its name, and read again from
//! time to time and whenever the cluster is silent, so that a rotation needs no
//! restart. A Secret that is gone for a moment (deleted and made anew) changes
//! nothing; one that stays away is the end of the connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;

use super::election::Leadership;
use crate::launch::kubeconfig;
use crate::launch::target::{Remote, Target, Touched};
use crate::resources::{KubeconfigRef, RefreshClusterSpec, names};

/// How often a Secret is read again.
const READ_AGAIN: Duration = Duration::from_secs(20);

/// How often while its cluster is silent.
const READ_SOON: Duration = Duration::from_secs(2);

/// How long a Secret may be missing before it counts as gone.
const SECRET_PATIENCE: Duration = Duration::from_secs(30);

/// What is known of how to reach a RefreshCluster's cluster.
#[derive(Clone, Debug)]
pub enum Reach {
    /// So; whether it answers is the target's to know.
    By(Arc<Target>),
    /// Not now: its Secret is missing.
    Missing(String),
    /// Not now: its Secret cannot be read.
    Unread(String),
    /// Nobody can say: the RefreshCluster, or for long its Secret, is not there.
    Gone(String),
    /// Its kubeconfig is not one that is taken.
    Refused(String),
}

/// Where a RefreshCluster's kubeconfig is, and the namespace it is for.
type Source = (KubeconfigRef, Option<String>);

struct Entry {
    source: Source,
    read: Instant,
    /// Since when the Secret has been missing.
    missing: Option<Instant>,
    /// Of the kubeconfig that `reach` was made from.
    digest: Option<[u8; 32]>,
    reach: Reach,
}

/// See the module.
pub struct Targets {
    /// No other cluster hears of this replica either once it does not lead.
    leadership: Leadership,
    home: Arc<Target>,
    labels: String,
    secrets: Api<Secret>,
    touched: UnboundedSender<Touched>,
    remote: Mutex<HashMap<String, Entry>>,
    /// Held while a Secret is read, so that it is read once for all that wait.
    reading: tokio::sync::Mutex<()>,
}

impl Targets {
    /// The Jobs of home cluster `home` here and, as they are needed, elsewhere.
    pub fn new(
        client: Client,
        leadership: Leadership,
        namespace: &str,
        home: &str,
        touched: UnboundedSender<Touched>,
    ) -> Self {
        let labels = names::launched_from(home);
        let here = Target::new(client.clone(), namespace, &labels, None, &touched);
        Self {
            leadership,
            home: Arc::new(here),
            secrets: Api::namespaced(client, namespace),
            labels,
            touched,
            remote: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// This cluster.
    pub fn home(&self) -> &Arc<Target> {
        &self.home
    }

    /// How to reach the cluster of RefreshCluster `name`; `spec` as it is now,
    /// None if it is gone.
    pub async fn reach(&self, name: &str, spec: Option<&RefreshClusterSpec>) -> Reach {
        let Some(spec) = spec else {
            self.forget(name);
            return Reach::Gone(format!("RefreshCluster '{name}' is gone"));
        };
        let Some(kubeconfig) = &spec.kubeconfig_secret_ref else {
            self.forget(name);
            return Reach::Gone(format!(
                "RefreshCluster '{name}' speaks of another cluster no longer"
            ));
        };
        if !names::is_secret_name(&kubeconfig.name) {
            // From before a rule forbade it: no request can be made of it.
            self.forget(name);
            return Reach::Refused(format!(
                "spec.kubeconfigSecretRef.name is '{}', which no Secret can be called; name the Secret with the kubeconfig",
                kubeconfig.name
            ));
        }
        let source = (kubeconfig.clone(), spec.namespace.clone());
        if let Some(reach) = self.fresh(name, &source) {
            return reach;
        }
        let _one = self.reading.lock().await;
        if let Some(reach) = self.fresh(name, &source) {
            return reach;
        }
        self.read(name, source).await
    }

    /// What is known, if it was read lately.
    fn fresh(&self, name: &str, source: &Source) -> Option<Reach> {
        let remote = self.remote();
        let entry = remote.get(name).filter(|entry| entry.source == *source)?;
        let doubtful = match &entry.reach {
            Reach::By(target) => target.silent().is_some() || entry.missing.is_some(),
            _ => true,
        };
        let keep = if doubtful { READ_SOON } else { READ_AGAIN };
        (entry.read.elapsed() < keep).then(|| entry.reach.clone())
    }

    async fn read(&self, name: &str, source: Source) -> Reach {
        let (kubeconfig, namespace) = &source;
        let found = self.secrets.get_opt(&kubeconfig.name).await;
        let before = self.remote().remove(name);
        let before = before.filter(|entry| entry.source == source);
        let kept = before.as_ref().and_then(|entry| match &entry.reach {
            Reach::By(target) => Some(target.clone()),
            _ => None,
        });
        let bytes = found.map(|secret| secret.and_then(|s| s.data?.remove(&kubeconfig.key)));
        let mut missing = None;
        let mut digest = None;
        let reach = match bytes {
            Ok(Some(bytes)) => {
                let sum: [u8; 32] = Sha256::digest(&bytes.0).into();
                digest = Some(sum);
                match before.filter(|entry| entry.digest == digest) {
                    Some(entry) => entry.reach,
                    None => self.connect(name, namespace.as_deref(), &bytes.0),
                }
            }
            Ok(None) => {
                let since = before.as_ref().and_then(|entry| entry.missing);
                let since = since.unwrap_or_else(Instant::now);
                missing = Some(since);
                let why = format!(
                    "Secret '{}' with the kubeconfig of RefreshCluster '{name}' is not there, or has no key '{}'",
                    kubeconfig.name, kubeconfig.key
                );
                match kept {
                    _ if since.elapsed() > SECRET_PATIENCE => Reach::Gone(why),
                    Some(target) => {
                        digest = before.and_then(|entry| entry.digest);
                        Reach::By(target)
                    }
                    None => Reach::Missing(why),
                }
            }
            // Home does not answer: what was known still holds.
            Err(error) => match (kept, before) {
                (Some(target), before) => {
                    digest = before.and_then(|entry| entry.digest);
                    Reach::By(target)
                }
                (None, _) => Reach::Unread(format!(
                    "Secret '{}' with the kubeconfig of RefreshCluster '{name}' cannot be read: {error}; see to it that relance may get it",
                    kubeconfig.name
                )),
            },
        };
        let entry = Entry {
            source,
            read: Instant::now(),
            missing,
            digest,
            reach: reach.clone(),
        };
        self.remote().insert(name.to_string(), entry);
        reach
    }

    fn connect(&self, name: &str, namespace: Option<&str>, bytes: &[u8]) -> Reach {
        let mut config = match kubeconfig::config(bytes) {
            Ok(config) => config,
            Err(refusal) => return Reach::Refused(refusal.to_string()),
        };
        // As at home: kube's own retries may sleep for minutes.
        config.default_retry = false;
        let namespace = namespace.unwrap_or(&config.default_namespace).to_string();
        let server = kubeconfig::server_digest(&config);
        let Ok(client) = Client::try_from(config) else {
            // Its words could repeat a key.
            return Reach::Refused(
                "the kubeconfig's client-certificate-data and client-key-data make no client; write it with `kubectl config view --minify --flatten`".to_string(),
            );
        };
        let client = self.leadership.fence(client);
        tracing::info!(cluster = name, namespace, "connecting to a cluster");
        let remote = Some(Remote {
            name: name.to_string(),
            server,
        });
        let target = Target::new(client, &namespace, &self.labels, remote, &self.touched);
        Reach::By(Arc::new(target))
    }

    /// Ends the watches of a RefreshCluster that is gone.
    pub fn forget(&self, name: &str) {
        self.remote().remove(name);
    }

    /// The RefreshClusters that nothing can be launched through now, and why.
    pub fn closed(&self) -> BTreeMap<String, String> {
        let remote = self.remote();
        let closed = remote.iter().filter_map(|(name, entry)| {
            let why = match &entry.reach {
                Reach::By(target) => target.silent()?,
                Reach::Missing(why) | Reach::Unread(why) => why.clone(),
                // Those who would go there are told so in their turn.
                Reach::Gone(_) | Reach::Refused(_) => return None,
            };
            Some((name.clone(), why))
        });
        closed.collect()
    }

    /// The other clusters that are connected.
    pub fn connected(&self) -> Vec<Arc<Target>> {
        let remote = self.remote();
        let targets = remote.values().filter_map(|entry| match &entry.reach {
            Reach::By(target) => Some(target.clone()),
            _ => None,
        });
        targets.collect()
    }

    fn remote(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
