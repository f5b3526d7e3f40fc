//! What all requests share: known keys and parties, meters. In this process' memory, and, between
//! replicas, in Redis.

pub mod agreement;
pub mod keys;
pub mod meters;
pub mod parties;
pub mod period;
