//! An HTTP listener that drops nothing it has taken, and keeps no connection
//! that asks for nothing.
//!
//! At shutdown: connections that the kernel has already accepted are taken
//! too, each that has not begun a request gets a moment to, no connection
//! carries a further one, and those at work are waited for.
//!
//! hyper limits how long the head of an HTTP/1 request may take, and neither
//! how long a connection may take to say which HTTP it speaks nor how long one
//! of HTTP/2 stays without a request. So each is watched for requests at work,
//! and closed once there was none for long: also where its peer has vanished.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// How long a connection may take to send a request's head or to take an
/// answer, or stay idle. Longer than common clients keep idle connections for use.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How long requests at work are waited for: less than the 30 seconds that
/// Kubernetes gives a pod to end.
const DRAIN: Duration = Duration::from_secs(25);

/// How long a connection may take at shutdown to begin its first request: what
/// was sent may be on its way, and hyper closes unread what it is told to end
/// before the first byte.
const MOMENT: Duration = Duration::from_secs(1);

/// Most connections that the kernel keeps for a listener of tokio's.
const BACKLOG: usize = 1024;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a request's head.
const HEAD_LIMIT: usize = 64 * 1024;

/// Where a request comes from; among its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Serves `router` until `shutdown`, and then what is still at work; over TLS
/// if there is an acceptor for it.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<TlsAcceptor>,
    shutdown: CancellationToken,
) {
    let serving = Serving {
        router,
        tls,
        shutdown,
        patience: HEAD_TIMEOUT,
    };
    serving.accept(listener).await;
}

/// What each connection is served by.
#[derive(Clone)]
struct Serving {
    router: Router,
    tls: Option<TlsAcceptor>,
    shutdown: CancellationToken,
    /// [`HEAD_TIMEOUT`].
    patience: Duration,
}

impl Serving {
    async fn accept(self, listener: TcpListener) {
        let connections = TaskTracker::new();
        let take = |stream, peer| {
            connections.spawn(self.clone().accepted(stream, peer));
        };
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => take(stream, peer),
                    Err(error) => {
                        // Out of file descriptors, most likely: some will be closed.
                        tracing::warn!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        for (stream, peer) in waiting(listener) {
            take(stream, peer);
        }
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                open = connections.len(),
                "connections were still at work at the end"
            );
        }
    }

    async fn accepted(self, stream: TcpStream, peer: SocketAddr) {
        let Some(tls) = &self.tls else {
            return self.connection(stream, peer).await;
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.connection(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%error, %peer, "a TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
        }
    }

    async fn connection(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
    ) {
        let (at_work, mut seen) = watch::channel(0);
        let mut begun = at_work.subscribe();
        let service = service_fn(|request: Request<Incoming>| {
            let at_work = AtWork::begin(&at_work);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Peer(peer));
            let answer = self.router.clone().oneshot(request);
            async move {
                let answer = answer.await;
                drop(at_work);
                answer
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .max_buf_size(HEAD_LIMIT)
            .header_read_timeout(self.patience);
        builder.http2().max_header_list_size(HEAD_LIMIT as u32);
        let serving = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(serving);
        let ended = tokio::select! {
            biased;
            ended = &mut serving => ended,
            () = self.shutdown.cancelled() => {
                tokio::select! {
                    biased;
                    ended = &mut serving => ended,
                    // At once, if there ever was a request.
                    _ = tokio::time::timeout(MOMENT, begun.changed()) => {
                        serving.as_mut().graceful_shutdown();
                        serving.await
                    }
                }
            }
            () = idle(&mut seen, self.patience) => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = &mut serving => ended,
                    // It does not take its leave; a request that crossed ours is answered yet.
                    () = idle(&mut seen, self.patience / 10) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke off");
        }
    }
}

/// The connections that the kernel has accepted, to the last one: tokio would
/// answer from what it heard of them before. The listener is closed then.
fn waiting(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let mut waiting = Vec::new();
    let taken = listener.into_std().and_then(|listener| {
        // More than that are such as come while these are taken.
        while waiting.len() < BACKLOG {
            match listener.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(true)?;
                    waiting.push((TcpStream::from_std(stream)?, peer));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Whoever gave up while waiting.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    });
    if let Err(error) = taken {
        tracing::warn!(%error, "not all waiting connections can be accepted at the end");
    }
    waiting
}

/// A request at work on a connection, until it is dropped.
struct AtWork(watch::Sender<usize>);

impl AtWork {
    fn begin(at_work: &watch::Sender<usize>) -> Self {
        at_work.send_modify(|requests| *requests += 1);
        Self(at_work.clone())
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.send_modify(|requests| *requests -= 1);
    }
}

/// Waits until no request has been at work for so long.
async fn idle(at_work: &mut watch::Receiver<usize>, patience: Duration) {
    loop {
        let patience = match *at_work.borrow_and_update() {
            0 => patience,
            _ => Duration::MAX,
        };
        let changed = tokio::time::timeout(patience, at_work.changed()).await;
        if !matches!(changed, Ok(Ok(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    /// A SETTINGS frame of HTTP/2 that sets nothing.
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

    /// A connection to a listener that is patient for so long, and whose `/`
    /// takes four times that.
    async fn connect(patience: Duration) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = move || async move {
            tokio::time::sleep(4 * patience).await;
            "done"
        };
        let serving = Serving {
            router: Router::new().route("/", get(slow)),
            tls: None,
            shutdown: CancellationToken::new(),
            patience,
        };
        tokio::spawn(serving.accept(listener));
        TcpStream::connect(address).await.unwrap()
    }

    /// What the listener says to what is sent, until it closes the connection.
    async fn told(sent: &[u8]) -> Vec<u8> {
        let mut stream = connect(Duration::from_millis(200)).await;
        stream.write_all(sent).await.unwrap();
        let mut said = Vec::new();
        let end = stream.read_to_end(&mut said);
        let end = tokio::time::timeout(Duration::from_secs(30), end).await;
        end.expect("it is closed").unwrap();
        said
    }

    #[tokio::test]
    async fn a_connection_that_asks_for_nothing_is_closed() {
        assert!(told(b"").await.is_empty());
        assert!(told(&PREFACE[..10]).await.is_empty());
        told(b"GET / HTTP/1.1\r\nhost: h\r\n").await;
    }

    #[tokio::test]
    async fn a_connection_of_http_2_without_a_request_is_closed() {
        let said = told(&[PREFACE, SETTINGS].concat()).await;
        assert_eq!(said.get(3), Some(&4), "it speaks HTTP/2: {said:?}");
        told(PREFACE).await;
    }

    #[tokio::test]
    async fn a_request_that_takes_long_is_answered() {
        let said = told(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert!(
            said.ends_with(b"done"),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }

    /// Each of so many that connect, and send a request so long after the end
    /// of a listener, is answered.
    async fn answered_at_the_end(connections: usize, after: Duration) {
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut streams = Vec::new();
        for _ in 0..connections {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if after.is_zero() {
                stream.write_all(REQUEST).await.unwrap();
            }
            streams.push(stream);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let serving = Serving {
            router: Router::new().route("/", get(|| async { "done" })),
            tls: None,
            shutdown: CancellationToken::new(),
            patience: HEAD_TIMEOUT,
        };
        serving.shutdown.cancel();
        let ended = tokio::spawn(serving.accept(listener));
        tokio::time::sleep(after).await;
        let mut answered = 0;
        for mut stream in streams {
            if !after.is_zero() {
                let _ = stream.write_all(REQUEST).await;
            }
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            answered += usize::from(said.ends_with(b"done"));
        }
        assert_eq!(answered, connections);
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_at_the_end_with_a_request_is_answered() {
        answered_at_the_end(50, Duration::ZERO).await;
    }

    #[tokio::test]
    async fn who_is_about_to_ask_at_the_end_is_answered() {
        answered_at_the_end(1, Duration::from_millis(50)).await;
    }

    #[tokio::test]
    async fn who_asks_for_nothing_at_the_end_is_not_waited_for_long() {
        let started = std::time::Instant::now();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _silent = TcpStream::connect(address).await.unwrap();
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        serve(listener, Router::new(), None, shutdown).await;
        assert!(started.elapsed() < 5 * MOMENT, "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn each_request_begins_the_time_anew_and_none_that_works_counts() {
        let (at_work, mut seen) = watch::channel(0);
        let patience = Duration::from_secs(1);
        let start = std::time::Instant::now();
        let requests = async {
            tokio::time::sleep(patience / 2).await;
            drop(AtWork::begin(&at_work));
            tokio::time::sleep(patience / 2).await;
            let _long = AtWork::begin(&at_work);
            tokio::time::sleep(2 * patience).await;
        };
        let (took, ()) = tokio::join!(
            async {
                idle(&mut seen, patience).await;
                start.elapsed()
            },
            requests
        );
        assert!(took >= 4 * patience, "{took:?}");
    }
}
