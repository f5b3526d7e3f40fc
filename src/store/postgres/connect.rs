//! From a database address to connections: the address as Prisma and libpq write it, TLS, the pool,
//! and what a server's refusal means.

use crate::store::{Result, Settings, StoreError, Taken};
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use filters::model::secret::Secret;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Where and how to connect.
#[derive(Clone)]
pub struct Target {
    pub config: tokio_postgres::Config,
    pub tls: MakeRustlsConnect,
    pub settings: Settings,
    /// Sent once on every new connection.
    pub greeting: String,
}

impl Target {
    /// Where the server is, for the log: host, port and database, without user and password.
    pub fn place(&self) -> String {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate().map(|(n, host)| {
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                #[cfg(unix)]
                Host::Unix(path) => path.display().to_string(),
            }
        });
        let hosts: Vec<String> = hosts.collect();
        format!(
            "{}/{}",
            hosts.join(","),
            self.config.get_dbname().unwrap_or_default()
        )
    }
}

/// Prisma's parameters that mean nothing here.
const IGNORED: [&str; 5] = [
    "pgbouncer",
    "statement_cache_size",
    "socket_timeout",
    "single_use_connections",
    "sslnegotiation",
];

impl Target {
    /// Takes what libpq and Prisma (LiteLLM's client) understand, so that a `DATABASE_URL` can stay as it is.
    pub fn parse(url: &Secret, settings: &Settings) -> Result<Self> {
        let mut settings = settings.clone();
        settings.pool_size = settings.pool_size.clamp(1, 1000);
        let (base, query) = url.expose().split_once('?').unwrap_or((url.expose(), ""));
        let mut kept = Vec::new();
        let mut sslmode = None;
        let mut sslrootcert = None;
        let mut schema = None;
        let mut strict = false;
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = percent_decoded(value)?;
            match name {
                "sslmode" => sslmode = Some(text),
                // Prisma's `sslcert` is libpq's `sslrootcert`.
                "sslrootcert" | "sslcert" => sslrootcert = Some(text),
                "sslaccept" => strict = text == "strict",
                "schema" => schema = Some(text),
                "connection_limit" => settings.pool_size = number(name, &text)?.clamp(1, 1000) as usize,
                "pool_timeout" => {
                    settings.wait_timeout = Duration::from_secs(number(name, &text)?.clamp(1, 60))
                }
                "connect_timeout" => {
                    settings.connect_timeout = Duration::from_secs(number(name, &text)?.clamp(1, 60))
                }
                _ if IGNORED.contains(&name) => {}
                _ => kept.push(pair),
            }
        }
        let url = if kept.is_empty() {
            base.to_string()
        } else {
            format!("{base}?{}", kept.join("&"))
        };
        // The parser's words name the parameter at fault, never a value.
        let mut config: tokio_postgres::Config = url
            .parse()
            .map_err(|e| StoreError::invalid(format!("database address: {}", describe(&e))))?;
        let (mode, verify) = match sslmode.as_deref() {
            Some("disable") => (SslMode::Disable, false),
            None | Some("allow" | "prefer") => (SslMode::Prefer, false),
            Some("require") => (SslMode::Require, strict || sslrootcert.is_some()),
            Some("verify-ca" | "verify-full") => (SslMode::Require, true),
            Some(_) => {
                return Err(StoreError::invalid(
                    "database address: sslmode is one of disable, allow, prefer, require, verify-ca, verify-full",
                ));
            }
        };
        let sockets_only = config.get_hosts().iter().all(|h| matches!(h, Host::Unix(_)));
        config.ssl_mode(if sockets_only { SslMode::Disable } else { mode });
        config.connect_timeout(settings.connect_timeout);
        config.tcp_user_timeout(Duration::from_secs(30));
        config.keepalives_idle(Duration::from_secs(30));
        if config.get_application_name().is_none() {
            config.application_name("tollkeeper");
        }
        // The spool is trimmed once a batch is committed, so a commit must survive a crash even where the
        // server's own setting says it need not.
        let mut greeting = format!(
            "SET statement_timeout = {}; SET idle_in_transaction_session_timeout = '15s'; \
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
            settings.statement_timeout.as_millis()
        );
        if let Some(schema) = schema.filter(|s| !s.is_empty()) {
            greeting.push_str(&format!("; SET search_path = {}", quoted(&schema)?));
        }
        Ok(Self {
            config,
            tls: MakeRustlsConnect::new(tls(verify, sslrootcert.as_deref())?),
            settings,
            greeting,
        })
    }

    pub fn pool(&self) -> Result<Pool> {
        let manager = Manager::from_config(
            self.config.clone(),
            self.tls.clone(),
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let greeting: Arc<str> = self.greeting.as_str().into();
        Pool::builder(manager)
            .max_size(self.settings.pool_size)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(self.settings.wait_timeout),
                create: Some(self.settings.connect_timeout),
                recycle: Some(self.settings.connect_timeout),
            })
            .post_create(Hook::async_fn(move |client, _| {
                let greeting = greeting.clone();
                Box::pin(async move { client.batch_execute(&greeting).await.map_err(HookError::Backend) })
            }))
            .build()
            .map_err(StoreError::other)
    }
}

fn number(name: &str, text: &str) -> Result<u64> {
    text.parse()
        .map_err(|_| StoreError::invalid(format!("database address: {name} is a whole number")))
}

/// An SQL identifier in quotes.
fn quoted(name: &str) -> Result<String> {
    if name.contains('\0') || name.len() > 63 {
        return Err(StoreError::invalid(
            "database address: schema is a name of at most 63 bytes",
        ));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

fn percent_decoded(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        match (digit(), digit()) {
            (Some(hi), Some(lo)) => out.push((hi * 16 + lo) as u8),
            _ => {
                return Err(StoreError::invalid(
                    "database address: a % stands before two hexadecimal digits",
                ));
            }
        }
    }
    String::from_utf8(out).map_err(|_| StoreError::invalid("database address: not UTF-8"))
}

fn tls(verify: bool, root: Option<&str>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(StoreError::other)?;
    if !verify {
        // As libpq has it: without verify-*, TLS keeps listeners out, not impostors.
        let verifier = Arc::new(AnyCertificate(provider));
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        return Ok(builder.with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match root {
        Some(path) => {
            let certs = CertificateDer::pem_file_iter(path)
                .and_then(|certs| certs.collect::<std::result::Result<Vec<_>, _>>());
            let certs = certs.map_err(|e| StoreError::invalid(format!("sslrootcert {path}: {e}")))?;
            roots.add_parsable_certificates(certs);
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(StoreError::invalid(
            "the database address asks for a verified certificate, but no root certificates were found",
        ));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Takes whatever certificate the server shows, but has it prove that it holds the key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The error and its cause in one line, without the values a server likes to quote in its details.
pub fn describe(e: &tokio_postgres::Error) -> String {
    if let Some(db) = e.as_db_error() {
        let message: String = db.message().chars().take(300).collect();
        return format!("{message} ({})", db.code().code());
    }
    match e.source() {
        Some(cause) => format!("{e}: {cause}"),
        None => e.to_string(),
    }
}

pub fn from_pool(e: PoolError) -> StoreError {
    match e {
        PoolError::Timeout(_) => StoreError::unavailable("no connection in time"),
        PoolError::Backend(e) | PoolError::PostCreateHook(HookError::Backend(e)) => {
            StoreError::Unavailable(describe(&e))
        }
        PoolError::Closed => StoreError::unavailable("the pool is closed"),
        PoolError::PostCreateHook(_) | PoolError::NoRuntimeSpecified => {
            StoreError::other("the connection pool failed")
        }
    }
}

/// Sorts an error of a statement by its SQLSTATE class.
pub fn from_statement(e: tokio_postgres::Error) -> StoreError {
    let text = describe(&e);
    let Some(db) = e.as_db_error() else {
        // A value that cannot be encoded is the one client-side error that is not the connection's end.
        return if e.to_string().starts_with("error serializing") {
            StoreError::Invalid(text)
        } else if e.is_closed() || e.source().is_some_and(|s| s.is::<std::io::Error>()) {
            StoreError::Unavailable(text)
        } else {
            StoreError::Other(text)
        };
    };
    let code = db.code().code();
    match (code, code.get(..2).unwrap_or("")) {
        ("23505", _) => StoreError::Conflict {
            what: match db.constraint() {
                Some("tk_keys_alias") => Taken::KeyAlias,
                Some("tk_keys_pkey") => Taken::Key,
                _ => Taken::Id,
            },
        },
        // Read only; statement, lock and idle timeouts; deadlock and serialisation.
        ("25006" | "57014" | "55P03" | "25P03", _) | (_, "40") => StoreError::Unavailable(text),
        // Connection, resources, operator, system errors; authorisation, missing database or right:
        // an operator can mend all of these, so what waits must not be thrown away.
        (_, "08" | "53" | "57" | "58" | "28" | "3D") | ("42501", _) => StoreError::Unavailable(text),
        // Data, integrity, limits.
        (_, "22" | "23" | "54") => StoreError::Invalid(text),
        _ => StoreError::Other(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target> {
        Target::parse(&Secret::new(url), &Settings::default())
    }

    #[test]
    fn takes_addresses_as_prisma_and_libpq_write_them() {
        let t = target(
            "postgresql://u:p%40ss@h:1/d?schema=my%22s&connection_limit=3&pool_timeout=7&pgbouncer=true",
        )
        .unwrap();
        assert_eq!((t.settings.pool_size, t.settings.wait_timeout.as_secs()), (3, 7));
        assert!(t.greeting.contains(r#"SET search_path = "my""s""#));
        assert_eq!(t.config.get_ssl_mode(), SslMode::Prefer);
        assert_eq!(t.config.get_password(), Some(b"p@ss".as_slice()));
        for (url, mode) in [
            ("postgres://h/d?sslmode=require", SslMode::Require),
            ("postgres://h/d?sslmode=disable", SslMode::Disable),
            ("postgres://u@/d?host=/tmp&sslmode=require", SslMode::Disable),
        ] {
            assert_eq!(target(url).unwrap().config.get_ssl_mode(), mode, "{url}");
        }
    }

    #[test]
    fn refusals_do_not_repeat_the_address() {
        for url in [
            "postgres://u:hunter2@h/d?sslmode=maybe",
            "postgres://u:hunter2@h/d?colour=hunter2",
            "postgres://u:hunter2@h:port/d",
            "postgres://u:hunter2@h/d?connection_limit=hunter2",
            "postgres://u:hunter2@h/d?schema=%zz",
            "postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/nowhere.pem",
        ] {
            let e = target(url).err().expect(url);
            assert!(matches!(e, StoreError::Invalid(_)), "{url}: {e}");
            assert!(!e.to_string().contains("hunter2"), "{e}");
        }
    }
}
