//! Upstreams over TLS: HTTP/2 and HTTP/1 as they choose, and never without knowing who they are.

use crate::kit::client::{ask, chat};
use crate::kit::gateway::{Gateway, Setup};
use crate::kit::until;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A TLS server with a certificate for these names, by an authority of its own.
pub struct Server {
    pub port: u16,
    /// The authority's certificate.
    pub authority: tempfile::NamedTempFile,
    versions: Arc<Mutex<Vec<Version>>>,
    connections: Arc<AtomicUsize>,
}

pub async fn serve(names: &[&str], alpn: &[&[u8]]) -> Server {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority for tests");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority.pem()).unwrap();

    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let versions: Arc<Mutex<Vec<Version>>> = Arc::default();
    let connections: Arc<AtomicUsize> = Arc::default();
    let (seen, count) = (Arc::clone(&versions), Arc::clone(&connections));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen, count) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&count));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                count.fetch_add(1, Ordering::SeqCst);
                let answer = service_fn(move |request: Request<Incoming>| {
                    seen.lock().unwrap().push(request.version());
                    async {
                        let body =
                            json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}});
                        let response = Response::builder().header("content-type", "application/json");
                        Ok::<_, Infallible>(response.body(body.to_string()).unwrap())
                    }
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    Server {
        port,
        authority: file,
        versions,
        connections,
    }
}

async fn gateway(server: &Server, trusts: &tempfile::NamedTempFile) -> Gateway {
    Setup::new()
        .deployment("m", &format!("https://localhost:{}/v1", server.port), json!({}))
        .env("SSL_CERT_FILE", trusts.path().to_str().unwrap())
        .start()
        .await
}

/// Calls that are over.
async fn counted(gateway: &Gateway) -> u64 {
    let text = ask(gateway, "GET", "/metrics", &[], "").await.text();
    let line = text
        .lines()
        .find(|l| l.starts_with("tollkeeper_requests_total{model=\"m\""));
    line.map_or(0, |l| l.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn the_upstream_chooses_the_version_of_http() {
    for (alpn, want) in [
        (&[&b"h2"[..], b"http/1.1"][..], Version::HTTP_2),
        (&[b"http/1.1"], Version::HTTP_11),
    ] {
        let server = serve(&["localhost"], alpn).await;
        let gateway = gateway(&server, &server.authority).await;
        for n in 1..=3 {
            let answer = chat(&gateway, &json!({"model": "m", "messages": []})).await;
            assert_eq!(answer.status(), 200, "{want:?}: {}", answer.text());
            // A client has its last byte before the connection to the upstream is given back. A call is
            // counted after that.
            until("the call is over", async || counted(&gateway).await == n).await;
        }
        assert_eq!(*server.versions.lock().unwrap(), [want; 3]);
        assert_eq!(
            server.connections.load(Ordering::SeqCst),
            1,
            "one connection carries all calls"
        );
    }
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_is_refused() {
    let server = serve(&["localhost"], &[b"http/1.1"]).await;
    let other = serve(&["localhost"], &[b"http/1.1"]).await;
    let gateway = gateway(&server, &other.authority).await;
    let answer = chat(&gateway, &json!({"model": "m", "messages": []})).await;
    assert_eq!(answer.status(), 503, "{}", answer.text());
    assert!(
        server.versions.lock().unwrap().is_empty(),
        "no request, and so no key, was sent"
    );
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let server = serve(&["elsewhere.example"], &[b"http/1.1"]).await;
    let gateway = gateway(&server, &server.authority).await;
    let answer = chat(&gateway, &json!({"model": "m", "messages": []})).await;
    assert_eq!(answer.status(), 503, "{}", answer.text());
    assert!(
        server.versions.lock().unwrap().is_empty(),
        "no request, and so no key, was sent"
    );
}
