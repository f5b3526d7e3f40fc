//! TLS towards clients: certificates out of files and for the local network, taken into use again when
//! they change.
//!
//! `Tls` keeps what is there and swaps it; `shelf` is one state of it and chooses by name; `door` is what
//! rustls asks in a handshake; `files` and `local` make certificates; `der` reads them; `redirect` says who
//! is sent from http to https. Listeners, ciphers and sockets are Pingora's and rustls'. TLS to upstreams
//! is in `proxy/peer.rs`.

mod der;
mod door;
pub mod files;
pub mod local;
pub mod redirect;
mod shelf;

use crate::conf::{self, CertificateFiles, ClientAuth, Conf, Handshake, Listener, LocalHost, TlsVersion};
use arc_swap::ArcSwap;
use async_trait::async_trait;
pub use der::{Facts, facts};
use door::{Door, Judge};
use files::{Certificate, Digested, Read};
use local::{Authority, LEAF_LIFE, LEAF_USE, Subject};
use parking_lot::Mutex;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::ALPN;
pub use shelf::now;
use shelf::{Asked, Local, Shelf};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often the files are looked at: whoever renews certificates tells nobody.
const LOOK: Duration = Duration::from_secs(2);
/// A certificate and its key are two files; the second comes shortly after the first.
const QUIET: Duration = Duration::from_millis(200);

/// Where the authority for the local network is kept.
pub fn local_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("tls").join("local")
}

/// The certificates of the process.
pub struct Tls {
    shelf: Arc<ArcSwap<Shelf>>,
    turn: Mutex<Turn>,
}

/// What changes are made from. One at a time.
struct Turn {
    local_dir: PathBuf,
    /// Given on the command line: it comes before those of the config.
    flag: Option<CertificateFiles>,
    said: conf::Tls,
    held: Vec<Held>,
    local: Option<HeldLocal>,
    judges: Vec<HeldJudge>,
}

/// A certificate of the config, and the state of its files that was looked at last.
struct Held {
    files: CertificateFiles,
    seen: Digested,
    certificate: Arc<Certificate>,
}

struct HeldLocal {
    authority: Arc<Authority>,
    made: Vec<(Subject, Arc<Certificate>)>,
    asked: Asked,
}

struct HeldJudge {
    file: PathBuf,
    seen: Digested,
    judge: Arc<Judge>,
}

impl Tls {
    /// Reads all that the config names. `None` = no listener speaks TLS. `Err` says what is wrong, one
    /// line for each file.
    pub fn open(
        conf: &Conf,
        listeners: &[Listener],
        flag: Option<CertificateFiles>,
    ) -> Result<Option<Arc<Self>>, String> {
        if !listeners.iter().any(|l| l.tls.is_some()) {
            return match listeners.iter().find(|l| l.redirect_https) {
                Some(l) => Err(format!(
                    "the listener {} has redirect_https, and there is no listener with `tls: true` to go to",
                    l.address
                )),
                None => Ok(None),
            };
        }
        let mut turn = Turn {
            local_dir: local_dir(&conf.tollkeeper.data_dir),
            flag,
            said: conf::Tls::default(),
            held: Vec::new(),
            local: None,
            judges: Vec::new(),
        };
        let shelf = turn.take(&conf.tollkeeper.tls)?;
        Ok(Some(Arc::new(Self {
            shelf: Arc::new(ArcSwap::from_pointee(shelf)),
            turn: Mutex::new(turn),
        })))
    }

    /// What Pingora needs for a listener.
    pub fn settings(&self, handshake: &Handshake, h2: bool) -> Result<TlsSettings, String> {
        let mut settings = TlsSettings::with_callbacks(Box::new(NoCallbacks)).map_err(|e| e.to_string())?;
        settings.set_alpn(if h2 { ALPN::H2H1 } else { ALPN::H1 });
        settings.set_cert_resolver(Arc::new(Door {
            shelf: Arc::clone(&self.shelf),
            only_1_3: handshake.min_version == TlsVersion::V1_3,
        }));
        if let (Some(file), true) = (&handshake.client_ca, handshake.client_auth != ClientAuth::None) {
            let (seen, roots) = files::authorities(file);
            let judge = Arc::new(Judge::new(roots?, handshake.client_auth == ClientAuth::Required)?);
            settings.set_client_cert_verifier(Arc::clone(&judge) as _);
            self.turn.lock().judges.push(HeldJudge {
                file: file.clone(),
                seen,
                judge,
            });
        }
        Ok(settings)
    }

    /// Takes what a changed config says of certificates. `Err`: nothing was changed, and why.
    pub fn apply(&self, said: &conf::Tls) -> Result<(), String> {
        let shelf = self.turn.lock().take(said)?;
        self.shelf.store(Arc::new(shelf));
        Ok(())
    }

    /// Each configured name, and when its certificate ends, seconds since 1970.
    pub fn ends(&self) -> Vec<(String, i64)> {
        self.shelf.load().ends()
    }

    /// Looks after files and the local network's certificates for as long as the process lives.
    pub async fn watch(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let this = Arc::clone(&self);
            let changed = tokio::task::spawn_blocking(move || this.turn.lock().has_news(now())).await;
            if matches!(changed, Ok(true)) {
                tokio::time::sleep(QUIET).await;
                self.refresh().await;
            }
        }
    }

    /// Reads the files now. What cannot be used stays as it was, and the log says why.
    pub async fn refresh(self: &Arc<Self>) {
        let this = Arc::clone(self);
        // It reports what goes wrong itself.
        let _ = tokio::task::spawn_blocking(move || {
            let mut turn = this.turn.lock();
            if let Some(shelf) = turn.refresh(now()) {
                this.shelf.store(Arc::new(shelf));
            }
        })
        .await;
    }
}

/// Whatever is wrong with the certificates of a config that is not in use: for `check`.
pub fn problems(conf: &Conf) -> Vec<String> {
    let own = &conf.tollkeeper;
    let mut problems: Vec<String> = own
        .tls
        .certificates
        .iter()
        .filter_map(|files| Read::of(files).certificate(files, now()).err())
        .collect();
    let handshakes = own.listeners.iter().filter_map(|l| l.tls.as_ref());
    for handshake in handshakes.chain([&own.tls.handshake]) {
        if let (Some(file), true) = (&handshake.client_ca, handshake.client_auth != ClientAuth::None)
            && let Err(why) = files::authorities(file).1
            && !problems.contains(&why)
        {
            problems.push(why);
        }
    }
    problems
}

impl Turn {
    /// Reads all that `said` names and keeps it. What served before and is broken now serves on.
    fn take(&mut self, said: &conf::Tls) -> Result<Shelf, String> {
        let now = now();
        let (mut held, mut wrong) = (Vec::new(), Vec::new());
        for files in self.flag.iter().chain(&said.certificates) {
            let read = Read::of(files);
            let seen = read.digest();
            let before = self.held.iter().find(|h| h.files == *files);
            let certificate = match (read.certificate(files, now), before) {
                (Ok(new), before) => {
                    if before.is_none_or(|b| b.seen != seen) {
                        tell_taken(&new);
                    }
                    Arc::new(new)
                }
                (Err(why), Some(before)) => {
                    if before.seen != seen {
                        tell_refused(&why);
                    }
                    Arc::clone(&before.certificate)
                }
                (Err(why), None) => {
                    wrong.push(why);
                    continue;
                }
            };
            held.push(Held {
                files: files.clone(),
                seen,
                certificate,
            });
        }
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        let local = self.local(&said.local, now)?;
        let shelf = shelf(&held, local.as_ref(), said);
        if shelf.is_empty() {
            return Err(
                "a listener has `tls`, and there is no certificate: name one in tollkeeper.tls.certificates, or let \
                 tollkeeper.tls.local.hosts make some for the local network"
                    .into(),
            );
        }
        (self.held, self.local, self.said) = (held, local, said.clone());
        Ok(shelf)
    }

    /// The local network's certificates; those that are there and fresh stay.
    fn local(&self, hosts: &[LocalHost], now: i64) -> Result<Option<HeldLocal>, String> {
        if hosts.is_empty() {
            return Ok(None);
        }
        let before = self.local.as_ref();
        let authority = match before {
            Some(before) => Arc::clone(&before.authority),
            None => Arc::new(Authority::open(&self.local_dir, now)?),
        };
        let mut made = Vec::new();
        for subjects in subjects(hosts) {
            // The first stands for all of them; the others are this machine's own.
            let Some(first) = subjects.first().cloned() else {
                continue;
            };
            let fresh = before.and_then(|b| {
                let same = |(subject, c): &&(Subject, Arc<Certificate>)| {
                    *subject == first && !is_due(c, now) && holds(c, &subjects)
                };
                b.made.iter().find(same).cloned()
            });
            made.push(match fresh {
                Some(fresh) => fresh,
                None => (first, Arc::new(authority.certificate(&subjects, now)?)),
            });
        }
        let asked = before.map_or_else(shelf::asked, |b| b.asked.clone());
        Ok(Some(HeldLocal {
            authority,
            made,
            asked,
        }))
    }

    /// Whether a file is another than it was, or a local certificate is due.
    fn has_news(&self, now: i64) -> bool {
        self.held.iter().any(|h| Read::of(&h.files).digest() != h.seen)
            || self
                .judges
                .iter()
                .any(|j| files::authorities(&j.file).0 != j.seen)
            || self.is_local_due(now)
    }

    fn is_local_due(&self, now: i64) -> bool {
        let local = self.local.iter().flat_map(|l| &l.made);
        local.into_iter().any(|(_, c)| is_due(c, now))
    }

    /// Reads what has changed. Each state of a file is told of once.
    fn refresh(&mut self, now: i64) -> Option<Shelf> {
        let mut changed = false;
        for held in &mut self.held {
            let read = Read::of(&held.files);
            let seen = read.digest();
            if seen == held.seen {
                continue;
            }
            held.seen = seen;
            match read.certificate(&held.files, now) {
                Ok(new) => {
                    tell_taken(&new);
                    held.certificate = Arc::new(new);
                    changed = true;
                }
                Err(why) => tell_refused(&why),
            }
        }
        for held in &mut self.judges {
            let (seen, roots) = files::authorities(&held.file);
            if seen == held.seen {
                continue;
            }
            held.seen = seen;
            match roots.and_then(|roots| held.judge.replace(roots)) {
                Ok(()) => log::info!("event=client_authorities_taken file={}", held.file.display()),
                Err(why) => log::error!("event=client_authorities_refused the old ones stay: {why}"),
            }
        }
        if self.is_local_due(now) {
            match self.local(&self.said.local, now) {
                Ok(local) => {
                    log::info!("event=local_certificates_renewed");
                    self.local = local;
                    changed = true;
                }
                Err(why) => log::error!("event=local_certificates_not_renewed cause={why:?}"),
            }
        }
        changed.then(|| shelf(&self.held, self.local.as_ref(), &self.said))
    }
}

fn shelf(held: &[Held], local: Option<&HeldLocal>, said: &conf::Tls) -> Shelf {
    let files: Vec<Arc<Certificate>> = held.iter().map(|h| Arc::clone(&h.certificate)).collect();
    let local = local.map(|local| Local {
        authority: Arc::clone(&local.authority),
        below: said
            .local
            .iter()
            .filter_map(|host| match host {
                LocalHost::Below(parent) => Some(parent.clone()),
                _ => None,
            })
            .collect(),
        made: local.made.clone(),
        has_addresses: said.local.iter().any(|h| matches!(h, LocalHost::Address(_))),
        asked: local.asked.clone(),
    });
    Shelf::new(&files, local, said.unknown_names)
}

/// What each certificate of the local network is for: one for each name, and one for all addresses, since
/// a client that goes to an address does not say to which.
fn subjects(hosts: &[LocalHost]) -> Vec<Vec<Subject>> {
    let mut all: Vec<Vec<Subject>> = Vec::new();
    let mut addresses = Vec::new();
    for host in hosts {
        match host {
            LocalHost::Name(name) => all.push(vec![Subject::Name(name.clone())]),
            LocalHost::Address(ip) => addresses.push(Subject::Address(*ip)),
            LocalHost::Below(_) => {}
        }
    }
    for own in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        addresses.push(Subject::Address(own));
    }
    addresses.push(Subject::Name("localhost".into()));
    all.push(addresses);
    all.dedup();
    all
}

fn holds(certificate: &Certificate, subjects: &[Subject]) -> bool {
    subjects.iter().all(|subject| match subject {
        Subject::Name(name) => certificate.facts.names.contains(name),
        Subject::Address(ip) => certificate.facts.addresses.contains(ip),
    })
}

/// Whether two thirds of a local certificate's life are over. Not so at its root's end, where a new one
/// would be no better.
fn is_due(certificate: &Certificate, now: i64) -> bool {
    let left = LEAF_LIFE.saturating_sub(LEAF_USE).as_secs();
    let used = certificate.facts.not_after.saturating_sub(now);
    let life = certificate
        .facts
        .not_after
        .saturating_sub(certificate.facts.not_before);
    used <= i64::try_from(left).unwrap_or(i64::MAX) && life > LEAF_LIFE.as_secs() as i64
}

fn tell_taken(certificate: &Certificate) {
    log::info!(
        "event=certificate_taken names={} serial={} expires={}",
        certificate.told_names(),
        certificate.facts.serial,
        files::day(certificate.facts.not_after)
    );
}

fn tell_refused(why: &str) {
    log::error!("event=certificate_refused the old one stays: {why}");
}

/// Pingora makes settings with a resolver this way only.
struct NoCallbacks;

#[async_trait]
impl TlsAccept for NoCallbacks {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_certificates_are_made_anew_after_two_thirds() {
        let dir = tempfile::tempdir().unwrap();
        let mut turn = Turn {
            local_dir: dir.path().join("tls/local"),
            flag: None,
            said: conf::Tls {
                local: vec![
                    LocalHost::Name("a.home.arpa".into()),
                    LocalHost::Below("local".into()),
                ],
                ..conf::Tls::default()
            },
            held: Vec::new(),
            local: None,
            judges: Vec::new(),
        };
        let said = turn.said.clone();
        let begun = now();
        let shelf = turn.take(&said).unwrap();
        let serial = |shelf: &Shelf, name| {
            let found = shelf.find(Some(name), &[]).unwrap();
            assert_eq!(found.told_names(), name);
            found.facts.serial.clone()
        };
        let first = serial(&shelf, "a.home.arpa");
        assert_eq!(serial(&shelf, "x.local"), serial(&shelf, "x.local"));
        assert!(shelf.find(None, &[]).unwrap().facts.names == ["localhost"]);
        let again = turn.take(&said).unwrap();
        assert_eq!(serial(&again, "a.home.arpa"), first, "a fresh one stays");

        let after = |days: i64| begun + days * 86_400;
        assert!(!turn.has_news(after(59)) && turn.refresh(after(59)).is_none());
        assert!(turn.has_news(after(61)));
        let renewed = turn.refresh(after(61)).unwrap();
        assert_ne!(serial(&renewed, "a.home.arpa"), first);
        assert!(!turn.has_news(after(61)));
        let ends: Vec<String> = renewed.ends().into_iter().map(|(name, _)| name).collect();
        assert_eq!(ends, ["*.local", "127.0.0.1", "a.home.arpa"]);
    }
}
