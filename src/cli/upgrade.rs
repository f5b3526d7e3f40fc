//! `tollkeeper upgrade` and `tollkeeper drain`: orders to the running gateway, which it takes from the
//! control socket in its data directory. What it does with them is in `crate::upgrade`.

use super::client::Failure;
use super::show::{self, clean};
use crate::conf::{self, Env};
use crate::upgrade::control::{self, LONGEST_LINE, Load, Order, Told};
use crate::upgrade::{LONGEST_PATIENCE, PATIENCE};
use clap::Args;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// For a gateway that reads its control socket to say the first word, beyond what it was given.
const MARGIN: Duration = Duration::from_secs(15);

#[derive(Args)]
pub struct UpgradeArgs {
    /// The gateway's config, which says where its data directory is; else the first one found.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The new binary; else the one that is now where the gateway's own was.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Seconds for the new process to be ready; after that the old one goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=LONGEST_PATIENCE.as_secs()))]
    timeout: u64,
    /// Wait until the old process has left.
    #[arg(long)]
    wait: bool,
    /// Answer with JSON, one line for each step.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct DrainArgs {
    /// The gateway's config, which says where its data directory is; else the first one found.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Be ready again.
    #[arg(long)]
    undo: bool,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

/// `tollkeeper upgrade`.
pub async fn run(args: UpgradeArgs, env: &Env) -> Result<(), Failure> {
    let binary = match &args.binary {
        Some(binary) => Some(found(binary)?),
        None => None,
    };
    let patience = Duration::from_secs(args.timeout);
    let order = Order::Upgrade {
        binary,
        patience_millis: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
    };
    let mut gateway = Gateway::find(args.config.as_deref(), env).await?;
    gateway.order(&order).await?;
    let Some(told) = gateway.told(patience + MARGIN).await? else {
        return Err(Failure::failed(
            "the gateway ended before the new process was ready; its log says why",
        ));
    };
    let Told::Serving {
        old_pid,
        new_pid,
        seconds,
        load,
        drain_seconds,
    } = told
    else {
        return Err(refused(told));
    };
    let mut left = load;
    if args.json {
        show::put(show::json_line(&json!({
            "old_pid": old_pid, "new_pid": new_pid, "seconds": seconds,
            "in_flight": load.in_flight, "connections": load.connections,
        })))?;
    } else {
        show::put(format_args!(
            "process {new_pid} serves in place of {old_pid} after {seconds:.1} s"
        ))?;
        show::put(match (load.in_flight, load.connections) {
            (0, 0) => format!("process {old_pid} has nothing left to do and leaves"),
            _ => format!(
                "process {old_pid} still has {}, for at most {drain_seconds} s",
                has(load)
            ),
        })?;
    }
    if !args.wait {
        return Ok(());
    }
    let begun = tokio::time::Instant::now();
    // A process that is gone says nothing more.
    while let Ok(Some(Told::Draining { load })) = gateway.told(MARGIN).await {
        left = load;
    }
    let waited = begun.elapsed().as_secs_f64();
    if args.json {
        show::put(show::json_line(
            &json!({"left": old_pid, "seconds": waited, "in_flight": left.in_flight}),
        ))
    } else {
        show::put(format_args!("process {old_pid} has left after {waited:.1} s"))
    }
}

/// `tollkeeper drain`.
pub async fn drain(args: DrainArgs, env: &Env) -> Result<(), Failure> {
    let mut gateway = Gateway::find(args.config.as_deref(), env).await?;
    gateway.order(&Order::Drain { undo: args.undo }).await?;
    match gateway.told(MARGIN).await? {
        Some(Told::Drain {
            pid,
            on,
            load: Load {
                in_flight,
                connections,
            },
        }) if args.json => show::put(show::json_line(&json!({
            "pid": pid, "drain": on, "in_flight": in_flight, "connections": connections,
        }))),
        Some(Told::Drain { pid, on: true, load }) => show::put(format_args!(
            "process {pid} is drained: its readiness says no, and it keeps no connection; it has {}",
            has(load)
        )),
        Some(Told::Drain { pid, .. }) => show::put(format_args!(
            "process {pid} is drained no longer: its readiness says how it is, and it keeps connections"
        )),
        Some(told) => Err(refused(told)),
        None => Err(Failure::failed("the gateway is gone")),
    }
}

fn has(load: Load) -> String {
    let requests = show::counted(load.in_flight, "request");
    format!("{requests} on {}", show::counted(load.connections, "connection"))
}

fn found(binary: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(binary)
        .map_err(|e| Failure::usage(format!("--binary {}: {e}", binary.display())))?;
    match std::fs::metadata(&path) {
        Ok(file) if file.is_file() => Ok(path),
        Ok(_) => Err(Failure::usage(format!("--binary {} is no file", path.display()))),
        Err(e) => Err(Failure::usage(format!("--binary {}: {e}", path.display()))),
    }
}

fn refused(told: Told) -> Failure {
    Failure::failed(match told {
        Told::Refused { pid, why } => format!("{}\nProcess {pid} goes on as before.", clean(&why)),
        told => format!("the gateway said something else than expected: {told:?}"),
    })
}

/// The control socket of the running gateway.
struct Gateway {
    stream: BufReader<UnixStream>,
    at: PathBuf,
}

impl Gateway {
    async fn find(config: Option<&Path>, env: &Env) -> Result<Self, Failure> {
        let loaded = conf::load(config, env).map_err(|report| {
            Failure::config(format!("the config cannot be used\n{}", report.render(false)))
        })?;
        let at = control::path(&loaded.conf.tollkeeper.data_dir);
        let stream = UnixStream::connect(&at).await.map_err(|e| {
            let place = at.display();
            Failure::failed(match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                    "no gateway runs on this data directory: nobody answers at {place}. Name its config with \
                     --config, or set TOLLKEEPER_DATA_DIR as it has it."
                ),
                io::ErrorKind::PermissionDenied => {
                    format!("{place}: {e}. Run this as the user that the gateway runs as, or as root.")
                }
                _ => format!("{place}: {e}"),
            })
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
            at,
        })
    }

    async fn order(&mut self, order: &Order) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(order).map_err(|e| self.lost(&e))?;
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line).await;
        sent.map_err(|e| self.lost(&e))
    }

    /// The next word. `None`: the gateway is gone.
    async fn told(&mut self, patience: Duration) -> Result<Option<Told>, Failure> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LONGEST_LINE);
        let read = limited.read_until(b'\n', &mut line);
        match tokio::time::timeout(patience, read).await {
            Ok(Ok(0)) => Ok(None),
            Ok(Ok(_)) => match serde_json::from_slice(&line) {
                Ok(told) => Ok(Some(told)),
                Err(e) => Err(self.lost(&e)),
            },
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Ok(Err(e)) => Err(self.lost(&e)),
            Err(_) => Err(self.lost(&"no answer in time")),
        }
    }

    fn lost(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure::failed(format!("{}: {why}", self.at.display()))
    }
}
