//! What rustls asks in a handshake: which certificate, and is the client's good. Both look at what is
//! there at that moment, so that a swap needs no restart and touches no handshake that has begun.

use super::files::provider;
use super::shelf::Shelf;
use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{
    CipherSuite, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureAlgorithm,
    SignatureScheme,
};
use std::fmt;
use std::sync::Arc;

/// Chooses the certificate for each handshake of one listener.
pub struct Door {
    pub shelf: Arc<ArcSwap<Shelf>>,
    /// TLS 1.2 is not spoken here. Pingora always offers both, so that the certificate has to say no.
    pub only_1_3: bool,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("only_1_3", &self.only_1_3).finish()
    }
}

impl ResolvesServerCert for Door {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if self.only_1_3 && !hello.cipher_suites().iter().any(is_1_3) {
            return None;
        }
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let found = self
            .shelf
            .load()
            .find(name.as_deref(), hello.signature_schemes())?;
        if !self.only_1_3 {
            return Some(Arc::clone(&found.key));
        }
        Some(Arc::new(CertifiedKey {
            cert: found.key.cert.clone(),
            key: Arc::new(Only13(Arc::clone(&found.key.key))),
            ocsp: None,
        }))
    }
}

fn is_1_3(suite: &CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS13_AES_256_GCM_SHA384
            | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    )
}

/// Signs nothing but handshakes of TLS 1.3. A client that lists its ciphers and then speaks 1.2 all the
/// same gets no signature, and without one there is no handshake: what is spoken has forward secrecy only.
#[derive(Debug)]
struct Only13(Arc<dyn SigningKey>);

impl SigningKey for Only13 {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = self.0.choose_scheme(offered)?;
        Some(Box::new(Signer13(signer)))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[derive(Debug)]
struct Signer13(Box<dyn Signer>);

/// What RFC 8446, 4.4.3 puts before what a server signs. In TLS 1.2 the client's random bytes stand there.
const SERVER_1_3: &[u8] = b"TLS 1.3, server CertificateVerify\0";

impl Signer for Signer13 {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let is_1_3 = message
            .split_at_checked(64)
            .is_some_and(|(blanks, rest)| blanks.iter().all(|b| *b == b' ') && rest.starts_with(SERVER_1_3));
        if !is_1_3 {
            return Err(Error::General("TLS 1.2 is not spoken here".into()));
        }
        self.0.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}

/// Judges clients' certificates by authorities that may be changed.
#[derive(Debug)]
pub struct Judge {
    by: ArcSwap<Arc<dyn ClientCertVerifier>>,
    mandatory: bool,
}

impl Judge {
    /// `Err` is a sentence.
    pub fn new(roots: RootCertStore, mandatory: bool) -> Result<Self, String> {
        Ok(Self {
            by: ArcSwap::from_pointee(verifier(roots)?),
            mandatory,
        })
    }

    /// From the next handshake on.
    pub fn replace(&self, roots: RootCertStore) -> Result<(), String> {
        self.by.store(Arc::new(verifier(roots)?));
        Ok(())
    }
}

fn verifier(roots: RootCertStore) -> Result<Arc<dyn ClientCertVerifier>, String> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
        .build()
        .map_err(|e| e.to_string())
}

impl ClientCertVerifier for Judge {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: they could not be changed. Clients then offer what they have.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.by.load().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by.load().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by.load().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by.load().supported_verify_schemes()
    }
}
