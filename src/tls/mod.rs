//! TLS towards clients: certificates out of files, from an authority by ACME and for the local network,
//! taken into use again when they change.
//!
//! `Tls` keeps what is there and swaps it; `turn` makes the next `shelf`, which is one state and chooses
//! by name; `door` is what rustls asks in a handshake; `files`, `acme` and `local` bring certificates;
//! `der` reads them; `redirect` says who is sent from http to https. Listeners, ciphers and sockets are Pingora's and rustls'. TLS to upstreams
//! is in `proxy/peer.rs`.

pub mod acme;
mod der;
mod door;
pub mod files;
pub mod local;
pub mod redirect;
mod shelf;
mod turn;

use crate::conf::{self, CertificateFiles, ClientAuth, Conf, Handshake, Listener, TlsVersion};
use acme::{Challenges, Reach, Tender, Vault};
use arc_swap::ArcSwap;
use async_trait::async_trait;
pub use der::{Facts, facts};
use door::Door;
use files::Read;
use parking_lot::Mutex;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::ALPN;
use pingora::protocols::tls::TlsRef;
use shelf::Shelf;
pub use shelf::now;
use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use turn::Turn;

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
    tender: Tender,
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
            let lacking = Reach::of(listeners).problems(&conf.tollkeeper.tls.acme);
            if let Some(why) = lacking.into_iter().next() {
                return Err(why);
            }
            return match listeners.iter().find(|l| l.redirect_https) {
                Some(l) => Err(format!(
                    "the listener {} has redirect_https, and there is no listener with `tls: true` to go to",
                    l.address
                )),
                None => Ok(None),
            };
        }
        let own = &conf.tollkeeper;
        let vault = Vault::new(&own.data_dir);
        let tender = Tender::new(vault.clone(), Reach::of(listeners));
        let lacking = tender.problems(&own.tls.acme);
        if !lacking.is_empty() {
            return Err(lacking.join("\n"));
        }
        let mut turn = Turn::new(local_dir(&own.data_dir), vault, flag);
        let shelf = turn.take(&own.tls)?;
        tender.take(&own.tls.acme);
        Ok(Some(Arc::new(Self {
            shelf: Arc::new(ArcSwap::from_pointee(shelf)),
            turn: Mutex::new(turn),
            tender,
        })))
    }

    /// What Pingora needs for a listener.
    pub fn settings(&self, handshake: &Handshake, h2: bool) -> Result<TlsSettings, String> {
        let mut settings = TlsSettings::with_callbacks(Box::new(KeepName)).map_err(|e| e.to_string())?;
        settings.set_alpn(if h2 { ALPN::H2H1 } else { ALPN::H1 });
        settings.set_cert_resolver(Arc::new(Door {
            shelf: Arc::clone(&self.shelf),
            only_1_3: handshake.min_version == TlsVersion::V1_3,
        }));
        if let Some(judge) = self.turn.lock().judge(handshake)? {
            settings.set_client_cert_verifier(judge);
        }
        Ok(settings)
    }

    /// Takes what a changed config says of certificates. `Err`: nothing was changed, and why.
    pub fn apply(&self, said: &conf::Tls) -> Result<(), String> {
        let lacking = self.tender.problems(&said.acme);
        if !lacking.is_empty() {
            return Err(lacking.join("\n"));
        }
        let shelf = self.turn.lock().take(said)?;
        self.shelf.store(Arc::new(shelf));
        self.tender.take(&said.acme);
        Ok(())
    }

    /// What authorities that look at our names find here.
    pub fn challenges(&self) -> Arc<Challenges> {
        Arc::clone(&self.tender.challenges)
    }

    /// Orders certificates for as long as the process lives.
    pub async fn order(self: Arc<Self>) {
        self.tender.run(&self).await;
    }

    /// Each configured name, and when its certificate ends, seconds since 1970.
    pub fn ends(&self) -> Vec<(String, i64)> {
        self.shelf.load().ends()
    }

    /// Names whose certificates an authority does not give, and why.
    pub fn failing(&self) -> Vec<(String, String)> {
        self.tender.failing()
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
                self.look_again().await;
            }
        }
    }

    /// Somebody asks for it: reads the files now, and tries orders that failed once more. What cannot be
    /// used stays as it was, and the log says why.
    pub async fn refresh(self: &Arc<Self>) {
        self.look_again().await;
        self.tender.try_again();
    }

    async fn look_again(self: &Arc<Self>) {
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
    problems.extend(Reach::of(&own.listeners).problems(&own.tls.acme));
    for file in own.tls.acme.iter().filter_map(|e| e.ca.as_ref()) {
        problems.extend(files::roots(file).err().filter(|why| !problems.contains(why)));
    }
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

/// The name that a connection was made for, kept with it.
pub struct ServerName(pub Box<str>);

struct KeepName;

#[async_trait]
impl TlsAccept for KeepName {
    async fn handshake_complete_callback(&self, tls: &TlsRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let name = tls.server_name()?;
        let name = name.strip_suffix('.').unwrap_or(name);
        Some(Arc::new(ServerName(name.into())))
    }
}
