//! The way of a line to stderr: into a bounded buffer, and from there by a thread of its own. A reader that is
//! slow or gone costs lines, which are counted and told of, and never holds up a call.

use parking_lot::{Condvar, Mutex};
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Bytes of lines that wait; warnings and errors may take as much again.
const MOST: usize = 1 << 20;
/// How long lines are gathered before they are written together.
const LINGER: Duration = Duration::from_millis(20);
/// How often somebody is asked whether there is more to tell.
const TELL: Duration = Duration::from_secs(1);
/// Before a descriptor that takes nothing right now is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// What is told beside the lines: of lines that were dropped since the last time, and whatever else there is.
pub type Tell = Box<dyn Fn(u64, &mut Vec<u8>) + Send>;

pub struct Sink {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// For the writer: there are lines, or somebody is in a hurry.
    news: Condvar,
    /// For those in a hurry: all is written.
    done: Condvar,
    dropped_ever: AtomicU64,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    dropped: u64,
    /// Lines have left `lines` and are not written yet.
    writing: bool,
    hurried: usize,
    /// One of the lines is not to wait for others.
    soon: bool,
    asleep: bool,
}

impl Sink {
    /// Writes to `out` on a thread of its own, for ever.
    pub fn start(out: impl Write + Send + 'static, tell: Tell) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || theirs.write(out, &tell))?;
        Ok(Self { shared })
    }

    /// Hands a line over. Never waits for the reader. A line that comes in masses may wait for others of its kind,
    /// all others are written `soon`.
    pub fn push(&self, line: &[u8], is_grave: bool, soon: bool) {
        let mut state = self.shared.state.lock();
        let most = if is_grave { 2 * MOST } else { MOST };
        if state.lines.len() + line.len() > most {
            state.dropped += 1;
            drop(state);
            self.shared.dropped_ever.fetch_add(1, Relaxed);
            return;
        }
        state.lines.extend_from_slice(line);
        let wake = std::mem::take(&mut state.asleep) || (soon && !state.soon);
        state.soon |= soon;
        drop(state);
        if wake {
            self.shared.news.notify_one();
        }
    }

    /// Waits until all is written, but not longer than this.
    pub fn flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        state.hurried += 1;
        self.shared.news.notify_one();
        while !state.lines.is_empty() || state.writing {
            if self.shared.done.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.hurried -= 1;
    }

    /// Lines that nobody took, since the start.
    pub fn dropped_ever(&self) -> u64 {
        self.shared.dropped_ever.load(Relaxed)
    }
}

impl Shared {
    fn write(&self, mut out: impl Write, tell: &Tell) {
        let mut taken = Vec::new();
        let mut told = Instant::now();
        loop {
            let mut state = self.state.lock();
            if state.lines.is_empty() && state.hurried == 0 {
                state.asleep = true;
                self.news.wait_for(&mut state, TELL);
                state.asleep = false;
            }
            if state.hurried == 0 && !state.soon && !state.lines.is_empty() {
                self.news.wait_for(&mut state, LINGER);
            }
            state.soon = false;
            std::mem::swap(&mut state.lines, &mut taken);
            let dropped = std::mem::take(&mut state.dropped);
            state.writing = true;
            drop(state);
            let now = Instant::now();
            if dropped > 0 || now.duration_since(told) >= TELL {
                told = now;
                tell(dropped, &mut taken);
            }
            if let Err(left) = write_whole(&mut out, &taken) {
                self.dropped_ever.fetch_add(left, Relaxed);
            }
            taken.clear();
            let mut state = self.state.lock();
            state.writing = false;
            if state.lines.is_empty() {
                self.done.notify_all();
                // Those in a hurry leave before there is a next round.
                if state.hurried > 0 {
                    self.news.wait_for(&mut state, LINGER);
                }
            }
        }
    }
}

/// `Err`: the reader is gone for good, and so many lines with it.
fn write_whole(out: &mut impl Write, mut bytes: &[u8]) -> Result<(), u64> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(n) if n > 0 => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            _ => return Err(bytes.iter().filter(|b| **b == b'\n').count() as u64),
        }
    }
    let _ = out.flush();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A reader that takes what it is allowed to.
    struct Slow(Receiver<()>, Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.recv().map_err(|_| std::io::Error::other("gone"))?;
            self.1
                .send(bytes.to_vec())
                .map_err(|_| std::io::Error::other("gone"))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_takes_nothing_holds_nobody_up() {
        let (allow, allowed) = channel();
        let (read, got) = channel();
        let tell: Tell = Box::new(|dropped, out| {
            if dropped > 0 {
                out.extend_from_slice(format!("dropped {dropped}\n").as_bytes());
            }
        });
        let sink = Sink::start(Slow(allowed, read), tell).unwrap();
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();
        for _ in 0..4_000 {
            sink.push(&line, false, false);
        }
        let dropped = sink.dropped_ever();
        assert!(
            (1_800..3_000).contains(&dropped),
            "{dropped} of 4000 were dropped"
        );
        sink.push(b"grave\n", true, true);
        drop((0..3).map(|_| allow.send(()).unwrap()).collect::<Vec<_>>());
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(&format!("dropped {dropped}\n")) {
            all.extend(got.recv_timeout(Duration::from_secs(30)).unwrap());
        }
        assert!(
            String::from_utf8_lossy(&all).contains("grave\n"),
            "errors have room of their own"
        );
        // Whoever leaves waits for the rest, and not for ever.
        sink.push(b"last\n", false, true);
        sink.flush(Duration::from_millis(20));
        allow.send(()).unwrap();
        let rest = got.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(rest.ends_with(b"last\n"));
        sink.flush(Duration::from_secs(30));
        drop(got);
    }
}
