//! `cargo xtask demo`: a reader that hangs, and the same reader under `pipewarden run`.

use std::fmt::Display;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{run, without_cargo};
use crate::process::{Holder, Pidfd, finish, holders_of, pipe, read_some, wait_for};
use crate::workspace::{root, target};

/// What both halves run. The helper's session is its own, as a server's or a daemon's is.
const SCRIPT: &str = r#"setsid sleep 60 & echo "result: 42"; exit 3"#;
const RESULT: &str = "result: 42";
const CODE: i32 = 3;
const HELPER_SECONDS: u64 = 60;

/// How long the first half waits for an end-of-file that does not come.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long the second half may take before the demo calls it broken.
const BROKEN: Duration = Duration::from_secs(10);

/// Show a command whose reader hangs, and the same command under `pipewarden run`.
#[derive(clap::Args)]
pub(crate) struct Demo {}

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        let pipewarden = build()?;
        let ink = Ink { on: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };
        println!("{}", ink.bold("pipewarden makes end-of-file arrive."));
        println!();
        println!("A command prints its result and exits with code {CODE}. It leaves a helper behind, in a session of");
        println!("its own, that still holds the command's stdout. Whoever reads that stdout through a pipe, as `cat`");
        println!("does here, waits for the helper.");

        println!("\n{}\n", ink.bold("Without pipewarden"));
        println!("  $ sh -c '{SCRIPT}' | cat\n");
        without(&ink)?;

        println!("\n{}\n", ink.bold("With pipewarden"));
        println!("  $ {} run -- sh -c '{SCRIPT}' | cat\n", pipewarden.display());
        let eof = with(&pipewarden, &ink)?;

        println!();
        println!(
            "Every byte, then end-of-file after {}, then the command's own exit code. The first 200 ms",
            millis(eof)
        );
        println!("are --holder-grace: time for a helper that still has something to write.");
        println!("Both commands can be copied; `{} run --help` has the options.", pipewarden.display());
        Ok(())
    }
}

/// Builds the release binary; its path, as one would type it in the workspace's root.
fn build() -> Result<PathBuf> {
    eprintln!("building pipewarden (the first time takes a minute or two) ...");
    let mut cargo = Command::new("cargo");
    without_cargo(&mut cargo).args(["build", "--release", "--quiet", "--package", "pipewarden"]);
    run(cargo.current_dir(root()))?;
    let path = target().join("release/pipewarden");
    ensure!(path.exists(), "{} was not built", path.display());
    std::env::set_current_dir(root())?;
    Ok(path.strip_prefix(root()).map(Path::to_owned).unwrap_or(path))
}

fn without(ink: &Ink) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT]);
    let mut watch = Watch::start("sh", shell)?;
    let seen = watch.until(PATIENCE, ink)?;
    if seen.eof.is_some() {
        bail!("end-of-file came although the helper should hold the pipe: is `setsid` installed?");
    }
    ensure!(seen.text == format!("{RESULT}\n"), "the command wrote {:?}", seen.text);
    let left = Duration::from_secs(HELPER_SECONDS) - PATIENCE;
    watch.say(ink.red(&format!("no end-of-file: `cat` would wait for another {} s", left.as_secs())));
    for holder in watch.holders()? {
        let Holder { process, fd, link, command_line } = &holder;
        watch.aside(format!("`{command_line}` holds the other end: /proc/{}/fd/{fd} -> {link}", process.pid));
        watch.aside(format!("the demo ends it: kill {}", process.pid));
        process.kill()?;
    }
    ensure!(watch.until(BROKEN, ink)?.eof.is_some(), "no end-of-file although nobody holds the pipe");
    Ok(())
}

fn with(pipewarden: &Path, ink: &Ink) -> Result<Duration> {
    let mut command = Command::new(pipewarden);
    command.args(["run", "--", "sh", "-c", SCRIPT]);
    let (errors, stderr) = pipe()?;
    command.stderr(stderr);
    let mut watch = Watch::start("pipewarden", command)?;
    let seen = watch.until(BROKEN, ink)?;
    let Some(eof) = seen.eof else { bail!("no end-of-file within {BROKEN:?}: please report this") };
    ensure!(seen.text == format!("{RESULT}\n"), "the command wrote {:?}", seen.text);
    ensure!(seen.status.and_then(|status| status.code()) == Some(CODE), "the exit code is not the command's");
    let mut told = Vec::new();
    while wait_for(&[errors.as_fd()], Instant::now() + BROKEN)?.contains(&true) {
        match read_some(&errors)? {
            bytes if bytes.is_empty() => break,
            bytes => told.extend(bytes),
        }
    }
    for line in String::from_utf8_lossy(&told).lines() {
        watch.aside(format!("stderr: {line}"));
    }
    ensure!(!told.is_empty(), "nothing was said about the helper");
    Ok(eof)
}

/// A command and the reader of its stdout, with one clock for both.
struct Watch {
    child: Child,
    process: Pidfd,
    source: OwnedFd,
    started: Instant,
    seen: Seen,
    name: &'static str,
}

/// What has been seen of a command so far.
#[derive(Clone, Default)]
struct Seen {
    text: String,
    status: Option<ExitStatus>,
    eof: Option<Duration>,
}

impl Watch {
    fn start(name: &'static str, mut command: Command) -> Result<Watch> {
        let (source, write) = pipe()?;
        command.stdin(Stdio::null()).stdout(write);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let process = Pidfd::of(&child)?;
        Ok(Watch { child, process, source, started, seen: Seen::default(), name })
    }

    /// Tells what happens, as it happens, until both exit and end-of-file were seen or the time is over.
    fn until(&mut self, patience: Duration, ink: &Ink) -> Result<Seen> {
        let end = Instant::now() + patience;
        let mut next = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end && (self.seen.eof.is_none() || self.seen.status.is_none()) {
            // A descriptor that is at its end would be ready for ever: the other one stands for it.
            let source = if self.seen.eof.is_none() { self.source.as_fd() } else { self.process.as_fd() };
            let process = if self.seen.status.is_none() { self.process.as_fd() } else { source };
            let ready = wait_for(&[source, process], next.min(end))?;
            if ready[0] && self.seen.eof.is_none() {
                self.take_output(ink)?;
            } else if ready[1] && self.seen.status.is_none() {
                self.take_exit()?;
            } else if Instant::now() >= next && next < end {
                self.say(ink.dim("no end-of-file"));
                next += Duration::from_secs(1);
            }
        }
        Ok(self.seen.clone())
    }

    fn take_output(&mut self, ink: &Ink) -> Result<()> {
        let bytes = read_some(&self.source)?;
        if bytes.is_empty() {
            self.seen.eof = Some(self.started.elapsed());
            self.say(ink.green("end-of-file"));
            return Ok(());
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        for line in text.lines() {
            self.say(format!("stdout: {line}"));
        }
        self.seen.text.push_str(&text);
        Ok(())
    }

    fn take_exit(&mut self) -> Result<()> {
        let status = finish(&mut self.child, BROKEN)?;
        self.seen.status = Some(status);
        let name = self.name;
        self.say(match (status.code(), status.signal()) {
            (Some(code), _) => format!("{name} exits with code {code}"),
            (None, Some(signal)) => format!("signal {signal} ended {name}"),
            (None, None) => format!("{name} is gone"),
        });
        Ok(())
    }

    fn holders(&self) -> Result<Vec<Holder>> {
        holders_of(&self.source)
    }

    fn say(&self, what: impl Display) {
        println!("  {:>7.3} s  {what}", self.started.elapsed().as_secs_f64());
    }

    fn aside(&self, what: impl Display) {
        println!("  {:>9}  {what}", "");
    }
}

impl Drop for Watch {
    /// Whatever went wrong: nobody that we started outlives the demo.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.child.wait();
        for holder in self.holders().unwrap_or_default() {
            let _ = holder.process.kill();
        }
    }
}

/// Emphasis, where it is a person who reads.
struct Ink {
    on: bool,
}

impl Ink {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn red(&self, text: &str) -> String {
        self.paint("31", text)
    }

    fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }
}

fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
