//! Certificates in files: read, judged, told apart from what was there before. What is wrong is said in a
//! sentence that names the file, and never holds anything of a key.

use super::der::{self, Facts};
use crate::conf::CertificateFiles;
use crate::conf::load::read_bounded;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Largest file with certificates or keys, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most certificates on the way to an authority.
const MAX_CHAIN: usize = 16;
/// Most authorities for clients.
const MAX_AUTHORITIES: usize = 1_000;

/// What tells two states of files apart.
pub type Digested = [u8; 32];

/// A certificate that can be shown, with its key.
#[derive(Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    pub facts: Facts,
}

impl Certificate {
    /// Its names and addresses, for people.
    pub fn told_names(&self) -> String {
        let names = self.facts.names.iter().cloned();
        let addresses = self.facts.addresses.iter().map(ToString::to_string);
        let mut all: Vec<String> = names.chain(addresses).collect();
        let more = all.len().saturating_sub(8);
        all.truncate(8);
        if more > 0 {
            all.push(format!("{more} more"));
        }
        if all.is_empty() {
            "no name".into()
        } else {
            all.join(",")
        }
    }
}

/// Two files as they are now.
pub struct Read {
    cert: Result<Vec<u8>, String>,
    key: Result<Vec<u8>, String>,
}

impl Read {
    pub fn of(files: &CertificateFiles) -> Self {
        Self {
            cert: read_bounded(&files.cert, MAX_FILE),
            key: read_bounded(&files.key, MAX_FILE),
        }
    }

    pub fn digest(&self) -> Digested {
        let mut all = Sha256::new();
        for file in [&self.cert, &self.key] {
            match file {
                Ok(bytes) => {
                    all.update([1]);
                    all.update((bytes.len() as u64).to_le_bytes());
                    all.update(bytes);
                }
                Err(why) => {
                    all.update([0]);
                    all.update(why.as_bytes());
                }
            }
        }
        all.finalize().into()
    }

    /// The certificate, if it is one that clients can use at `now` (seconds since 1970).
    pub fn certificate(&self, files: &CertificateFiles, now: i64) -> Result<Certificate, String> {
        let (cert, key) = (files.cert.display(), files.key.display());
        let bytes = self.cert.as_ref().map_err(|why| format!("{cert}: {why}"))?;
        let chain = certificates(bytes, MAX_CHAIN).map_err(|why| format!("{cert}: {why}"))?;
        let bytes = self.key.as_ref().map_err(|why| format!("{key}: {why}"))?;
        let private = private_key(bytes).map_err(|why| format!("{key}: {why}"))?;
        let certified = CertifiedKey::from_der(chain, private, &provider()).map_err(|e| match e {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                "{key}: this key does not belong to the first certificate in {cert}; the server's own \
                 certificate stands before those of its authorities"
            ),
            Error::InvalidCertificate(why) => format!("{cert}: the certificate cannot be used: {why:?}"),
            // Whatever rustls says of a key's bytes stays here.
            _ => format!("{key}: this kind of key is not usable; RSA (2048 bits and more), ECDSA P-256 and P-384, Ed25519 are"),
        })?;
        judged(certified, now).map_err(|why| format!("{cert}: {why}"))
    }
}

/// A certificate that is good at `now` (seconds since 1970).
pub fn judged(key: CertifiedKey, now: i64) -> Result<Certificate, String> {
    let leaf = key.end_entity_cert().map_err(|e| e.to_string())?;
    let facts = der::facts(leaf).ok_or("the certificate cannot be read")?;
    if facts.not_after <= now {
        return Err(format!("the certificate expired on {}", day(facts.not_after)));
    }
    if facts.not_before > now {
        return Err(format!(
            "the certificate is not good before {}",
            day(facts.not_before)
        ));
    }
    Ok(Certificate {
        key: Arc::new(key),
        facts,
    })
}

/// A certificate that has not been written to a file yet: its chain and its key, PEM.
pub fn in_memory(chain: &[u8], key: &[u8], now: i64) -> Result<Certificate, String> {
    let chain = certificates(chain, MAX_CHAIN)?;
    let certified =
        CertifiedKey::from_der(chain, private_key(key)?, &provider()).map_err(|e| e.to_string())?;
    judged(certified, now)
}

/// The certificates of authorities in a file. `Err` names the file.
pub fn roots(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    read_bounded(file, MAX_FILE)
        .and_then(|bytes| certificates(&bytes, MAX_AUTHORITIES))
        .map_err(|why| format!("{}: {why}", file.display()))
}

/// The authorities for clients' certificates, and what the file holds. `Err` names the file.
pub fn authorities(file: &Path) -> (Digested, Result<RootCertStore, String>) {
    let read = read_bounded(file, MAX_FILE);
    let digest = match &read {
        Ok(bytes) => Sha256::digest(bytes),
        Err(why) => Sha256::digest(why),
    };
    let roots = read
        .and_then(|bytes| certificates(&bytes, MAX_AUTHORITIES))
        .and_then(|certificates| {
            let mut roots = RootCertStore::empty();
            for certificate in certificates {
                roots
                    .add(certificate)
                    .map_err(|e| format!("a certificate in it is no authority's: {e}"))?;
            }
            Ok(roots)
        });
    (
        digest.into(),
        roots.map_err(|why| format!("{}: {why}", file.display())),
    )
}

fn certificates(bytes: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).take(most + 1).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err("it holds no certificate: PEM is expected, -----BEGIN CERTIFICATE-----".into())
        }
        Ok(found) if found.len() > most => Err(format!("it holds more than {most} certificates")),
        Ok(found) => Ok(found),
        Err(_) => Err("its PEM is broken".into()),
    }
}

fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let has = |mark: &[u8]| memchr::memmem::find(bytes, mark).is_some();
    if has(b"ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(
            "the key is encrypted, and there is nobody to ask for the password; write it without: \
             openssl pkey -in KEY -out NEW"
                .into(),
        );
    }
    PrivateKeyDer::from_pem_slice(bytes)
        .map_err(|_| "it holds no private key: PEM is expected, -----BEGIN PRIVATE KEY-----".into())
}

/// Ring's, which is the only one linked.
pub fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// `2026-12-20`.
pub fn day(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(at) => at.strftime("%Y-%m-%d").to_string(),
        Err(_) => "a day that no calendar has".into(),
    }
}
