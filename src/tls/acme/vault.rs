//! What is kept of ACME in `tls/acme` in the data directory: one file for each certificate with its key,
//! what became of the last attempt, and the accounts. Directories are 0700 and files 0600; a file is put
//! there whole or not at all. What is in the files is judged by `files`.

use super::super::files::{self, Certificate, Digested, Read};
use super::window::wanted;
use crate::conf::load::read_bounded;
use crate::conf::{Acme, CertificateFiles};
use crate::lock::Lock;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest file with an account or with what became of an attempt, bytes.
const MAX_FILE: u64 = 64 << 10;
/// Most certificates that are looked at: those in use, and what older configs have left.
const MOST_FILES: usize = 1_000;
/// The ending of a file with a certificate and its key.
const CERTIFICATE: &str = "pem";

/// The directory. It is made when something is first written.
#[derive(Debug, Clone)]
pub struct Vault {
    dir: PathBuf,
}

/// A certificate of the vault that is shown to clients.
#[derive(Clone)]
pub struct Found {
    file: PathBuf,
    pub certificate: Arc<Certificate>,
}

/// What is known of an entry's orders, for the next attempt and for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Who gave the certificate that is kept.
    pub directory: String,
    /// When the certificate was got, seconds since 1970; 0 = there is none.
    pub got: i64,
    /// Attempts that failed since then.
    pub failures: u32,
    /// When the last one failed, seconds since 1970.
    pub failed: i64,
    /// Why, in a sentence.
    pub why: String,
    /// No attempt before this, seconds since 1970; 0 = when the certificate needs one.
    pub not_before: i64,
    /// For whom the failures count: an entry that says something else now may try at once.
    pub entry: String,
    /// When the authority wants the certificate renewed, seconds since 1970; 0 = it has not said.
    pub renew: i64,
    /// The serial number of the certificate that this is about.
    pub renew_of: String,
    /// When the authority is asked again, seconds since 1970.
    pub ask_again: i64,
    /// The certificate that is kept was got earlier than its life asked for.
    pub early: bool,
}

impl Vault {
    pub fn new(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("tls").join("acme"),
        }
    }

    /// Where the certificate of an entry is, key included.
    pub fn files(&self, entry: &Acme) -> CertificateFiles {
        let file = self.dir.join(format!("{}.{CERTIFICATE}", stem(entry)));
        CertificateFiles {
            cert: file.clone(),
            key: file,
        }
    }

    /// The certificate that is kept for an entry. `Err` says what is wrong with it, `None` = there is none.
    pub fn certificate(&self, entry: &Acme, now: i64) -> Result<Option<Certificate>, String> {
        let files = self.files(entry);
        match files.cert.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(e) => return Err(format!("{}: {e}", files.cert.display())),
        }
        Read::of(&files).certificate(&files, now).map(Some)
    }

    /// Puts a certificate there: its chain and its key, PEM.
    pub fn keep(&self, entry: &Acme, chain: &str, key: &str) -> Result<(), String> {
        let text = format!("{}\n{}\n", key.trim_end(), chain.trim_end());
        self.put(&format!("{}.{CERTIFICATE}", stem(entry)), text.as_bytes())
    }

    /// What is known of an entry's orders.
    pub fn record(&self, entry: &Acme) -> Record {
        let file = self.dir.join(format!("{}.json", stem(entry)));
        // One that cannot be read costs an attempt at the most.
        read_bounded(&file, MAX_FILE)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    pub fn note(&self, entry: &Acme, record: &Record) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(record).map_err(|e| e.to_string())?;
        self.put(&format!("{}.json", stem(entry)), &text)
    }

    /// The account that is kept for entries like this one.
    pub fn account(&self, entry: &Acme) -> Option<Vec<u8>> {
        read_bounded(&self.dir.join("accounts").join(account(entry)), MAX_FILE).ok()
    }

    pub fn keep_account(&self, entry: &Acme, bytes: &[u8]) -> Result<(), String> {
        self.put(&format!("accounts/{}", account(entry)), bytes)
    }

    /// Held by one process at a time: two that share the directory do not both order. `None` = another
    /// process has it. Given back when it is dropped.
    pub fn lock(&self) -> Result<Option<Lock>, String> {
        let told = |e: io::Error| format!("{}: {e}", self.dir.display());
        private_dir(&self.dir).map_err(told)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.dir.join("lock"))
            .map_err(told)?;
        Lock::take(file).map_err(told)
    }

    /// Tells whether any certificate here is another than it was.
    pub fn digest(&self) -> Digested {
        let mut all = Sha256::new();
        for file in self.all() {
            all.update(file.as_os_str().as_encoded_bytes());
            all.update(Read::of(&both(&file)).digest());
        }
        all.finalize().into()
    }

    /// What is shown for these entries: each one's own certificate; where that is missing or lacks names,
    /// others that have them, which a changed config has left behind. A file that was good `before` and
    /// is not now stays as it was; what is not good is told of.
    pub fn find(&self, entries: &[Acme], before: &[Found], now: i64) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        if entries.is_empty() {
            return found;
        }
        let mut all = self.all();
        let own: Vec<PathBuf> = entries.iter().map(|e| self.files(e).cert).collect();
        // Their own first: among those for a name the first is shown.
        all.sort_by_key(|file| own.iter().position(|o| o == file).unwrap_or(usize::MAX));
        for file in all {
            let names = |c: &Certificate| {
                let missing = |host: &String| !found.iter().any(|f| f.certificate.facts.names.contains(host));
                let mut hosts = entries.iter().flat_map(|e| &e.hosts);
                hosts.any(|host| missing(host) && c.facts.names.contains(host))
            };
            let files = both(&file);
            let old = before.iter().find(|b| b.file == file);
            let certificate = match (Read::of(&files).certificate(&files, now), old) {
                (Ok(new), Some(old)) if new.facts == old.certificate.facts => Arc::clone(&old.certificate),
                (Ok(new), _) => Arc::new(new),
                (Err(_), Some(old)) => Arc::clone(&old.certificate),
                (Err(why), None) => {
                    if own.contains(&file) {
                        log::warn!("event=certificate_refused it is ordered anew: {why}");
                    }
                    continue;
                }
            };
            if names(&certificate) {
                found.push(Found { file, certificate });
            }
        }
        found
    }

    /// The files with certificates, in order.
    fn all(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().take(4 * MOST_FILES);
        let mut all: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == CERTIFICATE))
            .collect();
        all.sort();
        all.truncate(MOST_FILES);
        all
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let path = self.dir.join(name);
        write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// A file in the place of what is there, whole or not at all, for its owner alone.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    private_dir(dir)?;
    let new = dir.join(format!(".new-{}", uuid::Uuid::new_v4()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| File::open(dir)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn both(file: &Path) -> CertificateFiles {
    CertificateFiles {
        cert: file.into(),
        key: file.into(),
    }
}

/// The name of an entry's files: told apart by the names in the certificate, whatever their order. Hosts
/// are letters, digits, dots and hyphens.
fn stem(entry: &Acme) -> String {
    let mut hosts: Vec<&str> = entry.hosts.iter().map(String::as_str).collect();
    hosts.sort_unstable();
    let first = hosts.first().copied().unwrap_or_default();
    let first: String = first.chars().take(100).collect();
    format!("{first}-{}", short(hosts.join(",").as_bytes()))
}

/// The name of an account's file: one for each authority and external account.
fn account(entry: &Acme) -> String {
    let id = entry.external_account.as_ref().map_or("", |e| e.id.as_str());
    let host = entry
        .directory
        .parse::<http::Uri>()
        .ok()
        .and_then(|uri| uri.host().map(str::to_string))
        .unwrap_or_default();
    let host: String = host
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
        .take(100)
        .collect();
    let id = short(format!("{}\n{id}", entry.directory).as_bytes());
    format!("{host}-{id}.json")
}

/// The first 4 bytes of a digest, in hex.
fn short(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().take(4).map(|b| format!("{b:02x}")).collect()
}

/// What tells entries apart whose failures do not count for each other.
pub fn identity(entry: &Acme) -> String {
    let id = entry.external_account.as_ref().map(|e| (&e.id, e.key.expose()));
    short(
        format!(
            "{:?} {:?} {:?} {id:?}",
            entry.directory, entry.challenge, entry.ca
        )
        .as_bytes(),
    )
}

/// When a certificate is due to be replaced: at two thirds of its life. Seconds since 1970.
pub fn renewal(facts: &super::super::Facts) -> i64 {
    let life = facts.not_after.saturating_sub(facts.not_before).max(0);
    facts.not_before.saturating_add(life / 3 * 2 + life % 3 * 2 / 3)
}

/// Whether what is kept is what the entry asks for.
pub fn fits(entry: &Acme, record: &Record, kept: &Certificate) -> bool {
    record.directory == entry.directory && entry.hosts.iter().all(|h| kept.facts.names.contains(h))
}

/// When an entry's next attempt is due, seconds since 1970: by what is `kept` for it, and by what became
/// of its last attempts.
pub fn due(entry: &Acme, record: &Record, kept: Option<&Certificate>) -> i64 {
    let needed = kept.filter(|c| fits(entry, record, c)).map_or(0, |c| {
        let usual = renewal(&c.facts);
        wanted(record, &c.facts).map_or(usual, |early| usual.min(early))
    });
    let allowed = if record.entry == identity(entry) {
        record.not_before
    } else {
        0
    };
    needed.max(allowed)
}

/// `2026-12-20 07:15 UTC`.
pub fn moment(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => files::day(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::os::unix::fs::PermissionsExt;

    const DIRECTORY: &str = "https://ca.example/dir";

    fn entry(hosts: &[&str]) -> Acme {
        Acme {
            hosts: hosts.iter().map(ToString::to_string).collect(),
            email: None,
            directory: DIRECTORY.into(),
            ca: None,
            challenge: None,
            external_account: None,
        }
    }

    fn keep(vault: &Vault, entry: &Acme) {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(entry.hosts.clone()).unwrap();
        let made = params.self_signed(&pair).unwrap();
        vault.keep(entry, &made.pem(), &pair.serialize_pem()).unwrap();
    }

    fn vault() -> (tempfile::TempDir, Vault, i64) {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(dir.path());
        (dir, vault, super::super::super::now())
    }

    #[test]
    fn what_is_kept_is_for_its_owner_alone_and_found_again() {
        let (dir, vault, now) = vault();
        let (both, turned) = (
            entry(&["a.example", "b.example"]),
            entry(&["b.example", "a.example"]),
        );
        assert!(vault.certificate(&both, now).unwrap().is_none());
        let before = vault.digest();
        keep(&vault, &both);
        assert_ne!(vault.digest(), before);
        vault.keep_account(&both, b"{}").unwrap();
        let found = vault.certificate(&turned, now).unwrap().unwrap();
        assert_eq!(found.facts.names, ["a.example", "b.example"]);
        assert!(vault.certificate(&entry(&["a.example"]), now).unwrap().is_none());
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        for folder in ["tls", "tls/acme", "tls/acme/accounts"] {
            assert_eq!(mode(&dir.path().join(folder)), 0o700, "{folder}");
        }
        assert_eq!(mode(&vault.files(&both).key), 0o600);
        // One that is no use is said to be none.
        fs::write(vault.files(&both).cert, "broken").unwrap();
        let why = vault.certificate(&both, now).err().unwrap();
        assert!(why.contains("no certificate"), "{why}");
    }

    #[test]
    fn names_are_never_without_what_was_good_for_them() {
        let (_dir, vault, now) = vault();
        let (one, more) = (entry(&["a.example"]), entry(&["a.example", "b.example"]));
        keep(&vault, &one);
        let names = |found: &[Found]| -> Vec<Vec<String>> {
            found.iter().map(|f| f.certificate.facts.names.clone()).collect()
        };
        // A name was added: the old certificate is shown until the new one is there.
        let found = vault.find(std::slice::from_ref(&more), &[], now);
        assert_eq!(names(&found), [["a.example"]]);
        keep(&vault, &more);
        let found = vault.find(std::slice::from_ref(&more), &found, now);
        assert_eq!(names(&found), [["a.example", "b.example"]]);
        // A file that breaks while it is in use changes nothing; one of nobody is not shown.
        fs::write(vault.files(&more).cert, "broken").unwrap();
        let again = vault.find(std::slice::from_ref(&more), &found, now);
        assert_eq!(names(&again), [["a.example", "b.example"]]);
        assert!(vault.find(&[entry(&["c.example"])], &found, now).is_empty());
        assert!(vault.find(&[], &found, now).is_empty());
    }

    #[test]
    fn an_order_is_due_at_two_thirds_or_when_something_else_is_wanted() {
        let (_dir, vault, now) = vault();
        let mut wanted = entry(&["a.example"]);
        assert_eq!(due(&wanted, &Record::default(), None), 0);
        keep(&vault, &wanted);
        let mut kept = vault.certificate(&wanted, now).unwrap().unwrap();
        (kept.facts.not_before, kept.facts.not_after) = (1_000, 1_900);
        let mut record = Record {
            directory: DIRECTORY.into(),
            ..Record::default()
        };
        assert_eq!(due(&wanted, &record, Some(&kept)), 1_600);
        // The authority wants it earlier; what it says of another certificate, or later, does not count.
        record.renew_of = kept.facts.serial.clone();
        for (renew, want) in [(1_200, 1_200), (1_700, 1_600)] {
            record.renew = renew;
            assert_eq!(due(&wanted, &record, Some(&kept)), want);
        }
        record.renew = 0;
        // An attempt that failed puts it off, for the entry as it was.
        record.not_before = 2_000;
        record.entry = identity(&wanted);
        assert_eq!(due(&wanted, &record, Some(&kept)), 2_000);
        wanted.directory = "https://other.example/dir".into();
        assert_eq!(due(&wanted, &record, Some(&kept)), 0, "it is another authority's");
        let other = entry(&["a.example", "b.example"]);
        assert_eq!(
            due(&other, &Record::default(), Some(&kept)),
            0,
            "a name is missing"
        );
    }
}
