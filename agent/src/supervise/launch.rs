//! From what the configuration says of a command to a run of it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::child::{Child, Destination, Start, append_to};
use super::config::{Color, Command, Launch, Output, Ready, Stdin};
use super::output::{Outputs, Route, Target, Way};
use crate::audit;
use crate::ownership::keep::Keep;
use crate::run::fifo::Fifo;
use crate::run::options::Options;
use crate::run::signals::Inherited;
use crate::run::stdio;

/// What a launch needs to know beside its command.
pub struct Surroundings<'a> {
    /// The ways out.
    pub outputs: &'a Outputs,
    /// Whether prefixes have colours.
    pub color: Color,
    /// The command's place among the others.
    pub index: usize,
    /// The length of the longest name.
    pub width: usize,
    /// Where audit records go.
    pub audit: Option<&'a audit::Target>,
    /// What the command gets of what we were started with.
    pub inherited: Inherited,
    /// The FIFO that it reads, if it does.
    pub fifo: Option<&'a Fifo>,
    /// The process in front of us.
    pub front: Option<i32>,
}

/// Starts a run of a command.
///
/// # Errors
///
/// What could not be opened, or that there is no process to be had: nothing was started.
pub fn launch(command: &Command, around: &Surroundings<'_>) -> io::Result<Child> {
    let options = options(command, around.audit);
    let launch = &command.launch;
    let stdin = match launch.stdin {
        Stdin::Null => Some(stdio::dev_null()?),
        Stdin::Inherit => None,
        Stdin::Fifo(_) => Some(reading_end(around.fifo)?),
    };
    let one = launch.stdout == launch.stderr
        && match launch.stdout {
            Output::Prefix => around.outputs.are_one(),
            Output::File(_) => true,
            Output::Inherit | Output::Null => false,
        };
    let stdout = destination(command, Way::Stdout, around)?;
    let stderr = if one { Destination::SameAsStdout } else { destination(command, Way::Stderr, around)? };
    Child::start(Start { options: &options, stdin, stdout, stderr, inherited: around.inherited, front: around.front })
}

/// The command reads the FIFO itself: what it has not read when it is started anew is still there.
fn reading_end(fifo: Option<&Fifo>) -> io::Result<OwnedFd> {
    let fifo = fifo.and_then(Fifo::reading).ok_or_else(|| io::Error::other("its FIFO was closed"))?;
    // A description of its own, which waits where ours must not. We hold both ends: it opens at once.
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    Ok(File::open(path)?.into())
}

fn destination(command: &Command, way: Way, around: &Surroundings<'_>) -> io::Result<Destination> {
    let launch = &command.launch;
    let (output, fd) = match way {
        Way::Stdout => (&launch.stdout, 1),
        Way::Stderr => (&launch.stderr, 2),
    };
    let watch = match &launch.ready {
        Ready::Line(regex) => Some(regex.clone()),
        _ => None,
    };
    Ok(match output {
        Output::Null => Destination::Direct(stdio::dev_null()?),
        Output::Inherit if watch.is_none() => Destination::Ours(fd),
        Output::Inherit => Destination::Lines(Route { target: Target::Ours, prefix: Vec::new(), watch }),
        Output::File(path) if watch.is_none() => Destination::Direct(append_to(path)?),
        Output::File(path) => {
            let file = File::from(append_to(path)?);
            if !file.metadata()?.is_file() {
                let text = format!("{}: a line is only looked for on the way to a regular file", path.display());
                return Err(io::Error::other(text));
            }
            Destination::Lines(Route { target: Target::File(file), prefix: Vec::new(), watch })
        }
        Output::Prefix => {
            let prefix = around.outputs.prefix(way, &command.name, around.index, around.width, around.color);
            Destination::Lines(Route { target: Target::Ours, prefix, watch })
        }
    })
}

fn options(command: &Command, audit: Option<&audit::Target>) -> Options {
    let launch = &command.launch;
    let ending = &launch.ending;
    Options {
        signal: ending.signal,
        // We ask a run for its ending by SIGTERM; its command is asked by its own signal.
        rewrite: vec![(libc::SIGTERM, ending.signal as i32)],
        kill_after: ending.kill_after,
        timeout: ending.timeout,
        idle_timeout: ending.idle_timeout,
        holder_grace: ending.holder_grace,
        max_drain: ending.max_drain,
        max_deliver: ending.max_deliver,
        on_holder: ending.on_holder,
        on_foreign: ending.on_foreign,
        on_opaque: ending.on_opaque,
        reap: ending.reap,
        keep: keep(launch),
        audit: audit.cloned(),
        name: Some(command.name.clone()),
        environment: environment(launch),
        directory: launch.cwd.clone(),
        user: launch.user.as_ref().map(|account| account.user.clone()),
        ..Options::new(launch.run.iter().map(OsString::from).collect())
    }
}

/// Whom no ending of this command ends.
#[must_use]
pub fn keep(launch: &Launch) -> Keep {
    // They were compiled once when the configuration was read.
    Keep::new(&launch.ending.keep).unwrap_or_default()
}

/// The whole environment, where it is not ours: ours or nothing, what a login would set, what the
/// configuration sets.
fn environment(launch: &Launch) -> Option<Vec<(OsString, OsString)>> {
    let login = launch.user.as_ref().and_then(|account| account.login.as_ref());
    if launch.env.is_empty() && !launch.clear_env && login.is_none() {
        return None;
    }
    let mut variables: Vec<(OsString, OsString)> =
        if launch.clear_env { Vec::new() } else { std::env::vars_os().collect() };
    let mut set = |name: &str, value: OsString| {
        variables.retain(|(known, _)| known != name);
        variables.push((name.into(), value));
    };
    if let Some((name, home)) = login {
        set("HOME", home.clone().into());
        set("USER", name.into());
        set("LOGNAME", name.into());
    }
    for (name, value) in &launch.env {
        set(name, value.into());
    }
    Some(variables)
}
