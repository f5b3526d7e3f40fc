//! What the process says of itself.

pub mod log;
pub mod metrics;
