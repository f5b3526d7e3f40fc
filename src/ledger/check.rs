//! `ledger check`: whether the spool's files are sound and every sum in the store is the sum of its rows.
//!
//! Changes nothing, and may run beside a living gateway.

use super::codec;
use super::reader::{Survey, survey};
use super::slot;
use crate::store::{Difference, Page, SpendFilter, Store, StoreError, Sums};
use jiff::civil::Date;
use serde_json::{Value, json};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Differences named one by one; more are not a longer story.
const MAX_DIFFERENCES: u32 = 100;

/// What was found. [`Report::is_sound`] is the verdict.
#[derive(Debug, Default)]
pub struct Report {
    /// Frames that wait for the store.
    pub waiting: u64,
    pub waiting_bytes: u64,
    /// Frames that are whole but hold no record this version can read.
    pub unreadable: u64,
    /// Segments with bytes that are no frames, and how many bytes.
    pub damaged: Vec<(PathBuf, u64)>,
    /// Bytes of last frames that were never finished. No answer was complete that these belong to,
    /// unless the gateway runs and is writing them.
    pub torn_bytes: u64,
    /// Pieces of damaged segments that were put aside earlier.
    pub put_aside: Vec<PathBuf>,
    /// Rows in the store.
    pub rows: u64,
    /// Days before this one were summed up and dropped; `None` = every row is there.
    pub rows_from: Option<Date>,
    /// Whether there are rows the store could not take. One page is looked at.
    pub dead_letters: u64,
    pub differences: Vec<Difference>,
}

/// Why nothing could be said.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("the spool cannot be read: {0}")]
    Spool(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks the spool below `data_dir` and the store. `limit` is for reading the whole ledger.
pub async fn check(data_dir: &Path, store: &dyn Store, limit: Duration) -> Result<Report, CheckError> {
    let mut report = Report::default();
    for dir in slot::slots(&data_dir.join("spool")) {
        report.spool(&dir)?;
    }
    report.differences = store.differences(MAX_DIFFERENCES, limit).await?;
    report.rows_from = store.rows_from().await?;
    report.rows = store.count_records(&SpendFilter::default()).await?;
    let page = Page {
        limit: 1_000,
        offset: 0,
    };
    report.dead_letters = store.dead_letters(page).await?.len() as u64;
    Ok(report)
}

impl Report {
    /// No damage, no difference, nothing given up.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty()
            && self.put_aside.is_empty()
            && self.unreadable == 0
            && self.dead_letters == 0
            && self.differences.is_empty()
    }

    /// Calls that sums hold and rows do not, and the other way round: as what keys spent tells, else whatever sum
    /// tells of most.
    pub fn missing_and_doubled(&self) -> (u64, u64) {
        let more = |than: fn(&Difference) -> (i64, i64)| {
            let of = |d: &Difference| {
                let (a, b) = than(d);
                u64::try_from(a.saturating_sub(b)).unwrap_or(0)
            };
            let is_key = |d: &&Difference| d.what.starts_with("key ") && !d.what.contains(" model ");
            let keys: u64 = self.differences.iter().filter(is_key).map(of).sum();
            keys.max(self.differences.iter().map(of).max().unwrap_or(0))
        };
        let missing = more(|d| (d.kept.requests, d.rows.requests));
        (missing, more(|d| (d.rows.requests, d.kept.requests)))
    }

    /// For programs; money is nano-dollars.
    pub fn to_json(&self) -> Value {
        let (missing, doubled) = self.missing_and_doubled();
        let sums =
            |s: &Sums| json!({"requests": s.requests, "tokens": s.tokens, "spend_nanos": s.spend_nanos});
        let differences = self.differences.iter();
        let differences =
            differences.map(|d| json!({"what": d.what, "kept": sums(&d.kept), "rows": sums(&d.rows)}));
        let damaged = self
            .damaged
            .iter()
            .map(|(path, bytes)| json!({"path": path, "bytes": bytes}));
        json!({
            "sound": self.is_sound(),
            "missing": missing,
            "doubled": doubled,
            "rows": self.rows,
            "rows_from": self.rows_from.map(|day| day.to_string()),
            "waiting": self.waiting,
            "waiting_bytes": self.waiting_bytes,
            "torn_bytes": self.torn_bytes,
            "unreadable": self.unreadable,
            "dead_letters": self.dead_letters,
            "damaged": damaged.collect::<Vec<_>>(),
            "put_aside": self.put_aside,
            "differences": differences.collect::<Vec<_>>(),
        })
    }

    fn spool(&mut self, dir: &Path) -> io::Result<()> {
        let cursor = slot::cursor(dir)?;
        for seq in slot::segments(dir)? {
            if seq < cursor.seq {
                continue;
            }
            let from = if seq == cursor.seq { cursor.offset } else { 0 };
            let path = slot::segment(dir, seq);
            let mut unreadable = 0;
            let found = survey(&path, from, &mut |payload| {
                unreadable += u64::from(codec::decode(payload).is_err());
            });
            let found: Survey = match found {
                Ok(found) => found,
                // A living gateway finished it in the meantime.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            self.waiting += found.good.records;
            self.waiting_bytes += found.good.bytes;
            self.unreadable += unreadable;
            self.torn_bytes += found.torn_bytes;
            if found.bad_bytes > 0 {
                self.damaged.push((path, found.bad_bytes));
            }
        }
        self.put_aside.extend(slot::bad_files(dir)?);
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rows in the store      {}", self.rows)?;
        if let Some(day) = self.rows_from {
            writeln!(f, "days checked           from {day} on; older rows were dropped")?;
        }
        writeln!(
            f,
            "waiting in the spool   {} ({} bytes)",
            self.waiting, self.waiting_bytes
        )?;
        writeln!(f, "unfinished             {} bytes", self.torn_bytes)?;
        writeln!(f, "unreadable frames      {}", self.unreadable)?;
        writeln!(f, "dead letters           {}", self.dead_letters)?;
        for (path, bytes) in &self.damaged {
            writeln!(f, "damaged                {bytes} bytes in {}", path.display())?;
        }
        for path in &self.put_aside {
            writeln!(f, "put aside              {}", path.display())?;
        }
        for d in &self.differences {
            let (k, r) = (d.kept, d.rows);
            writeln!(
                f,
                "differs                {:?}: kept {} calls, {} tokens, {} nano-dollars; rows say {}, {}, {}",
                d.what, k.requests, k.tokens, k.spend_nanos, r.requests, r.tokens, r.spend_nanos
            )?;
        }
        let (missing, doubled) = self.missing_and_doubled();
        writeln!(f, "{missing} missing, {doubled} doubled")?;
        f.write_str(if self.is_sound() {
            "sound: every sum is the sum of its rows"
        } else {
            "not sound"
        })
    }
}
