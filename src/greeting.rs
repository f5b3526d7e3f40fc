//! The first words: on a terminal a page that gets a newcomer to the first answer, and one line in the
//! log either way. The master key is shown on a terminal, once, and never logged.

use crate::discover;
use crate::master_key::Key;
use anstream::eprintln;
use std::io::IsTerminal;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is told once the door is open.
pub struct Greeting {
    pub begun: Instant,
    pub addresses: Vec<SocketAddr>,
    /// Whether the first of them speaks TLS.
    pub tls: bool,
    pub config: Option<PathBuf>,
    pub found: Option<Vec<discover::Server>>,
    pub key: Key,
    pub data_dir: PathBuf,
    pub store: &'static str,
    /// The store has answered.
    pub reached: bool,
    pub models: Vec<String>,
}

impl Greeting {
    /// Where this machine reaches the first listener.
    pub fn local(&self) -> Option<SocketAddr> {
        let mut first = self.addresses.first().copied()?;
        if first.ip().is_unspecified() {
            first.set_ip(match first {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Some(first)
    }

    /// Waits until the door is open and says so. None: it stayed shut. Else a line on what is served.
    pub fn tell(self) -> Option<String> {
        let local = self.local()?;
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect_timeout(&local, Duration::from_millis(200)).is_err() {
            if Instant::now() > until {
                log::error!("{local} does not answer after ten seconds");
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = self.begun.elapsed().as_millis();
        if std::io::stderr().is_terminal() {
            self.banner(local);
        } else if let Some(path) = &self.key.made {
            log::info!("a master key was made: it is in {}", path.display());
        }
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let listen = addresses.join(",");
        let (models, db) = (self.models.len(), self.store);
        log::info!("ready in {took} ms listen={listen} models={models} db={db}");
        Some(format!("Ready: {models} models on {listen}"))
    }

    fn banner(&self, local: SocketAddr) {
        eprintln!("tollkeeper {}", env!("CARGO_PKG_VERSION"));
        match (&self.config, &self.found) {
            (Some(path), _) => eprintln!("\n  Config     {}", path.display()),
            (None, Some(found)) => {
                eprintln!("\n  No config file found: looked for model servers on this machine.");
                for s in found {
                    let some: Vec<&str> = s.models.iter().take(3).map(String::as_str).collect();
                    let more = if s.models.len() > 3 { ", …" } else { "" };
                    eprintln!(
                        "    ✓ {:<12} http://127.0.0.1:{}  {} models ({}{more})",
                        s.kind,
                        s.port,
                        s.models.len(),
                        some.join(", ")
                    );
                }
                if found.is_empty() {
                    eprintln!(
                        "    none found. Start Ollama, llama.cpp, vLLM or LM Studio: it is noticed within ten seconds. \
                         Or write\n    a config.yaml and start again."
                    );
                }
            }
            (None, None) => {}
        }
        let scheme = if self.tls { "https" } else { "http" };
        eprintln!("\n  API        {scheme}://{local}/v1");
        let shown = match (&self.key.made, &self.key.read) {
            (Some(path), _) => {
                eprintln!(
                    "  Master key {}   shown this once; saved in {}",
                    self.key.secret.expose(),
                    path.display()
                );
                self.key.secret.expose().to_string()
            }
            (None, Some(path)) => {
                eprintln!("  Master key in {}", path.display());
                format!("$(cat {})", path.display())
            }
            (None, None) => {
                eprintln!("  Master key as configured");
                "$LITELLM_MASTER_KEY".to_string()
            }
        };
        let away = if self.reached {
            ""
        } else {
            ", which does not answer yet"
        };
        eprintln!("  Data       {} ({}{away})", self.data_dir.display(), self.store);
        if let Some(model) = self.models.iter().find(|m| !m.contains('*')) {
            let body = serde_json::json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "Hello!"}]});
            eprintln!("\n  Try it:");
            eprintln!(
                "    curl -N {scheme}://{local}/v1/chat/completions -H \"Authorization: Bearer {shown}\" \\"
            );
            eprintln!("      -H 'Content-Type: application/json' -d '{body}'");
        }
        // As it was called: what a build from source made is on nobody's PATH.
        let program = std::env::args().next().unwrap_or_else(|| "tollkeeper".into());
        eprintln!("\n  A key for an application:  {program} key create --name my-app");
        eprintln!("  What is not well:          {program} doctor");
        eprintln!("\n  Press Ctrl-C to stop.");
    }
}
