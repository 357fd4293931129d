//! pipewarden makes end-of-file arrive.
//!
//! It knows which process holds which end of which pipe, so that a supervisor whose command has
//! ended can end exactly the process that keeps the pipe open, or let go of exactly that pipe.
//!
//! The rooms, from the bottom up (arrows point one way):
//!
//! - [`pipe`]: the vocabulary; no I/O.
//! - [`process`]: what `/proc` says about one process: identity, descriptors, children.
//! - [`kernel`]: everything that speaks to the kernel's tracing side: BPF, its rungs, the proc connector.
//! - [`ownership`]: who holds which pipe, whatever the source of that knowledge.
//! - [`act`]: the only file that signals a process we did not spawn.
//! - [`audit`]: every escape, signal and refusal as one record.
//! - [`run`]: the supervisor.
//! - [`explain`]: the hang explained: who waits for whom, and what would release it.
//! - [`doctor`]: what of all this works here, and why the rest does not.
//! - [`supervise`]: several commands, each in a run of its own.
//! - [`node`]: the shared tracker of a machine, and its policies.
//! - [`config`]: configuration files, with the line of whatever is wrong in them.
//! - [`value`]: durations and signals as people write them.
//! - [`cli`]: arguments, and how results are printed.

pub mod act;
pub mod audit;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod explain;
pub mod kernel;
pub mod node;
pub mod ownership;
pub mod pipe;
pub mod process;
pub mod run;
pub mod supervise;
pub mod value;
