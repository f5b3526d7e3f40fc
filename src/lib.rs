//! The host.

pub mod cli;
pub mod conf;
