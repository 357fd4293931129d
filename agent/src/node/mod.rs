//! The shared tracker of a machine: whose pipes are withheld, and what a policy does about it.
//!
//! - [`config`]: `node.toml`.
//! - [`identity`]: which container and pod a process is in.
//! - [`attribution`]: the same, remembered by cgroup.

pub mod attribution;
pub mod config;
pub mod identity;
