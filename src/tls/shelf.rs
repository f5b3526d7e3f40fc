//! The certificates that are there at one moment, and which of them a client gets. Never changes but for
//! certificates that are made for a name below a local wildcard when the first client asks for it.

use super::files::Certificate;
use super::local::{Authority, LEAF_USE, Subject};
use crate::conf::UnknownNames;
use moka::sync::Cache;
use rustls::SignatureScheme;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most names below local wildcards that have a certificate at a time.
const MOST_MADE: u64 = 1_000;

/// Names to certificates.
#[derive(Default)]
pub struct Shelf {
    /// Those with the same name in the order of the config: kinds of keys may differ.
    exact: HashMap<String, Vec<Arc<Certificate>>>,
    /// By what stands behind the `*.`.
    wild: HashMap<String, Vec<Arc<Certificate>>>,
    /// For clients that name nobody.
    nameless: Option<Arc<Certificate>>,
    /// The first of the config, for names that nobody has.
    first: Option<Arc<Certificate>>,
    unknown: UnknownNames,
    local: Option<Local>,
}

/// The local network's part.
pub struct Local {
    pub authority: Arc<Authority>,
    /// What stands behind the `*.` of each wildcard.
    pub below: Vec<String>,
    /// Each configured name, and all addresses together, with its certificate.
    pub made: Vec<(Subject, Arc<Certificate>)>,
    /// Whether the config lists addresses, whose clients name nobody.
    pub has_addresses: bool,
    /// What was made for names below wildcards.
    pub asked: Asked,
}

/// Certificates that were made because a client asked.
pub type Asked = Cache<String, Arc<Certificate>>;

pub fn asked() -> Asked {
    Cache::builder()
        .max_capacity(MOST_MADE)
        .time_to_live(LEAF_USE)
        .build()
}

impl Shelf {
    pub fn new(files: &[Arc<Certificate>], local: Option<Local>, unknown: UnknownNames) -> Self {
        let mut shelf = Self {
            unknown,
            first: files.first().cloned(),
            ..Self::default()
        };
        for certificate in files {
            for name in &certificate.facts.names {
                shelf.put(name, certificate);
            }
        }
        let mut addresses = None;
        for (subject, certificate) in local.iter().flat_map(|l| &l.made) {
            match subject {
                // A file for the same name is there on purpose.
                Subject::Name(name) if shelf.exact.contains_key(name) => {}
                Subject::Name(name) => shelf.put(name, certificate),
                Subject::Address(_) => addresses = Some(Arc::clone(certificate)),
            }
        }
        let has_addresses = local.as_ref().is_some_and(|l| l.has_addresses);
        shelf.nameless = match (&shelf.first, &addresses) {
            (_, Some(addresses)) if has_addresses => Some(Arc::clone(addresses)),
            (Some(first), _) => Some(Arc::clone(first)),
            (None, addresses) => addresses.clone(),
        };
        shelf.first = shelf.first.or(addresses);
        shelf.local = local;
        shelf
    }

    fn put(&mut self, name: &str, certificate: &Arc<Certificate>) {
        let slot = match name.strip_prefix("*.") {
            Some(parent) => self.wild.entry(parent.to_string()),
            None => self.exact.entry(name.to_string()),
        };
        slot.or_default().push(Arc::clone(certificate));
    }

    /// What a client is shown that asks for `name`, in lower case, and understands these signatures.
    pub fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<Certificate>> {
        let Some(name) = name else {
            return self.nameless.clone();
        };
        if let Some(found) = self.exact.get(name).and_then(|all| fitting(all, schemes)) {
            return Some(found);
        }
        if let Some((label, parent)) = name.split_once('.') {
            if let Some(found) = self.wild.get(parent).and_then(|all| fitting(all, schemes)) {
                return Some(found);
            }
            if let Some(local) = &self.local
                && !label.is_empty()
                && local.below.iter().any(|p| p == parent)
            {
                return local.make(name);
            }
        }
        match self.unknown {
            UnknownNames::First => self.first.clone(),
            UnknownNames::Refuse => None,
        }
    }

    /// Whether there is anything to show.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Each name that the config or its files list, and when what is shown for it ends, in seconds since
    /// 1970. Names below a local wildcard are made when they are asked for, so that the root's end counts.
    pub fn ends(&self) -> Vec<(String, i64)> {
        let end = |all: &[Arc<Certificate>]| all.first().map(|c| c.facts.not_after);
        let exact = self
            .exact
            .iter()
            .filter_map(|(name, all)| Some((name.clone(), end(all)?)));
        let wild = self
            .wild
            .iter()
            .filter_map(|(parent, all)| Some((format!("*.{parent}"), end(all)?)));
        let mut ends: Vec<(String, i64)> = exact.chain(wild).collect();
        if let Some(local) = &self.local {
            for (subject, certificate) in &local.made {
                if let Subject::Address(ip) = subject {
                    ends.push((ip.to_string(), certificate.facts.not_after));
                }
            }
            let root = local.authority.not_after();
            ends.extend(local.below.iter().map(|parent| (format!("*.{parent}"), root)));
        }
        ends.sort();
        ends.dedup_by(|a, b| a.0 == b.0);
        ends
    }
}

impl Local {
    fn make(&self, name: &str) -> Option<Arc<Certificate>> {
        let made = self.asked.try_get_with_by_ref(name, || {
            let subject = [Subject::Name(name.to_string())];
            self.authority.certificate(&subject, now()).map(Arc::new)
        });
        match made {
            Ok(certificate) => Some(certificate),
            Err(why) => {
                log::error!("event=local_certificate_failed cause={why:?}");
                None
            }
        }
    }
}

/// The first that the client can judge; else the first, so that the client can say why not.
fn fitting(all: &[Arc<Certificate>], schemes: &[SignatureScheme]) -> Option<Arc<Certificate>> {
    all.iter()
        .find(|c| c.key.key.choose_scheme(schemes).is_some())
        .or_else(|| all.first())
        .cloned()
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
