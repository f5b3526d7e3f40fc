//! What the shelf is made from: files, the local network's authority, what the vault of ACME holds; and
//! how each of these is taken in when it changes. What is not good is not taken: the old one stays.

use super::acme::{Found, Vault};
use super::door::Judge;
use super::files::{self, Certificate, Digested, Read};
use super::local::{Authority, LEAF_LIFE, LEAF_USE, Subject};
use super::shelf::{self, Asked, Local, Shelf, now};
use crate::conf::{self, CertificateFiles, ClientAuth, Handshake, LocalHost};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// What changes are made from. One at a time.
pub struct Turn {
    local_dir: PathBuf,
    vault: Vault,
    /// Given on the command line: it comes before those of the config.
    flag: Option<CertificateFiles>,
    said: conf::Tls,
    held: Vec<Held>,
    acme: HeldAcme,
    local: Option<HeldLocal>,
    judges: Vec<HeldJudge>,
}

/// What the vault had when it was looked at last.
#[derive(Default)]
struct HeldAcme {
    seen: Digested,
    found: Vec<Found>,
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

impl Turn {
    pub fn new(local_dir: PathBuf, vault: Vault, flag: Option<CertificateFiles>) -> Self {
        Self {
            local_dir,
            vault,
            flag,
            said: conf::Tls::default(),
            held: Vec::new(),
            acme: HeldAcme::default(),
            local: None,
            judges: Vec::new(),
        }
    }

    /// Who judges clients' certificates on a listener, if anybody does.
    pub fn judge(&mut self, handshake: &Handshake) -> Result<Option<Arc<Judge>>, String> {
        let (Some(file), true) = (&handshake.client_ca, handshake.client_auth != ClientAuth::None) else {
            return Ok(None);
        };
        let (seen, roots) = files::authorities(file);
        let judge = Arc::new(Judge::new(roots?, handshake.client_auth == ClientAuth::Required)?);
        self.judges.push(HeldJudge {
            file: file.clone(),
            seen,
            judge: Arc::clone(&judge),
        });
        Ok(Some(judge))
    }

    /// Reads all that `said` names and keeps it. What served before and is broken now serves on.
    pub fn take(&mut self, said: &conf::Tls) -> Result<Shelf, String> {
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
        let acme = self.acme(&said.acme, now);
        let shelf = shelf(&held, &acme, local.as_ref(), said);
        if shelf.is_empty() && said.acme.is_empty() {
            return Err(
                "a listener has `tls`, and there is no certificate: name one in tollkeeper.tls.certificates, have one \
                 ordered with tollkeeper.tls.acme, or let tollkeeper.tls.local.hosts make some for the local network"
                    .into(),
            );
        }
        (self.held, self.acme, self.local, self.said) = (held, acme, local, said.clone());
        Ok(shelf)
    }

    /// What the vault has for these entries.
    fn acme(&self, entries: &[conf::Acme], now: i64) -> HeldAcme {
        if entries.is_empty() {
            return HeldAcme::default();
        }
        HeldAcme {
            seen: self.vault.digest(),
            found: self.vault.find(entries, &self.acme.found, now),
        }
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
    pub fn has_news(&self, now: i64) -> bool {
        self.held.iter().any(|h| Read::of(&h.files).digest() != h.seen)
            || self
                .judges
                .iter()
                .any(|j| files::authorities(&j.file).0 != j.seen)
            || self.is_local_due(now)
            || self.has_acme_news()
    }

    fn has_acme_news(&self) -> bool {
        !self.said.acme.is_empty() && self.vault.digest() != self.acme.seen
    }

    fn is_local_due(&self, now: i64) -> bool {
        let local = self.local.iter().flat_map(|l| &l.made);
        local.into_iter().any(|(_, c)| is_due(c, now))
    }

    /// Reads what has changed. Each state of a file is told of once.
    pub fn refresh(&mut self, now: i64) -> Option<Shelf> {
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
        if self.has_acme_news() {
            self.acme = self.acme(&self.said.acme, now);
            changed = true;
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
        changed.then(|| shelf(&self.held, &self.acme, self.local.as_ref(), &self.said))
    }
}

fn shelf(held: &[Held], acme: &HeldAcme, local: Option<&HeldLocal>, said: &conf::Tls) -> Shelf {
    let held = held.iter().map(|h| &h.certificate);
    let files: Vec<Arc<Certificate>> = held
        .chain(acme.found.iter().map(|f| &f.certificate))
        .cloned()
        .collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_certificates_are_made_anew_after_two_thirds() {
        let dir = tempfile::tempdir().unwrap();
        let mut turn = Turn::new(dir.path().join("tls/local"), Vault::new(dir.path()), None);
        let said = conf::Tls {
            local: vec![
                LocalHost::Name("a.home.arpa".into()),
                LocalHost::Below("local".into()),
            ],
            ..conf::Tls::default()
        };
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
