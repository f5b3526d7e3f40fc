//! Reads the spool's files back, the same way after a restart as all the time.

use super::codec;
use super::frame::{self, HEADER, MAX_PAYLOAD, Step};
use super::slot::Position;
use super::spool::{Spool, Waiting};
use filters::model::record::Record;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Read at once, bytes: about one batch, so that little is read twice.
const WINDOW: usize = 512 << 10;
/// Read at once when a frame does not fit into that. More than one frame of any size.
const WIDE: usize = 2 * (HEADER + MAX_PAYLOAD);

/// Records read, and what to tell the spool once they have landed.
#[derive(Default)]
pub struct Batch {
    pub records: Vec<Record>,
    /// Frames whose payload is no record of ours; they were put aside.
    pub unreadable: u64,
    /// All of the above.
    pub size: Waiting,
    /// Where reading goes on.
    pub end: Position,
    /// Bytes were skipped, or a segment ended.
    pub moved: bool,
}

impl Batch {
    fn take(&mut self, payload: &[u8]) -> bool {
        self.size.records += 1;
        self.size.bytes += (HEADER + payload.len()) as u64;
        match codec::decode(payload) {
            Ok(record) => {
                self.records.push(record);
                true
            }
            Err(_) => {
                self.unreadable += 1;
                false
            }
        }
    }
}

/// Goes through one process' segments in order.
pub struct Reader {
    at: Position,
    file: Option<(u64, File)>,
    window: Vec<u8>,
}

impl Reader {
    pub fn new(at: Position) -> Self {
        Self {
            at,
            file: None,
            window: Vec::new(),
        }
    }

    /// At most `max` records. What waits in memory comes first: it is not on any disk.
    pub fn read(&mut self, spool: &Spool, max: usize) -> io::Result<Batch> {
        let mut batch = Batch {
            end: self.at,
            ..Batch::default()
        };
        for frame in spool.take_memory(max) {
            batch.take(frame.get(HEADER..).unwrap_or_default());
        }
        if batch.size.records > 0 {
            return Ok(batch);
        }
        self.read_disk(spool, max, &mut batch)?;
        Ok(batch)
    }

    /// The batch has landed: go on behind it.
    pub fn advance(&mut self, to: Position) {
        self.at = to;
    }

    pub fn position(&self) -> Position {
        self.at
    }

    fn read_disk(&mut self, spool: &Spool, max: usize, batch: &mut Batch) -> io::Result<()> {
        let mut at = self.at;
        let mut size = WINDOW;
        let waiting = usize::try_from(spool.waiting().records).unwrap_or(max);
        batch.records.reserve(waiting.min(max));
        while batch.records.len() < max {
            let committed = spool.committed(at.seq);
            if self.file.as_ref().is_none_or(|(seq, _)| *seq != at.seq) {
                match File::open(spool.slot.segment(at.seq)) {
                    Ok(file) => self.file = Some((at.seq, file)),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        // Deleted already, or not yet made.
                        if at.seq + 1 >= spool.next_seq() {
                            break;
                        }
                        at = next(at);
                        batch.moved = true;
                        continue;
                    }
                    Err(e) => return Err(e),
                }
            }
            let Some((_, file)) = &self.file else { break };
            let end = match committed {
                Some(end) => end,
                None => file.metadata()?.len(),
            };
            if at.offset >= end {
                if committed.is_some() || at.seq + 1 >= spool.next_seq() {
                    break;
                }
                at = next(at);
                batch.moved = true;
                continue;
            }
            let whole = fill(&mut self.window, file, at.offset, end, size)?;
            if self.window.is_empty() {
                // Shorter than it was a moment ago. Nothing there to wait for.
                at.offset = end;
                batch.moved = true;
                continue;
            }
            let used = consume(&self.window, whole, max, at, spool, batch);
            size = if used == 0 { WIDE } else { WINDOW };
            at.offset += used;
        }
        batch.end = at;
        batch.moved |= at != self.at;
        self.window.truncate(WINDOW);
        self.window.shrink_to(WINDOW);
        Ok(())
    }
}

fn next(at: Position) -> Position {
    Position {
        seq: at.seq + 1,
        offset: 0,
    }
}

/// Reads up to `size` bytes; true = up to `end`.
fn fill(window: &mut Vec<u8>, file: &File, offset: u64, end: u64, size: usize) -> io::Result<bool> {
    let left = end.saturating_sub(offset);
    let size = left.min(size as u64) as usize;
    window.resize(size, 0);
    let mut have = 0;
    while have < size {
        let space = window.get_mut(have..).unwrap_or_default();
        match file.read_at(space, offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    window.truncate(have);
    Ok(have < size || size as u64 == left)
}

/// Takes frames from a window into the batch; how many bytes are done with.
fn consume(window: &[u8], whole: bool, max: usize, at: Position, spool: &Spool, batch: &mut Batch) -> u64 {
    let mut used = 0;
    while batch.records.len() < max {
        let rest = window.get(used..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        let here = Position {
            offset: at.offset + used as u64,
            ..at
        };
        match frame::step(rest, whole) {
            Step::Frame { payload, len } => {
                if !batch.take(payload) {
                    put_aside(
                        spool,
                        here,
                        payload,
                        "a frame holds no record this version can read",
                    );
                }
                used += len;
            }
            Step::Bad { len } => {
                let bytes = rest.get(..len).unwrap_or_default();
                put_aside(spool, here, bytes, "damaged bytes");
                used += len;
            }
            Step::Torn { len } => {
                log::warn!(
                    "ledger=spool segment={} offset={}: the last {len} bytes were never finished, skipped",
                    here.seq,
                    here.offset
                );
                used += len;
            }
            Step::More => break,
        }
    }
    used as u64
}

fn put_aside(spool: &Spool, at: Position, bytes: &[u8], what: &str) {
    spool.count_error();
    match spool.slot.keep_bad(at, bytes) {
        Ok(path) => log::error!("ledger=spool {what}, put aside as {}", path.display()),
        Err(e) => log::error!("ledger=spool {what}, and it could not be put aside: {e}"),
    }
}

/// Shows every payload of a finished segment from `offset` on; what there is.
pub fn scan(path: &Path, offset: u64, seen: &mut dyn FnMut(&[u8])) -> io::Result<Waiting> {
    Ok(survey(path, offset, seen)?.good)
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    pub good: Waiting,
    /// Bytes that belong to no frame.
    pub bad_bytes: u64,
    /// Bytes of a last frame that was never finished.
    pub torn_bytes: u64,
}

pub fn survey(path: &Path, offset: u64, seen: &mut dyn FnMut(&[u8])) -> io::Result<Survey> {
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    let mut window = Vec::new();
    let mut out = Survey::default();
    let mut at = offset;
    while at < end {
        let whole = fill(&mut window, &file, at, end, WIDE)?;
        if window.is_empty() {
            break;
        }
        let mut used = 0;
        while let Some(rest) = window.get(used..).filter(|r| !r.is_empty()) {
            match frame::step(rest, whole) {
                Step::Frame { payload, len } => {
                    seen(payload);
                    out.good.records += 1;
                    out.good.bytes += len as u64;
                    used += len;
                }
                Step::Bad { len } => {
                    out.bad_bytes += len as u64;
                    used += len;
                }
                Step::Torn { len } => {
                    out.torn_bytes += len as u64;
                    used += len;
                }
                Step::More => break,
            }
        }
        at += used as u64;
    }
    Ok(out)
}
