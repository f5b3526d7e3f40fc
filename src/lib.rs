//! Tollkeeper: the edge and the gate in front of every model.
//!
//! This crate is the host: it knows Pingora, databases, files and sockets. What a filter is, and the
//! built-in ones, are in the crate `filters`, which knows none of those. See `src/README.md`.

pub mod admin;
pub mod alerts;
pub mod cli;
pub mod conf;
pub mod discover;
pub mod gauges;
pub mod greeting;
pub mod health;
pub mod history;
pub mod import;
pub mod ledger;
pub mod lock;
pub mod master_key;
pub mod notify;
pub mod proxy;
pub mod reload;
pub mod retry_after;
pub mod server;
pub mod shared;
pub mod snapshot;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod upgrade;

/// Runs Tollkeeper with these filters; the whole `main` of a binary of your own:
/// `tollkeeper::run(filters::builtin::registry().with("pii", Pii::from_settings))`.
pub fn run(registry: filters::contract::Registry) -> std::process::ExitCode {
    std::process::ExitCode::from(u8::try_from(cli::run(registry)).unwrap_or(1))
}
