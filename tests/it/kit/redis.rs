//! Throw-away Redis servers: real ones, on a free port, that keep nothing, dead when the test binary is.

use super::gateway::free_port;
use super::process::{self, has_stopped};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A Redis server of a test's own, to be stopped, killed, frozen and started again.
pub struct Server {
    port: u16,
    /// Certificate and key.
    tls: Option<[String; 2]>,
    dir: tempfile::TempDir,
    process: Option<Child>,
}

impl Server {
    pub fn start() -> Server {
        Self::start_with(None)
    }

    /// One that speaks TLS only, with this certificate and key (PEM files).
    pub fn start_tls(certificate: &Path, key: &Path) -> Server {
        Self::start_with(Some([certificate, key].map(|p| p.to_str().unwrap().to_string())))
    }

    fn start_with(tls: Option<[String; 2]>) -> Server {
        // Between finding a port and using it, another may take it.
        for _ in 0..10 {
            let mut server = Server {
                port: free_port(),
                tls: tls.clone(),
                dir: tempfile::Builder::new().prefix("tk-redis-").tempdir().unwrap(),
                process: None,
            };
            if server.try_up().is_ok() {
                return server;
            }
        }
        panic!("redis-server does not start: these tests need one, apt-get install redis-server");
    }

    /// Starts it again, empty, on the same port.
    pub fn up(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        if let Err(log) = self.try_up() {
            panic!("redis-server does not come up: {log}");
        }
    }

    /// Once it is ready. `Err` is what it said.
    fn try_up(&mut self) -> Result<(), String> {
        let port = self.port.to_string();
        let mut process = process::spawn("redis-server", |command| {
            command
                .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"])
                .args(["--loglevel", "notice", "--logfile", "", "--daemonize", "no"])
                .arg("--dir")
                .arg(self.dir.path());
            match &self.tls {
                None => command.args(["--port", &port]),
                Some([certificate, key]) => command
                    .args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"])
                    .args(["--tls-cert-file", certificate, "--tls-key-file", key])
                    .args(["--tls-ca-cert-file", certificate]),
            };
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
        });
        let mut log = String::new();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            if line.contains("eady to accept connections") {
                // A pipe that nobody empties would stop the server some day.
                std::thread::spawn(move || lines.for_each(drop));
                self.process = Some(process);
                return Ok(());
            }
            log.push_str(&line);
            log.push('\n');
        }
        let _ = process.wait();
        Err(log)
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}/", self.port)
    }

    /// As an operator would.
    pub fn stop(&mut self) {
        self.end("TERM");
    }

    /// As a crash.
    pub fn kill(&mut self) {
        self.end("KILL");
    }

    fn end(&mut self, signal: &str) {
        if let Some(mut process) = self.process.take() {
            process::signal(&process, signal);
            process.wait().unwrap();
        }
    }

    /// Stops the server in its tracks: connections stand, nothing answers.
    pub fn freeze(&self) {
        let process = self.process.as_ref().unwrap();
        process::signal(process, "STOP");
        while !has_stopped(process.id() as i32) {
            std::thread::yield_now();
        }
    }

    pub fn thaw(&self) {
        process::signal(self.process.as_ref().unwrap(), "CONT");
    }

    /// Gives it a command; what it said.
    pub fn cli(&self, command: &[&str]) -> String {
        let out = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(command)
            .output()
            .unwrap();
        assert!(out.status.success(), "{command:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It keeps nothing, and may be frozen.
        self.kill();
    }
}
