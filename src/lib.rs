//! The host.

pub mod cli;
pub mod conf;
pub mod store;
