//! Throw-away Postgres servers: real ones, on a socket and a free port, dead when the test binary is.
//!
//! `shared()` is one server for the whole binary with a fresh database per test. `Server::start` is a
//! server of a test's own, to be stopped, started and frozen.

use super::gateway::free_port;
use super::process::has_stopped;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to come up or go down.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Postgres server of our own.
pub struct Server {
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
    watcher: Child,
}

impl Server {
    /// Makes a cluster and starts it.
    pub fn start() -> Server {
        let dir = tempfile::Builder::new().prefix("tk-pg-").tempdir().unwrap();
        if let Some((uid, gid)) = postgres_user() {
            chown(dir.path(), Some(uid), Some(gid)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let data = dir.path().join("data");
        let watcher = watch(dir.path());
        let made = as_postgres("initdb")
            .args([
                "--auth=trust",
                "--username=tollkeeper",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut server = Server {
            dir,
            port: free_port(),
            process: None,
            watcher,
        };
        // Between finding a port and using it, another may take it.
        for _ in 0..10 {
            match server.try_up() {
                Ok(()) => return server,
                Err(log) if log.contains("could not bind") => server.port = free_port(),
                Err(log) => panic!("{log}"),
            }
        }
        panic!("no port is free for postgres");
    }

    /// Starts it again after [`Server::stop`], on the same port.
    pub fn up(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        if let Err(log) = self.try_up() {
            panic!("{log}");
        }
    }

    /// Once it answers. `Err` is what it said.
    fn try_up(&mut self) -> Result<(), String> {
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let mut process = as_postgres("postgres")
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-k")
            .arg(self.dir.path())
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1"])
            // A crash may lose commits this way, unless the store insists, as it must.
            .args([
                "-c",
                "fsync=off",
                "-c",
                "synchronous_commit=off",
                "-c",
                "full_page_writes=off",
            ])
            .args(["-c", "shared_buffers=32MB", "-c", "max_connections=200"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(Some(status)) = process.try_wait() {
                return Err(format!("postgres ended at once ({status}): {}", self.log()));
            }
            // `pg_isready` itself waits for an answer, so this loop does not spin.
            let asked = Command::new(bin().join("pg_isready"))
                .args(["-q", "-t", "1", "-h", "127.0.0.1", "-p", &self.port.to_string()])
                .status()
                .unwrap();
            if asked.success() {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "postgres does not come up: {}",
                self.log()
            );
        }
        self.process = Some(process);
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> i32 {
        // setpriv and runuser become or hold the server; its own file has the right id.
        let text = fs::read_to_string(self.dir.path().join("data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    }

    /// As a crash: no connection is waited for.
    pub fn stop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        signal(self.pid(), "QUIT");
        process.wait().unwrap();
    }

    /// Stops the server and all its backends in their tracks: connections stand, nothing answers.
    pub fn freeze(&self) {
        // First the one that would start new backends, then those there are.
        let stop = |pid: i32| {
            signal(pid, "STOP");
            while !has_stopped(pid) {
                std::thread::yield_now();
            }
        };
        stop(self.pid());
        self.backends().into_iter().for_each(stop);
    }

    pub fn thaw(&self) {
        for pid in self.backends() {
            signal(pid, "CONT");
        }
        signal(self.pid(), "CONT");
    }

    fn backends(&self) -> Vec<i32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children
            .split_whitespace()
            .filter_map(|p| p.parse().ok())
            .collect()
    }

    /// A new, empty database; its address.
    pub fn database(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://tollkeeper:unused-secret@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// Runs SQL as an operator would; what it printed.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let out = Command::new(bin().join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
            .args([
                "-p",
                &self.port.to_string(),
                "-U",
                "tollkeeper",
                "-d",
                database,
                "-c",
                sql,
            ])
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap().trim().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            // A frozen server takes no other signal.
            self.thaw();
            self.stop();
        }
        // The end of its pipe ends the watcher.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// The server that tests share. Nobody drops a static: its watcher ends it with this process.
pub fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

/// Reads until this process is gone, however it goes, then ends the server and takes its files away.
/// (A parent-death signal would not do: it fires at the end of the *thread* that started the server.)
fn watch(dir: &Path) -> Child {
    let script = r#"
        trap '' INT TERM HUP
        cat >/dev/null
        if pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null); then
            kill -s CONT "$pid"; kill -s QUIT "$pid"; tail --pid="$pid" -f /dev/null
        fi
        rm -rf -- "$1"
    "#;
    Command::new("sh")
        .args(["-c", script, "watcher"])
        .arg(dir)
        // What kills the whole group of the tests must leave the one who cleans up.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The newest Postgres that is installed.
fn bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
            .filter(|(_, bin)| bin.join("initdb").exists() && bin.join("postgres").exists())
            .collect();
        found.sort();
        let (_, bin) = found
            .pop()
            .expect("these tests need a Postgres server: apt-get install postgresql");
        bin
    })
}

/// Postgres refuses to run as root; root starts it as this user. `None` = we are not root.
fn postgres_user() -> Option<(u32, u32)> {
    let id = |args: &[&str]| -> u32 {
        let out = Command::new("id").args(args).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        text.trim().parse().expect("the user `postgres` exists")
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}

/// A program of Postgres, run as a user it accepts.
fn as_postgres(program: &str) -> Command {
    let program = bin().join(program);
    let mut command = match postgres_user() {
        Some((uid, gid)) => {
            let mut c = Command::new("setpriv");
            c.arg(format!("--reuid={uid}"))
                .arg(format!("--regid={gid}"))
                .arg("--clear-groups");
            c.arg("--").arg(program);
            c
        }
        None => Command::new(program),
    };
    // The home of the one who runs the tests may be closed to this user.
    command.current_dir("/").stdin(Stdio::null());
    command
}

fn signal(pid: i32, name: &str) {
    let _ = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}
