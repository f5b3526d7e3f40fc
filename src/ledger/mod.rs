//! The ledger: every answered call is written down once, whatever dies in between.
//!
//! [`Ledger::append`] puts a record into a local file before the caller has the last byte of the answer; a
//! thread of its own carries it into the store. Rows are told apart by our request id, so sending one
//! twice is harmless, and that is what every recovery here comes down to.
//!
//! Records wait in memory only while the disk refuses them.

mod accounts;
pub mod check;
mod codec;
pub mod digest;
pub mod frame;
mod reader;
pub mod retention;
mod slot;
pub mod spool;
mod writer;

use crate::store::Store;
use accounts::Accounts;
use filters::contract::ports;
use filters::model::account::Account;
use filters::model::record::Record;
use spool::{Bounds, Spool};
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, watch};

/// Sizes and times of a ledger. The defaults suit a gateway.
#[derive(Clone)]
pub struct Settings {
    /// Most rows in one transaction.
    pub batch_records: usize,
    /// How long a record may wait for others to fill its batch.
    pub linger: Duration,
    /// First and longest pause between two attempts while the store is away.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    pub spool: Bounds,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_records: 1000,
            linger: Duration::from_millis(200),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            spool: Bounds::default(),
        }
    }
}

/// How the ledger is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerStats {
    /// Records and bytes that wait for the store.
    pub pending_records: u64,
    pub pending_bytes: u64,
    /// Since the end of the call whose record is next in line; zero when none waits.
    pub oldest_age: Duration,
    /// Records brought into the store since the start.
    pub landed: u64,
    /// Records that no store can take, kept as dead letters or beside the spool.
    pub dead: u64,
    /// Records lost because disk and memory were full. Anything but 0 is an alarm.
    pub lost: u64,
    /// Times the disk refused a record or gave back damage.
    pub spool_errors: u64,
    /// The disk takes records and the store takes rows.
    pub healthy: bool,
}

struct Shared {
    spool: Spool,
    store: Arc<dyn Store>,
    settings: Settings,
    accounts: Accounts,
    /// Something to do for the writer.
    kick: Notify,
    /// Nothing waits, or the writer has ended.
    empty: Notify,
    /// How many callers wait for the spool to empty.
    hurry: AtomicUsize,
    stop: AtomicBool,
    store_away: AtomicBool,
    landed: AtomicU64,
    dead: AtomicU64,
    lost: AtomicU64,
    /// End of the oldest waiting call, microseconds since 1970; 0 = none.
    oldest_micros: AtomicI64,
}

impl Shared {
    fn hurried(&self) -> bool {
        self.hurry.load(SeqCst) > 0 || self.stop.load(SeqCst)
    }
}

/// See the module.
pub struct Ledger {
    shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
}

impl Ledger {
    /// Opens the spool below `data_dir` and begins to empty it into the store, on a thread of its own.
    pub fn open(data_dir: &Path, store: Arc<dyn Store>, mut settings: Settings) -> io::Result<Ledger> {
        // None would never land, and a batch must stay within one statement's time limit.
        settings.batch_records = settings.batch_records.clamp(1, 5_000);
        let accounts = Accounts::default();
        let root = data_dir.join("spool");
        let spool = Spool::open(&root, settings.spool.clone(), &mut |p| accounts.add_payload(p))?;
        let waiting = spool.waiting();
        if waiting.records > 0 {
            log::info!(
                "ledger=spool found waiting={} bytes={}",
                waiting.records,
                waiting.bytes
            );
        }
        let shared = Arc::new(Shared {
            spool,
            store,
            settings,
            accounts,
            kick: Notify::new(),
            empty: Notify::new(),
            hurry: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            store_away: AtomicBool::new(false),
            landed: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            oldest_micros: AtomicI64::new(0),
        });
        // A runtime of its own: reading files may block it, and it must outlive the gateway's runtimes
        // while these shut down.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (end, ended) = watch::channel(false);
        let theirs = shared.clone();
        std::thread::Builder::new().name("ledger".into()).spawn(move || {
            runtime.block_on(writer::run(&theirs));
            drop(theirs);
            end.send_replace(true);
        })?;
        Ok(Ledger { shared, ended })
    }

    /// Writes a record down. On return it survives the death of this process; an error means that disk
    /// and memory are full and the record is lost. Never waits for the store.
    pub fn append(&self, record: Record) -> io::Result<()> {
        self.keep(record, |_| {}).map_err(|(_, e)| e)
    }

    /// Writes a record down and tells `told` of it; a loss is told to the log alone.
    pub fn write(&self, record: Record, told: impl FnOnce(&Record)) {
        if let Err((id, e)) = self.keep(record, told) {
            log::error!("ledger=lost request_id={id:?}: {e}");
        }
    }

    /// The same. `told` sees the record as it is written, once it counts as on its way: whoever counts it
    /// as well has it twice for a moment, never not at all. An error comes with the lost record's id.
    fn keep(&self, mut record: Record, told: impl FnOnce(&Record)) -> Result<(), (String, io::Error)> {
        record.clean();
        bound(&mut record);
        // Before the record can land, so that no sum is ever short of it.
        self.shared.accounts.add(&record);
        told(&record);
        match self.spool(&record) {
            Ok(waiting) => {
                let batch = self.shared.settings.batch_records as u64;
                // The writer sleeps until there is something, then until there is enough.
                if waiting == 1 || waiting == batch {
                    self.shared.kick.notify_one();
                }
                Ok(())
            }
            Err(e) => {
                self.shared.lost.fetch_add(1, Relaxed);
                self.shared.accounts.remove(&record);
                Err((record.request_id, e))
            }
        }
    }

    fn spool(&self, record: &Record) -> io::Result<u64> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            frame::encode(record, buffer)?;
            let waiting = self.shared.spool.append(buffer)?;
            // One huge record must not keep its memory on every thread.
            buffer.clear();
            buffer.shrink_to(16 << 10);
            Ok(waiting)
        })
    }

    /// Nano-dollars that each of these has spent in calls whose rows are not in the store yet.
    pub fn unlanded(&self, accounts: &[&Account]) -> Vec<i64> {
        self.shared.accounts.of(accounts)
    }

    pub fn stats(&self) -> LedgerStats {
        let s = &self.shared;
        let waiting = s.spool.waiting();
        let oldest = s.oldest_micros.load(Relaxed);
        let age = if waiting.records == 0 || oldest == 0 {
            Duration::ZERO
        } else {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            now.saturating_sub(Duration::from_micros(u64::try_from(oldest).unwrap_or(0)))
        };
        let lost = s.lost.load(Relaxed);
        LedgerStats {
            pending_records: waiting.records,
            pending_bytes: waiting.bytes,
            oldest_age: age,
            landed: s.landed.load(Relaxed),
            dead: s.dead.load(Relaxed),
            lost,
            spool_errors: s.spool.errors(),
            healthy: s.spool.disk_takes() && !s.store_away.load(Relaxed),
        }
    }

    /// Waits until nothing waits for the store; false = something still does. It stays in the spool.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.shared.hurry.fetch_add(1, SeqCst);
        self.shared.kick.notify_one();
        let emptied = async {
            loop {
                let empty = self.shared.empty.notified();
                tokio::pin!(empty);
                // Registered before looking, so that no signal falls in between.
                empty.as_mut().enable();
                if self.shared.spool.waiting().records == 0 {
                    return;
                }
                empty.await;
            }
        };
        let _ = tokio::time::timeout(limit, emptied).await;
        self.shared.hurry.fetch_sub(1, SeqCst);
        self.shared.spool.waiting().records == 0
    }

    /// Drains, then ends the writer and gives the spool free; at most a little longer than `limit`.
    pub async fn close(self, limit: Duration) -> bool {
        let drained = self.drain(limit).await;
        let mut ended = self.ended.clone();
        drop(self);
        // The writer may be within a call to the store, which has a bound of its own.
        let _ = tokio::time::timeout(Duration::from_secs(10), ended.wait_for(|e| *e)).await;
        drained
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.kick.notify_one();
    }
}

impl ports::Ledger for Ledger {
    fn append(&self, record: Record) {
        self.write(record, |_| {});
    }
}

/// What [`Record::clean`] leaves open: names that are ours, and the list of attempts.
fn bound(record: &mut Record) {
    fn fit(text: &mut String, max: usize) {
        if text.contains('\0') {
            *text = text.replace('\0', "\u{fffd}");
        }
        text.truncate(text.floor_char_boundary(max));
    }
    fit(&mut record.request_id, 256);
    fit(&mut record.provider, 128);
    fit(&mut record.client_ip, 128);
    record.attempts.truncate(64);
    for attempt in &mut record.attempts {
        fit(&mut attempt.deployment_id, 512);
        if let Some(error) = &mut attempt.error {
            fit(error, 512);
        }
    }
}
