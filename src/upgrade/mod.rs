//! Replaces the running process by a new one without a connection lost: the new one is started beside it,
//! is handed the listening sockets, says that it serves, and only then the old one leaves. A new one that
//! ends, or is not ready in time, changes nothing.
//!
//! Both hold the same sockets meanwhile, so the kernel's queue of connections is never without somebody
//! who accepts. [`line`] is what the two say to each other, [`old`] and [`new`] are their sides of it,
//! [`control`] is where `tollkeeper upgrade` asks for it. How a process leaves is in [`crate::server`] and
//! [`crate::proxy::linger`]; what both share on disk is told apart by locks: the ledger's slots and the
//! [`replica`]'s name.

pub mod control;
mod line;
pub mod new;
pub mod old;
pub mod replica;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Set in the environment of a process that is started to take over; its standard input is the line.
pub const TAKE_OVER: &str = "TOLLKEEPER_TAKE_OVER";
/// For the new process to be ready, unless the asker says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that may be asked for.
pub const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);

/// The file in the data directory that holds the process id of the gateway that serves.
const PID_FILE: &str = "tollkeeper.pid";

/// Where the binary of this process is: as it was called, so that a link that leads to another version
/// tomorrow is followed again. To be asked at the start, since a binary that is replaced has no name later.
pub fn own_binary() -> io::Result<PathBuf> {
    match std::env::args_os().next().map(PathBuf::from) {
        Some(called) if called.components().count() > 1 => std::path::absolute(called),
        _ => std::env::current_exe(),
    }
}

/// Says in the data directory which process serves.
pub fn write_pid(data_dir: &Path) -> io::Result<()> {
    let aside = data_dir.join(format!("{PID_FILE}.{}", std::process::id()));
    std::fs::write(&aside, format!("{}\n", std::process::id()))?;
    std::fs::rename(aside, data_dir.join(PID_FILE))
}

/// Whether the process that serves there is the one that started this one, or does not say.
pub fn serves_before_us(data_dir: &Path) -> bool {
    let said = std::fs::read_to_string(data_dir.join(PID_FILE));
    let parent = std::os::unix::process::parent_id();
    said.map_or(true, |said| said.trim() == parent.to_string())
}

/// Takes it back, if it is still ours.
pub fn remove_pid(data_dir: &Path) {
    let path = data_dir.join(PID_FILE);
    let ours = std::process::id().to_string();
    if std::fs::read_to_string(&path).is_ok_and(|said| said.trim() == ours) {
        let _ = std::fs::remove_file(path);
    }
}
