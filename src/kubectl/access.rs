//! The cluster and namespace that the caller means, as kubectl would have it.

use kube::Client;
use kube::api::{Api, ListParams};

use super::args::Reach;
use super::error::{PluginError, in_full};
use crate::kubernetes::{self, ApiMetrics};
use crate::reach;
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
        // As for kubectl, what is given empty is not given.
        let context = reach.context.as_deref().filter(|name| !name.is_empty());
        let config = reach::config(reach.kubeconfig.as_deref(), context).await;
        let mut config = config.map_err(|error| PluginError::Kubeconfig(in_full(&error)))?;
        kubernetes::end_silent_connections(&mut config);
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_string();
        let default = [config.default_namespace.as_str(), "default"];
        let namespace = reach.namespace.as_deref().into_iter().chain(default);
        let namespace = namespace.into_iter().find(|name| !name.is_empty());
        let namespace = namespace.unwrap_or_default().to_string();
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

    /// A command of this plug-in, such as `wait NAME`, to be repeated as it stands.
    pub fn command(&self, act: &str) -> String {
        let mut command = format!("{} {act} -n {}", self.said, self.namespace);
        let context = self.reach.context.as_deref();
        if let Some(context) = context.filter(|name| !name.is_empty()) {
            command = format!("{command} --context {}", quoted(context));
        }
        if let Some(file) = &self.reach.kubeconfig {
            command = format!("{command} --kubeconfig {}", quoted(&file.to_string_lossy()));
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
            list: self.command("status"),
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

/// A word as a shell takes it for one.
fn quoted(word: &str) -> String {
    let fits = |c: char| c.is_alphanumeric() || "-_./:@%+=,".contains(c);
    match !word.is_empty() && word.chars().all(fits) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_what_is_quoted_for_one_word() {
        assert_eq!(quoted("arn:aws:eks/c@1"), "arn:aws:eks/c@1");
        assert_eq!(quoted("my cluster"), "'my cluster'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
