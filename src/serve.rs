//! `relance serve`: REST, controller or both in one process, and the health
//! listener beside them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::catalog::SharedCatalog;
use crate::cli::{AccessArgs, LOG_FORMAT_ENV, LogFormat, ServeArgs, Way};
use crate::controller::election::{Election, Leadership};
use crate::controller::lease::Timing;
use crate::controller::metrics::ControllerMetrics;
use crate::controller::{self, ControllerConfig, ControllerError};
use crate::engine::error::EngineError;
use crate::kubernetes::ApiMetrics;
use crate::protocol::exit;
use crate::reach::{self, ReachError};
use crate::resources::names;
use crate::rest::auth::limits::CallerLimits;
use crate::rest::auth::{Access, Settings};
use crate::telemetry::otlp::{self, TraceError};
use crate::telemetry::{self, Metrics, trace};
use crate::tls::{Files, Tls, TlsError};
use crate::{health, kubernetes, listener, rest};

/// Why the operator cannot run.
#[derive(Debug, Error)]
pub enum ServeError {
    /// No kubeconfig and no service account.
    #[error(
        "no Kubernetes to talk to: {0}; set KUBECONFIG, or run in a pod with a service account"
    )]
    NoKubernetes(#[from] ReachError),
    /// The configuration makes no client.
    #[error("the Kubernetes configuration is not usable: {0}")]
    Client(#[from] kube::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The controller cannot start.
    #[error("the controller cannot start: {0}")]
    Controller(#[from] ControllerError),
    /// Nobody said who is let in.
    #[error(
        "who may use the REST API is not said: give --auth tokens, --auth keys or both, or --open-access to let everybody in to everything"
    )]
    NoAccess,
    /// Credentials are to be forwarded to a directory.
    #[error(
        "--forward-credentials shows callers' credentials to a REST catalog, and --catalog names a directory, which takes none: give the REST catalog's URL (https://…), or leave the flag out"
    )]
    NothingToForwardTo,
    /// The catalog's URI cannot be one.
    #[error(transparent)]
    Catalog(#[from] EngineError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Traces are asked for, and cannot be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// Signals cannot be waited for.
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
}

impl ServeError {
    /// What the process ends with.
    pub fn exit_code(&self) -> i32 {
        match self {
            ServeError::NoAccess | ServeError::NothingToForwardTo | ServeError::Catalog(_) => {
                exit::USAGE
            }
            _ => exit::UNAVAILABLE,
        }
    }
}

/// Runs until SIGTERM or SIGINT, and then to the end of what is at work.
pub async fn serve(args: &ServeArgs, log_format: LogFormat) -> Result<(), ServeError> {
    // First of all: the kernel keeps from a container's first process each
    // signal that it has no handler for.
    let shutdown = CancellationToken::new();
    end_on_signals(shutdown.clone())?;
    if args.rest() && args.access.auth.is_empty() && !args.access.open_access {
        return Err(ServeError::NoAccess);
    }
    let source = args.catalog.source();
    source.check()?;
    if !source.is_remote() && args.access.forward_credentials {
        return Err(ServeError::NothingToForwardTo);
    }
    let tls = tls(&args.access)?;
    telemetry::start_tracing()?;
    let mut config = reach::config(None, None).await?;
    kubernetes::end_silent_connections(&mut config);
    let namespace = args
        .namespace
        .clone()
        .unwrap_or_else(|| config.default_namespace.clone());
    let metrics = Arc::new(Metrics::default());
    let api_metrics = ApiMetrics::register(&metrics);
    // Each its own, so that what one waits for holds up no other: a burst of
    // refreshes must neither cost the lease nor the health.
    let client = |half| kubernetes::client(config.clone(), half, &api_metrics);
    let rest_client = client(names::REST_MANAGER)?;
    let access_client = client(names::REST_MANAGER)?;
    let health_client = client(names::REST_MANAGER)?;
    let controller_client = client(names::CONTROLLER_MANAGER)?;
    let lease_client = client(names::CONTROLLER_MANAGER)?;
    let catalog = SharedCatalog::new(source, &metrics);

    // All addresses are taken before anything runs, so that a wrong one ends it all.
    let health_listener = listen(args.health_listen).await?;
    let rest_listener = match args.rest() {
        true => Some(listen(args.listen).await?),
        false => None,
    };
    let health = health::router(health::Health {
        client: health_client,
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    });
    // Health outlives the rest, to be asked during the shutdown too.
    let health_shutdown = CancellationToken::new();
    let health = tokio::spawn(listener::serve(
        health_listener,
        health,
        None,
        health_shutdown.clone(),
    ));
    let watch = tokio::spawn(catalog.clone().watch(shutdown.clone()));

    let rest = async {
        let Some(listener) = rest_listener else {
            return;
        };
        let api = Arc::new(rest::Api::new(
            rest_client.clone(),
            &namespace,
            catalog.clone(),
            access(&args.access, access_client, &namespace),
            args.access.forward_credentials,
            &metrics,
        ));
        let router = rest::router(api.clone());
        let acceptor = tls.as_ref().map(|tls| tls.acceptor());
        if let Some(tls) = tls {
            tokio::spawn(Arc::new(tls).follow(shutdown.clone()));
        }
        listener::serve(listener, router, acceptor, shutdown.clone()).await;
        api.tasks.close();
        api.tasks.wait().await;
    };
    let controller = async {
        if !args.controller() {
            return Ok(());
        }
        let config = ControllerConfig {
            namespace: namespace.clone(),
            image: args.worker_image.clone(),
            catalog: catalog.clone(),
            shutdown: shutdown.clone(),
            metrics: ControllerMetrics::new(&metrics),
            worker_environment: worker_environment(log_format),
        };
        let timing = Timing {
            lease: Duration::from_secs(args.lease_seconds.into()),
        };
        let leadership = Leadership::register(&metrics);
        let election = Election::new(lease_client, &namespace, &args.lease, timing, leadership);
        let ended = controller::lead(controller_client.clone(), config, election).await;
        if ended.is_err() {
            // Half an operator is none: whoever runs this one shall see that it ended.
            shutdown.cancel();
        }
        ended
    };
    if args.rest() && !args.listen.ip().is_loopback() {
        if args.access.open_access {
            tracing::warn!(
                address = %args.listen,
                "the REST API listens beyond this machine and authenticates nobody: let only those reach it who may refresh every view"
            );
        } else if args.access.tls_certificate.is_none() {
            tracing::warn!(
                address = %args.listen,
                "the REST API listens beyond this machine without TLS: callers' credentials can be read on their way unless something in front encrypts"
            );
        }
    }
    tracing::info!(
        namespace,
        rest = args.rest().then(|| args.listen.to_string()),
        controller = args.controller(),
        health = %args.health_listen,
        "relance serves"
    );
    let ((), controlled) = tokio::join!(rest, controller);
    if controlled.is_ok() {
        shutdown.cancelled().await;
    }
    health_shutdown.cancel();
    let _ = tokio::join!(health, watch, trace::flush());
    Ok(controlled?)
}

fn access(args: &AccessArgs, client: Client, namespace: &str) -> Access {
    if args.open_access {
        return Access::open();
    }
    let settings = Settings {
        audience: args
            .auth
            .contains(&Way::Tokens)
            .then(|| args.audience.clone()),
        keys: args.auth.contains(&Way::Keys),
        limits: CallerLimits {
            per_second: args.caller_rate,
            at_a_time: args.caller_concurrency,
        },
    };
    Access::guarded(client, namespace, settings)
}

fn tls(args: &AccessArgs) -> Result<Option<Tls>, TlsError> {
    match (&args.tls_certificate, &args.tls_key) {
        (Some(certificate), Some(key)) => Ok(Some(Tls::load(Files {
            certificate: certificate.clone(),
            key: key.clone(),
        })?)),
        _ => Ok(None),
    }
}

/// What of this process's own settings its workers share.
fn worker_environment(log_format: LogFormat) -> Vec<(String, String)> {
    let mut environment = Vec::new();
    if log_format == LogFormat::Json {
        environment.push((LOG_FORMAT_ENV.to_string(), "json".to_string()));
    }
    if trace::is_on()
        && let Ok(endpoint) = std::env::var(otlp::ENDPOINT_ENV)
    {
        environment.push((otlp::ENDPOINT_ENV.to_string(), endpoint));
    }
    environment
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })?;
    Ok(listener)
}

fn end_on_signals(shutdown: CancellationToken) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down");
        shutdown.cancel();
    });
    Ok(())
}
