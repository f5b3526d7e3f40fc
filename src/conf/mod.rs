//! The config: found, read, checked, typed.
//!
//! `load` finds the file, reads it with its includes and the environment into a tree that knows
//! where everything stands (`node`), walks the tree into types (`models`, `settings`, `section`)
//! and checks what only shows in the whole (`check`). Every problem of one run is collected and
//! shown with the line it is about (`report`). Only `load.rs` reads the environment.

mod acme;
mod behind;
mod bounds;
mod check;
mod cooldown;
mod dotenv;
mod fallbacks;
mod fields;
mod fill;
mod hide;
mod keys;
pub mod litellm;
pub mod load;
mod meters;
mod models;
mod node;
mod own;
mod pass_through;
mod reach;
mod report;
mod rules;
mod scalar;
mod secret;
mod section;
mod services;
mod settings;
mod text;
mod tls;
mod tracing;
mod types;
mod watch;

pub use cooldown::{AllowedFails, Cooldown};
pub use fallbacks::Fallbacks;
pub use hide::hidden;
pub use load::{Env, Loaded, load, load_text};
pub use meters::{Meters, Queue};
pub use own::{
    Acme, AcmeChallenge, CertificateFiles, ClientAuth, Cors, Driver, ExternalAccount, FilterUse, Handshake,
    Hsts, Lane, LaneAuth, Ledger, Limits, Listener, LocalHost, Log, LogFormat, LogRequests, Metrics, Own,
    RateLimit, RateSource, Timeouts, Tls, TlsVersion, UnknownNames,
};
pub use report::{EXIT_CONFIG, Problem, Report, Severity};
pub use secret::Secret;
pub use services::{
    Backend, HeaderChanges, HealthCheck, Hosts, Service, ServiceTimeouts, Strategy, UnknownHosts,
};
pub use settings::weakness;
pub use tracing::{Langfuse, On, Otlp, Project, TeamProject, Tracing};
pub use types::{
    Conf, Dialect, General, GroupAlias, LitellmParams, LitellmSettings, ModelEntry, ModelInfo, PassThrough,
    Provider, RouterSettings, Source, Span,
};
pub use watch::{Alerts, HealthChecks, Watch};

#[cfg(test)]
mod manual;
#[cfg(test)]
mod tests;
