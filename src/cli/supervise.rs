//! `tollkeeper supervise`: the first process of a container. It starts the gateway, passes signals on, reaps
//! what is left behind, and goes with the exit code of the gateway. When the gateway is replaced by a new
//! process, that one is the gateway; this one stays, so that the container does.
//!
//! It restarts nothing: whoever runs the container knows better how often that makes sense. How a gateway
//! is replaced is in `crate::upgrade`; here one hears of it as a service manager does.

use crate::upgrade::own_binary;
use clap::Args;
use rustix::process::{
    Pid, Signal as Kill, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper,
    test_kill_process, wait,
};
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell says of a command that cannot be run.
const EXIT_NO_COMMAND: i32 = 127;
const EXIT_FAILED: i32 = 1;
/// Added to the signal that ended a process, as shells do.
const BY_SIGNAL: i32 = 128;
/// A process that is nobody's child here is looked after so often.
const LOOK: Duration = Duration::from_secs(1);
/// The longest word of a gateway, in bytes.
const LONGEST_WORD: usize = 4096;
/// More than ever leave at the same time.
const MOST: usize = 64;

#[derive(Args)]
pub struct SuperviseArgs {
    /// What `tollkeeper` is to be called with; nothing: as without arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    args: Vec<OsString>,
}

/// Runs until the gateway has ended. Returns its exit code.
pub fn run(args: &SuperviseArgs) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| runtime.block_on(supervise(&args.args)));
    match outcome {
        Ok(code) => code,
        Err(e) => {
            anstream::eprintln!("error: supervise: {e}");
            EXIT_NO_COMMAND
        }
    }
}

async fn supervise(args: &[OsString]) -> io::Result<i32> {
    // Before anything is started, so that nothing is missed.
    let mut signals = Signals::watch()?;
    let mut children = signal(SignalKind::child())?;
    // Whose parent is gone comes here, as it does anyway when this is process 1.
    set_child_subreaper(Some(getpid()))?;
    let (news, name) = ear()?;
    let child = Command::new(own_binary()?)
        .args(args)
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .spawn()?;
    let Some(pid) = pid(child.id()) else {
        return Err(io::Error::other("the gateway has no process id"));
    };
    let mut family = Family {
        gateway: pid,
        leaving: Vec::new(),
        code: None,
        stopping: false,
    };
    let mut look = tokio::time::interval(LOOK);
    let mut word = vec![0; LONGEST_WORD];
    loop {
        tokio::select! {
            heard = news.recv(&mut word) => {
                if let Some(next) = heard.ok().and_then(|n| main_pid(word.get(..n)?)) {
                    family.replaced_by(next);
                }
            }
            told = signals.next() => family.pass_on(told),
            _ = children.recv() => {}
            _ = look.tick() => {}
        }
        family.reap();
        if let Some(code) = family.is_over() {
            return Ok(code);
        }
    }
}

/// Who is looked after.
struct Family {
    gateway: Pid,
    /// Those that were the gateway and still have requests.
    leaving: Vec<Pid>,
    /// Of the gateway, once it has ended.
    code: Option<i32>,
    /// Told to stop: everybody is waited for.
    stopping: bool,
}

impl Family {
    fn replaced_by(&mut self, next: Pid) {
        // Anybody may write to the socket; a gateway is started by the one before it, which is left to us.
        let of_ours = parent(next).is_some_and(|p| p == self.gateway || p == getpid());
        if next != self.gateway && !self.leaving.contains(&next) && of_ours {
            self.leaving.push(self.gateway);
            self.leaving.truncate(MOST);
            self.gateway = next;
            if self.stopping {
                // It was told to somebody who has left since.
                let _ = kill_process(next, Kill::TERM);
            }
        }
    }

    fn pass_on(&mut self, told: Kill) {
        if matches!(told, Kill::TERM | Kill::INT | Kill::QUIT) {
            self.stopping = true;
            for pid in &self.leaving {
                let _ = kill_process(*pid, told);
            }
        }
        let _ = kill_process(self.gateway, told);
    }

    /// Buries the dead: ours, and those whom a process that is gone has left to us.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.ended(pid, code(status));
        }
        // A new gateway is the child of the one before it as long as that one lives.
        if self.code.is_none() && test_kill_process(self.gateway).is_err() {
            self.ended(self.gateway, EXIT_FAILED);
        }
        self.leaving.retain(|pid| test_kill_process(*pid).is_ok());
    }

    fn ended(&mut self, pid: Pid, code: i32) {
        if pid == self.gateway && self.code.is_none() {
            self.code = Some(code);
        }
        self.leaving.retain(|p| *p != pid);
    }

    /// The exit code, once there is nothing to wait for. A gateway that fell is missed more than what the
    /// one before it still has to say.
    fn is_over(&self) -> Option<i32> {
        self.code.filter(|_| !self.stopping || self.leaving.is_empty())
    }
}

struct Signals {
    term: Signal,
    int: Signal,
    quit: Signal,
    hup: Signal,
    usr2: Signal,
}

impl Signals {
    fn watch() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hup: signal(SignalKind::hangup())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Kill {
        tokio::select! {
            _ = self.term.recv() => Kill::TERM,
            _ = self.int.recv() => Kill::INT,
            _ = self.quit.recv() => Kill::QUIT,
            _ = self.hup.recv() => Kill::HUP,
            _ = self.usr2.recv() => Kill::USR2,
        }
    }
}

fn code(status: WaitStatus) -> i32 {
    let by_signal = || status.terminating_signal().map(|s| BY_SIGNAL.saturating_add(s));
    status.exit_status().or_else(by_signal).unwrap_or(EXIT_FAILED)
}

/// Whose child a process is, while it lives.
fn parent(of: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", of.as_raw_nonzero())).ok()?;
    // State and parent stand behind the name, which may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    Pid::from_raw(rest.split(' ').nth(1)?.parse().ok()?)
}

fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

/// A socket of this name hears what the gateway tells its service manager.
fn ear() -> io::Result<(tokio::net::UnixDatagram, String)> {
    let name = format!("tollkeeper-{}", uuid::Uuid::new_v4());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    socket.set_nonblocking(true)?;
    Ok((tokio::net::UnixDatagram::from_std(socket)?, name))
}

/// Who is the gateway from now on, if these words say so.
fn main_pid(words: &[u8]) -> Option<Pid> {
    let words = std::str::from_utf8(words).ok()?;
    let said = words.lines().find_map(|line| line.strip_prefix("MAINPID="))?;
    pid(said.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_known_and_nobodys_is_not() {
        let parent_of_ours = rustix::process::getppid();
        assert_eq!(parent(getpid()), parent_of_ours);
        assert_eq!(parent(Pid::from_raw(i32::MAX).unwrap()), None);
    }

    #[test]
    fn only_a_main_pid_is_heard() {
        assert_eq!(main_pid(b"MAINPID=7\nSTATUS=x"), pid(7));
        for words in [
            &b"READY=1"[..],
            b"MAINPID=0",
            b"MAINPID=-1",
            b"MAINPID=x",
            b"\xff",
        ] {
            assert_eq!(main_pid(words), None, "{words:?}");
        }
    }
}
