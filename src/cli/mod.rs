//! The commands, each a plain function that is given all it needs and returns an exit code.

pub mod check;
