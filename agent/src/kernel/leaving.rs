//! When a watched pipe has lost its last writer, however that went.
//!
//! The programs see a descriptor go, and a process exit; of the file the kernel lets go in its own time after
//! that, and there is no hook for it on every rung. Where everybody is tracked the programs tell who
//! [leaves](pipewarden_common::event::kind::LEAVING), and the kernel's own count of the pipe's writers says when
//! nobody is left: it is asked at once, and, while it says that there is one whom no table shows, again.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use pipewarden_common::event::kind;

use super::record::{Record, end_of, pipe_of};
use super::tracker::Tracker;
use crate::pipe::{End, PipeId};

/// A call returns, and a process is gone, in less; whoever is not scheduled takes longer.
const FIRST: Duration = Duration::from_millis(1);
/// What is in flight, or with an io_uring, may stay there.
const LONGEST: Duration = Duration::from_secs(1);

/// Watched pipes whose last writer may be on its way out.
#[derive(Debug, Default)]
pub struct Leaving(BTreeMap<PipeId, Look>);

#[derive(Clone, Copy, Debug)]
struct Look {
    next: Instant,
    /// How long after that the one after it is.
    pause: Duration,
}

impl Leaving {
    /// Takes in a record. The pipe that it says has no writer any more, if it says so: nothing has to be asked
    /// about that.
    pub fn note(&mut self, record: &Record) -> Option<PipeId> {
        let Record::Closed(closed) = record else { return None };
        let pipe = pipe_of(&closed.held);
        if closed.event.kind == kind::LEAVING {
            self.ask(pipe);
            return None;
        }
        self.0.remove(&pipe);
        Some(pipe)
    }

    /// A pipe of which something may have been missed: as after every seeding.
    pub fn ask(&mut self, pipe: PipeId) {
        self.0.insert(pipe, Look { next: Instant::now(), pause: FIRST });
    }

    /// When [`gone`](Self::gone) is to be asked next; `None` if nobody leaves.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|look| look.next).min()
    }

    /// Which pipes have no writer any more. Those that others write to, or that are not watched, are not asked
    /// about again.
    ///
    /// # Errors
    ///
    /// When the map cannot be read: ask again.
    pub fn gone(&mut self, tracker: &Tracker) -> io::Result<Vec<PipeId>> {
        let now = Instant::now();
        let due: Vec<PipeId> = self.0.iter().filter(|(_, look)| look.next <= now).map(|(pipe, _)| *pipe).collect();
        if due.is_empty() {
            return Ok(due);
        }
        // The count first: who comes in between shows in the index.
        let counted: Vec<(PipeId, Option<u32>)> = due.iter().map(|pipe| (*pipe, tracker.writers(*pipe))).collect();
        let holders = tracker.holders().map_err(io::Error::other)?;
        let is_written = |pipe: PipeId| {
            holders.iter().any(|(_, slot)| pipe_of(&slot.held) == pipe && end_of(&slot.held).is_some_and(End::writes))
        };
        let mut gone = Vec::new();
        for (pipe, writers) in counted {
            match writers {
                Some(1..) if !is_written(pipe) => {
                    if let Some(look) = self.0.get_mut(&pipe) {
                        *look = Look { next: now + look.pause, pause: (look.pause * 2).min(LONGEST) };
                    }
                    continue;
                }
                Some(0) => gone.push(pipe),
                Some(_) | None => {}
            }
            self.0.remove(&pipe);
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read, Write};
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};

    use super::super::object::Scope;
    use super::super::rung::Rung;
    use super::*;

    /// A shell with the only write end of a watched pipe as its stdout, before a tracker of everybody.
    struct Stage {
        tracker: Tracker,
        leaving: Leaving,
        shell: Child,
        stdout: PipeReader,
        pipe: PipeId,
    }

    fn identity(fd: impl AsFd) -> PipeId {
        let stat = nix::sys::stat::fstat(fd).unwrap();
        PipeId { dev: stat.st_dev, ino: stat.st_ino }
    }

    impl Stage {
        fn new() -> Option<Stage> {
            let mut tracker = crate::kernel::tracker_of_scope_for_test(&[Rung::Tracepoint], Scope::All)?;
            let (stdout, write) = io::pipe().unwrap();
            let pipe = identity(&stdout);
            let mut command = Command::new("sh");
            let shell = command.stdin(Stdio::piped()).stdout(write).stderr(Stdio::null()).spawn().unwrap();
            drop(command); // its copy of the write end
            tracker.watch(pipe).unwrap();
            tracker.seed(None).unwrap();
            let mut stage = Stage { tracker, leaving: Leaving::default(), shell, stdout, pipe };
            stage.run("echo .");
            stage.stdout.read_exact(&mut [0; 2]).unwrap();
            Some(stage)
        }

        fn run(&mut self, line: &str) {
            writeln!(self.shell.stdin.as_mut().unwrap(), "{line}").unwrap();
        }

        /// Whether it is told that the pipe has no writer any more, in good time.
        fn is_told(&mut self) -> bool {
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline {
                while let Some(record) = self.tracker.next_record() {
                    if self.leaving.note(&record) == Some(self.pipe) {
                        return true;
                    }
                }
                if self.leaving.gone(&self.tracker).unwrap().contains(&self.pipe) {
                    return true;
                }
                // What the machine did meanwhile may have been too much for the ring buffer.
                if self.tracker.losses().events > 0 {
                    self.leaving.ask(self.pipe);
                }
                std::thread::yield_now();
            }
            false
        }

        fn ends_by(mut self, line: &str) {
            self.run(line);
            assert_eq!(self.stdout.read(&mut [0]).unwrap(), 0, "EOF");
            assert!(self.is_told(), "{line}: {:?}, {:?}", self.leaving, self.tracker.losses());
        }
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            let _ = self.shell.kill();
            let _ = self.shell.wait();
        }
    }

    #[test]
    fn the_last_writers_end_is_told_when_it_closes() {
        if let Some(stage) = Stage::new() {
            stage.ends_by("exec >&-");
        }
    }

    #[test]
    fn the_last_writers_end_is_told_when_it_puts_something_else_there() {
        if let Some(stage) = Stage::new() {
            stage.ends_by("exec </dev/null >/dev/null");
        }
    }

    #[test]
    fn the_last_writers_end_is_told_when_it_exits() {
        if let Some(stage) = Stage::new() {
            stage.ends_by("exit");
        }
    }

    #[test]
    fn the_last_writers_end_is_told_when_it_is_killed() {
        if let Some(stage) = Stage::new() {
            stage.ends_by("kill -9 $$");
        }
    }

    #[test]
    fn the_last_writers_end_is_not_told_while_another_has_the_write_end() {
        let Some(mut stage) = Stage::new() else { return };
        // One of two descriptors is closed, and one of two processes exits.
        stage.run("exec 7>&1 1>&-; (exit); echo . >&7");
        stage.stdout.read_exact(&mut [0; 2]).unwrap();
        let mut left = 0;
        while let Some(record) = stage.tracker.next_record() {
            left += u32::from(matches!(&record, Record::Closed(closed) if pipe_of(&closed.held) == stage.pipe));
            assert_eq!(stage.leaving.note(&record), None);
        }
        assert!(left > 0 || stage.tracker.losses().events > 0, "nobody left");
        assert_eq!(stage.leaving.gone(&stage.tracker).unwrap(), []);
        assert_eq!(stage.leaving.next(), None, "who remains tells of its own end");
    }

    #[test]
    fn a_writer_that_no_table_shows_is_asked_about_again() {
        let Some(mut stage) = Stage::new() else { return };
        // In flight to a socket of ours.
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (reader, writer): (PipeReader, PipeWriter) = io::pipe().unwrap();
        stage.pipe = identity(&reader);
        stage.tracker.watch(stage.pipe).unwrap();
        stage.tracker.seed(None).unwrap();
        send(&ours, &writer);
        drop(writer);
        stage.leaving.ask(stage.pipe);
        assert_eq!(stage.leaving.gone(&stage.tracker).unwrap(), []);
        assert!(stage.leaving.next().is_some(), "it is asked again");
        drop((ours, _theirs)); // and the message with them
        assert!(stage.is_told());
    }

    fn send(socket: &std::os::unix::net::UnixStream, fd: impl AsFd) {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        use std::os::fd::AsRawFd;
        let fds = [fd.as_fd().as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        let data = [io::IoSlice::new(b"x")];
        sendmsg::<()>(socket.as_raw_fd(), &data, &control, MsgFlags::empty(), None).unwrap();
    }
}
