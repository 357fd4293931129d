//! The shared tracker of a machine: whose pipes are withheld, and what a policy does about it.
//!
//! - [`config`]: `node.toml`.

pub mod config;
