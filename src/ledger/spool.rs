//! The file a record is in before its caller has the last byte of the answer.
//!
//! Appending is one `write(2)`: what it wrote survives the death of this process. A thread behind it
//! syncs to the disk, which survives the death of the machine. When the disk refuses, records wait in
//! memory, within bounds, and the alarm counter rises.

use super::reader::scan;
use super::slot::{Position, Slot, private};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::Duration;

/// From a write to the sync behind it. With the sync itself that is 50 ms at most on a sound disk.
const SYNC_AFTER: Duration = Duration::from_millis(40);
/// Closed files that wait for their last sync. More only pile up while the disk hangs, and then the
/// oldest are left to the operating system.
const MAX_RETIRED: usize = 64;
/// The disk, so that tests can have one that refuses.
pub trait Disk: Send + Sync {
    fn create(&self, path: &Path) -> io::Result<File> {
        private().append(true).create_new(true).open(path)
    }

    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// The operating system's disk.
pub struct OsDisk;

impl Disk for OsDisk {}

/// Sizes of a spool.
#[derive(Clone)]
pub struct Bounds {
    /// A segment is closed once it is this long, bytes.
    pub segment_bytes: u64,
    /// What may wait in memory while the disk refuses.
    pub memory_bytes: usize,
    pub memory_records: usize,
    pub disk: Arc<dyn Disk>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            memory_bytes: 64 << 20,
            memory_records: 100_000,
            disk: Arc::new(OsDisk),
        }
    }
}

/// What waits for the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub records: u64,
    pub bytes: u64,
}

/// See the module.
pub struct Spool {
    root: PathBuf,
    pub slot: Slot,
    bounds: Bounds,
    inner: Mutex<Inner>,
    errors: AtomicU64,
    sync: Arc<Syncing>,
    syncer: Thread,
}

#[derive(Default)]
struct Inner {
    active: Option<Active>,
    next_seq: u64,
    memory: VecDeque<Vec<u8>>,
    memory_bytes: usize,
    waiting: Waiting,
    refusing: bool,
}

struct Active {
    file: Arc<File>,
    seq: u64,
    /// Bytes of whole frames; readers go no further.
    len: u64,
}

#[derive(Default)]
struct Syncing {
    dirty: AtomicBool,
    stop: AtomicBool,
    files: Mutex<Files>,
    failed: AtomicU64,
}

#[derive(Default)]
struct Files {
    active: Option<Arc<File>>,
    retired: Vec<Arc<File>>,
    /// A file was made, so the directory must be synced, too.
    created: bool,
}

impl Spool {
    /// Takes a slot below `root`, and with it what dead processes left; `seen` is shown every payload
    /// that waits.
    pub fn open(root: &Path, bounds: Bounds, seen: &mut dyn FnMut(&[u8])) -> io::Result<Spool> {
        let slot = Slot::claim(root)?;
        let sync = Arc::new(Syncing::default());
        let (theirs, disk, dir) = (sync.clone(), bounds.disk.clone(), File::open(&slot.dir)?);
        let syncer = thread::Builder::new()
            .name("spool-sync".into())
            .stack_size(128 << 10)
            .spawn(move || theirs.run(&*disk, &dir))?;
        let cursor = slot.cursor()?;
        let mut inner = Inner::default();
        for seq in slot.segments()? {
            inner.next_seq = seq + 1;
            let path = slot.segment(seq);
            if seq < cursor.seq {
                fs::remove_file(path)?;
                continue;
            }
            let from = if seq == cursor.seq { cursor.offset } else { 0 };
            inner.waiting.add(scan(&path, from, seen)?);
        }
        // A number below the cursor's would never be read.
        inner.next_seq = inner.next_seq.max(cursor.seq + 1);
        let spool = Spool {
            root: root.to_path_buf(),
            slot,
            bounds,
            inner: Mutex::new(inner),
            errors: AtomicU64::new(0),
            sync,
            syncer: syncer.thread().clone(),
        };
        spool.adopt(seen)?;
        Ok(spool)
    }

    /// Takes over the segments of processes that are gone. True = there were some.
    pub fn adopt(&self, seen: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        let mut any = false;
        for orphan in Slot::orphans(&self.root, &self.slot.dir) {
            let cursor = orphan.cursor()?;
            for seq in orphan.segments()? {
                let path = orphan.segment(seq);
                if seq < cursor.seq {
                    fs::remove_file(path)?;
                    continue;
                }
                // Read from its start again: rows that are there already stay as they are.
                let found = scan(&path, 0, seen)?;
                let mut inner = self.inner.lock();
                let number = inner.next_seq;
                fs::rename(&path, self.slot.segment(number))?;
                inner.next_seq = number + 1;
                inner.waiting.add(found);
                // What is appended from now on must come after it.
                self.retire(&mut inner);
                any = true;
                log::info!("ledger=spool adopted segment={seq} records={}", found.records);
            }
        }
        Ok(any)
    }

    /// Keeps a frame. On return it survives this process, unless the disk refuses; then it waits in memory,
    /// and only when that is full, too, is this an error. Returns how many records wait now.
    pub fn append(&self, frame: &[u8]) -> io::Result<u64> {
        let mut inner = self.inner.lock();
        match self.write(&mut inner, frame) {
            Ok(()) => {
                if inner.refusing {
                    inner.refusing = false;
                    log::info!("ledger=spool the disk takes records again");
                }
            }
            Err(e) => {
                self.errors.fetch_add(1, Relaxed);
                if !inner.refusing {
                    inner.refusing = true;
                    log::error!("ledger=spool the disk refuses records, they wait in memory: {e}");
                }
                if inner.memory.len() >= self.bounds.memory_records
                    || inner.memory_bytes + frame.len() > self.bounds.memory_bytes
                {
                    return Err(io::Error::new(e.kind(), format!("disk and memory are full: {e}")));
                }
                inner.memory_bytes += frame.len();
                inner.memory.push_back(frame.to_vec());
            }
        }
        inner.waiting.records += 1;
        inner.waiting.bytes += frame.len() as u64;
        let waiting = inner.waiting.records;
        drop(inner);
        // Read first: a flag that every thread writes travels between their processors.
        if !self.sync.dirty.load(SeqCst) && !self.sync.dirty.swap(true, SeqCst) {
            self.syncer.unpark();
        }
        Ok(waiting)
    }

    fn write(&self, inner: &mut Inner, frame: &[u8]) -> io::Result<()> {
        if inner
            .active
            .as_ref()
            .is_some_and(|a| a.len + frame.len() as u64 > self.bounds.segment_bytes)
        {
            self.retire(inner);
        }
        let active = match &mut inner.active {
            Some(active) => active,
            none => {
                let seq = inner.next_seq;
                let file = self.bounds.disk.create(&self.slot.segment(seq))?;
                inner.next_seq = seq + 1;
                let file = Arc::new(file);
                let mut files = self.sync.files.lock();
                files.active = Some(file.clone());
                files.created = true;
                drop(files);
                none.insert(Active { file, seq, len: 0 })
            }
        };
        let mut rest = frame;
        while !rest.is_empty() {
            let refused = match self.bounds.disk.write(&active.file, rest) {
                Ok(0) => io::Error::from(io::ErrorKind::WriteZero),
                Ok(n) => {
                    rest = rest.get(n..).unwrap_or_default();
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            // Half a frame must not stand between whole ones.
            if rest.len() < frame.len() && active.file.set_len(active.len).is_err() {
                self.retire(inner);
            }
            return Err(refused);
        }
        active.len += frame.len() as u64;
        Ok(())
    }

    /// Closes the active segment; the next record begins a new one.
    fn retire(&self, inner: &mut Inner) {
        inner.active = None;
        let mut files = self.sync.files.lock();
        if let Some(file) = files.active.take() {
            if files.retired.len() >= MAX_RETIRED {
                files.retired.remove(0);
            }
            files.retired.push(file);
        }
    }

    /// The end of what may be read of a segment: `None` = the whole file, nobody writes to it any more.
    pub fn committed(&self, seq: u64) -> Option<u64> {
        let inner = self.inner.lock();
        inner.active.as_ref().filter(|a| a.seq == seq).map(|a| a.len)
    }

    /// Frames that wait in memory, oldest first, at most `max`. They are in the caller's hands from here.
    pub fn take_memory(&self, max: usize) -> Vec<Vec<u8>> {
        let mut inner = self.inner.lock();
        let n = max.min(inner.memory.len());
        let taken: Vec<Vec<u8>> = inner.memory.drain(..n).collect();
        inner.memory_bytes -= taken.iter().map(Vec::len).sum::<usize>();
        if inner.memory.is_empty() {
            inner.memory.shrink_to_fit();
        }
        taken
    }

    /// These are done with: in the store, or buried.
    pub fn landed(&self, done: Waiting) {
        let waiting = &mut self.inner.lock().waiting;
        waiting.records = waiting.records.saturating_sub(done.records);
        waiting.bytes = waiting.bytes.saturating_sub(done.bytes);
    }

    /// Remembers how far the store has got and deletes the segments before it.
    pub fn advance(&self, from: Position, to: Position) {
        if let Err(e) = self.slot.set_cursor(to) {
            // After a restart some rows are sent again, and are there already.
            self.errors.fetch_add(1, Relaxed);
            log::warn!("ledger=spool cannot move the cursor: {e}");
        }
        for seq in from.seq..to.seq {
            match fs::remove_file(self.slot.segment(seq)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    log::warn!("ledger=spool cannot delete a finished segment: {e}");
                }
                _ => {}
            }
        }
    }

    /// Called when nothing is left to read: false when something came meanwhile. Counts that say
    /// otherwise are wrong (somebody took files away) and are set right.
    pub fn settle(&self, at: Position) -> bool {
        let mut inner = self.inner.lock();
        let end = inner.active.as_ref().map(|a| Position {
            seq: a.seq,
            offset: a.len,
        });
        let read_all = end.map_or(at.seq + 1 >= inner.next_seq, |end| at >= end);
        if !read_all || !inner.memory.is_empty() {
            return false;
        }
        let lost = std::mem::take(&mut inner.waiting).records;
        if lost > 0 {
            self.errors.fetch_add(lost, Relaxed);
            log::error!("ledger=spool records={lost} have vanished from the spool's files");
        }
        true
    }

    pub fn waiting(&self) -> Waiting {
        self.inner.lock().waiting
    }

    /// Number that the next segment will have.
    pub fn next_seq(&self) -> u64 {
        self.inner.lock().next_seq
    }

    /// Whether the last record could be written to disk.
    pub fn disk_takes(&self) -> bool {
        !self.inner.lock().refusing
    }

    /// A piece of a segment could not be read.
    pub fn count_error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// Times the disk refused, or gave back damage.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed) + self.sync.failed.load(Relaxed)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.sync.stop.store(true, SeqCst);
        self.syncer.unpark();
    }
}

impl Waiting {
    pub fn add(&mut self, more: Waiting) {
        self.records += more.records;
        self.bytes += more.bytes;
    }
}

impl Syncing {
    fn run(&self, disk: &dyn Disk, dir: &File) {
        loop {
            while !self.dirty.load(SeqCst) && !self.stop.load(SeqCst) {
                thread::park();
            }
            let mut stop = self.stop.load(SeqCst);
            if !stop {
                thread::park_timeout(SYNC_AFTER);
                stop = self.stop.load(SeqCst);
            }
            // Cleared before the files are looked at: what is written from here on asks for another round.
            self.dirty.store(false, SeqCst);
            let mut files = self.files.lock();
            let mut due = std::mem::take(&mut files.retired);
            due.extend(files.active.clone());
            let created = std::mem::take(&mut files.created);
            drop(files);
            let mut answers: Vec<io::Result<()>> = due.iter().map(|file| disk.sync(file)).collect();
            if created {
                answers.push(dir.sync_all());
            }
            for e in answers.into_iter().filter_map(Result::err) {
                if self.failed.fetch_add(1, Relaxed) == 0 {
                    log::error!("ledger=spool cannot sync to disk: {e}");
                }
            }
            if stop {
                return;
            }
        }
    }
}
