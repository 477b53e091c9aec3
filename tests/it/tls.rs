//! Endpoints behind TLS: who they must be, and who the gateway says it is.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use http::Response;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::{
    RootCertStore, ServerConfig, crypto::ring, pki_types::PrivateKeyDer,
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{Gateway, Message, full};

const GET: &str = "GET /a HTTP/1.1\r\nhost: api.example.com\r\n\r\n";

/// A certificate authority.
pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for a name, and its key.
pub(crate) fn issue(authority: &Authority, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    (params.signed_by(&key, authority).unwrap(), key)
}

/// What a client said of the name and of the protocol.
pub(crate) type Heard = (Option<String>, Option<String>);

/// An endpoint at `users.internal` that wants clients of the same authority.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) heard: Arc<Mutex<Vec<Heard>>>,
    connections: Arc<AtomicUsize>,
}

pub(crate) async fn endpoint(authority: &Authority, alpn: &[&str]) -> Endpoint {
    let (certificate, key) = issue(authority, "users.internal");
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint {
        address: listener.local_addr().unwrap(),
        heard: Arc::default(),
        connections: Arc::default(),
    };
    let heard = Arc::clone(&endpoint.heard);
    let connections = Arc::clone(&endpoint.connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, SeqCst);
            let (acceptor, heard) = (acceptor.clone(), Arc::clone(&heard));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let session = stream.get_ref().1;
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                heard.lock().push((
                    session.server_name().map(ToOwned::to_owned),
                    session.alpn_protocol().map(text),
                ));
                let service = service_fn(async |request: http::Request<Incoming>| {
                    let said = format!("{:?} {}", request.version(), request.uri().path());
                    Ok::<_, std::convert::Infallible>(Response::new(full(said)))
                });
                auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok();
            });
        }
    });
    endpoint
}

/// A folder with what the gateway needs: `ca.pem`, `client.pem`, `client.key`.
pub(crate) fn folder(trusted: &Authority, own: &Authority) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = issue(own, "gateway.internal");
    let write = |name: &str, text: String| {
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    write("ca.pem", trusted.pem());
    write("client.pem", certificate.pem());
    write("client.key", key.serialize_pem());
    folder
}

fn text(endpoint: &Endpoint, cluster: &str) -> String {
    crate::support::one_cluster(endpoint.address, cluster, "")
}

pub(crate) const MUTUAL: &str =
    "tls: { ca: ca.pem, cert: client.pem, key: client.key, server_name: users.internal }";

async fn ask(gateway: &Gateway) -> Message {
    gateway.connect().await.ask(GET).await
}

#[tokio::test]
async fn both_sides_show_who_they_are() {
    let authority = authority();
    for (protocol, alpn, version) in [("http1", "http/1.1", "HTTP/1.1"), ("h2", "h2", "HTTP/2.0")] {
        let endpoint = endpoint(&authority, &["h2", "http/1.1"]).await;
        let text = text(&endpoint, &format!("protocol: {protocol}, {MUTUAL}"));
        let gateway = Gateway::start_in(folder(&authority, &authority), &text).await;
        for _ in 0..3 {
            let response = ask(&gateway).await;
            assert_eq!(
                (response.status(), response.text()),
                (200, &*format!("{version} /a"))
            );
        }
        let heard = std::mem::take(&mut *endpoint.heard.lock());
        assert_eq!(heard, [(Some("users.internal".into()), Some(alpn.into()))]);
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_trusted_is_502() {
    let (authority, other) = (authority(), authority());
    let endpoint = endpoint(&authority, &["http/1.1"]).await;
    let gateway = Gateway::start_in(folder(&other, &authority), &text(&endpoint, MUTUAL)).await;
    assert_eq!(ask(&gateway).await.status(), 502);
    assert_eq!(gateway.settled().await["failures"], 1);
    assert!(endpoint.heard.lock().is_empty());
    assert_eq!(endpoint.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn an_endpoint_of_another_name_is_502() {
    let authority = authority();
    let endpoint = endpoint(&authority, &["http/1.1"]).await;
    for name in [
        "server_name: orders.internal",
        // Without one, the certificate must hold the address.
        "",
    ] {
        let tls = format!("tls: {{ ca: ca.pem, cert: client.pem, key: client.key, {name} }}");
        let folder = folder(&authority, &authority);
        let gateway = Gateway::start_in(folder, &text(&endpoint, &tls)).await;
        assert_eq!(ask(&gateway).await.status(), 502, "{name}");
    }
}

#[tokio::test]
async fn a_gateway_that_is_not_trusted_is_502() {
    let (authority, other) = (authority(), authority());
    let endpoint = endpoint(&authority, &["http/1.1"]).await;
    let nameless = "tls: { ca: ca.pem, server_name: users.internal }";
    for tls in [MUTUAL, nameless] {
        let folder = folder(&authority, &other);
        let gateway = Gateway::start_in(folder, &text(&endpoint, tls)).await;
        for _ in 0..2 {
            assert_eq!(ask(&gateway).await.status(), 502, "{tls}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_knows_no_http2_is_502_when_it_must() {
    let authority = authority();
    for alpn in [&["http/1.1"][..], &[]] {
        let endpoint = endpoint(&authority, alpn).await;
        let h2 = text(&endpoint, &format!("protocol: h2, {MUTUAL}"));
        let gateway = Gateway::start_in(folder(&authority, &authority), &h2).await;
        assert_eq!(ask(&gateway).await.status(), 502);
        let http1 = text(&endpoint, MUTUAL);
        let gateway = Gateway::start_in(folder(&authority, &authority), &http1).await;
        assert_eq!(ask(&gateway).await.status(), 200);
    }
}

#[tokio::test]
async fn an_endpoint_without_tls_is_502() {
    let authority = authority();
    let plain =
        crate::support::Backend::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let text = crate::support::one_cluster(plain.address, MUTUAL, "");
    let gateway = Gateway::start_in(folder(&authority, &authority), &text).await;
    let response = ask(&gateway).await;
    assert!(
        [502, 504].contains(&response.status()),
        "{}",
        response.text()
    );
}

#[tokio::test]
async fn a_certificate_that_was_renewed_is_used_after_a_reload() {
    let (authority, other) = (authority(), authority());
    let endpoint = endpoint(&authority, &["http/1.1"]).await;
    let text = text(&endpoint, MUTUAL);
    let mut gateway = Gateway::start_in(folder(&other, &other), &text).await;
    assert_eq!(ask(&gateway).await.status(), 502);
    let renewed = folder(&authority, &authority);
    for name in ["ca.pem", "client.pem", "client.key"] {
        let to = gateway.folder.path().join(name);
        std::fs::copy(renewed.path().join(name), to).unwrap();
    }
    gateway.reload(&text).await;
    assert_eq!(ask(&gateway).await.status(), 200);
    assert_eq!(gateway.settled().await["requests"], 2);
}
