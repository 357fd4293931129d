//! Who asks about a pipe whose read end he has is told who holds it, and what happens to those.

use std::collections::BTreeSet;
use std::fs;
use std::io::{PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::poll::PollFlags;
use pipewarden::ownership::node::protocol::{Ask, Code, Holders, Own, Tell};
use pipewarden::pipe::{End, PipeKind};
use pipewarden::process::stat::Stat;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::node::Node;
use pipewarden_tests::node_client::Client;

/// A shell that holds the write end as its stdout, and does what it is told line by line.
pub struct Shell {
    pub child: Child,
    orders: ChildStdin,
    /// What it says when it has done something.
    said: PipeReader,
}

impl Shell {
    /// With this stdout; it has run its first line already.
    pub fn holding(write: impl Into<Stdio>) -> Shell {
        let (said, saying) = std::io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "exec 9>&2 2>/dev/null; echo >&9; while read line; do eval \"$line\"; echo >&9; done"]);
        let mut child = command.stdin(Stdio::piped()).stdout(write).stderr(saying).spawn().unwrap();
        drop(command);
        let orders = child.stdin.take().unwrap();
        let mut shell = Shell { child, orders, said };
        shell.wait();
        shell
    }

    fn wait(&mut self) {
        use std::io::Read;
        assert!(Deadline::patient().wait(self.said.as_fd(), PollFlags::POLLIN), "the shell does not do it");
        assert_eq!(self.said.read(&mut [0]).unwrap(), 1);
    }

    /// Has it do this, and waits until it is done.
    pub fn does(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap();
        self.wait();
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Ends it.
    pub fn end(self) {}
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until those who hold a watched pipe are these. Another test's child has every descriptor of this
/// process for a moment, until it runs its own program.
pub fn comes_to(client: &mut Client, watch: u64, pids: &[i32]) -> (Holders, Vec<OwnedFd>) {
    let mut last = None;
    let came = Deadline::patient().until(|| {
        let (holders, pidfds) = client.holders(Some(watch), &[]);
        let told: BTreeSet<i32> = holders.holders.iter().map(|holder| holder.pid).collect();
        last = Some((holders, pidfds));
        told == pids.iter().copied().collect()
    });
    assert!(came, "not {pids:?}: {last:?}");
    last.unwrap()
}

#[test]
fn who_watches_a_pipe_is_told_who_holds_it_with_a_pidfd_of_each() {
    let Some(node) = Node::shared("who_watches_a_pipe_is_told_who_holds_it_with_a_pidfd_of_each") else { return };
    let (read, write) = std::io::pipe().unwrap();
    let shell = Shell::holding(write);
    let mut client = Client::greeting(&node.socket());
    let Tell::Watching { watch, pipe } = client.ask(Ask::Watch, &[read.as_fd()]).tell else { panic!() };
    let stat = nix::sys::stat::fstat(&read).unwrap();
    assert_eq!((pipe.dev, pipe.ino, pipe.kind), (stat.st_dev, stat.st_ino, PipeKind::Pipe));
    let (holders, pidfds) = comes_to(&mut client, watch, &[shell.pid()]);
    assert_eq!((holders.pipe, holders.elsewhere, holders.unknown), (pipe, 0, 0));
    let [holder] = &holders.holders[..] else { panic!("{holders:?}") };
    assert_eq!((holder.pid, holder.start_ticks), (shell.pid(), Stat::read(shell.pid()).unwrap().id.start_ticks));
    let [hold] = &holder.holds[..] else { panic!("{holder:?}") };
    assert_eq!((hold.tid, hold.end, &hold.fds[..]), (shell.pid(), End::Write, &[1][..]));

    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfds[0].as_raw_fd())).unwrap();
    assert!(info.lines().any(|line| line == format!("Pid:\t{}", shell.pid())), "{info}");
    assert!(!Deadline::after(std::time::Duration::ZERO).wait(pidfds[0].as_fd(), PollFlags::POLLIN), "it lives");
    shell.end();
    assert!(Deadline::patient().wait(pidfds[0].as_fd(), PollFlags::POLLIN), "the pidfd was of another");
    client.event(|tell| *tell == Tell::Eof { watch });
    let (holders, _) = comes_to(&mut client, watch, &[]);
    assert!(holders.hidden.is_none_or(|hidden| hidden == 0), "{holders:?}");

    let answer = client.ask(Ask::Unwatch { watch }, &[]);
    assert!(matches!(answer.tell, Tell::Unwatched { .. }), "{answer:?}");
    assert_eq!(client.ask(Ask::Resolve { watch: Some(watch) }, &[]).error().0, Code::NoWatch);
    assert_eq!(client.ask(Ask::Unwatch { watch }, &[]).error().0, Code::NoWatch);
}

#[test]
fn without_a_watch_the_read_end_comes_with_the_question() {
    let Some(node) = Node::shared("without_a_watch_the_read_end_comes_with_the_question") else { return };
    let (read, write) = std::io::pipe().unwrap();
    let shell = Shell::holding(write);
    let mut client = Client::greeting(&node.socket());
    let found = Deadline::patient().until(|| {
        let (holders, pidfds) = client.holders(None, &[read.as_fd()]);
        assert_eq!(holders.holders.len(), pidfds.len());
        holders.holders.iter().map(|holder| holder.pid).eq([shell.pid()])
    });
    assert!(found);
    shell.end();
}

#[test]
fn a_fifo_is_a_pipe_as_well() {
    let Some(node) = Node::shared("a_fifo_is_a_pipe_as_well") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (one, other) = (path.clone(), path);
    let reader = std::thread::spawn(move || fs::File::open(one).unwrap());
    let write = fs::File::options().write(true).open(other).unwrap();
    let (read, shell) = (reader.join().unwrap(), Shell::holding(write));
    let mut client = Client::greeting(&node.socket());
    let Tell::Watching { watch, pipe } = client.ask(Ask::Watch, &[read.as_fd()]).tell else { panic!() };
    assert_eq!(pipe.kind, PipeKind::Fifo);
    let _ = comes_to(&mut client, watch, &[shell.pid()]);
    shell.end();
}

#[test]
fn an_escape_with_the_watched_pipe_is_told_when_it_happens() {
    let Some(node) = Node::shared("an_escape_with_the_watched_pipe_is_told_when_it_happens") else { return };
    let (read, write) = std::io::pipe().unwrap();
    let mut shell = Shell::holding(write);
    let mut client = Client::greeting(&node.socket());
    let watch = client.watch(&read);
    // With the pipe, and without: the second is nobody's business.
    shell.does("setsid sleep 120 >/dev/null & innocent=$!");
    shell.does("setsid sleep 120 & escapee=$!");
    let escape = client.event(|tell| matches!(tell, Tell::Escape { .. } | Tell::Lost { .. }));
    let pid = match escape {
        Tell::Escape { watch: of, pid, start_ticks, pgid, happened_ns, holds } => {
            assert_eq!((of, pgid), (watch, pid));
            assert_eq!(start_ticks, Stat::read(pid).unwrap().id.start_ticks);
            let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
            let now = u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap();
            assert!(happened_ns > 0 && happened_ns <= now);
            if let Some(holds) = holds {
                assert!(holds.iter().any(|held| held.end == End::Write && held.fds.contains(&1)), "{holds:?}");
            }
            pid
        }
        // On a machine that loses events the answer to a question tells.
        other => {
            let (holders, _) = client.holders(Some(watch), &[]);
            let escaped = holders.holders.iter().find(|holder| holder.pid != shell.pid());
            escaped.unwrap_or_else(|| panic!("{other:?}: {holders:?}")).pid
        }
    };
    let _ = comes_to(&mut client, watch, &[shell.pid(), pid]);
    shell.does("kill -9 $innocent $escapee");
    shell.end();
    client.event(|tell| *tell == Tell::Eof { watch });
}

#[test]
fn somebody_who_forks_with_the_pipe_is_worth_another_question() {
    let Some(node) = Node::shared("somebody_who_forks_with_the_pipe_is_worth_another_question") else { return };
    let (read, write) = std::io::pipe().unwrap();
    let mut shell = Shell::holding(write);
    let mut client = Client::greeting(&node.socket());
    let watch = client.watch(&read);
    let _ = client.holders(Some(watch), &[]);
    shell.does("sleep 120 & child=$!");
    client
        .event(|tell| matches!(tell, Tell::Changed { watch: of } if *of == watch) || matches!(tell, Tell::Lost { .. }));
    let two = Deadline::patient().until(|| client.holders(Some(watch), &[]).0.holders.len() == 2);
    assert!(two, "it does not show the child");
    shell.does("kill -9 $child; wait $child");
    let _ = comes_to(&mut client, watch, &[shell.pid()]);
    shell.end();
}

#[test]
fn who_does_not_have_the_pipe_any_more_is_told_nothing_of_it() {
    let Some(node) = Node::shared("who_does_not_have_the_pipe_any_more_is_told_nothing_of_it") else { return };
    let (read, write) = std::io::pipe().unwrap();
    let shell = Shell::holding(write.try_clone().unwrap());
    let mut client = Client::greeting(&node.socket());
    let watch = client.watch(&read);
    drop(read);
    // The write end is left: it is still ours.
    let us = std::process::id().cast_signed();
    let _ = comes_to(&mut client, watch, &[us, shell.pid()]);
    drop(write);
    // Either the question finds it out, or the node did before.
    let id = client.request(Ask::Resolve { watch: Some(watch) }, &[]);
    let code = client.answer(id).error().0;
    assert!(matches!(code, Code::NotHeld | Code::NoWatch), "{code:?}");
    client.event(|tell| *tell == Tell::Ended { watch });
    shell.end();
}

/// A process that holds a pipe for as long as the test needs it.
struct Sleeper(Child);

impl Sleeper {
    fn holding(write: impl Into<Stdio>) -> Sleeper {
        Sleeper(Command::new("sleep").arg("120").stdin(Stdio::null()).stdout(write).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn more_holders_than_one_message_tells_of_come_in_parts() {
    let Some(node) = Node::shared("more_holders_than_one_message_tells_of_come_in_parts") else { return };
    let (read, write) = std::io::pipe().unwrap();
    let children: Vec<Sleeper> = (0..300).map(|_| Sleeper::holding(write.try_clone().unwrap())).collect();
    drop(write);
    let mut client = Client::greeting(&node.socket());
    let watch = client.watch(&read);
    let pids: Vec<i32> = children.iter().map(|child| child.0.id().cast_signed()).collect();
    let (holders, pidfds) = comes_to(&mut client, watch, &pids);
    assert_eq!(holders.holders.len(), 300, "everybody once");
    for (holder, pidfd) in holders.holders.iter().zip(&pidfds) {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        assert!(info.contains(&format!("Pid:\t{}\n", holder.pid)), "{}: {info}", holder.pid);
    }
}

#[test]
fn why_tells_of_the_callers_own_pipes() {
    let Some(node) = Node::shared("why_tells_of_the_callers_own_pipes") else { return };
    let (read, write) = std::io::pipe().unwrap();
    let shell = Shell::holding(write);
    let mut client = Client::greeting(&node.socket());
    let ino = nix::sys::stat::fstat(&read).unwrap().st_ino;
    let mut ours = None;
    let found = Deadline::patient().until(|| {
        let own = own(&mut client, ino);
        let found = own.as_ref().is_some_and(|own| own.writers == [shell.pid()] && own.readers.is_empty());
        ours = own;
        found
    });
    assert!(found, "{ours:?}");
    let own = ours.unwrap();
    assert_eq!((own.end, &own.fds[..]), (End::Read, &[read.as_raw_fd()][..]));
    shell.end();
}

/// What the node says of the caller's own pipe with this number.
fn own(client: &mut Client, ino: u64) -> Option<Own> {
    let id = client.request(Ask::Why, &[]);
    let mut ours = Vec::new();
    loop {
        let Tell::Why { pipes, more, .. } = client.answer(id).tell else { panic!() };
        ours.extend(pipes.into_iter().filter(|own| own.pipe.ino == ino && own.pipe.kind == PipeKind::Pipe));
        if !more {
            assert!(ours.len() <= 1, "{ours:?}");
            return ours.pop();
        }
    }
}
