//! The host.

pub mod cli;
pub mod conf;
pub mod ledger;
pub mod shared;
pub mod store;
