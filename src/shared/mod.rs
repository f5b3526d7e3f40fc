//! What all requests share: known keys, money in flight. In this process' memory, and, between replicas, in
//! Redis.

pub mod agreement;
pub mod budgets;
pub mod keys;
