//! What stands between an operator and the Kubernetes API in tests: it hands on
//! what it is asked, by the credential of a client, and what it answers may be
//! altered; or all of it as it comes.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, Response, Uri};

/// Hands on a request, and gives the answer as it comes.
pub async fn forward(
    client: &kube::Client,
    method: Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let path = uri.path_and_query().expect("a path").as_str();
    let mut request = Request::builder().method(method).uri(path);
    for name in ["content-type", "accept"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let request = request
        .body(kube::client::Body::from(body.to_vec()))
        .expect("a request");
    let answer = client.send(request).await.expect("the API server answers");
    answer.map(Body::new)
}

/// Serves until the test ends; where.
pub async fn serve(router: axum::Router) -> String {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(socket, router).await });
    format!("http://{address}")
}

/// Hands on what is sent to it, byte for byte, to `there` (`host:port`), until
/// the test ends; where it listens.
pub async fn pipe(there: String) -> std::net::SocketAddr {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut here, _)) = socket.accept().await {
            let there = there.clone();
            tokio::spawn(async move {
                let mut there = tokio::net::TcpStream::connect(there).await?;
                tokio::io::copy_bidirectional(&mut here, &mut there).await
            });
        }
    });
    address
}
