//! Integration tests: the built gateway on real sockets, between scripted clients and upstreams.

// A test that panics has failed, which is what it is for.
#![allow(clippy::unwrap_used)]

mod acme;
mod agreement;
mod alerts;
mod alerts_replicas;
mod books;
mod calls;
mod cli;
mod cooldown;
mod crash;
mod dialects;
mod door;
mod early_answers;
mod edge;
mod fallback;
mod framing;
mod h2_floods;
mod hangups;
mod health;
mod import;
mod kit;
mod ledger;
mod lifecycle;
mod limits;
mod limits_reach;
mod lists;
mod logs;
mod metrics;
mod models_api;
mod objects;
mod objects_api;
mod other_models;
mod outage;
mod packaging;
mod passthrough;
mod refusals;
mod reload;
mod rights;
mod secrets;
mod services;
mod spend_api;
mod store;
mod tidy;
mod tls;
mod traces;
mod traces_changed;
mod traces_content;
mod traces_kinds;
mod upgrade;
mod upstream_tls;
