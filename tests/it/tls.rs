//! TLS: a certificate that is replaced while connections are open.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use relance::listener;
use relance::tls::{Files, Tls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::operator::PATIENCE;

/// openssl in a folder.
fn openssl(folder: &Path, line: &str) {
    let output = Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// A certificate of that serial number for `localhost`, put in place as
/// `tls.crt` and `tls.key`.
fn certificate(folder: &Path, serial: u8) {
    openssl(
        folder,
        &format!("req {NEW_KEY} -keyout new.key -out new.csr -subj /CN=localhost"),
    );
    std::fs::write(folder.join("ext"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        folder,
        &format!(
            "x509 -req -in new.csr -CA ca.crt -CAkey ca.key -set_serial {serial} -days 2 -extfile ext -out new.crt"
        ),
    );
    for file in ["key", "crt"] {
        let [new, tls] = ["new", "tls"].map(|name| folder.join(format!("{name}.{file}")));
        std::fs::rename(new, tls).unwrap();
    }
}

struct Client {
    connector: TlsConnector,
    port: u16,
}

impl Client {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        self.connector.connect(name, stream).await.unwrap()
    }

    /// The serial number of the certificate that a new connection is shown.
    async fn serial(&self) -> u8 {
        let stream = self.connect().await;
        let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
        // In DER, the serial number follows [0] { version }.
        let at = shown
            .windows(6)
            .position(|w| w[..5] == [0xa0, 3, 2, 1, 2] && w[5] == 2);
        shown[at.unwrap() + 7]
    }

    async fn until(&self, serial: u8) {
        let start = Instant::now();
        while self.serial().await != serial {
            assert!(
                start.elapsed() < PATIENCE,
                "certificate {serial} is not used"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>) {
    let request = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        let mut some = [0; 1024];
        let read = stream.read(&mut some).await.unwrap();
        assert!(read > 0, "the connection was closed");
        answer.extend_from_slice(&some[..read]);
    }
}

#[tokio::test]
async fn a_certificate_is_replaced_without_a_restart_and_without_dropping_connections() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    openssl(
        folder,
        &format!("req -x509 {NEW_KEY} -days 2 -keyout ca.key -out ca.crt -subj /CN=test"),
    );
    certificate(folder, 1);
    let files = Files {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
    };
    let tls = Arc::new(Tls::load(files).unwrap());
    let shutdown = CancellationToken::new();
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let router = Router::new().route("/", get(|| async { "hello" }));
    let acceptor = Some(tls.acceptor());
    let served = tokio::spawn(listener::serve(socket, router, acceptor, shutdown.clone()));
    let following = tokio::spawn(tls.follow(shutdown.clone()));

    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(folder.join("ca.crt")).unwrap();
    roots
        .add(CertificateDer::from_pem_slice(&ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Client {
        connector: TlsConnector::from(Arc::new(config)),
        port,
    };
    assert_eq!(client.serial().await, 1);
    let mut open = client.connect().await;
    ask(&mut open).await;

    certificate(folder, 2);
    client.until(2).await;
    ask(&mut open).await;

    // Half written, or another's key: what was loaded stays.
    std::fs::write(folder.join("tls.crt"), "not a certificate").unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(client.serial().await, 2);
    certificate(folder, 3);
    client.until(3).await;
    ask(&mut open).await;

    // Without TLS there is no answer, and the next one is served.
    let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(!String::from_utf8_lossy(&said).contains("hello"));
    ask(&mut client.connect().await).await;

    shutdown.cancel();
    served.await.unwrap();
    following.await.unwrap();
}

#[test]
fn files_that_are_no_pair_are_refused_by_name_and_without_their_content() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    openssl(
        folder,
        &format!("req -x509 {NEW_KEY} -days 2 -keyout ca.key -out ca.crt -subj /CN=test"),
    );
    std::fs::write(folder.join("hush"), "hush").unwrap();
    certificate(folder, 1);
    for (certificate, key, said) in [
        ("tls.crt", "none", "none cannot be read"),
        ("hush", "tls.key", "holds no PEM certificate"),
        ("tls.crt", "hush", "holds no PEM private key"),
        ("tls.crt", "ca.key", "cannot be used together"),
    ] {
        let error = Tls::load(Files {
            certificate: folder.join(certificate),
            key: folder.join(key),
        })
        .unwrap_err();
        let error = error.to_string();
        assert!(error.contains(said), "{error}");
        assert!(!error.contains("PRIVATE"), "{error}");
    }
}
