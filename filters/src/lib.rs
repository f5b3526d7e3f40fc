//! What a Tollkeeper filter is, the built-in ones, and the pure parts they stand on.
//!
//! Floors, top to bottom; an arrow never points up:
//! `builtin → contract, dialects → wire, model`.
//! Nothing here opens a socket, a file or a database: the world is reached through the ports of
//! [`contract::ports`], which the host implements.

pub mod builtin;
pub mod contract;
pub mod dialects;
pub mod model;
pub mod testkit;
pub mod wire;

/// The example of a filter of one's own in the README, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
