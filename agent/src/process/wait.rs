//! What each thread of a process is blocked in: state, system call, kernel function.

use std::fs;
use std::io;

use super::stat::Stat;

/// A system call that a thread is inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number, in the numbering of our own architecture.
    pub number: libc::c_long,
    /// Its six arguments.
    pub args: [u64; 6],
}

impl Call {
    /// An argument that is a descriptor, which the kernel takes as 32 bits.
    #[must_use]
    pub fn fd(&self, index: usize) -> i32 {
        self.int(index)
    }

    /// An argument that the kernel takes as a signed 32 bit integer.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the kernel itself looks at the low half only")]
    pub fn int(&self, index: usize) -> i32 {
        self.args[index] as u32 as i32
    }
}

/// A thread, as of a moment that is already over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its id.
    pub tid: i32,
    /// One letter: `R`, `S`, `D`, `T`, `t`, `Z`, ...
    pub state: char,
    /// The system call that it sleeps in. Nothing while it runs, or where we may not know.
    pub call: Option<Call>,
    /// Whether we were not allowed to know the system call.
    pub call_denied: bool,
    /// The kernel function that it sleeps in (`wchan`), if we may know and the kernel tells.
    pub wchan: Option<String>,
}

/// The ids of a process's threads.
///
/// # Errors
///
/// [`is_gone`](super::is_gone) when there is no such process.
pub fn tids(pid: i32) -> io::Result<Vec<i32>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Reads what all threads of a process are blocked in.
///
/// # Errors
///
/// [`is_gone`](super::is_gone) when there is no such process.
pub fn threads(pid: i32) -> io::Result<Vec<Thread>> {
    Ok(tids(pid)?.into_iter().filter_map(|tid| thread(pid, tid)).collect())
}

/// Reads what one thread is blocked in; nothing when it has ended.
#[must_use]
pub fn thread(pid: i32, tid: i32) -> Option<Thread> {
    let state = Stat::read_thread(pid, tid).ok()?.state;
    let (call, call_denied) = match super::read_text(&format!("/proc/{pid}/task/{tid}/syscall")) {
        Ok(text) => (parse_call(&text), false),
        Err(error) => (None, !super::is_gone(&error)),
    };
    Some(Thread { tid, state, call, call_denied, wchan: wchan(pid, tid) })
}

/// The kernel function that a thread sleeps in, without the suffixes that a compiler adds.
#[must_use]
pub fn wchan(pid: i32, tid: i32) -> Option<String> {
    let text = super::read_text(&format!("/proc/{pid}/task/{tid}/wchan")).ok()?;
    let name = text.trim().split('.').next().unwrap_or_default();
    // "0" is both "it runs" and "you may not know".
    (!name.is_empty() && name != "0").then(|| name.to_owned())
}

/// The kernel functions that a thread is inside of, the innermost first; none without CAP_SYS_ADMIN.
#[must_use]
pub fn stack(pid: i32, tid: i32) -> Option<Vec<String>> {
    let text = super::read_text(&format!("/proc/{pid}/task/{tid}/stack")).ok()?;
    let function = |line: &str| Some(line.split_ascii_whitespace().nth(1)?.split('+').next()?.to_owned());
    Some(text.lines().filter_map(function).take(6).collect())
}

/// `NUMBER ARG... SP PC`; `running`; `-1 SP PC` outside of system calls.
fn parse_call(text: &str) -> Option<Call> {
    let mut words = text.split_ascii_whitespace();
    let number: libc::c_long = words.next()?.parse().ok()?;
    let numbers: Vec<u64> =
        words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16)).collect::<Result<_, _>>().ok()?;
    let [a, b, c, d, e, f, stack, _] = numbers[..] else { return None };
    // A 32-bit program on a 64-bit kernel: its numbers mean other calls. Its stack gives it away.
    if cfg!(target_pointer_width = "64") && stack <= u64::from(u32::MAX) {
        return None;
    }
    (number >= 0).then_some(Call { number, args: [a, b, c, d, e, f] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_with_its_arguments() {
        let call =
            parse_call("0 0x3 0x7fbf0322ad50 0xffffffffffffffff 0x0 0x0 0x0 0x7ffe54052248 0x7fbf03ebe2ad\n").unwrap();
        assert_eq!((call.number, call.fd(0), call.int(2)), (0, 3, -1));
    }

    #[test]
    fn what_is_no_call_of_ours_is_none() {
        for text in
            ["running\n", "-1 0x7ffe54052248 0x7fbf03ebe2ad\n", "", "3 0x5 0x0 0x0 0x0 0x0 0x0 0xffd9b2e0 0xf7f1a549\n"]
        {
            assert_eq!(parse_call(text), None, "{text}");
        }
    }

    #[test]
    fn a_thread_blocked_in_read_shows_the_call_and_the_descriptor() {
        use std::os::fd::AsRawFd;
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let fd = read.as_raw_fd();
        let reader = std::thread::spawn(move || nix::unistd::read(&read, &mut [0]));
        let us = nix::unistd::getpid().as_raw();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let found = loop {
            let blocked = threads(us)
                .unwrap()
                .into_iter()
                .find(|thread| thread.call.is_some_and(|call| call.number == libc::SYS_read && call.fd(0) == fd))
                // On its way to sleep it shows the call already.
                .filter(|thread| thread.state == 'S');
            assert!(std::time::Instant::now() < deadline, "the reader never blocks");
            if let Some(thread) = blocked {
                break thread;
            }
        };
        assert_eq!(found.state, 'S');
        assert!(found.wchan.unwrap().contains("pipe_read"));
        drop(write);
        assert_eq!(reader.join().unwrap(), Ok(0));
    }
}
