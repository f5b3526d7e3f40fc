//! What the authority finds when it looks whether a name is ours: a file below `/.well-known` (HTTP-01),
//! or a certificate in a handshake of its own protocol (TLS-ALPN-01).
//!
//! Pingora offers the protocols of HTTP and no others, so that such a handshake is done before Pingora
//! does its own: while a name waits to be looked at, the first message of each connection is read, and
//! put back unless it is the authority's.

use super::super::files::provider;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::listeners::PreTlsProcess;
use pingora::prelude::{Error, ErrorType};
use pingora::protocols::l4::stream::Stream;
use pingora::tls::TlsAcceptor;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::Acceptor;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Where HTTP-01 looks.
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
/// The protocol of TLS-ALPN-01.
const ACME_TLS: &[u8] = b"acme-tls/1";
/// Longest first message of a handshake, bytes: as long as rustls takes one.
const MAX_HELLO: usize = 64 << 10;

/// All that waits to be looked at now.
#[derive(Default)]
pub struct Challenges {
    waiting: ArcSwap<Waiting>,
}

#[derive(Default, Clone)]
struct Waiting {
    /// Token to what is answered.
    tokens: HashMap<String, Arc<str>>,
    /// Name to how its handshake is done.
    names: HashMap<String, Arc<ServerConfig>>,
}

/// Waits to be looked at for as long as this lives.
pub struct Posted {
    by: Arc<Challenges>,
    what: What,
}

enum What {
    Token(String),
    Name(String),
}

impl Challenges {
    /// What is answered at this path, if it is one that an authority was told to look at.
    pub fn answer(&self, path: &str) -> Option<Arc<str>> {
        let token = path.strip_prefix(WELL_KNOWN)?;
        self.waiting.load().tokens.get(token).cloned()
    }

    /// Answers `token` with `authorization` (HTTP-01).
    pub fn post_token(self: &Arc<Self>, token: &str, authorization: &str) -> Posted {
        let authorization: Arc<str> = authorization.into();
        self.waiting.rcu(|w| {
            let mut w = Waiting::clone(w);
            w.tokens.insert(token.to_string(), Arc::clone(&authorization));
            w
        });
        Posted {
            by: Arc::clone(self),
            what: What::Token(token.to_string()),
        }
    }

    /// Shows the authority a certificate for `name` that holds `digest` (TLS-ALPN-01).
    pub fn post_name(self: &Arc<Self>, name: &str, digest: &[u8]) -> Result<Posted, String> {
        let handshake = Arc::new(handshake(name, digest)?);
        self.waiting.rcu(|w| {
            let mut w = Waiting::clone(w);
            w.names.insert(name.to_string(), Arc::clone(&handshake));
            w
        });
        Ok(Posted {
            by: Arc::clone(self),
            what: What::Name(name.to_string()),
        })
    }

    /// How the handshake is done that begins with these bytes. `Err` = they do not end the first message.
    fn handshake(&self, begun: &mut Acceptor, mut bytes: &[u8]) -> Result<Option<Arc<ServerConfig>>, ()> {
        while !bytes.is_empty() {
            if begun.read_tls(&mut bytes).is_err() {
                return Ok(None);
            }
            match begun.accept() {
                Ok(None) => continue,
                // Not TLS: Pingora says so, in its own words.
                Err(_) => return Ok(None),
                Ok(Some(first)) => {
                    let hello = first.client_hello();
                    let only_acme = hello.alpn().is_some_and(|mut offered| {
                        offered.next() == Some(ACME_TLS) && offered.next().is_none()
                    });
                    let name = hello.server_name().map(str::to_ascii_lowercase);
                    return Ok(match (only_acme, name) {
                        (true, Some(name)) => self.waiting.load().names.get(&name).cloned(),
                        _ => None,
                    });
                }
            }
        }
        Err(())
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        self.by.waiting.rcu(|w| {
            let mut w = Waiting::clone(w);
            match &self.what {
                What::Token(token) => drop(w.tokens.remove(token)),
                What::Name(name) => drop(w.names.remove(name)),
            }
            w
        });
    }
}

#[async_trait]
impl PreTlsProcess for Challenges {
    /// `Ok`: the connection is not the authority's, and as it was.
    async fn process(&self, stream: &mut Stream) -> pingora::Result<()> {
        if self.waiting.load().names.is_empty() {
            return Ok(());
        }
        let (mut begun, mut read, mut chunk) = (Acceptor::default(), Vec::new(), [0; 4096]);
        let found = loop {
            let n = match stream.read(&mut chunk).await {
                // Gone, or half a message: Pingora meets the same end.
                Ok(0) | Err(_) => break None,
                Ok(n) => n,
            };
            let bytes = chunk.get(..n).unwrap_or_default();
            read.extend_from_slice(bytes);
            match self.handshake(&mut begun, bytes) {
                Ok(found) => break found,
                Err(()) if read.len() >= MAX_HELLO => break None,
                Err(()) => {}
            }
        };
        stream.rewind(&read);
        let Some(handshake) = found else {
            return Ok(());
        };
        if let Ok(mut done) = TlsAcceptor::from(handshake).accept(&mut *stream).await {
            // The handshake is all that the authority wants.
            let _ = done.shutdown().await;
        }
        Error::e_explain(
            ErrorType::TLSHandshakeFailure,
            "the authority has seen what it wanted",
        )
    }
}

/// RFC 8737, 3: the name, and the digest in an extension of its own.
fn handshake(name: &str, digest: &[u8]) -> Result<ServerConfig, String> {
    let told = |e: rcgen::Error| format!("the certificate of the challenge cannot be made: {e}");
    if digest.len() != 32 {
        return Err("the authority's digest is not one of SHA-256".into());
    }
    let mut params = CertificateParams::new([name.to_string()]).map_err(told)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(told)?;
    let made = params.self_signed(&pair).map_err(told)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let key = provider()
        .key_provider
        .load_private_key(key)
        .map_err(|e| e.to_string())?;
    // Judged by nobody: the extension is critical, and rustls does not know it.
    let certified = CertifiedKey::new(vec![made.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_posted_is_answered_and_only_so_long() {
        let challenges = Arc::new(Challenges::default());
        let posted = challenges.post_token("tok-1", "tok-1.thumb");
        let at = |path: &str| challenges.answer(path).map(|a| a.to_string());
        assert_eq!(
            at("/.well-known/acme-challenge/tok-1").as_deref(),
            Some("tok-1.thumb")
        );
        for path in [
            "/.well-known/acme-challenge/tok-2",
            "/.well-known/acme-challenge/",
            "/.well-known/acme-challenge/tok-1/",
            "/x/.well-known/acme-challenge/tok-1",
            "/",
        ] {
            assert_eq!(at(path), None, "{path}");
        }
        drop(posted);
        assert_eq!(at("/.well-known/acme-challenge/tok-1"), None);
    }

    fn hello(name: &'static str, alpn: &[&[u8]]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = rustls::pki_types::ServerName::try_from(name).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_handshake_is_the_authoritys_by_its_protocol_and_name() {
        let challenges = Arc::new(Challenges::default());
        let _posted = challenges.post_name("llm.example.com", &[7; 32]).unwrap();
        let is_acme = |bytes: &[u8]| {
            challenges
                .handshake(&mut Acceptor::default(), bytes)
                .unwrap()
                .is_some()
        };
        assert!(is_acme(&hello("LLM.example.com", &[ACME_TLS])));
        assert!(!is_acme(&hello("other.example.com", &[ACME_TLS])));
        assert!(!is_acme(&hello("llm.example.com", &[])));
        assert!(!is_acme(&hello("llm.example.com", &[b"h2", b"http/1.1"])));
        assert!(!is_acme(&hello("llm.example.com", &[ACME_TLS, b"h2"])));
        assert!(!is_acme(b"GET / HTTP/1.1\r\nhost: llm.example.com\r\n\r\n"));
        // Byte by byte it is the same message.
        let (bytes, mut begun) = (hello("llm.example.com", &[ACME_TLS]), Acceptor::default());
        let (last, first) = bytes.split_last().unwrap();
        for byte in first {
            assert!(challenges.handshake(&mut begun, &[*byte]).is_err());
        }
        assert!(challenges.handshake(&mut begun, &[*last]).unwrap().is_some());
        assert!(challenges.post_name("a.example.com", b"short").is_err());
    }
}
