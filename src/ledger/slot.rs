//! The directory of one process' spool: `<spool>/<n>/`, locked for as long as the process lives.
//!
//! Two processes overlap while one takes over from the other; each has a slot of its own, and what a
//! dead one left is adopted by a living one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Far more processes than ever overlap.
const SLOTS: u32 = 64;
const SEGMENT: &str = "seg";
const BAD: &str = "bad";

/// How far the store has got: everything before `offset` of segment `seq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub seq: u64,
    /// Bytes.
    pub offset: u64,
}

/// A directory with segments, a cursor and a lock.
#[derive(Debug)]
pub struct Slot {
    pub dir: PathBuf,
    /// Held, not used.
    lock: File,
}

impl Drop for Slot {
    /// Closing the file is not enough: a process that another thread is just starting has a copy of it until
    /// it runs its own program, and the lock with it. Whoever opens the spool in that moment would find the
    /// slot taken, begin another, and learn only a minute later of the rows that wait in this one.
    fn drop(&mut self) {
        if let Err(e) = self.lock.unlock() {
            log::warn!("ledger=spool {}: cannot unlock the slot: {e}", self.dir.display());
        }
    }
}

impl Slot {
    /// The first slot nobody holds.
    pub fn claim(spool: &Path) -> io::Result<Slot> {
        DirBuilder::new().recursive(true).mode(0o700).create(spool)?;
        for n in 0..SLOTS {
            let dir = spool.join(n.to_string());
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            if let Some(slot) = Self::lock(dir)? {
                return Ok(slot);
            }
        }
        let text = format!("all {SLOTS} spool slots are held by other processes");
        Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
    }

    /// Slots that hold segments and no process.
    pub fn orphans(spool: &Path, mine: &Path) -> Vec<Slot> {
        (0..SLOTS)
            .map(|n| spool.join(n.to_string()))
            .filter(|dir| dir != mine && dir.is_dir())
            .filter_map(|dir| Self::lock(dir).ok().flatten())
            .filter(|slot| slot.segments().is_ok_and(|s| !s.is_empty()))
            .collect()
    }

    fn lock(dir: PathBuf) -> io::Result<Option<Slot>> {
        let lock = private().truncate(false).open(dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Slot { dir, lock })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    pub fn segment(&self, seq: u64) -> PathBuf {
        segment(&self.dir, seq)
    }

    /// The numbers of its segments, ascending.
    pub fn segments(&self) -> io::Result<Vec<u64>> {
        segments(&self.dir)
    }

    /// Where the store has got to, within what is there.
    pub fn cursor(&self) -> io::Result<Position> {
        cursor(&self.dir)
    }

    /// Over the one before and as long as it, in one write within one page: whole or not at all, and without
    /// a file being made for each batch.
    pub fn set_cursor(&self, at: Position) -> io::Result<()> {
        let file = private().truncate(false).open(self.dir.join("cursor"))?;
        file.write_all_at(format!("{:020} {:020}\n", at.seq, at.offset).as_bytes(), 0)
    }

    /// Puts bytes that are no records aside, for a person to look at.
    pub fn keep_bad(&self, at: Position, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.dir.join(format!("{:020}-{}.{BAD}", at.seq, at.offset));
        private().truncate(true).open(&path)?.write_all(bytes)?;
        Ok(path)
    }
}

/// Options for a file that only its owner may read, made if it is not there.
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

pub fn segment(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{seq:020}.{SEGMENT}"))
}

pub fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = with_extension(dir, SEGMENT)?
        .iter()
        .filter_map(|path| path.file_stem()?.to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Files with damaged pieces of segments.
pub fn bad_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    with_extension(dir, BAD)
}

fn with_extension(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// The directories of a spool, whoever holds them.
pub fn slots(spool: &Path) -> Vec<PathBuf> {
    let all = (0..SLOTS).map(|n| spool.join(n.to_string()));
    all.filter(|dir| dir.is_dir()).collect()
}

pub fn cursor(dir: &Path) -> io::Result<Position> {
    let text = match fs::read_to_string(dir.join("cursor")) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e),
    };
    // A cursor that cannot be read means reading from the start: rows that are there already stay as they are.
    let mut numbers = text.split_whitespace().map(str::parse);
    Ok(match (numbers.next(), numbers.next()) {
        (Some(Ok(seq)), Some(Ok(offset))) => Position { seq, offset },
        _ => Position::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_was_let_go_of_is_free_though_a_starting_process_has_a_copy_of_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::claim(dir.path()).unwrap();
        // What a child has between fork and exec: the same open file.
        let copy = slot.lock.try_clone().unwrap();
        let mine = slot.dir.clone();
        assert_ne!(Slot::claim(dir.path()).unwrap().dir, mine);
        drop(slot);
        assert_eq!(Slot::claim(dir.path()).unwrap().dir, mine);
        drop(copy);
    }
}
