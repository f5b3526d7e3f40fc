//! What all requests share: known keys, money in flight. In this process' memory.

pub mod budgets;
pub mod keys;
