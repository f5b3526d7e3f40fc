//! What the tests stand on: real parts, started and ended here.

pub mod postgres;
