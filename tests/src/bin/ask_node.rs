//! Asks a node about a pipe, each time it is told to, and prints what it says: a client that is a process of its
//! own, of another user or in another pid namespace.
//!
//! `ask_node SOCKET [FD]`: for each line on stdin a line of JSON about the pipe whose read end is FD, or about one
//! of its own. `ask_node SOCKET then PROGRAM WORD...` connects, and has that program ask over its connection:
//! `ask_node over`.

use std::io::{BufRead as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use pipewarden::ownership::node::protocol::{Ask, Tell};
use pipewarden_tests::node_client::Client;
use serde_json::json;

/// The connection's descriptor in the program that takes it over.
const OVER: i32 = 7;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["over"] => {
            // SAFETY: who started us left the connection there, and nobody else uses it.
            let fd = unsafe { OwnedFd::from_raw_fd(OVER) };
            let mut client = Client::over(UnixStream::from(fd));
            let errors = client.request_and_listen(Ask::Why);
            println(&json!({ "errors": errors, "uid": nix::unistd::geteuid().as_raw() }))
        }
        [socket, "then", program, ref rest @ ..] => {
            let client = Client::greeting(Path::new(socket));
            // SAFETY: nothing of ours has that number.
            let copy = unsafe { libc::dup2(client.stream.as_raw_fd(), OVER) };
            anyhow::ensure!(copy == OVER);
            Err(Command::new(program).args(rest).exec().into())
        }
        [socket] => {
            let (read, _write) = nix::unistd::pipe()?;
            answer(Path::new(socket), &read)
        }
        [socket, fd] => {
            // SAFETY: who started us gave us this one, and nobody else uses it.
            let read = unsafe { OwnedFd::from_raw_fd(fd.parse()?) };
            answer(Path::new(socket), &read)
        }
        _ => anyhow::bail!("usage: ask_node SOCKET [FD]"),
    }
}

fn answer(socket: &Path, read: &OwnedFd) -> anyhow::Result<()> {
    let mut client = Client::greeting(socket);
    for line in std::io::stdin().lock().lines() {
        line?;
        let answer = client.ask(Ask::Resolve { watch: None }, &[read.as_fd()]);
        println(&match answer.tell {
            Tell::Holders(found) => {
                let pids: Vec<i32> = found.holders.iter().map(|holder| holder.pid).collect();
                let of_fds: Vec<Option<i32>> = answer.fds.iter().map(pid_of).collect();
                let (us, elsewhere) = (std::process::id(), found.elsewhere);
                json!({ "us": us, "holders": pids, "pidfds": of_fds, "elsewhere": elsewhere })
            }
            other => json!({ "error": format!("{other:?}") }),
        })?;
    }
    Ok(())
}

/// The process of a pidfd, as we see it.
fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

fn println(value: &serde_json::Value) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{value}")?)
}
