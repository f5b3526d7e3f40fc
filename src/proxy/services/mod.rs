//! Ordinary services: which backend a request goes to, and how it is connected to. How a backend stands is
//! in `standing`, whose turn it is in `choice`, health checks are in `check`, what the metrics show in `counts`,
//! what a backend is told of the way a request came in `forwarded`. The bytes are the stream driver's.

pub mod check;
mod choice;
mod counts;
pub mod forwarded;
mod standing;

use crate::conf::load::read_bounded;
use crate::conf::{self, Conf, HeaderChanges, HealthCheck, ServiceTimeouts, Strategy};
use choice::Turns;
use filters::model::deployment::Base;
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::prelude::HttpPeer;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::ALPN;
use pingora::utils::tls::{WrappedX509, parse_x509};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
pub use standing::REST;
use standing::{Standing, Visit};
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Without a word in the config, so many further backends are tried.
const USUAL_RETRIES: usize = 3;
/// Largest file of authorities, bytes.
const MOST_CA: u64 = 1 << 20;

/// All services of a config, by name.
#[derive(Default)]
pub struct Services {
    all: BTreeMap<String, Arc<Service>>,
}

/// One service, ready to be called. Never changes, but for how its backends stand.
pub struct Service {
    pub name: String,
    pub backends: Vec<Arc<Backend>>,
    pub strategy: Strategy,
    pub health_check: Option<HealthCheck>,
    pub timeouts: ServiceTimeouts,
    /// Bytes; None = any.
    pub request_body_bytes: Option<u64>,
    pub pass_host: bool,
    pub request_headers: Changes,
    pub response_headers: Changes,
    retries: usize,
    turns: Turns,
    trust: Trust,
}

/// One place where a service runs.
pub struct Backend {
    pub base: Base,
    pub weight: u32,
    /// Taken over from an older config before the first request, else made with it.
    standing: OnceLock<Arc<Standing>>,
}

impl Backend {
    pub fn is_well(&self) -> bool {
        self.standing().is_well()
    }

    fn standing(&self) -> &Arc<Standing> {
        self.standing.get_or_init(Arc::default)
    }

    /// For logs and lists: `http://host:3000/base`.
    pub fn url(&self) -> String {
        let scheme = match (self.base.tls, self.base.h2) {
            (true, _) => "https",
            (false, true) => "h2c",
            (false, false) => "http",
        };
        format!("{scheme}://{}{}", self.base.authority(), self.base.path)
    }
}

/// Whose certificates are believed.
#[derive(Clone)]
struct Trust {
    verify: bool,
    ca: Option<Arc<CaType>>,
    /// Keeps connections apart that were made under different authorities.
    group: u64,
}

/// Headers removed and set.
#[derive(Default)]
pub struct Changes {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
}

impl Changes {
    fn new(said: &HeaderChanges) -> Result<Self, String> {
        let name = |name: &str| HeaderName::try_from(name).map_err(|e| format!("header {name}: {e}"));
        let mut changes = Changes::default();
        for remove in &said.remove {
            changes.remove.push(name(remove)?);
        }
        for (set, value) in &said.set {
            // The value may be a secret.
            let value = HeaderValue::try_from(value.expose())
                .map_err(|_| format!("header {set}: its value holds what no header may hold"))?;
            changes.set.push((name(set)?, value));
        }
        Ok(changes)
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
    }
}

/// A request's way through the backends of its service.
#[derive(Default)]
pub struct Trip {
    /// Backends that were tried, a bit for each.
    tried: u64,
    tries: usize,
    /// The one it is at.
    pub backend: Option<Arc<Backend>>,
    visit: Option<Visit>,
}

impl Trip {
    /// The head of an answer is there.
    pub fn answered(&mut self, status: u16) {
        // Others go before the answer that counts.
        let is_last = status >= 200 || status == 101;
        if let Some(visit) = self.visit.as_mut().filter(|_| is_last) {
            visit.answered(status);
        }
    }
}

impl Services {
    /// `Err` is a sentence.
    pub fn new(conf: &Conf) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for said in &conf.tollkeeper.services {
            let service = Service::new(said).map_err(|e| format!("service {}: {e}", said.name))?;
            all.insert(said.name.clone(), Arc::new(service));
        }
        Ok(Self { all })
    }

    pub fn get(&self, name: &str) -> Option<Arc<Service>> {
        self.all.get(name).cloned()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.all.values()
    }

    /// Backends that an old config knew too stand as they stood there. To be said before the first request.
    pub fn continue_from(&self, old: &Services) {
        for (name, service) in &self.all {
            let Some(old) = old.all.get(name) else {
                continue;
            };
            for (at, backend) in service.backends.iter().enumerate() {
                // One that is named twice is two, each with a standing of its own.
                let is_same = |b: &&Arc<Backend>| b.base == backend.base;
                let before = service.backends.iter().take(at).filter(is_same).count();
                let mut same = old.backends.iter().filter(is_same);
                let Some(known) = same.clone().nth(before).or_else(|| same.next()) else {
                    continue;
                };
                if service.health_check.is_none() {
                    known.standing().forget_checks();
                } else if service.health_check != old.health_check {
                    known.standing().check_soon();
                }
                let _ = backend.standing.set(Arc::clone(known.standing()));
            }
        }
    }
}

impl Service {
    fn new(said: &conf::Service) -> Result<Self, String> {
        let mut backends = Vec::with_capacity(said.backends.len());
        for backend in &said.backends {
            let mut base = Base::parse(&backend.url)?;
            base.h2 = backend.h2c;
            backends.push(Arc::new(Backend {
                base,
                weight: backend.weight,
                standing: OnceLock::new(),
            }));
        }
        let others = backends.len().saturating_sub(1);
        Ok(Self {
            name: said.name.clone(),
            turns: Turns::new(backends.iter().map(|b| b.weight).collect()),
            retries: said
                .retries
                .map_or(others.min(USUAL_RETRIES), |n| (n as usize).min(others)),
            backends,
            strategy: said.strategy,
            health_check: said.health_check.clone(),
            timeouts: said.timeouts.clone(),
            request_body_bytes: said.request_body_bytes,
            pass_host: said.pass_host,
            request_headers: Changes::new(&said.request_headers)?,
            response_headers: Changes::new(&said.response_headers)?,
            trust: Trust::new(said.ca.as_deref(), said.verify)?,
        })
    }

    /// Goes on to the next backend: a well one by its turn, or, where none is well, any that was not tried.
    /// None = all were tried.
    pub fn choose(&self, trip: &mut Trip) -> Option<Arc<Backend>> {
        let tried = trip.tried;
        let is_new = |at: usize| tried & (1 << (at & 63)) == 0;
        let backend = |at: usize| self.backends.get(at);
        let is_well = |at: usize| is_new(at) && backend(at).is_some_and(|b| b.is_well());
        let at = match (self.strategy, self.backends.len()) {
            (_, 1) => is_new(0).then_some(0),
            (Strategy::Weighted, _) => self.turns.next(is_well).or_else(|| self.turns.next(is_new)),
            (Strategy::LeastConnections, _) => {
                let load = |at: usize| backend(at).map_or(usize::MAX, |b| b.standing().in_flight());
                let idlest = self.turns.idlest(load, is_well);
                idlest.or_else(|| self.turns.idlest(load, is_new))
            }
        }?;
        let backend = Arc::clone(self.backends.get(at)?);
        trip.tried |= 1 << (at & 63);
        trip.tries += 1;
        trip.visit = Some(Visit::begin(backend.standing()));
        trip.backend = Some(Arc::clone(&backend));
        Some(backend)
    }

    /// The backend that the trip is at cannot be connected to: it is left out for a while. True = another
    /// one may be tried.
    pub fn refused(&self, trip: &mut Trip, cause: &str) -> bool {
        trip.visit = None;
        if let Some(backend) = &trip.backend
            && backend.standing().refused()
        {
            log::warn!(
                "event=backend_refused service={} backend={} rests={REST:?} cause={cause:?}",
                self.name,
                backend.url()
            );
            self.say_if_alone();
        }
        trip.tries <= self.retries
    }

    /// After news of a backend: says so when none is left.
    fn say_if_alone(&self) {
        if !self.backends.iter().any(|b| b.is_well()) {
            log::error!(
                "event=service_down service={}: no backend is well; all are tried",
                self.name
            );
        }
    }

    /// How to connect to a backend. `peer` knows its address; `upgrades`: the request asks for a WebSocket,
    /// which HTTP/2 has none of.
    pub fn peer(&self, peer: &HttpPeer, upgrades: bool) -> Box<HttpPeer> {
        let mut peer = Box::new(HttpPeer::clone(peer));
        self.trust.put(&mut peer);
        let silence = if upgrades {
            self.timeouts.idle
        } else {
            self.timeouts.first_byte
        };
        let options = &mut peer.options;
        options.connection_timeout = Some(self.timeouts.connect);
        options.total_connection_timeout = Some(self.timeouts.connect);
        options.read_timeout = Some(self.timeouts.total.map_or(silence, |total| total.min(silence)));
        options.write_timeout = Some(self.timeouts.first_byte);
        if upgrades {
            options.alpn = ALPN::H1;
        }
        peer
    }

    /// Whether the config itself says which host backends see.
    pub fn sets_host(&self) -> bool {
        self.request_headers
            .set
            .iter()
            .any(|(name, _)| name == http::header::HOST)
    }
}

impl Trust {
    fn new(file: Option<&Path>, verify: bool) -> Result<Self, String> {
        let Some(file) = file else {
            return Ok(Self {
                verify,
                ca: None,
                group: 0,
            });
        };
        let name = file.display();
        let pem = read_bounded(file, MOST_CA).map_err(|e| format!("{name}: {e}"))?;
        let mut authorities = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| format!("{name}: {e}"))?;
            let mut roots = rustls::RootCertStore::empty();
            roots
                .add(certificate.clone())
                .map_err(|e| format!("{name}: {e}"))?;
            authorities.push(certificate);
        }
        if authorities.is_empty() {
            return Err(format!("{name} holds no certificate"));
        }
        let group = Sha256::digest(&pem)
            .iter()
            .take(8)
            .fold(1, |sum: u64, b| sum.wrapping_mul(256) ^ u64::from(*b));
        // Pingora's reader panics where it finds none of the fields it looks for.
        let read = |der: CertificateDer<'_>| {
            catch_unwind(|| WrappedX509::new(der.to_vec(), parse_x509))
                .map_err(|_| format!("{name} holds a certificate that cannot be read"))
        };
        let authorities: Vec<WrappedX509> = authorities.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self {
            verify,
            ca: Some(Arc::from(authorities)),
            group,
        })
    }

    fn put(&self, peer: &mut HttpPeer) {
        if !peer.is_tls() {
            return;
        }
        peer.options.verify_cert = self.verify;
        peer.options.verify_hostname = self.verify;
        if let Some(ca) = &self.ca {
            peer.options.ca = Some(Arc::clone(ca));
        }
        peer.group_key = self.group;
    }
}
