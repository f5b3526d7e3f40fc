//! The host.

pub mod cli;
pub mod conf;
pub mod shared;
pub mod store;
