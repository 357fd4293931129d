//! The shared tracker of a machine: whose pipes are withheld, and what a policy does about it.
//!
//! - [`config`] is `node.toml`.
//! - [`identity`]: which container and pod a process is in.
//! - [`attribution`]: the same, remembered by cgroup.
//! - [`names`]: what containers and pods are called, where a container runtime tells.
//! - [`withheld`]: which pipes are withheld; no I/O.
//! - [`policy`]: what the policies say about their holders; no I/O.
//! - [`live`]: the tracker, and what it feeds to those.
//! - [`daemon`]: the node itself.
//! - [`journal`]: its audit records.
//! - [`http`]: what it tells whoever asks; [`metrics`]: what it counts; [`health`]: why it is not to be relied on.
//! - [`privileges`]: what it gives up once it is attached.
//! - [`backoff`]: how soon something is tried again.
//! - [`replay`]: what policies would have done, over an audit log.
//! - [`socket`]: where supervisors without privileges ask who holds their pipes.

pub mod attribution;
pub mod backoff;
pub mod config;
pub mod daemon;
pub mod health;
pub mod http;
pub mod identity;
pub mod journal;
pub mod live;
pub mod metrics;
pub mod names;
pub mod policy;
pub mod privileges;
pub mod replay;
pub mod socket;
pub mod withheld;
