//! Carries records from the spool to the store, in batches, as often as it takes.

use super::Shared;
use super::reader::{Batch, Reader};
use super::spool::Waiting;
use crate::store::StoreError;
use filters::model::record::Record;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};
use tokio::time::{Instant as TokioInstant, timeout, timeout_at};

/// How often to look for the spools of processes that ended.
const ADOPT_EVERY: Duration = Duration::from_secs(60);
/// Longest wait between two attempts while somebody waits for the spool to empty.
const HURRIED: Duration = Duration::from_millis(250);

pub async fn run(shared: &Shared) {
    // Read once more: opening the spool may not have moved it, and it cannot move without us.
    let at = shared.spool.slot.cursor().unwrap_or_default();
    let mut reader = Reader::new(at);
    let mut adopted = Instant::now();
    let mut held: Option<Batch> = None;
    while !shared.stop.load(SeqCst) {
        if adopted.elapsed() >= ADOPT_EVERY {
            adopted = Instant::now();
            adopt(shared);
        }
        if shared.spool.waiting().records == 0 {
            shared.oldest_micros.store(0, Relaxed);
            shared.empty.notify_waiters();
            // Asleep until something is appended; the timeout is for the spools of others.
            let _ = timeout(ADOPT_EVERY, shared.kick.notified()).await;
            continue;
        }
        linger(shared).await;
        let batch = match held.take() {
            Some(batch) => batch,
            None => match reader.read(&shared.spool, shared.settings.batch_records) {
                Ok(batch) => batch,
                Err(e) => {
                    shared.spool.count_error();
                    log::error!("ledger=spool cannot be read: {e}");
                    let _ = timeout(shared.settings.backoff_max, shared.kick.notified()).await;
                    continue;
                }
            },
        };
        if batch.size == Waiting::default() && !batch.moved {
            shared.spool.settle(reader.position());
            continue;
        }
        if let Some(first) = batch.records.first() {
            shared.oldest_micros.store(first.ended_micros, Relaxed);
        }
        if !land(shared, &batch.records).await {
            held = Some(batch);
            continue;
        }
        shared.dead.fetch_add(batch.unreadable, Relaxed);
        let from = reader.position();
        if batch.end != from {
            shared.spool.advance(from, batch.end);
            reader.advance(batch.end);
        }
        shared.spool.landed(batch.size);
    }
    shared.empty.notify_waiters();
}

fn adopt(shared: &Shared) {
    if let Err(e) = shared
        .spool
        .adopt(&mut |payload| shared.accounts.add_payload(payload))
    {
        log::warn!("ledger=spool cannot adopt what another process left: {e}");
    }
}

/// Waits for a batch to fill up, but not long.
async fn linger(shared: &Shared) {
    let until = TokioInstant::now() + shared.settings.linger;
    while shared.spool.waiting().records < shared.settings.batch_records as u64
        && !shared.hurried()
        && timeout_at(until, shared.kick.notified()).await.is_ok()
    {}
}

/// Brings records into the store, or into its graveyard. False = told to stop before that was done.
async fn land(shared: &Shared, records: &[Record]) -> bool {
    // Parts still to do, the first one last.
    let mut parts = vec![records];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let answer = persist(shared, async || shared.store.append(part).await).await;
        match (answer, part) {
            (Attempt::Stopped, _) => return false,
            (Attempt::Done, _) => {
                shared.landed.fetch_add(part.len() as u64, Relaxed);
                settle(shared, part);
            }
            (Attempt::Refused(reason), [one]) => {
                if !bury(shared, one, &reason).await {
                    return false;
                }
                settle(shared, part);
            }
            (Attempt::Refused(_), _) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.push(second);
                parts.push(first);
            }
        }
    }
    true
}

fn settle(shared: &Shared, part: &[Record]) {
    shared.accounts.remove_all(part);
}

async fn bury(shared: &Shared, record: &Record, reason: &str) -> bool {
    log::error!("ledger=dead_letter request_id={:?}: {reason}", record.request_id);
    let answer = persist(shared, async || shared.store.dead_letter(record, reason).await).await;
    match answer {
        Attempt::Stopped => return false,
        Attempt::Done => {}
        // Refused even as text. It must not stop the rows behind it; the log line above is what remains.
        Attempt::Refused(e) => log::error!("ledger=dead_letter not kept: {e}"),
    }
    shared.dead.fetch_add(1, Relaxed);
    true
}

enum Attempt {
    Done,
    /// The store can never take this.
    Refused(String),
    Stopped,
}

/// Calls the store until it answers one way or the other.
async fn persist(shared: &Shared, mut call: impl AsyncFnMut() -> Result<(), StoreError>) -> Attempt {
    let mut pause = shared.settings.backoff_min;
    loop {
        let error = match call().await {
            Ok(()) => {
                if shared.store_away.swap(false, SeqCst) {
                    let waiting = shared.spool.waiting().records;
                    log::info!("ledger=writer the store takes rows again, waiting={waiting}");
                }
                return Attempt::Done;
            }
            Err(StoreError::Invalid(reason)) => return Attempt::Refused(reason),
            Err(e) => e,
        };
        if !shared.store_away.swap(true, SeqCst) {
            log::warn!("ledger=writer rows wait in the spool: {error}");
        }
        let until = TokioInstant::now() + pause;
        let hurried = TokioInstant::now() + pause.min(HURRIED);
        loop {
            if shared.stop.load(SeqCst) {
                return Attempt::Stopped;
            }
            let until = if shared.hurried() { hurried } else { until };
            // Appends kick, too; they do not shorten the pause.
            if timeout_at(until, shared.kick.notified()).await.is_err() {
                break;
            }
        }
        pause = (pause * 2).min(shared.settings.backoff_max);
    }
}
