//! `tollkeeper tls ca`: the local authority's certificate, and how clients are told to trust it.
//! `tollkeeper tls status`: the configured certificates, how long they are good, and whether the running
//! gateway shows them; of those that an authority gives, how their orders go.

use super::client::Failure;
use super::show::{self, BOLD, clean, put, say};
use crate::conf::{self, Acme, CertificateFiles, Conf, Env, Listener, LocalHost};
use crate::tls::acme::{Vault, due, moment};
use crate::tls::files::{Read, day, provider};
use crate::tls::local::Authority;
use crate::tls::{Facts, facts, local_dir, now};
use clap::{Args, Subcommand};
use comfy_table::{Cell, Color};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For one handshake with the running gateway.
const PATIENCE: Duration = Duration::from_secs(3);
/// Fewer days than this are shown in another colour.
const SOON: i64 = 14;
const DAY: i64 = 86_400;
/// Most names of which it is looked up what is shown for them.
const MOST_PROBED: usize = 50;

#[derive(Args)]
pub struct TlsArgs {
    #[command(subcommand)]
    command: TlsCommand,
}

#[derive(Subcommand)]
enum TlsCommand {
    /// Print the local authority's certificate (stdout) and how to trust it (stderr).
    Ca {
        /// The config; else the first one found, as `serve` looks for it.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// The certificates, how long they are good, and whether the running gateway shows them.
    Status {
        /// The config; else the first one found, as `serve` looks for it.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: TlsArgs, env: &Env) -> Result<(), Failure> {
    match args.command {
        TlsCommand::Ca { config } => ca(&load(config, env)?),
        TlsCommand::Status { config, json } => status(&load(config, env)?, env, json),
    }
}

fn load(file: Option<PathBuf>, env: &Env) -> Result<Conf, Failure> {
    match conf::load(file.as_deref(), env) {
        Ok(loaded) => Ok(loaded.conf),
        Err(report) => Err(Failure::config(report.render(true))),
    }
}

fn ca(conf: &Conf) -> Result<(), Failure> {
    let own = &conf.tollkeeper;
    if own.tls.local.is_empty() {
        return Err(Failure::config(
            "the config has no names for the local network. Add them, for example\n\ntollkeeper:\n  listeners:\n    \
             - {address: 0.0.0.0:443, tls: true}\n  tls:\n    local: {hosts: [llm.home.arpa, \"*.local\"]}",
        ));
    }
    let authority = Authority::open(&local_dir(&own.data_dir), now()).map_err(Failure::config)?;
    put(authority.pem().trim_end())?;
    let host = own.tls.local.iter().find_map(|host| match host {
        LocalHost::Name(name) => Some(name.clone()),
        LocalHost::Below(parent) => Some(format!("llm.{parent}")),
        LocalHost::Address(_) => None,
    });
    let host = host.unwrap_or_else(|| "127.0.0.1".into());
    let file = authority.dir().join("ca.pem");
    say(how_to_trust(
        &file.display().to_string(),
        &host,
        authority.not_after(),
    ));
    Ok(())
}

fn how_to_trust(file: &str, host: &str, not_after: i64) -> String {
    let until = day(not_after);
    let sections = [
        (
            "Debian, Ubuntu".to_string(),
            "sudo cp tollkeeper-ca.pem /usr/local/share/ca-certificates/tollkeeper.crt\nsudo update-ca-certificates",
        ),
        (
            "macOS".into(),
            "sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain tollkeeper-ca.pem",
        ),
        (
            "Windows, as administrator".into(),
            "certutil -addstore -f Root tollkeeper-ca.pem",
        ),
        (
            "Firefox".into(),
            "Settings, Privacy & Security, Certificates, View Certificates, Authorities, Import; tick \"websites\"",
        ),
        (
            "Python: openai, httpx; requests".into(),
            "export SSL_CERT_FILE=$PWD/tollkeeper-ca.pem\nexport REQUESTS_CA_BUNDLE=$PWD/tollkeeper-ca.pem",
        ),
        (
            "Node: openai, Claude Code".into(),
            "export NODE_EXTRA_CA_CERTS=$PWD/tollkeeper-ca.pem",
        ),
    ];
    let mut text = format!(
        "\nThis is the authority for the local network, good until {until}. It is also in {file}; its key is beside \
         it and stays there.\nKeep the lines above as tollkeeper-ca.pem (tollkeeper tls ca > tollkeeper-ca.pem), take \
         that file to each client, and there:\n"
    );
    for (place, command) in sections {
        text.push_str(&format!("\n{BOLD}{place}{BOLD:#}\n"));
        for line in command.lines() {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text.push_str(&format!(
        "\nSSL_CERT_FILE takes the place of all other authorities: for clients that also call the outside, trust it \
         in the system instead.\nTry it: curl --cacert tollkeeper-ca.pem https://{host}/health/liveliness"
    ));
    text
}

/// One line of the table.
struct Row {
    names: String,
    from: String,
    facts: Option<Facts>,
    /// What is wrong, in a sentence.
    wrong: Option<String>,
    shown: Shown,
    ordered: Option<Ordered>,
}

/// What is known of a certificate that an authority gives.
struct Ordered {
    /// When the next order is due, seconds since 1970.
    next: i64,
    /// When the last one failed, seconds since 1970, if it has.
    failed: Option<i64>,
}

/// What the running gateway shows for a name.
enum Shown {
    This,
    Another(Box<Facts>),
    /// Nobody answers, or not with a certificate.
    Nothing(String),
}

fn status(conf: &Conf, env: &Env, json: bool) -> Result<(), Failure> {
    let own = &conf.tollkeeper;
    let flag = certificate_of(None, None, env).map_err(Failure::usage)?;
    let files: Vec<&CertificateFiles> = flag.iter().chain(&own.tls.certificates).collect();
    if files.is_empty() && own.tls.acme.is_empty() && own.tls.local.is_empty() {
        return Err(Failure::config(
            "the config names no certificates: tollkeeper.tls.certificates, tollkeeper.tls.acme or \
             tollkeeper.tls.local.hosts",
        ));
    }
    let at = own
        .listeners
        .iter()
        .find(|l| l.tls.is_some())
        .or_else(|| own.listeners.first().filter(|_| flag.is_some()))
        .map(|l: &Listener| super::reach::local(l.address));
    let probe = |name: Option<&str>, probed: usize| match at {
        None => Err("no listener has `tls`".to_string()),
        Some(_) if probed >= MOST_PROBED => Err("not looked at".into()),
        Some(at) => shown(at, name),
    };
    let mut rows = Vec::new();
    for (probed, files) in files.into_iter().enumerate() {
        let read = Read::of(files).certificate(files, now());
        let from = files.cert.display().to_string();
        rows.push(match read {
            Err(why) => Row {
                names: "-".into(),
                from,
                facts: None,
                wrong: Some(why),
                shown: Shown::Nothing("not usable".into()),
                ordered: None,
            },
            Ok(certificate) => {
                let asked = certificate.facts.names.first().map(|n| n.replace('*', "any"));
                let shown = compare(probe(asked.as_deref(), probed), Some(&certificate.facts));
                Row {
                    names: certificate.told_names(),
                    from,
                    facts: Some(certificate.facts),
                    wrong: None,
                    shown,
                    ordered: None,
                }
            }
        });
    }
    let vault = Vault::new(&own.data_dir);
    for entry in &own.tls.acme {
        let probed = probe(entry.hosts.first().map(String::as_str), rows.len());
        rows.push(ordered(entry, &vault, probed));
    }
    let before = rows.len();
    for (i, host) in own.tls.local.iter().enumerate() {
        let (names, asked) = match host {
            LocalHost::Name(name) => (name.clone(), Some(name.clone())),
            LocalHost::Below(parent) => (format!("*.{parent}"), Some(format!("any.{parent}"))),
            LocalHost::Address(ip) => (ip.to_string(), None),
        };
        let (facts, shown) = match probe(asked.as_deref(), before + i) {
            Ok(facts) => (Some(facts), Shown::This),
            Err(why) => (None, Shown::Nothing(why)),
        };
        rows.push(Row {
            names,
            from: "local".into(),
            facts,
            wrong: None,
            shown,
            ordered: None,
        });
    }
    tell(&rows, json)?;
    let wrong: Vec<&str> = rows.iter().filter_map(|r| r.wrong.as_deref()).collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(clean(&wrong.join("; "))))
    }
}

/// What is `probed` against what is kept.
fn compare(probed: Result<Facts, String>, kept: Option<&Facts>) -> Shown {
    match (probed, kept) {
        (Ok(facts), Some(kept)) if facts.serial == kept.serial => Shown::This,
        (Ok(facts), _) => Shown::Another(Box::new(facts)),
        (Err(why), _) => Shown::Nothing(why),
    }
}

/// A certificate that an authority gives, and how its orders go.
fn ordered(entry: &Acme, vault: &Vault, probed: Result<Facts, String>) -> Row {
    let record = vault.record(entry);
    let kept = vault.certificate(entry, now());
    let next = due(entry, &record, kept.as_ref().ok().and_then(Option::as_ref));
    let mut wrong = Vec::new();
    let facts = match kept {
        Ok(kept) => kept.map(|c| c.facts),
        Err(why) => {
            wrong.push(why);
            None
        }
    };
    let failed = (record.failures > 0).then_some(record.failed);
    if let Some(failed) = failed {
        wrong.push(format!(
            "{}: the last order failed on {}: {}; the next is due on {}",
            entry.hosts.join(","),
            moment(failed),
            record.why,
            moment(next)
        ));
    }
    Row {
        names: entry.hosts.join(","),
        from: format!("acme {}", entry.directory.split('/').nth(2).unwrap_or_default()),
        shown: compare(probed, facts.as_ref()),
        facts,
        wrong: (!wrong.is_empty()).then(|| wrong.join("; ")),
        ordered: Some(Ordered { next, failed }),
    }
}

fn tell(rows: &[Row], json: bool) -> Result<(), Failure> {
    let left = |row: &Row| row.facts.as_ref().map(|f| (f.not_after - now()).div_euclid(DAY));
    let word = |shown: &Shown| match shown {
        Shown::This => "yes".to_string(),
        Shown::Another(facts) => format!("another, {}, until {}", facts.serial, day(facts.not_after)),
        Shown::Nothing(why) => format!("? {}", clean(why)),
    };
    if json {
        let rows: Vec<serde_json::Value> = rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "names": row.names,
                    "from": row.from,
                    "serial": row.facts.as_ref().map(|f| f.serial.clone()),
                    "expires": row.facts.as_ref().map(|f| day(f.not_after)),
                    "days_left": left(row),
                    "served": matches!(row.shown, Shown::This),
                    "error": row.wrong,
                    "next_order": row.ordered.as_ref().map(|o| moment(o.next.max(now()))),
                    "last_failure": row.ordered.as_ref().and_then(|o| o.failed).map(moment),
                })
            })
            .collect();
        return put(show::json(&rows.into()));
    }
    let any_ordered = rows.iter().any(|row| row.ordered.is_some());
    let cells = rows.iter().map(|row| {
        let days = match left(row) {
            Some(days) if days < 0 => show::coloured(days, Color::Red),
            Some(days) if days < SOON => show::coloured(days, Color::Yellow),
            Some(days) => Cell::new(days),
            None => Cell::new("-"),
        };
        let of = |f: &dyn Fn(&Facts) -> String| row.facts.as_ref().map_or("-".into(), f);
        let mut cells = vec![
            Cell::new(clean(&row.names)),
            Cell::new(clean(&row.from)),
            Cell::new(of(&|f| f.serial.chars().take(16).collect())),
            Cell::new(of(&|f| day(f.not_after))),
            days,
            Cell::new(word(&row.shown)),
        ];
        if any_ordered {
            let next = |o: &Ordered| moment(o.next.max(now()));
            cells.push(Cell::new(row.ordered.as_ref().map_or("-".into(), next)));
        }
        cells
    });
    let mut header = vec!["NAMES", "FROM", "SERIAL", "EXPIRES", "DAYS", "SERVED"];
    if any_ordered {
        header.push("NEXT ORDER");
    }
    show::put_table(&show::table(&header, cells.collect(), &[4]))
}

/// The certificate that the command line or LiteLLM's variables name; both files or none.
pub fn certificate_of(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    env: &Env,
) -> Result<Option<CertificateFiles>, String> {
    let of = |given: Option<PathBuf>, name: &str| {
        given.or_else(|| env.get(name).map(|path| PathBuf::from(path.expose())))
    };
    match (of(cert, "SSL_CERTFILE_PATH"), of(key, "SSL_KEYFILE_PATH")) {
        (Some(cert), Some(key)) => Ok(Some(CertificateFiles { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(
            "--ssl_certfile_path is given and --ssl_keyfile_path (SSL_KEYFILE_PATH) is not; TLS needs both"
                .into(),
        ),
        (None, Some(_)) => Err(
            "--ssl_keyfile_path is given and --ssl_certfile_path (SSL_CERTFILE_PATH) is not; TLS needs both"
                .into(),
        ),
    }
}

/// What the gateway at `at` shows to a client that asks for `name`. Nothing is sent to it but a handshake.
fn shown(at: SocketAddr, name: Option<&str>) -> Result<Facts, String> {
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let provider = Arc::new(provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Onlooker))
        .with_no_client_auth();
    let name = match name {
        Some(name) => ServerName::try_from(name.to_string()).map_err(|_| "no name to ask for".to_string())?,
        // An address is not told to the server.
        None => ServerName::from(IpAddr::from([127, 0, 0, 1])),
    };
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(|e| e.to_string())?;
    let until = Instant::now() + PATIENCE;
    let mut socket =
        TcpStream::connect_timeout(&at, PATIENCE).map_err(|_| format!("{at} does not answer"))?;
    let told = |e: std::io::Error| e.to_string();
    while tls.is_handshaking() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("{at} does not answer in time"));
        }
        socket.set_read_timeout(Some(left)).map_err(told)?;
        socket.set_write_timeout(Some(left)).map_err(told)?;
        if tls.wants_write() {
            tls.write_tls(&mut socket).map_err(told)?;
            continue;
        }
        if tls.read_tls(&mut socket).map_err(told)? == 0 {
            return Err(format!("{at} hangs up"));
        }
        tls.process_new_packets().map_err(|e| e.to_string())?;
    }
    tls.peer_certificates()
        .and_then(|all| facts(all.first()?))
        .ok_or_else(|| "no certificate".into())
}

/// Looks at any certificate: it is to be shown to a person, nothing is entrusted to whoever holds it.
#[derive(Debug)]
struct Onlooker;

impl ServerCertVerifier for Onlooker {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
