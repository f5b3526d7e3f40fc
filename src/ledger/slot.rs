//! The directory of one process' spool: `<spool>/<n>/`, locked for as long as the process lives.
//!
//! Two processes overlap while one takes over from the other; each has a slot of its own, and what a
//! dead one left is adopted by a living one.

use crate::lock::Lock;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Far more processes than ever overlap.
const SLOTS: u32 = 64;
const SEGMENT: &str = "seg";
const BAD: &str = "bad";
/// How often a cursor is looked at that is a mixture of two.
const LOOKS: usize = 5;

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
    /// Held, not used. Were it not free at once, whoever opens the spool next would begin another slot, and learn
    /// only a minute later of the rows that wait in this one.
    _lock: Lock,
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
        Ok(Lock::take(lock)?.map(|lock| Slot { dir, _lock: lock }))
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

    /// Over the one before and as long as it, in one write, without a file being made for each batch. Who reads
    /// it in that moment knows by its sum whether he has one of the two or a mixture.
    pub fn set_cursor(&self, at: Position) -> io::Result<()> {
        let file = private().truncate(false).open(self.dir.join("cursor"))?;
        file.write_all_at(written(at).as_bytes(), 0)
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

/// Where the store has got to, as its owner last said, who may be saying it anew at this moment. A cursor that
/// cannot be read means reading from the start: rows that are there already stay as they are.
pub fn cursor(dir: &Path) -> io::Result<Position> {
    for _ in 0..LOOKS {
        let text = match fs::read_to_string(dir.join("cursor")) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                String::new()
            }
            Err(e) => return Err(e),
        };
        if let Some(at) = position(&text) {
            return Ok(at);
        }
    }
    Ok(Position::default())
}

fn written(Position { seq, offset }: Position) -> String {
    let numbers = format!("{seq:020} {offset:020}");
    let sum = crc32fast::hash(numbers.as_bytes());
    format!("{numbers} {sum:08x}\n")
}

/// `None` = never written, damaged, or a mixture of two. Earlier versions wrote no sum.
fn position(text: &str) -> Option<Position> {
    let mut words = text.split_whitespace();
    let mut number = || words.next()?.parse().ok();
    let at = Position {
        seq: number()?,
        offset: number()?,
    };
    match words.next() {
        None => Some(at),
        Some(_) => (written(at) == text).then_some(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_of_two_cursors_is_neither() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::claim(dir.path()).unwrap();
        let (old, new) = (
            Position { seq: 7, offset: 999 },
            Position {
                seq: 7,
                offset: 1_000,
            },
        );
        slot.set_cursor(old).unwrap();
        assert_eq!(slot.cursor().unwrap(), old);
        slot.set_cursor(new).unwrap();
        assert_eq!(slot.cursor().unwrap(), new);
        let (old, new) = (written(old), written(new));
        for cut in 0..old.len() {
            let mixed = format!("{}{}", &new[..cut], &old[cut..]);
            if mixed != old && mixed != new {
                fs::write(slot.dir.join("cursor"), mixed).unwrap();
                assert_eq!(slot.cursor().unwrap(), Position::default(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_cursor_without_a_sum_is_of_an_earlier_version() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::claim(dir.path()).unwrap();
        fs::write(
            slot.dir.join("cursor"),
            "00000000000000000007 00000000000000000999\n",
        )
        .unwrap();
        assert_eq!(slot.cursor().unwrap(), Position { seq: 7, offset: 999 });
    }
}
