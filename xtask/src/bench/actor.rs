//! What a bench has its commands do. They run in this very program, started anew.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, fork, setsid};

/// No actor outlives its bench by more than this, whatever becomes of the bench.
const LIFE_SECONDS: u32 = 120;

/// What a bench runs; started by `bench` itself.
#[derive(clap::Args)]
pub(crate) struct Actor {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Leave a helper in another session that holds stdout, write the time, and exit.
    LeaveHolder {
        /// The helper does not react to SIGTERM.
        #[arg(long)]
        ignoring_term: bool,
    },
    /// Write the time, and stay until killed.
    Stay,
    /// Write so many bytes, a chunk at a time.
    Write { bytes: u64, chunk: usize },
    /// Write so many bytes of an agent's JSON lines, at least a chunk at a time; 0 is a line at a time.
    WriteLines {
        bytes: usize,
        chunk: usize,
        /// Every line begins a tool call, where else every tenth does.
        #[arg(long)]
        tools: bool,
    },
}

impl Actor {
    pub(crate) fn run(self) -> Result<()> {
        // SAFETY: alarm(2) takes an integer; its signal ends us.
        unsafe { libc::alarm(LIFE_SECONDS) };
        match self.part {
            Part::LeaveHolder { ignoring_term } => leave_holder(ignoring_term),
            Part::Stay => stay(),
            Part::Write { bytes, chunk } => write(bytes, chunk),
            Part::WriteLines { bytes, chunk, tools } => write_lines(bytes, chunk, tools),
        }
    }
}

fn leave_holder(ignoring_term: bool) -> Result<()> {
    let (read, ready) = crate::process::pipe()?;
    // SAFETY: there is one thread, so the child may do what we may.
    if let ForkResult::Child = unsafe { fork() }? {
        setsid()?;
        if ignoring_term {
            // SAFETY: to ignore a signal installs no handler.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        }
        drop((read, ready));
        // SAFETY: as above; a child does not inherit its parent's alarm.
        unsafe { libc::alarm(LIFE_SECONDS) };
        loop {
            nix::unistd::pause();
        }
    }
    drop(ready);
    // End-of-file comes when the helper has closed its copy: it has a session of its own by then.
    crate::process::read_some(&read)?;
    tell_the_time()?;
    // SAFETY: _exit(2): nothing of ours is left to be done between the time and the exit.
    unsafe { libc::_exit(0) }
}

fn stay() -> Result<()> {
    tell_the_time()?;
    loop {
        nix::unistd::pause();
    }
}

fn write(bytes: u64, chunk: usize) -> Result<()> {
    let data = vec![b'x'; chunk];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(chunk).min(chunk);
        let written = nix::unistd::write(io::stdout(), &data[..now]).context("cannot write")?;
        left -= u64::try_from(written)?;
    }
    Ok(())
}

/// What claude says, shortened: a text, and a tool call.
const TEXT: &str = r#"{"type":"assistant","message":{"id":"msg_1","role":"assistant","content":[{"type":"text","text":"The tests pass, and I looked at what they say of the result: nothing is left to be done."}],"stop_reason":null},"session_id":"bc12595f-62c5-40f9-a941-be324c681b3a"}"#;
const TOOL: &str = r#"{"type":"assistant","message":{"id":"msg_2","role":"assistant","content":[{"type":"tool_use","id":"toolu_01","name":"Bash","input":{"command":"cargo test","description":"Run the tests"}}],"stop_reason":null},"session_id":"bc12595f-62c5-40f9-a941-be324c681b3a"}"#;

fn write_lines(bytes: usize, chunk: usize, tools: bool) -> Result<()> {
    let lines = (0..10).map(|number| if tools || number == 0 { TOOL } else { TEXT });
    let lines: Vec<Vec<u8>> = lines.map(|line| format!("{line}\n").into_bytes()).collect();
    let (mut left, mut data) = (bytes, Vec::with_capacity(chunk + 1024));
    for line in lines.iter().cycle() {
        data.extend_from_slice(line);
        if data.len() < chunk.min(left) {
            continue;
        }
        // The last line may be half of one: what arrives is counted, and that is all.
        data.truncate(left);
        left -= data.len();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let written = nix::unistd::write(io::stdout(), rest).context("cannot write")?;
            rest = &rest[written..];
        }
        data.clear();
        if left == 0 {
            break;
        }
    }
    Ok(())
}

fn tell_the_time() -> Result<()> {
    let now = u64::try_from(now()?.as_nanos())?;
    let written = nix::unistd::write(io::stdout(), &now.to_ne_bytes()).context("cannot write")?;
    anyhow::ensure!(written == 8, "a pipe took half a number");
    Ok(())
}

/// The time that [`tell_the_time`] told, as bytes in a command's output.
pub(crate) fn told(output: &[u8]) -> Result<Duration> {
    let bytes: [u8; 8] = output.try_into().ok().with_context(|| format!("{} bytes instead of a time", output.len()))?;
    Ok(Duration::from_nanos(u64::from_ne_bytes(bytes)))
}

/// `CLOCK_MONOTONIC`: the same in every process.
pub(crate) fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?.into())
}
