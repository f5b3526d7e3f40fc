//! Integration tests: the built gateway on real sockets, between scripted clients and upstreams.

// A test that panics has failed, which is what it is for.
#![allow(clippy::unwrap_used)]

mod calls;
mod dialects;
mod crash;
mod fallback;
mod hangups;
mod kit;
mod ledger;
mod lifecycle;
mod outage;
mod passthrough;
mod refusals;
mod secrets;
mod store;
mod upstream_tls;
mod tidy;
