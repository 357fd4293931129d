//! What a thread may wait for, where its system call or its memory is hidden from us: the name of the kernel
//! function says the kind, and the process's own descriptors say which it can be.

use super::channel::Id;
use super::machine::EndOrd;
use super::waits::{For, Need, On, Reader, Wait, is_fifo_open, waited_for};
use crate::process::open;

impl Reader<'_> {
    /// What it may wait for, by the kernel's function alone: for a process whose system call we may not know.
    pub(super) fn guess(&self, wait: &mut Wait, pid: i32) {
        let Some(wchan) = wait.wchan.clone() else { return };
        let has = |part: &str| wchan.contains(part);
        wait.guessed = true;
        wait.what = if is_fifo_open(Some(&wchan)) {
            wait.on.push(On { fd: None, need: Need::Writer, channel: None, name: "a FIFO".to_owned() });
            For::Open
        } else if has("pipe_read") || has("pipe_wait_readable") {
            self.guess_among(wait, pid, Need::Read, |id| id.pipe().is_some());
            For::Read
        } else if has("pipe_write") || has("pipe_wait_writable") {
            self.guess_among(wait, pid, Need::Write, |id| id.pipe().is_some());
            For::Write
        } else if has("unix_stream_read") || has("unix_stream_data_wait") {
            self.guess_among(wait, pid, Need::Read, |id| matches!(id, Id::Socket { .. }));
            For::Read
        } else if has("sock_alloc_send") || has("sock_wait_for_wmem") {
            self.guess_among(wait, pid, Need::Write, |id| matches!(id, Id::Socket { .. }));
            For::Write
        } else if has("n_tty_read") || has("wait_woken") {
            self.guess_among(wait, pid, Need::Read, |id| matches!(id, Id::Pty { .. }));
            For::Read
        } else if has("do_wait") {
            wait.children = waited_for(pid, -1);
            For::Child
        } else if has("epoll") || has("ep_poll") {
            self.guess_polled(wait, pid);
            For::Epoll
        } else if has("poll_schedule") || has("do_select") {
            self.guess_polled(wait, pid);
            For::Poll
        } else if has("futex") {
            For::Futex
        } else if has("nanosleep") {
            wait.timed = true;
            For::Sleep
        } else if has("sigsuspend") || has("sigtimedwait") || has("sys_pause") {
            For::Signal
        } else {
            For::Unknown
        };
    }

    pub(super) fn guess_polled(&self, wait: &mut Wait, pid: i32) {
        wait.guessed = true;
        self.guess_among(wait, pid, Need::Read, |_| true);
    }

    fn guess_among(&self, wait: &mut Wait, pid: i32, need: Need, fits: impl Fn(Id) -> bool) {
        let Some(tables) = self.machine.tables(pid) else { return };
        for table in tables.iter().filter(|table| table.tid == wait.tid || tables.len() == 1) {
            for (fd, link) in &table.entries {
                let Some(channel) = self.machine.channel_of(pid, table.tid, *fd, link) else { continue };
                let end = open::end(pid, table.tid, *fd).map(EndOrd::from);
                let able = match need {
                    Need::Read => end.is_some_and(EndOrd::reads),
                    _ => end.is_some_and(EndOrd::writes),
                };
                if fits(channel.id) && able && !wait.on.iter().any(|on| on.channel.as_ref() == Some(&channel)) {
                    wait.on.push(On { fd: Some(*fd), need, name: channel.to_string(), channel: Some(channel) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::*;
    use crate::process::wait::thread;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_hidden_system_call_leaves_a_guess_that_says_so() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let machine = Machine::look(deadline).unwrap();
        let reader = Reader { machine: &machine, full: true };
        // On its way to sleep a thread is in a call, and its own name for where it waits is another's.
        let (mut seen, known) = loop {
            assert!(Instant::now() < deadline, "cat never reads");
            let seen = thread(pid, pid);
            let asleep = seen.filter(|thread| thread.wchan.as_deref().is_some_and(|name| name.contains("pipe_read")));
            let known = asleep.map(|thread| (reader.wait(pid, &thread), thread));
            match known {
                Some((known, thread)) if !known.guessed && known.what == For::Read => break (thread, known),
                _ => std::thread::yield_now(),
            }
        };
        seen.call = None;
        let guessed = reader.wait(pid, &seen);
        assert!(guessed.guessed && guessed.what == For::Read);
        assert!(guessed.on.contains(&known.on[0]), "the pipe is among what it may be: {guessed:?}");
        assert!(guessed.on.iter().all(|on| on.need == Need::Read), "{guessed:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
