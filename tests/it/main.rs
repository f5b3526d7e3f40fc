//! Integration tests.

// A test that panics has failed, which is what it is for.
#![allow(clippy::unwrap_used)]

mod kit;
mod ledger;
mod store;
