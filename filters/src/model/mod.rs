//! Plain data that every floor speaks of. Knows no I/O and no other module of this crate.

pub mod account;
pub mod call;
pub mod deployment;
pub mod key;
pub mod limits;
pub mod money;
pub mod party;
pub mod pieces;
pub mod price;
pub mod record;
pub mod secret;
pub mod trace;
pub mod usage;
