//! Times scans through the library, for `cargo xtask bench`.
//!
//! `time_scan lineage COUNT` leaves a child in another session that holds a pipe, asks COUNT times who
//! holds it, and prints how many nanoseconds each answer took. `time_scan machine PATH` asks once
//! among all processes who holds the pipe behind PATH, and fails if nobody does.
#![allow(clippy::print_stdout, reason = "what was measured is this program's result")]

use std::collections::HashSet;
use std::error::Error;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{fstat, stat};
use nix::unistd::{ForkResult, fork, getpgrp, getpid, pipe, setsid};
use pipewarden::ownership::keep::Keep;
use pipewarden::ownership::proc::Proc;
use pipewarden::ownership::{Lineage, Question, Scope, Source};
use pipewarden::pipe::{Pipe, PipeId, PipeKind};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["lineage", count] => lineage(count.parse()?),
        ["machine", path] => machine(path),
        _ => Err("use `time_scan lineage COUNT` or `time_scan machine PATH`".into()),
    }
}

fn lineage(count: usize) -> Result<(), Box<dyn Error>> {
    let (read, write) = pipe()?;
    let status = fstat(&read)?;
    let pipe = PipeId { dev: status.st_dev, ino: status.st_ino };
    // SAFETY: there is one thread, so the child may do what we may.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            setsid()?;
            loop {
                nix::unistd::pause();
            }
        }
        ForkResult::Parent { child } => child,
    };
    drop(write);
    let answers = (0..count).map(|_| ask(pipe, Scope::Lineage)).collect::<Result<Vec<_>, _>>();
    // A child that was not waited for: its number is still its own.
    kill(child, Signal::SIGKILL)?;
    for (time, found) in answers? {
        if found != 1 {
            return Err(format!("{found} holders were found instead of one").into());
        }
        println!("{}", time.as_nanos());
    }
    Ok(())
}

fn machine(path: &str) -> Result<(), Box<dyn Error>> {
    let status = stat(path)?;
    let (_, found) = ask(PipeId { dev: status.st_dev, ino: status.st_ino }, Scope::Machine)?;
    if found == 0 {
        return Err("nobody holds it".into());
    }
    Ok(())
}

/// Asks once; how long the answer took, and how many holders it names.
fn ask(id: PipeId, scope: Scope) -> Result<(Duration, usize), Box<dyn Error>> {
    let lineage = Lineage { root: getpid().as_raw(), home: getpgrp().as_raw(), adopter: None };
    let mut source = Proc::new(lineage, Keep::default());
    let question = Question {
        pipes: vec![Pipe { id, kind: PipeKind::Pipe }],
        scope,
        except: HashSet::new(),
        deadline: Instant::now() + Duration::from_secs(60),
    };
    let started = Instant::now();
    let census = source.holders(&question)?;
    Ok((started.elapsed(), census.holders.len()))
}
