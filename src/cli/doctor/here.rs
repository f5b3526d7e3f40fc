//! What the gateway stands on in this machine: its directory, its ports, its certificates, its limits.

use super::super::client::{below, http};
use super::super::reach::local;
use super::super::tls::certificate_of;
use super::{Finding, State, Ward};
use crate::conf::{CertificateFiles, Listener, LocalHost};
use crate::tls::acme::Vault;
use crate::tls::files::{Read, day};
use crate::tls::now;
use reqwest::Url;
use serde_json::Value;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Free space, bytes, below which somebody should look, and below which calls will fail to be written down.
const SPACE_WELL: u64 = 1_024 * MIB;
const SPACE_BAD: u64 = 64 * MIB;
/// Two descriptors per call in flight, and some.
const FILES_WELL: u64 = 8_192;
/// Days left of a certificate below which its renewal is late.
const DAYS_WELL: i64 = 21;
const DAY: i64 = 86_400;
/// Largest page of metrics, bytes.
const MOST_METRICS: usize = 32 << 20;
/// For an answer of whoever holds a port, and for `df`.
const PATIENCE: Duration = Duration::from_secs(3);

pub async fn look(ward: &Ward<'_>) -> Vec<Finding> {
    let dir = &ward.conf.tollkeeper.data_dir;
    let mut findings = vec![data_dir(dir, free(dir).await)];
    findings.extend(ports(ward).await);
    findings.extend(certificates(ward));
    findings.push(files(dir));
    findings
}

fn data_dir(dir: &Path, free: Option<u64>) -> Finding {
    let name = "data";
    let at = dir.display();
    let meta = match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => {
            return Finding::fail(
                name,
                format!("{at} is no directory"),
                "name another in tollkeeper.data_dir",
            );
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Finding::ok(name, format!("{at} is made at the first start"));
        }
        Err(e) => {
            return Finding::fail(
                name,
                format!("{at}: {e}"),
                "run this as the user that the gateway runs as",
            );
        }
    };
    // A file that is gone when it is closed would not try what the gateway does.
    let trial = dir.join(format!(".doctor-{}", std::process::id()));
    let written = std::fs::write(&trial, b"x");
    let _ = std::fs::remove_file(&trial);
    if let Err(e) = written {
        return Finding::fail(
            name,
            format!("{at} cannot be written: {e}"),
            "give it to the user that the gateway runs as (chown), or name another in tollkeeper.data_dir",
        );
    }
    let space = free.map_or_else(
        || "free space unknown".into(),
        |free| format!("{} MiB free", free / MIB),
    );
    let waiting = spooled(&dir.join("spool"));
    let spool = if waiting > 0 {
        format!(", {} KiB of spool", waiting.div_ceil(1_024))
    } else {
        String::new()
    };
    let message = format!("{at}, {space}{spool}");
    let state = match free {
        Some(free) if free < SPACE_BAD => State::Fail,
        Some(free) if free < SPACE_WELL => State::Warn,
        _ => State::Ok,
    };
    if state != State::Ok {
        return Finding::new(
            name,
            state,
            message,
            "make room: a full disk keeps calls from being written down",
        );
    }
    if meta.permissions().mode() & 0o077 != 0 {
        return Finding::warn(
            name,
            format!("{message}, open to others"),
            format!("chmod 700 {at}: the master key and the books are in it"),
        );
    }
    Finding::ok(name, message)
}

/// Bytes of calls that wait for the database.
fn spooled(spool: &Path) -> u64 {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let slots = entries(spool).take(64).map(|slot| slot.path());
    slots
        .flat_map(|slot| entries(&slot).take(10_000).collect::<Vec<_>>())
        .filter(|file| file.path().extension().is_some_and(|e| e == "seg"))
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}

/// Bytes that are free where `dir` is, as `df` tells.
async fn free(dir: &Path) -> Option<u64> {
    let mut command = tokio::process::Command::new("df");
    command.arg("-Pk").arg(dir).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .ok()?
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kib: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kib.saturating_mul(1_024))
}

async fn ports(ward: &Ward<'_>) -> Vec<Finding> {
    let own = &ward.conf.tollkeeper;
    let default = [Listener::plain(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4000)))];
    let listeners: &[Listener] = match own.listeners.is_empty() {
        true => &default,
        false => &own.listeners,
    };
    let mut findings = Vec::new();
    for listener in listeners.iter().take(16) {
        findings.push(port(listener).await);
    }
    findings
}

async fn port(listener: &Listener) -> Finding {
    let at = listener.address;
    let name = format!("port {}", at.port());
    let name = name.as_str();
    let taken = match TcpListener::bind(at) {
        Ok(_) => return Finding::ok(name, format!("{at} is free")),
        Err(e) => e,
    };
    match taken.kind() {
        ErrorKind::AddrInUse => {}
        ErrorKind::PermissionDenied => {
            return Finding::fail(
                name,
                format!("{at}: this user may not listen there"),
                "ports below 1024 need a right: setcap cap_net_bind_service=+ep, or AmbientCapabilities in the unit",
            );
        }
        _ => {
            return Finding::fail(
                name,
                format!("{at}: {taken}"),
                "name an address of this machine in the listener",
            );
        }
    }
    let scheme = if listener.tls.is_some() { "https" } else { "http" };
    match version(&format!("{scheme}://{}", local(at))).await {
        Some(version) => Finding::ok(name, format!("{at} is held by Tollkeeper {version}")),
        None => Finding::fail(
            name,
            format!("{at} is held by another process"),
            format!(
                "ss -ltnp 'sport = :{}' tells which; end it, or name another port",
                at.port()
            ),
        ),
    }
}

/// Which gateway answers there.
pub async fn version(base: &str) -> Option<String> {
    let base = Url::parse(base).ok()?;
    let request = http(&base).ok()?.get(below(&base, "/health")).timeout(PATIENCE);
    let answer: Value = request.send().await.ok()?.json().await.ok()?;
    let is_ours = answer.get("status").and_then(Value::as_str) == Some("healthy");
    let version = answer.get("version").and_then(Value::as_str)?;
    is_ours.then(|| version.chars().take(40).collect())
}

/// A series of the metrics of whoever answers there, where they are shown without a key.
pub async fn metric(base: &str, series: &str) -> Option<u64> {
    let base = Url::parse(base).ok()?;
    let request = http(&base).ok()?.get(below(&base, "/metrics")).timeout(PATIENCE);
    let mut answer = request.send().await.ok()?.error_for_status().ok()?;
    let mut text = Vec::new();
    while let Some(piece) = answer.chunk().await.ok()? {
        if text.len() + piece.len() > MOST_METRICS {
            return None;
        }
        text.extend_from_slice(&piece);
    }
    let text = String::from_utf8(text).ok()?;
    let value = text.lines().find_map(|l| l.strip_prefix(series))?;
    value.trim().parse().ok()
}

fn certificates(ward: &Ward<'_>) -> Vec<Finding> {
    let name = "tls";
    let own = &ward.conf.tollkeeper;
    let mut findings = Vec::new();
    let flag = match certificate_of(None, None, ward.env) {
        Ok(flag) => flag,
        Err(why) => {
            findings.push(Finding::fail(
                name,
                why,
                "set both of SSL_CERTFILE_PATH and SSL_KEYFILE_PATH",
            ));
            None
        }
    };
    for files in flag.iter().chain(&own.tls.certificates).take(64) {
        findings.push(certificate(files));
    }
    let vault = Vault::new(&own.data_dir);
    for entry in own.tls.acme.iter().take(64) {
        let (files, record) = (vault.files(entry), vault.record(entry));
        let names = entry.hosts.join(", ");
        let next = "tollkeeper tls status tells when it is tried again";
        findings.push(if record.failures > 0 {
            Finding::warn(
                name,
                format!("{names}: {} orders failed: {}", record.failures, record.why),
                next,
            )
        } else if files.cert.exists() {
            certificate(&files)
        } else {
            Finding::ok(name, format!("{names}: ordered while the gateway runs"))
        });
    }
    let local: Vec<String> = own.tls.local.iter().map(named).collect();
    if !local.is_empty() {
        let names = local.join(", ");
        findings.push(Finding::ok(
            name,
            format!("{names}: made here; clients trust it after tollkeeper tls ca"),
        ));
    }
    findings
}

fn certificate(files: &CertificateFiles) -> Finding {
    let name = "tls";
    let certificate = match Read::of(files).certificate(files, now()) {
        Ok(certificate) => certificate,
        Err(why) => {
            return Finding::fail(
                name,
                why,
                "clients are refused until it is mended; tollkeeper tls status",
            );
        }
    };
    let days = (certificate.facts.not_after - now()) / DAY;
    let names = certificate.told_names();
    let until = day(certificate.facts.not_after);
    let chain = certificate.key.cert.len();
    let message = format!("{names}: {days} days left, until {until}, {chain} in the chain");
    match days < DAYS_WELL {
        true => Finding::warn(
            name,
            message,
            "renew it; new files are taken into use by themselves",
        ),
        false => Finding::ok(name, message),
    }
}

fn named(host: &LocalHost) -> String {
    match host {
        LocalHost::Name(name) => name.clone(),
        LocalHost::Below(parent) => format!("*.{parent}"),
        LocalHost::Address(ip) => ip.to_string(),
    }
}

/// How many files and sockets a process may have open: the running gateway, else one like this.
fn files(data_dir: &Path) -> Finding {
    let name = "files";
    let pid = std::fs::read_to_string(data_dir.join("tollkeeper.pid")).unwrap_or_default();
    let limits = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/limits")).ok();
    let (whose, text) = match pid
        .trim()
        .parse::<u32>()
        .ok()
        .and_then(|pid| limits(&pid.to_string()))
    {
        Some(text) => ("the running gateway", Some(text)),
        None => ("a process started from here", limits("self")),
    };
    let most = text.as_deref().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace()
            .next()
            .map(|soft| soft.parse().unwrap_or(u64::MAX))
    });
    match most {
        Some(u64::MAX) => Finding::ok(name, format!("{whose} may open any number")),
        Some(most) if most < FILES_WELL => Finding::warn(
            name,
            format!("{whose} may open {most}: enough for {} calls at once", most / 2),
            "LimitNOFILE=65536 in the unit, --ulimit nofile=65536 for a container, or ulimit -n 65536",
        ),
        Some(most) => Finding::ok(name, format!("{whose} may open {most}")),
        None => Finding::ok(name, "how many may be open is not told on this system"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        assert_eq!(data_dir(&path, None).state, State::Ok);
        assert!(!path.exists(), "nothing is made");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let open = data_dir(&path, Some(SPACE_WELL));
        assert!(
            open.state == State::Warn && open.next.contains("chmod 700"),
            "{open:?}"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(data_dir(&path, Some(SPACE_WELL)).state, State::Ok);
        assert_eq!(data_dir(&path, Some(SPACE_WELL - 1)).state, State::Warn);
        assert_eq!(data_dir(&path, Some(SPACE_BAD - 1)).state, State::Fail);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        std::fs::create_dir_all(path.join("spool/0")).unwrap();
        std::fs::write(path.join("spool/0/1.seg"), [0; 2_000]).unwrap();
        assert!(data_dir(&path, None).message.ends_with(", 2 KiB of spool"));
        let file = path.join("spool/0/1.seg");
        assert_eq!(data_dir(&file, None).state, State::Fail);
    }
}
