//! Bytes <-> frames: incremental, total, no I/O.
