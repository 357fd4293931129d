//! How long "who holds this pipe" takes, beside lsof, fuser and lsfd, among 10, 1000 and 5000 processes.
//!
//! `cargo run --release -p pipewarden-tests --example bench_explain [PROGRAM]`; PROGRAM is the pipewarden to
//! measure, else that of the same build (`cargo build --release --workspace --bins` first). One row for each
//! number of processes, in milliseconds: the median of the runs, and the ratio to ours.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::fstat;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe};

/// Descriptors of each idle process besides the standard streams: what a small server has.
const DESCRIPTORS: usize = 16;

const RUNS: usize = 7;

fn main() -> Result<()> {
    let program = match std::env::args_os().nth(1) {
        Some(program) => PathBuf::from(program),
        None => {
            let here = std::env::current_exe()?;
            here.ancestors().nth(2).context("no target folder")?.join("pipewarden-under-test")
        }
    };
    ensure!(program.exists(), "{} is missing: build it, or name another program", program.display());
    let mut out = std::io::stdout();
    writeln!(out, "| processes | holders | why | lsof | fuser | lsfd |\n|---|---|---|---|---|---|")?;
    for count in [10, 1000, 5000] {
        writeln!(out, "{}", row(count, &program)?)?;
    }
    Ok(())
}

fn row(count: usize, program: &Path) -> Result<String> {
    let idle = Idle::start(count)?;
    let (read, write) = pipe()?;
    let holder = holder(&read, &write)?;
    drop(write);
    let ino = fstat(&read)?.st_ino;
    let ours = |words: &[&str]| median(program.as_os_str(), words);
    let holders = ours(&["holders", &format!("pipe:[{ino}]"), "--json"]).context("holders")?;
    let why = ours(&["why", &holder.0.to_string(), "--json"]).context("why")?;
    let theirs = [
        median("lsof".as_ref(), &["-n", "-P", "-w"]),
        median("fuser".as_ref(), &[&format!("/proc/{}/fd/{}", holder.0, holder.1)]),
        median("lsfd".as_ref(), &["-n", "-r", "-Q", &format!("INODE == {ino}")]),
    ];
    drop(idle);
    end(holder.0)?;
    let cell = |time: Option<f64>| {
        time.map_or_else(|| "not installed".to_owned(), |time| format!("{time:.1} ({:.1}x)", time / holders))
    };
    let theirs = theirs.map(cell).join(" | ");
    Ok(format!("| {count} | {holders:.1} | {why:.1} | {theirs} |"))
}

/// The median time of a program that succeeds, in milliseconds; none when it is not there.
fn median(program: &std::ffi::OsStr, words: &[&str]) -> Option<f64> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let begin = Instant::now();
        let output = Command::new(program).args(words).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
        if output.stdout.is_empty() {
            return None;
        }
    }
    times.sort_by(f64::total_cmp);
    times.get(RUNS / 2).copied()
}

/// A process that holds the write end, and its descriptor of it.
fn holder(read: &OwnedFd, write: &OwnedFd) -> Result<(Pid, i32)> {
    let fd = write.as_raw_fd();
    // SAFETY: there is one thread, and the child only pauses.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok((child, fd)),
        ForkResult::Child => {
            let _ = nix::unistd::close(read.as_raw_fd());
            pause()
        }
    }
}

fn pause() -> ! {
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    loop {
        nix::unistd::pause();
    }
}

fn end(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGKILL)?;
    waitpid(pid, None)?;
    Ok(())
}

/// Idle processes with some pipes open; they go when this does.
struct Idle(Vec<Pid>);

impl Idle {
    fn start(count: usize) -> Result<Idle> {
        let pipes: Vec<_> = (0..DESCRIPTORS / 2).map(|_| pipe()).collect::<Result<_, _>>()?;
        let mut idle = Idle(Vec::with_capacity(count));
        for _ in 0..count {
            // SAFETY: there is one thread, and the child only pauses.
            match unsafe { fork() }? {
                ForkResult::Parent { child } => idle.0.push(child),
                ForkResult::Child => pause(),
            }
        }
        drop(pipes);
        Ok(idle)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        for pid in &self.0 {
            let _ = waitpid(*pid, None);
        }
    }
}
