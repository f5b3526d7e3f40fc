//! Integration tests.

mod kit;
mod ledger;
mod store;
