//! Whatever 0, 1 and 2 are: the same bytes arrive in the same order, nothing that is shared is
//! changed, nothing of ours is inherited.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::shape::{Outlet, Shape};
use pipewarden_tests::stage::Stage;

/// Writes to both streams in turn, and notes what it was given and how the writes went.
const TALK: &str = r#"
    exec 9>&1
    (readlink /proc/self/fd/9; readlink /proc/self/fd/2) >given
    exec 9>&-
    for i in 1 2 3 4 5 6 7 8 9; do
        echo out $i || code=$((code + 1))
        echo err $i >&2 || code=$((code + 10))
    done
    exit ${code:-0}
"#;

/// A program of ours, or the same without us.
fn program(stage: &Stage, us: bool, words: &[&str]) -> Command {
    let mut command = if us {
        let mut command = Command::new(binary(UNDER_TEST));
        command.args(["run", "--report", "none", "--"]).args(words);
        command
    } else {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    };
    command.current_dir(stage.folder()).stdin(Stdio::null()).process_group(0);
    command
}

/// What is seen of a program whose streams have these shapes.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Lets it talk into two outlets, or into one that both streams are.
fn talk(us: bool, out: Shape, err: Option<Shape>) -> (Seen, Vec<String>) {
    let stage = Stage::new();
    let stdout = Outlet::new(&stage, "out", out);
    let stderr = err.map(|err| Outlet::new(&stage, "err", err));
    let flags = || (stdout.flags(), stderr.as_ref().map(Outlet::flags));
    let before = flags();
    let mut command = program(&stage, us, &["bash", "-c", TALK]);
    command.stdout(stdout.stream()).stderr(stderr.as_ref().unwrap_or(&stdout).stream());
    let status = command.status().unwrap();
    drop(command);
    assert_eq!(flags(), before, "the flags of what is shared: {out:?}, {err:?}");
    let given = std::fs::read_to_string(stage.path("given")).unwrap();
    let text = |outlet: Outlet| String::from_utf8(outlet.arrived()).unwrap();
    let seen = Seen { code: status.code(), stderr: stderr.map(text).unwrap_or_default(), stdout: text(stdout) };
    (seen, given.lines().map(str::to_owned).collect())
}

/// Every shape of 1 beside every shape of 2.
#[test]
fn every_pair_of_shapes() {
    for out in Shape::ALL {
        for err in Shape::ALL {
            let ((bare, _), (seen, given)) = (talk(false, out, Some(err)), talk(true, out, Some(err)));
            assert_eq!(seen, bare, "stdout {out:?}, stderr {err:?}");
            for (shape, given) in [(out, &given[0]), (err, &given[1])] {
                // An inherited pipe is recognised by its own test; a pumped stream is always one.
                let piped = given.starts_with("pipe:[");
                assert!(!shape.is_pumped() || piped, "{shape:?} is pumped, not {given}");
                assert!(shape.is_pumped() || shape == Shape::ReadOnly || !piped, "{shape:?} is inherited, not {given}");
            }
        }
    }
}

/// 1 and 2 are one description: what is written to both arrives in the order of the writes.
#[test]
fn every_shape_for_both_streams() {
    for shape in Shape::ALL {
        let ((bare, _), (seen, given)) = (talk(false, shape, None), talk(true, shape, None));
        assert_eq!(seen, bare, "{shape:?}");
        assert_eq!(given[0], given[1], "one for both: {shape:?}");
    }
}

/// One FIFO that was opened twice is still one queue.
#[test]
fn a_fifo_that_was_opened_twice_keeps_the_order() {
    let run = |us| {
        let stage = Stage::new();
        let stdout = Outlet::new(&stage, "fifo", Shape::Fifo);
        let again = OpenOptions::new().write(true).open(stage.path("fifo")).unwrap();
        let status = program(&stage, us, &["bash", "-c", TALK]).stdout(stdout.stream()).stderr(again).status().unwrap();
        (status.code(), String::from_utf8(stdout.arrived()).unwrap())
    };
    assert_eq!(run(true), run(false));
}

/// One file that was opened twice has two positions: the streams overwrite each other, as without us.
#[test]
fn a_file_that_was_opened_twice_is_overwritten() {
    for how in ["auto", "pump"] {
        let stage = Stage::new();
        let stdout = Outlet::new(&stage, "file", Shape::File);
        let again = OpenOptions::new().write(true).open(stage.path("file")).unwrap();
        let mut command = Command::new(binary(UNDER_TEST));
        command.args(["run", "--stdio", how, "--", "bash", "-c", "echo first; echo second >&2"]).process_group(0);
        assert!(command.stdout(stdout.stream()).stderr(again).status().unwrap().success());
        drop(command);
        let text = String::from_utf8(stdout.arrived()).unwrap();
        assert!(text.starts_with("first\n") || text.starts_with("second\n"), "{how}: {text}");
        assert_eq!(text.len(), 54, "nothing was added, only written over: {how}: {text}");
    }
}

/// Every combination of closed descriptors: they stay closed.
#[test]
fn every_combination_of_closed_descriptors() {
    for closed in 0..8 {
        let run = |us| {
            let stage = Stage::new();
            let mut command = program(&stage, us, &["sh", "-c", "ls /proc/$$/fd >listed 2>complaint; exit 3"]);
            let close: Vec<i32> = (0..3).filter(|fd| closed & (1 << fd) != 0).collect();
            // SAFETY: close(2) is async-signal-safe.
            unsafe {
                command.pre_exec(move || {
                    for fd in &close {
                        libc::close(*fd);
                    }
                    Ok(())
                });
            }
            let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
            (status.code(), std::fs::read_to_string(stage.path("listed")).unwrap())
        };
        assert_eq!(run(true), run(false), "closed: {closed:03b}");
    }
}

/// What the command reads is what we were given, and not a byte of it is taken.
#[test]
fn every_shape_of_stdin() {
    const READ: &[&str] = &["sh", "-c", "readlink /proc/$$/fd/0 | sed 's/[0-9]//g'; head -c 4; exit 3"];
    // A file: the next reader goes on where the command stopped.
    let stage = Stage::new();
    std::fs::write(stage.path("file"), "one\ntwo\n").unwrap();
    let mut file = File::open(stage.path("file")).unwrap();
    let output = program(&stage, true, &["head", "-n1"]).stdin(file.try_clone().unwrap()).output().unwrap();
    assert_eq!(output.stdout, b"one\n");
    assert_eq!(file.stream_position().unwrap(), 4, "head goes back to where the line ends");
    // A pipe and a socket pair: what the command did not read is still there.
    let (pipe, mut into_pipe) = std::io::pipe().unwrap();
    let (socket, mut into_socket) = std::os::unix::net::UnixStream::pair().unwrap();
    into_pipe.write_all(b"one\ntwo\n").unwrap();
    into_socket.write_all(b"one\ntwo\n").unwrap();
    let output = program(&stage, true, READ).stdin(pipe.try_clone().unwrap()).output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"pipe:[]\none\n"[..], Some(3)));
    let given = OwnedFd::from(socket.try_clone().unwrap());
    let output = program(&stage, true, READ).stdin(given).output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"socket:[]\none\n"[..], Some(3)));
    drop((into_pipe, into_socket));
    for mut rest in [Box::new(pipe) as Box<dyn Read>, Box::new(socket)] {
        let mut text = String::new();
        rest.read_to_string(&mut text).unwrap();
        assert_eq!(text, "two\n");
    }
}

/// Whatever else stdin is: the command reads and is told what it would be without us, what it leaves is
/// left, and the flags of what is shared stay.
#[test]
fn every_other_shape_of_stdin() {
    const READ: &[&str] = &["sh", "-c", "readlink /proc/$$/fd/0 | sed 's/.*[/]//; s/[0-9]//g'; head -c 4; exit 3"];
    type Make = fn(&Stage) -> (OwnedFd, Option<OwnedFd>);
    let shapes: [(&str, Make); 7] = [
        ("a FIFO", |stage| {
            nix::unistd::mkfifo(&stage.path("fifo"), Mode::S_IRWXU).unwrap();
            let both = OpenOptions::new().read(true).write(true).open(stage.path("fifo")).unwrap();
            (File::open(stage.path("fifo")).unwrap().into(), Some(both.into()))
        }),
        ("a non-blocking pipe", |_| {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
            fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            (read, Some(write))
        }),
        ("an empty non-blocking pipe", |_| {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
            std::mem::forget(write); // nothing comes, and nobody says that nothing will
            (read, None)
        }),
        ("/dev/null", |_| (File::open("/dev/null").unwrap().into(), None)),
        ("/dev/full", |_| (File::open("/dev/full").unwrap().into(), None)),
        ("a file that is appended to", |stage| {
            std::fs::write(stage.path("file"), "one\ntwo\n").unwrap();
            (OpenOptions::new().read(true).append(true).open(stage.path("file")).unwrap().into(), None)
        }),
        ("a pipe's write end", |_| {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
            (write, Some(read))
        }),
    ];
    for (name, make) in shapes {
        let run = |us| {
            let stage = Stage::new();
            let (stdin, writer) = make(&stage);
            let flags = || fcntl(&stdin, FcntlArg::F_GETFL).unwrap();
            if let Some(writer) = &writer {
                let _ = nix::unistd::write(writer, b"one\ntwo\n"); // not to a read end
            }
            let before = flags();
            let output = program(&stage, us, READ).stdin(stdin.try_clone().unwrap()).output().unwrap();
            assert_eq!(flags(), before, "the flags of what is shared: {name}");
            drop(writer);
            let mut rest = vec![0; 8];
            let rest = nix::unistd::read(&stdin, &mut rest).map(|count| rest[..count].to_vec());
            (output.status.code(), String::from_utf8(output.stdout), String::from_utf8(output.stderr), rest)
        };
        assert_eq!(run(true), run(false), "{name}");
    }
}

/// A server that gives each of its programs the connection as all three, as sshd and inetd do.
#[test]
fn one_socket_for_all_three() {
    let run = |us| {
        let stage = Stage::new();
        let (theirs, mut ours) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.write_all(b"one\ntwo\n").unwrap();
        let stream = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));
        let script = "for i in 1 2 3; do head -c 4; echo out $i; echo err $i >&2; done; exit 3";
        let mut command = program(&stage, us, &["sh", "-c", script]);
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let status = command.stdin(stream()).stdout(stream()).stderr(stream()).status().unwrap();
        drop((command, theirs));
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        (status.code(), text)
    };
    let expected = "one\nout 1\nerr 1\ntwo\nout 2\nerr 2\nout 3\nerr 3\n";
    assert_eq!(run(false), (Some(3), expected.to_owned()));
    assert_eq!(run(true), (Some(3), expected.to_owned()));
}

/// With a thousand descriptors open that the parent left: all of them reach the command, none of ours.
#[test]
fn a_thousand_descriptors_pass_and_none_is_added() {
    const OPEN: &str = "for fd in $(seq 10 1009); do eval \"exec $fd>>file\"; done; exec \"$@\"";
    let run = |us| {
        let stage = Stage::new();
        let inner = program(&stage, us, &["bash", "-c", "echo /proc/$$/fd/*; echo here >&900"]);
        let mut command = Command::new("bash");
        command.args(["-c", OPEN, "bash"]).arg(inner.get_program()).args(inner.get_args());
        let output = command.current_dir(stage.folder()).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let fds: Vec<String> = text.split_whitespace().map(|path| path.rsplit('/').next().unwrap().into()).collect();
        (output.status.code(), fds, std::fs::read_to_string(stage.path("file")).unwrap())
    };
    let (bare, seen) = (run(false), run(true));
    assert!(bare.1.len() > 1000, "{}", bare.1.len());
    assert_eq!(bare.2, "here\n");
    assert!(seen == bare, "with pipewarden: {seen:?}");
}

/// ... and where not one is left for us, we say so and start nothing.
#[test]
fn without_a_descriptor_left_nothing_is_started() {
    let stage = Stage::new();
    let mut command = program(&stage, true, &["touch", "started"]);
    // SAFETY: setrlimit(2) is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 4, 4)?))
    };
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(125), 1), "{said}");
    assert!(said.contains("Too many open files"), "{said}");
    assert!(!stage.path("started").exists());
}

/// What somebody else made non-blocking, and does not read for a while, still gets every byte.
#[test]
fn a_non_blocking_pipe_gets_every_byte() {
    let stage = Stage::new();
    let outlet = Outlet::new(&stage, "out", Shape::NonBlockingPipe);
    assert!(outlet.flags().contains(OFlag::O_NONBLOCK));
    let mut command = program(&stage, true, &["seq", "200000"]);
    assert_eq!(command.stdout(outlet.stream()).status().unwrap().code(), Some(0));
    drop(command);
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(outlet.arrived() == expected.as_bytes());
}
