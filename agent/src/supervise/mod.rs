//! Several commands, each in a run of its own.
//!
//! The manager is one small process. Every command that it keeps is a *run* in a forked child of it,
//! with everything that a run does: its pipes, its lineage, its ending, its audit log. Since each run
//! is the subreaper of what its command starts, an ending can reach its own lineage and no other. The
//! manager itself only decides: what is started when, what is started again, what is ended in which
//! order.
//!
//! ```text
//! [init in front, as pid 1] ── manager ─┬─ run of `agent` ── agent ── its descendants
//!                                       ├─ run of `proxy` ── proxy ── ...
//!                                       └─ control socket
//! ```
//!
//! - [`config`]: the file.
//! - [`state`]: the decisions about one command, without I/O.
//! - [`manager`]: the loop.
//! - [`child`]: one run, from fork to EOF.
//! - [`control`]: the socket.

pub mod child;
pub mod config;
pub mod control;
pub mod manager;
pub mod state;

mod launch;
mod orphans;
pub mod output;
mod ready;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::audit::Target;
use crate::audit::sink::{OpenError, Sink};
use crate::run::relay::{self, Role};
use crate::run::signals::Signals;
use crate::run::terminal;
use config::Config;
use control::Server;
use manager::{Manager, Setup};
use output::Outputs;

/// What `pipewarden supervise` is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The control socket, where it is not the file's or the default.
    pub socket: Option<PathBuf>,
    /// Where audit records go, where it is not the file's.
    pub audit: Option<Target>,
}

/// Why nothing was started, or the supervision broke.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The audit log cannot be had.
    #[error(transparent)]
    Audit(#[from] OpenError),
    /// The control socket that was asked for cannot be had.
    #[error("control socket: {0}")]
    Socket(io::Error),
    /// We could not get ready.
    #[error("cannot {0}: {1}")]
    Setup(&'static str, io::Error),
    /// Our own descriptors failed us.
    #[error("the manager cannot go on: {0}")]
    Manager(io::Error),
}

/// Keeps the commands of a configuration until everything has ended; the exit status.
///
/// Must be called from the main thread of a process that does nothing else: it takes over signals,
/// becomes a subreaper, and reaps every child there is.
///
/// Minimum kernel: 5.9 (as for a run, and close_range).
///
/// # Errors
///
/// As [`SuperviseError`] says.
pub fn supervise(options: &Options) -> Result<u8, SuperviseError> {
    let setup = |what| move |error| SuperviseError::Setup(what, error);
    let config = Config::load(&options.config)?;
    if let Some(target) = options.audit.as_ref().or(config.audit.as_ref()) {
        drop(Sink::open(target)?); // every run opens it again; what is wrong with it is said now
    }
    let mut signals = Signals::take_over().map_err(setup("take over signals"))?;
    // As pid 1, and behind a shell that had children, others' orphans come to the process in front.
    let own_group = !terminal::is_ours();
    let front = match relay::enter(&mut signals, own_group).map_err(setup("see our own children in /proc, or fork"))? {
        Role::Relay(status) => return Ok(status.shell_code()),
        Role::Supervisor(front) => front,
    };
    nix::sys::prctl::set_child_subreaper(true).map_err(|error| setup("become a subreaper")(error.into()))?;
    let asked = options.socket.as_deref().or(config.socket.as_deref());
    let (server, told) = open_socket(asked)?;
    let mut outputs = Outputs::new().map_err(setup("look at stdio"))?;
    outputs.log(&told);
    let setup =
        Setup { file: options.config.clone(), config, audit: options.audit.clone(), signals, front, outputs, server };
    Manager::new(setup, Instant::now()).run().map_err(SuperviseError::Manager)
}

/// The control socket, and what is to be said of it: without the one that was asked for nothing is
/// started, but the default one can be done without.
fn open_socket(asked: Option<&Path>) -> Result<(Option<Server>, String), SuperviseError> {
    let path = asked.map_or_else(control::default_path, Path::to_owned);
    match Server::open(&path) {
        Ok(server) => {
            let told = format!("control socket: {}", server.path().display());
            Ok((Some(server), told))
        }
        Err(error) if asked.is_some() => Err(SuperviseError::Socket(error)),
        Err(error) => Ok((None, format!("no control socket: {error}"))),
    }
}
