//! The shared tracker of a machine: whose pipes are withheld, and what a policy does about it.
//!
//! - [`config`] is `node.toml`.
//! - [`identity`]: which container and pod a process is in.
//! - [`attribution`]: the same, remembered by cgroup.
//! - [`withheld`]: which pipes are withheld; no I/O.
//! - [`policy`]: what the policies say about their holders; no I/O.
//! - [`replay`]: what they would have done, over an audit log.

pub mod attribution;
pub mod config;
pub mod identity;
pub mod policy;
pub mod replay;
pub mod withheld;
