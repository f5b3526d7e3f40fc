//! Child processes that die with the test binary, however that goes.

use std::ffi::OsStr;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts `program` so that it is killed when this process ends. The kernel's parent-death signal fires
/// at the end of the *thread* that started the child, and each test has a thread of its own; so all
/// children are started by one thread that never ends.
pub fn spawn(program: impl AsRef<OsStr>, dress: impl FnOnce(&mut Command)) -> Child {
    static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, waiting) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in waiting {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    dress(&mut command);
    let (answer, started) = channel();
    starter.lock().unwrap().send((command, answer)).unwrap();
    started.recv().unwrap().expect("the process starts")
}

/// Whether a process that was told to stop in its tracks has done so, or is gone: the signal alone is only a word.
pub fn has_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_none_or(|state| matches!(state, 'T' | 't' | 'Z' | 'X'))
}

/// Sends a signal by name.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success(), "SIG{name} was not sent");
}
