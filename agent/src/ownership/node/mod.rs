//! The live map of a node, asked through its socket.
//!
//! - [`protocol`]: what is said, both ways; no I/O.
//! - [`frame`]: lines, and which of them a passed descriptor belongs to; no I/O.

pub mod frame;
pub mod protocol;
