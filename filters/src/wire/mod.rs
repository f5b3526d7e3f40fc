//! Bytes <-> frames: incremental, total, no I/O.
//!
//! [`peek`] finds fields in a JSON request body without building a tree, [`splice`] changes them
//! without copying the rest, [`sse`] cuts event streams, [`multipart`] finds the parts of a form,
//! [`media`] leaves pictures and sounds out, [`audio`] measures a sound.

pub mod audio;
mod json;
pub mod media;
pub mod multipart;
mod parameters;
pub mod peek;
#[cfg(test)]
mod properties;
pub mod splice;
pub mod sse;
