//!
//! - [`config`]: `node.toml`.
//! - [`identity`]: which container and pod a process is in.
//! - [`attribution`]: the same, remembered by cgroup.
//! - [`withheld`]: which pipes are withheld; no I/O.

pub mod attribution;
pub mod config;
pub mod identity;
pub mod withheld;
