//! The test programs of the workspace: built, found, and run one by one.

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::without_cargo;
use crate::process::{Pidfd, holders_of, pipe, read_some, wait_for};
use crate::workspace::root;

/// How long after a program's exit its output may stay open. What tests leave behind holds it for good.
const LEFT_BEHIND: Duration = Duration::from_secs(5);

/// How many tests of a program run side by side.
const THREADS: &str = "RUST_TEST_THREADS";

/// A program whose tests can be run by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// What `--only` calls it.
    pub(super) name: String,
    /// The examples in the documentation are run by cargo: they have no program.
    executable: Option<PathBuf>,
    /// Its package's folder, in which cargo runs it.
    folder: PathBuf,
}

/// What came of a program.
pub(super) struct Ran {
    pub(super) status: ExitStatus,
    pub(super) output: String,
    /// Who still held its output when it was over, if anybody did.
    pub(super) left_behind: Option<String>,
}

/// Builds everything that tests need, and gives the programs that have tests:
/// all, or those that are asked for by name.
pub(super) fn build(only: &[String]) -> Result<Vec<Program>> {
    let mut cargo = cargo_test();
    cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let built = cargo.output().context("cannot start cargo")?;
    ensure!(built.status.success(), "the tests cannot be built");
    let mut programs: Vec<Program> = String::from_utf8_lossy(&built.stdout).lines().filter_map(program).collect();
    // They come as they are done.
    programs.sort_by_key(|program| (program.folder.clone(), program.name != "lib", program.name.clone()));
    programs.push(Program { name: "doc".into(), executable: None, folder: root().to_owned() });
    chosen(programs, only)
}

fn chosen(programs: Vec<Program>, only: &[String]) -> Result<Vec<Program>> {
    for name in only {
        let known: Vec<&str> = programs.iter().map(|program| program.name.as_str()).collect();
        ensure!(known.contains(&name.as_str()), "--only {name}: no such test program; there are {}", known.join(", "));
    }
    Ok(programs.into_iter().filter(|program| only.is_empty() || only.contains(&program.name)).collect())
}

/// Reads a line that cargo wrote about something that it has built.
fn program(line: &str) -> Option<Program> {
    let artifact: Value = serde_json::from_str(line).ok()?;
    let is_test = artifact["reason"] == "compiler-artifact" && artifact["profile"]["test"] == true;
    let executable = PathBuf::from(artifact["executable"].as_str().filter(|_| is_test)?);
    let name = artifact["target"]["name"].as_str()?;
    let is_library = artifact["target"]["kind"].as_array()?.iter().any(|kind| kind == "lib");
    let name = match name {
        "pipewarden" if is_library => "lib",
        "pipewarden" => "bin",
        name => name,
    };
    let folder = PathBuf::from(artifact["manifest_path"].as_str()?).parent()?.to_owned();
    Some(Program { name: name.to_owned(), executable: Some(executable), folder })
}

fn cargo_test() -> Command {
    let mut cargo = Command::new("cargo");
    without_cargo(&mut cargo).args(["test", "--workspace"]).current_dir(root());
    cargo
}

impl Program {
    /// One that cannot be run.
    #[cfg(test)]
    pub(super) fn named(name: &str) -> Program {
        Program { name: name.to_owned(), executable: None, folder: PathBuf::new() }
    }

    /// The command that runs those of its tests that `arguments`, which are libtest's, ask for.
    fn command(&self, arguments: &[String]) -> Command {
        let mut command = match &self.executable {
            Some(executable) => {
                let mut command = Command::new(executable);
                without_cargo(&mut command).current_dir(&self.folder);
                command
            }
            None => {
                let mut cargo = cargo_test();
                cargo.args(["--doc", "--no-fail-fast", "--"]);
                cargo
            }
        };
        command.args(arguments);
        command
    }

    /// Whether its tests can be run one by one.
    pub(super) fn runs_single_tests(&self) -> bool {
        self.executable.is_some()
    }

    /// Runs it to its end, and shows its output meanwhile.
    pub(super) fn run(&self, arguments: &[String], threads: usize) -> Result<Ran> {
        println!("     Running {} {}", self.name, arguments.join(" "));
        let (read, write) = pipe()?;
        let mut command = self.command(arguments);
        if std::env::var_os(THREADS).is_none() {
            // As --test-threads, which may be among the arguments and then prevails.
            command.env(THREADS, threads.to_string());
        }
        let mut child = command.stdout(write).spawn().with_context(|| format!("cannot start {}", self.name))?;
        drop(command); // and with it our copy of the write end
        let (output, left_behind) = follow(&read, &Pidfd::of(&child)?)?;
        Ok(Ran { status: child.wait()?, output: String::from_utf8_lossy(&output).into_owned(), left_behind })
    }
}

/// Passes a program's output on, and gives all of it. Tests that leave somebody behind with their
/// output are a failure of their own: this is the one project where that must not happen.
fn follow(source: &OwnedFd, program: &Pidfd) -> Result<(Vec<u8>, Option<String>)> {
    let mut output = Vec::new();
    let mut deadline = None;
    loop {
        let far = Instant::now() + Duration::from_secs(3600);
        let mut fds = vec![source.as_fd()];
        if deadline.is_none() {
            fds.push(program.as_fd());
        }
        let ready = wait_for(&fds, deadline.unwrap_or(far))?;
        if ready[0] {
            let bytes = read_some(source)?;
            if bytes.is_empty() {
                return Ok((output, None));
            }
            std::io::stdout().write_all(&bytes)?;
            output.extend_from_slice(&bytes);
        } else if deadline.is_none() && ready[1] {
            deadline = Some(Instant::now() + LEFT_BEHIND);
        } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok((output, Some(left_behind(source)?)));
        }
    }
}

fn left_behind(source: &OwnedFd) -> Result<String> {
    let holders = holders_of(source)?;
    let who: Vec<String> =
        holders.iter().map(|holder| format!("{} ({})", holder.command_line, holder.process.pid)).collect();
    Ok(if who.is_empty() { "nobody that we may look at".to_owned() } else { who.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of cargo's, shortened.
    fn artifact(kind: &str, name: &str, test: bool) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"/src/agent/Cargo.toml","target":{{"kind":["{kind}"],
            "name":"{name}"}},"profile":{{"opt_level":"0","test":{test}}},"executable":"/target/debug/deps/{name}-1"}}"#
        )
    }

    #[test]
    fn programs_with_tests_are_known_by_name() {
        let named = |kind, name, test| program(&artifact(kind, name, test)).map(|program| program.name);
        assert_eq!(named("lib", "pipewarden", true).as_deref(), Some("lib"));
        assert_eq!(named("bin", "pipewarden", true).as_deref(), Some("bin"));
        assert_eq!(named("test", "audit", true).as_deref(), Some("audit"));
        assert_eq!(named("bin", "hold_setsid", false), None);
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(program("   Compiling pipewarden"), None);
    }

    #[test]
    fn what_is_asked_for_by_name_is_run_and_nothing_else() {
        let all = || ["audit", "lib"].iter().filter_map(|name| program(&artifact("test", name, true))).collect();
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            chosen(all(), &only).map(|programs| programs.into_iter().map(|program| program.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["audit", "lib"]);
        assert_eq!(names(&["lib"]).unwrap(), ["lib"]);
        let error = names(&["lib", "promise"]).unwrap_err().to_string();
        assert_eq!(error, "--only promise: no such test program; there are audit, lib");
    }

    #[test]
    fn whoever_is_left_with_the_output_is_named() {
        let (read, write) = pipe().unwrap();
        let mut helper = Command::new("sleep");
        let mut child = helper.arg("60").stdout(Stdio::from(write.try_clone().unwrap())).spawn().unwrap();
        drop((helper, write));
        let who = left_behind(&read).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(who, format!("sleep 60 ({})", child.id()));
        assert_eq!(read_some(&read).unwrap(), b"", "with its end the pipe ends");
    }
}
