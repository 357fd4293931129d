//! What the programs say, in the words of the rest of the program.

use aya::Pod;
use pipewarden_common::event::{Closed, Escape, Event, Exec, kind};
use pipewarden_common::live_map::PipeKey;
use pipewarden_common::{END_READ, END_WRITE, Held};

use crate::pipe::{End, PipeId, ProcessId};

/// One record of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A fork or exit.
    Event(Event),
    /// An exec, with the pipes that the program was given as stdout and stderr.
    Exec(Box<Exec>),
    /// A setsid or setpgid, and the pipes that went along.
    Escape(Box<Escape>),
    /// A watched pipe lost its last writer, or one that may be.
    Closed(Box<Closed>),
}

impl Record {
    /// What every record has.
    #[must_use]
    pub fn event(&self) -> &Event {
        match self {
            Record::Event(event) => event,
            Record::Exec(exec) => &exec.event,
            Record::Escape(escape) => &escape.event,
            Record::Closed(closed) => &closed.event,
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let event: Event = from_bytes(bytes)?;
        Some(match event.kind {
            kind::EXEC => Record::Exec(Box::new(from_bytes(bytes)?)),
            kind::SETSID | kind::SETPGID => Record::Escape(Box::new(from_bytes(bytes)?)),
            kind::LAST_WRITER | kind::LEAVING => Record::Closed(Box::new(from_bytes(bytes)?)),
            _ => Record::Event(event),
        })
    }
}

/// A plain structure from the beginning of a record.
pub(super) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, they need not be aligned, and any bytes are a value of a Pod.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The kernel's own encoding of a device is another one than stat's.
const MINOR_BITS: u32 = 20;

/// The identity of a pipe that a program saw.
#[must_use]
pub fn pipe_of(held: &Held) -> PipeId {
    let dev = libc::makedev(held.dev >> MINOR_BITS, held.dev & ((1 << MINOR_BITS) - 1));
    PipeId { dev, ino: held.ino }
}

/// A pipe's identity as the programs have it.
#[must_use]
pub fn key_of(pipe: PipeId) -> PipeKey {
    let dev = libc::major(pipe.dev) << MINOR_BITS | libc::minor(pipe.dev);
    PipeKey { ino: pipe.ino, dev, reserved: 0 }
}

/// The end that a descriptor is on.
#[must_use]
pub fn end_of(held: &Held) -> Option<End> {
    match (held.ends & END_READ != 0, held.ends & END_WRITE != 0) {
        (true, true) => Some(End::Both),
        (true, false) => Some(End::Read),
        (false, true) => Some(End::Write),
        (false, false) => None,
    }
}

/// The pipes that a program was given as stdout and stderr, each with the descriptor; those among them that are
/// write ends of pipes.
pub fn outputs_of(exec: &Exec) -> impl Iterator<Item = (i32, PipeId)> {
    let writes = |held: &&Held| end_of(held).is_some_and(End::writes);
    exec.outputs.iter().filter(writes).map(|held| (held.fd.cast_signed(), pipe_of(held)))
}

/// The process of an event, as the rest of the program names processes.
#[must_use]
pub fn process_of(pid: u32, start_boot_ns: u64) -> ProcessId {
    // /proc counts in ticks of USER_HZ, which is 100 on every architecture that we build for.
    const TICK_NS: u64 = 10_000_000;
    ProcessId { pid: pid.cast_signed(), start_ticks: start_boot_ns / TICK_NS }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use super::super::rung::Rung;
    use super::*;

    /// Whether an exec of ours with these for its stdout and stderr was told, and with which pipes.
    fn told_of(stdout: Stdio, stderr: Stdio) -> Option<Vec<(i32, PipeId)>> {
        let mut tracker = crate::kernel::tracker_for_test(&Rung::ALL)?;
        let us = std::process::id();
        tracker.follow(us).unwrap();
        tracker.seed(None).unwrap();
        let mut command = Command::new("/proc/self/exe");
        let mut child = command.arg("--help").stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
        drop(command); // its copies of what it was given
        child.wait().unwrap(); // nothing reads the records before it is gone
        let records = std::iter::from_fn(|| tracker.next_record()).collect::<Vec<_>>();
        let exec = records.iter().find_map(|record| match record {
            Record::Exec(exec) if exec.event.pid == child.id() => Some(exec),
            _ => None,
        });
        let exec = exec.unwrap_or_else(|| panic!("no exec of {} in {records:?}, {:?}", child.id(), tracker.losses()));
        assert_eq!(exec.cgroup, tracker.process(us).unwrap().cgroup, "it is in our cgroup");
        Some(outputs_of(exec).collect())
    }

    fn identity(fd: impl AsFd) -> PipeId {
        let stat = nix::sys::stat::fstat(fd).unwrap();
        PipeId { dev: stat.st_dev, ino: stat.st_ino }
    }

    #[test]
    fn an_exec_tells_of_the_pipes_that_it_was_given_as_stdout_and_stderr() {
        let ((mut out, to_out), (mut err, to_err)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let wanted = vec![(1, identity(&to_out)), (2, identity(&to_err))];
        let Some(told) = told_of(to_out.into(), to_err.into()) else { return };
        assert_eq!(told, wanted);
        // It could write: nobody had taken the other ends away.
        io::copy(&mut out, &mut io::sink()).unwrap();
        io::copy(&mut err, &mut io::sink()).unwrap();
    }

    #[test]
    fn an_exec_tells_of_no_read_end_and_of_nothing_that_is_no_pipe() {
        let (read, to_err) = io::pipe().unwrap();
        let wanted = vec![(2, identity(&to_err))];
        let Some(told) = told_of(Stdio::null(), to_err.into()) else { return };
        assert_eq!(told, wanted);
        let Some(told) = told_of(read.into(), Stdio::null()) else { return };
        assert_eq!(told, []);
    }

    #[test]
    fn a_device_has_the_number_that_stat_gives_it_and_back() {
        let held = Held { dev: 259 << 20 | 0x1_2345, ino: 7, ..Held::default() };
        let pipe = pipe_of(&held);
        assert_eq!(pipe, PipeId { dev: libc::makedev(259, 0x1_2345), ino: 7 });
        assert_eq!((key_of(pipe).dev, key_of(pipe).ino), (held.dev, 7));
    }

    #[test]
    fn a_short_or_unknown_record_is_no_event() {
        assert_eq!(Record::decode(&[1; 20]), None);
        let mut bytes = [0; size_of::<Event>()];
        bytes[24] = u8::try_from(kind::SETSID).unwrap();
        assert_eq!(Record::decode(&bytes), None, "an escape without its pipes");
    }
}
