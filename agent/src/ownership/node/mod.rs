//! The live map of a node, asked through its socket.
//!
//! - [`protocol`]: what is said, both ways; no I/O.
//! - [`frame`]: lines, and which of them a passed descriptor belongs to; no I/O.
//! - [`client`]: finding a node, and being let in.
//! - [`wire`]: a connection on which we were let in: what was asked, and what was said.
//! - [`read_end`]: the read ends that a node gets to see.
//! - [`shared`]: that connection, for the two threads that use it.
//! - [`events`]: what a node tells a run.
//! - [`source`]: the holders that a node names.

pub mod client;
pub mod events;
pub mod frame;
pub mod protocol;
pub mod read_end;
pub mod shared;
pub mod source;
pub mod wire;
