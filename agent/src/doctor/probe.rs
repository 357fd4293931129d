//! One question each, asked in a process of its own.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::kernel::connector::{self, Connector, ConnectorError, Kinds};
use crate::kernel::features::{self, Feature};
use crate::kernel::object::{LoadError, Scope, Sizes};
use crate::kernel::record;
use crate::kernel::rung::Rung;
use crate::kernel::self_test;
use crate::kernel::snapshot::Snapshot;
use crate::kernel::tracker::Tracker;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Probe {
    /// A rung of BPF.
    BpfFentry,
    /// A rung of BPF.
    BpfKprobe,
    /// A rung of BPF.
    BpfTracepoint,
    /// The proc connector.
    Connector,
    /// `/proc`.
    Proc,
    /// The iterators.
    Snapshot,
    /// The proc connector, without any capability.
    Unprivileged,
    /// The single abilities.
    Features,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it works.
    pub usable: bool,
    /// Why it does not, or what it showed.
    pub reason: String,
    /// The error's number, where there was one.
    pub errno: Option<i32>,
    /// The verifier's last lines, when it was the verifier.
    pub verifier: Vec<String>,
    /// What it took.
    pub cost: Option<Cost>,
}

/// What a rung of BPF costs to bring up and take down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Microseconds from nothing to all programs verified.
    pub load_us: u64,
    /// Microseconds from there to all attached.
    pub attach_us: u64,
    /// Microseconds until all are detached.
    pub detach_us: u64,
    /// Instructions that the verifier looked at; 0 where the kernel does not say (before 5.16).
    pub verified_instructions: u64,
}

/// No probe takes a second, unless the machine is starved; this is for a kernel in which one never returns.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// How much of the verifier's log a report shows.
const VERIFIER_LINES: usize = 6;
const TRUE: &str = "told the truth about a child of ours";

impl Probe {
    /// Those that are rungs, best first.
    pub const RUNGS: [Probe; 5] =
        [Probe::BpfFentry, Probe::BpfKprobe, Probe::BpfTracepoint, Probe::Connector, Probe::Proc];

    /// Its name in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Probe::BpfFentry => Rung::Fentry.name(),
            Probe::BpfKprobe => Rung::Kprobe.name(),
            Probe::BpfTracepoint => Rung::Tracepoint.name(),
            Probe::Connector => "connector",
            Probe::Proc => "proc",
            Probe::Snapshot => "snapshot",
            Probe::Unprivileged => "unprivileged_connector",
            Probe::Features => "features",
        }
    }

    /// Asks in another process, and waits for the answer no longer than the time limit.
    #[must_use]
    pub fn ask(self) -> Verdict {
        let answer = self.answer_of_another_process();
        answer.and_then(|text| Ok(serde_json::from_str(&text)?)).unwrap_or_else(|error| Verdict::no(&error))
    }

    fn answer_of_another_process(self) -> anyhow::Result<String> {
        let name = clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned());
        let mut child = Command::new("/proc/self/exe")
            .args(["doctor", "--probe", &name.unwrap_or_default()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let answer = read_to_end(&mut child, Instant::now() + TIME_LIMIT);
        // Its end detaches whatever it attached. A process that the kernel does not let go is left to it.
        if answer.is_err() {
            child.kill()?;
        } else {
            child.wait()?;
        }
        answer
    }

    /// Answers in this process: what `doctor --probe` prints.
    #[must_use]
    pub fn answer(self) -> String {
        let json = match self {
            Probe::Features => serde_json::to_string(&features::all()),
            Probe::BpfFentry => serde_json::to_string(&bpf(Rung::Fentry)),
            Probe::BpfKprobe => serde_json::to_string(&bpf(Rung::Kprobe)),
            Probe::BpfTracepoint => serde_json::to_string(&bpf(Rung::Tracepoint)),
            Probe::Connector => serde_json::to_string(&proc_connector()),
            Probe::Unprivileged => serde_json::to_string(&unprivileged()),
            Probe::Proc => serde_json::to_string(&Verdict::of(super::proc::probe())),
            Probe::Snapshot => serde_json::to_string(&snapshot()),
        };
        json.unwrap_or_default()
    }
}

/// The single abilities, tried in another process.
#[must_use]
pub fn features() -> Vec<Feature> {
    let answer = Probe::Features.answer_of_another_process();
    answer.and_then(|text| Ok(serde_json::from_str(&text)?)).unwrap_or_else(|error| features::untried(&error))
}

fn read_to_end(child: &mut Child, deadline: Instant) -> anyhow::Result<String> {
    let mut answer = Vec::new();
    let Some(stdout) = &mut child.stdout else { anyhow::bail!("the probe has no stdout") };
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        anyhow::ensure!(!left.is_zero(), "no answer within {} s", TIME_LIMIT.as_secs());
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let length = stdout.read(&mut buffer)?;
        if length == 0 {
            return Ok(String::from_utf8(answer)?);
        }
        answer.extend_from_slice(&buffer[..length]);
    }
}

impl Verdict {
    fn yes(reason: String, cost: Option<Cost>) -> Self {
        Verdict { usable: true, reason, errno: None, verifier: Vec::new(), cost }
    }

    fn no(error: &dyn std::fmt::Display) -> Self {
        let reason = error.to_string().replace('\n', " ");
        Verdict { usable: false, reason, errno: None, verifier: Vec::new(), cost: None }
    }

    fn not_loaded(error: &LoadError) -> Self {
        let verifier = error.verifier_tail(VERIFIER_LINES).unwrap_or_default();
        Verdict { errno: error.errno(), verifier, ..Verdict::no(error) }
    }

    fn of(result: Result<String, impl std::fmt::Display>) -> Self {
        match result {
            Ok(reason) => Verdict::yes(reason, None),
            Err(error) => Verdict::no(&error),
        }
    }
}

fn bpf(rung: Rung) -> Verdict {
    let mut tracker = match Tracker::attach(rung, Scope::Lineage, Sizes::RUN) {
        Ok(tracker) => tracker,
        Err(error) => return Verdict::not_loaded(&error),
    };
    let test = self_test::of_tracker(&mut tracker);
    let brought_up = tracker.cost();
    let cost = Cost {
        detach_us: microseconds(tracker.detach()),
        load_us: microseconds(brought_up.load),
        attach_us: microseconds(brought_up.attach),
        verified_instructions: brought_up.verified_instructions,
    };
    match test {
        Ok(()) => Verdict::yes(TRUE.to_owned(), Some(cost)),
        Err(error) => Verdict { cost: Some(cost), ..Verdict::no(&error) },
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn proc_connector() -> Verdict {
    Verdict::of(listen())
}

fn listen() -> Result<String, ConnectorError> {
    let mut connector = Connector::open(Kinds::LINEAGE)?;
    connector::self_test(&mut connector)?;
    let others = connector::listeners()
        .map_or_else(|_| "an unknown number of".to_owned(), |all| all.saturating_sub(1).to_string());
    Ok(format!("{TRUE}; {others} other listeners"))
}

/// As above, after every capability is gone.
fn unprivileged() -> Verdict {
    match drop_capabilities() {
        Ok(()) => Verdict::of(listen()),
        Err(error) => Verdict::no(&format_args!("capabilities cannot be dropped: {error}")),
    }
}

fn drop_capabilities() -> std::io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522; // include/uapi/linux/capability.h
    let header = [VERSION_3, 0]; // of ourselves
    let nothing = [0_u32; 6]; // effective, permitted, inheritable, twice 32 bits
    // SAFETY: header and data are alive for the call and as large as this version says.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Loads the iterators, and looks for a pipe of ours in what they give.
fn snapshot() -> Verdict {
    let mut snapshot = match Snapshot::load() {
        Ok(snapshot) => snapshot,
        Err(error) => return Verdict::not_loaded(&error),
    };
    let mut seen = || -> anyhow::Result<usize> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let stat = nix::sys::stat::fstat(&read)?;
        let files = snapshot.files()?;
        let ours = files.iter().filter(|row| {
            let pipe = record::pipe_of(&row.held);
            (pipe.dev, pipe.ino) == (stat.st_dev, stat.st_ino)
        });
        anyhow::ensure!(ours.count() == 2, "a pipe of ours is not seen by both its ends");
        drop(write);
        Ok(files.len())
    };
    Verdict::of(seen().map(|count| format!("one pass over all tables; {count} descriptors on pipes")))
}
