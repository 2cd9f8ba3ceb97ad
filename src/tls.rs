//! TLS for a listener, by a certificate that may change while it serves.
//!
//! The files are read again every few seconds: what mounts a Secret swaps them
//! without a sign. Connections that are open stay as they are, new ones get the
//! new certificate. Files that cannot be used leave the old one in place, and
//! are reported once.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How often the files are read.
const INTERVAL: Duration = Duration::from_secs(5);

/// Why a certificate cannot be used. Tells nothing of a file's content.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{file} cannot be read: {why}; give a PEM file that relance may read")]
    Read {
        /// Its path.
        file: PathBuf,
        /// The system's reason.
        why: std::io::Error,
    },
    /// A file holds no certificates.
    #[error("{0} holds no PEM certificate; give the server's, followed by those that signed it")]
    NoCertificate(PathBuf),
    /// A file holds no key.
    #[error("{0} holds no PEM private key; give the certificate's, unencrypted")]
    NoKey(PathBuf),
    /// Key and certificate make no pair that rustls takes.
    #[error("{key} and {certificate} cannot be used together: {why}")]
    Pair {
        /// The key's path.
        key: PathBuf,
        /// The certificate's path.
        certificate: PathBuf,
        /// rustls' reason.
        why: rustls::Error,
    },
    /// rustls cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// The files of a certificate.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM: the server's certificate, then those that signed it.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// A certificate, and the files that it is read from.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Current(RwLock<(Arc<CertifiedKey>, [u8; 32])>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.0.clone())
    }
}

impl Tls {
    /// Reads the files.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let current = Arc::new(Current(RwLock::new(read(&files)?)));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            files,
            current,
            config: Arc::new(config),
        })
    }

    /// What takes connections, with whichever certificate is current.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// Follows the files until `shutdown`.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let mut failed = String::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            match self.reload() {
                Ok(true) => tracing::info!("the certificate has changed"),
                Ok(false) => {}
                Err(error) if error.to_string() == failed => continue,
                Err(error) => {
                    tracing::error!(%error, "the certificate that was loaded before stays in use");
                    failed = error.to_string();
                    continue;
                }
            }
            failed.clear();
        }
    }

    /// Reads the files again; whether they have changed.
    fn reload(&self) -> Result<bool, TlsError> {
        let read = read(&self.files)?;
        let mut current = self
            .current
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let changed = current.1 != read.1;
        if changed {
            *current = read;
        }
        Ok(changed)
    }
}

/// The files' certificate and key, and a hash of both.
fn read(files: &Files) -> Result<(Arc<CertifiedKey>, [u8; 32]), TlsError> {
    let of = |file: &Path| {
        std::fs::read(file).map_err(|why| TlsError::Read {
            file: file.to_path_buf(),
            why,
        })
    };
    let (certificate, key) = (of(&files.certificate)?, of(&files.key)?);
    let hash = Sha256::new()
        .chain_update((certificate.len() as u64).to_be_bytes())
        .chain_update(&certificate)
        .chain_update(&key)
        .finalize();
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NoCertificate(files.certificate.clone()))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(files.certificate.clone()));
    }
    let key =
        PrivateKeyDer::from_pem_slice(&key).map_err(|_| TlsError::NoKey(files.key.clone()))?;
    let provider = rustls::crypto::ring::default_provider();
    let pair = CertifiedKey::from_der(chain, key, &provider).map_err(|why| TlsError::Pair {
        key: files.key.clone(),
        certificate: files.certificate.clone(),
        why,
    })?;
    Ok((Arc::new(pair), hash.into()))
}
