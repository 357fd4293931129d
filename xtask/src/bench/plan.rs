//! What is measured, with what, and how often.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{run, without_cargo};
use crate::workspace::{root, target};

/// The programs of a bench, and how many samples it takes.
pub(crate) struct Plan {
    pipewarden: PathBuf,
    scan: PathBuf,
    map: PathBuf,
    actor: PathBuf,
    quick: bool,
}

impl Plan {
    /// Builds the programs.
    pub(crate) fn new(quick: bool) -> Result<Plan> {
        eprintln!("building the release programs (the first time takes a minute or two) ...");
        let programs =
            [("pipewarden", "pipewarden"), ("pipewarden-tests", "time_scan"), ("pipewarden-tests", "time_map")];
        for (package, program) in programs {
            let mut cargo = Command::new("cargo");
            without_cargo(&mut cargo).args(["build", "--release", "--quiet", "--package", package, "--bin", program]);
            run(cargo.current_dir(root()))?;
        }
        let folder = target().join("release");
        Ok(Plan {
            pipewarden: folder.join("pipewarden"),
            scan: folder.join("time_scan"),
            map: folder.join("time_map"),
            actor: std::env::current_exe().context("cannot find this program's own file")?,
            quick,
        })
    }

    /// How many samples to take where `full` give sound quantiles.
    pub(crate) fn samples(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(10) } else { full }
    }

    /// `pipewarden run OPTIONS -- COMMAND`.
    pub(crate) fn pipewarden(&self, options: &[&str], command: &[String]) -> Command {
        let mut program = Command::new(&self.pipewarden);
        program.arg("run").args(options).arg("--").args(command);
        program
    }

    /// The program.
    pub(crate) fn program(&self) -> &Path {
        &self.pipewarden
    }

    /// The command line of what the bench has its commands do: see [`super::actor`].
    pub(crate) fn actor(&self, part: &[&str]) -> Vec<String> {
        let program = self.actor.to_string_lossy().into_owned();
        [program, "bench-actor".to_owned()].into_iter().chain(part.iter().map(|&word| word.to_owned())).collect()
    }

    /// Whether so few samples are wanted that nothing is to be concluded from them.
    pub(crate) fn is_quick(&self) -> bool {
        self.quick
    }

    /// The program that times the live map through the library.
    pub(crate) fn map(&self) -> Command {
        Command::new(&self.map)
    }

    /// The program that times scans through the library.
    pub(crate) fn scan(&self) -> Command {
        Command::new(&self.scan)
    }
}

/// A command from a command line.
pub(crate) fn command(line: &[String]) -> Command {
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    command
}

/// Whether a program can be found in `PATH`.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}
