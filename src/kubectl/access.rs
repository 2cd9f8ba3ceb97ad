//! The cluster and namespace that the caller means, as kubectl would have it.

use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::args::Reach;
use super::error::{PluginError, in_full};
use crate::kubernetes::{self, ApiMetrics};
use crate::resources::{MaterializedViewRefresh, RefreshCluster, names};
use crate::telemetry::Metrics;

/// Refreshes in one pass of a list.
const PAGE: u32 = 500;

/// See the module.
pub struct Access {
    pub client: Client,
    pub namespace: String,
    pub refreshes: Api<MaterializedViewRefresh>,
    pub clusters: Api<RefreshCluster>,
    /// How the plug-in is called.
    pub said: String,
    reach: Reach,
    server: String,
}

impl Access {
    /// A client for the caller; asks nothing yet.
    pub async fn connect(reach: &Reach, said: &str) -> Result<Self, PluginError> {
        let config = config(reach).await?;
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_string();
        let namespace = reach.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let metrics = ApiMetrics::register(&Metrics::default());
        let client = kubernetes::client(config, names::KUBECTL_MANAGER, &metrics)
            .map_err(|error| PluginError::Kubeconfig(in_full(&error)))?;
        Ok(Self {
            refreshes: Api::namespaced(client.clone(), &namespace),
            clusters: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
            said: said.to_string(),
            reach: reach.clone(),
            server,
        })
    }

    /// The same caller by another context, whose namespace is not theirs to know.
    pub async fn by_context(&self, context: &str) -> Result<Self, PluginError> {
        let reach = Reach {
            kubeconfig: self.reach.kubeconfig.clone(),
            context: Some(context.to_string()),
            namespace: None,
        };
        Self::connect(&reach, &self.said).await
    }

    /// A command of this plug-in about `name`, to be repeated as it stands.
    pub fn command(&self, act: &str, name: &str) -> String {
        let mut command = format!("{} {act} {name} -n {}", self.said, self.namespace);
        if let Some(context) = &self.reach.context {
            command = format!("{command} --context {context}");
        }
        if let Some(file) = &self.reach.kubeconfig {
            command = format!("{command} --kubeconfig {}", file.display());
        }
        command
    }

    /// What an error of the API means.
    pub fn error(&self, error: &kube::Error) -> PluginError {
        PluginError::of(error, &self.server)
    }

    /// What it means where it is about refresh `name`.
    pub fn error_of(&self, name: &str, error: &kube::Error) -> PluginError {
        match error {
            kube::Error::Api(status) if status.code == 404 && status.details.is_some() => {
                self.not_found(name)
            }
            error => self.error(error),
        }
    }

    /// There is no refresh `name`.
    pub fn not_found(&self, name: &str) -> PluginError {
        PluginError::NotFound {
            name: name.to_string(),
            namespace: self.namespace.clone(),
            said: self.said.clone(),
        }
    }

    /// The refresh of that name.
    pub async fn get(&self, name: &str) -> Result<MaterializedViewRefresh, PluginError> {
        let found = self.refreshes.get(name).await;
        found.map_err(|error| self.error_of(name, &error))
    }

    /// All refreshes of the namespace.
    pub async fn list(&self) -> Result<Vec<MaterializedViewRefresh>, PluginError> {
        let mut params = ListParams::default().limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = self.refreshes.list(&params).await;
            let page = page.map_err(|error| self.error(&error))?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}

/// As kubectl: what the flags name, else the kubeconfig of the environment or
/// home folder, else the pod's service account.
async fn config(reach: &Reach) -> Result<Config, PluginError> {
    let options = KubeConfigOptions {
        context: reach.context.clone(),
        ..KubeConfigOptions::default()
    };
    let wrong = |error: &dyn std::error::Error| PluginError::Kubeconfig(in_full(error));
    match (&reach.kubeconfig, &reach.context) {
        (Some(file), _) => {
            let file = Kubeconfig::read_from(file).map_err(|error| wrong(&error))?;
            let config = Config::from_custom_kubeconfig(file, &options).await;
            config.map_err(|error| wrong(&error))
        }
        (None, Some(_)) => {
            let config = Config::from_kubeconfig(&options).await;
            config.map_err(|error| wrong(&error))
        }
        (None, None) => Config::infer().await.map_err(|error| wrong(&error)),
    }
}
