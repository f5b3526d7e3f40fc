//! The authority for the local network: a root that is made once and kept, and certificates for the names
//! that the config lists. A certificate lives 90 days in memory and is made anew after 60; only the root
//! is on disk, so nothing but the root can be taken from there.

use super::files::{Certificate, judged, provider};
use crate::conf::load::read_bounded;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const DAY: i64 = 86_400;
/// How long a certificate is good.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * DAY as u64);
/// After this it is made anew.
pub const LEAF_USE: Duration = Duration::from_secs(60 * DAY as u64);
/// How long the root is good, seconds: whoever trusts it should not have to come back soon.
const ROOT_LIFE: i64 = 3_650 * DAY;
/// Clocks in a home differ, seconds.
const SLACK: i64 = DAY;
const MAX_FILE: u64 = 64 << 10;

/// The root of the local network.
pub struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// Seconds since 1970.
    not_after: i64,
    dir: PathBuf,
}

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    Name(String),
    Address(IpAddr),
}

impl Authority {
    /// The root in `dir`, made if there is none. `Err` says what is wrong with which file.
    pub fn open(dir: &Path, now: i64) -> Result<Self, String> {
        let told = |e: io::Error| format!("{}: {e}", dir.display());
        if !dir.exists() {
            make(dir, now).map_err(|why| format!("{}: {why}", dir.display()))?;
        }
        let dir = dir.canonicalize().map_err(told)?;
        let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        let again = |why: &str| {
            format!(
                "{why}. Put the file back, or remove {} for a new authority, which every client has to trust anew",
                dir.display()
            )
        };
        let read = |file: &Path| {
            read_bounded(file, MAX_FILE)
                .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is no text".into()))
                .map_err(|why| again(&format!("{}: {why}", file.display())))
        };
        let (pem, key_pem) = (read(&cert)?, read(&key)?);
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| again(&format!("{}: it holds no certificate", cert.display())))?;
        let pair = KeyPair::from_pem(&key_pem)
            .map_err(|_| again(&format!("{}: it holds no private key", key.display())))?;
        let facts = super::der::facts(&der)
            .ok_or_else(|| again(&format!("{}: the certificate cannot be read", cert.display())))?;
        if facts.not_after <= now {
            let day = super::files::day(facts.not_after);
            return Err(again(&format!(
                "{}: the authority expired on {day}",
                cert.display()
            )));
        }
        let authority = Self {
            issuer: Issuer::new(root_params(&pair, now)?, pair),
            pem,
            der,
            not_after: facts.not_after,
            dir: dir.clone(),
        };
        authority.vouches(now).map_err(|why| {
            again(&format!(
                "{} does not fit {}: {why}",
                key.display(),
                cert.display()
            ))
        })?;
        Ok(authority)
    }

    /// The root's certificate in PEM, for clients to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Where the root is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// When the root ends, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// A certificate for these, good from now on.
    pub fn certificate(&self, subjects: &[Subject], now: i64) -> Result<Certificate, String> {
        let told = |e: rcgen::Error| format!("a local certificate cannot be made: {e}");
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(told)?;
        let mut params = CertificateParams::default();
        for subject in subjects {
            params.subject_alt_names.push(match subject {
                Subject::Name(name) => SanType::DnsName(name.as_str().try_into().map_err(told)?),
                Subject::Address(ip) => SanType::IpAddress(*ip),
            });
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Tollkeeper in the local network");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let life = LEAF_LIFE.as_secs() as i64;
        good(&mut params, now - SLACK, (now + life).min(self.not_after));
        let made = params.signed_by(&pair, &self.issuer).map_err(told)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let certified = CertifiedKey::from_der(vec![made.der().clone()], key, &provider())
            .map_err(|e| format!("a local certificate cannot be used: {e}"))?;
        judged(certified, now)
    }

    /// Makes a certificate and judges it as a client does that trusts the root alone.
    fn vouches(&self, now: i64) -> Result<(), String> {
        let sample = self.certificate(&[Subject::Name("sample.local".into())], now)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der.clone()).map_err(|e| e.to_string())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
            .build()
            .map_err(|e| e.to_string())?;
        let leaf = sample.key.end_entity_cert().map_err(|e| e.to_string())?;
        let name = ServerName::try_from("sample.local").map_err(|e| e.to_string())?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
        verifier
            .verify_server_cert(leaf, &[], &name, &[], at)
            .map(drop)
            .map_err(|e| e.to_string())
    }
}

/// Puts a new root at `dir`: whole or not at all, and never in the place of another.
fn make(dir: &Path, now: i64) -> Result<(), String> {
    let told = |e: io::Error| e.to_string();
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
    let root = root_params(&pair, now)?
        .self_signed(&pair)
        .map_err(|e| e.to_string())?;
    let above = dir.parent().unwrap_or(Path::new("."));
    let private = |path: &Path, recursive| DirBuilder::new().recursive(recursive).mode(0o700).create(path);
    private(above, true).map_err(told)?;
    let new = above.join(format!(".new-{}-{}", std::process::id(), uuid::Uuid::new_v4()));
    private(&new, false).map_err(told)?;
    let write = |name: &str, text: &str| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(new.join(name))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    let made = write("ca.key", &pair.serialize_pem())
        .and_then(|()| write("ca.pem", &root.pem()))
        .and_then(|()| fs::rename(&new, dir));
    if made.is_err() {
        let _ = fs::remove_dir_all(&new);
    }
    match made {
        // Somebody else was quicker; theirs counts.
        Err(_) if dir.exists() => Ok(()),
        made => made.map_err(told),
    }
}

/// The same for the same key, whenever it is made: what is signed later names its issuer by this.
fn root_params(pair: &KeyPair, now: i64) -> Result<CertificateParams, String> {
    let id = Sha256::digest(pair.public_key_raw());
    let id: String = id.iter().take(4).map(|b| format!("{b:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Tollkeeper");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Tollkeeper local authority {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    good(&mut params, now - SLACK, now + ROOT_LIFE);
    Ok(params)
}

/// How long a certificate is good, seconds since 1970.
fn good(params: &mut CertificateParams, from: i64, to: i64) {
    let since = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since(from);
    params.not_after = epoch + since(to);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW: i64 = 1_800_000_000;

    fn open(dir: &Path, now: i64) -> Result<Authority, String> {
        Authority::open(&dir.join("local"), now)
    }

    #[test]
    fn the_root_is_made_once_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), NOW).unwrap();
        assert_eq!(first.pem(), open(dir.path(), NOW).unwrap().pem());
        for (file, mode) in [("local", 0o700), ("local/ca.key", 0o600), ("local/ca.pem", 0o600)] {
            let is = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(is & 0o777, mode, "{file}");
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left over"
        );
    }

    #[test]
    fn a_certificate_lives_90_days_and_no_longer_than_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let authority = open(dir.path(), NOW).unwrap();
        let names = [
            Subject::Name("llm.local".into()),
            Subject::Address("10.0.0.1".parse().unwrap()),
        ];
        let made = authority.certificate(&names, NOW).unwrap();
        assert_eq!(made.facts.not_after, NOW + 90 * DAY);
        assert_eq!(made.told_names(), "llm.local,10.0.0.1");
        let late = NOW + ROOT_LIFE - DAY;
        let made = authority.certificate(&names, late).unwrap();
        assert_eq!(made.facts.not_after, NOW + ROOT_LIFE);
    }

    #[test]
    fn a_root_that_is_not_whole_is_refused_and_stays() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open(dir.path(), NOW).unwrap();
        open(other.path(), NOW).unwrap();
        let key = dir.path().join("local/ca.key");
        let refused = |want: &str| {
            let why = open(dir.path(), NOW).err().unwrap();
            assert!(why.contains("ca.key") && why.contains(want), "{why}");
            assert!(!why.contains("PRIVATE"), "{why}");
        };
        fs::copy(other.path().join("local/ca.key"), &key).unwrap();
        refused("does not fit");
        fs::write(&key, "nonsense").unwrap();
        refused("no private key");
        fs::remove_file(&key).unwrap();
        refused("no such file");
        assert!(!key.exists());
    }
}
