//! `cargo xtask manifests`: whether the API servers of the last two years would take what `deploy/` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command::{output, run};
use crate::workspace::{root, target};

/// The validator of PyPI; each version brings the schemas of all releases up to its own.
const VALIDATOR: &str = "kubernetes-validate";
const VALIDATOR_VERSION: &str = "1.37.0";

/// Kubernetes' minor versions of the two years before this validator.
const RELEASES: [&str; 7] = ["1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"];

/// Check the manifests of deploy/ against the schemas of Kubernetes' releases of the last two years.
///
/// The validator comes from PyPI into an environment below the build folder. Without Python or PyPI this
/// is skipped, and says so.
#[derive(clap::Args)]
pub(crate) struct Manifests;

impl Manifests {
    pub(crate) fn run(self) -> Result<()> {
        let Some(validator) = validator() else { return Ok(()) };
        let files = manifests()?;
        ensure!(!files.is_empty(), "deploy/ has no manifest");
        refuses_what_is_wrong(&validator, &files)?;
        for release in RELEASES {
            let said = output(validate(&validator, release).args(&files))?;
            let resources = said.lines().filter(|line| line.contains(" passed ")).count();
            ensure!(
                resources >= files.len(),
                "Kubernetes {release}: only {resources} resources were looked at: {said}"
            );
            println!("Kubernetes {release}: {resources} resources of {} files are right", files.len());
        }
        Ok(())
    }
}

/// The validator, installed if it is not; none where it cannot be had, which is said.
fn validator() -> Option<PathBuf> {
    let folder = target().join("tools").join(format!("{VALIDATOR}-{VALIDATOR_VERSION}"));
    let program = folder.join("bin").join(VALIDATOR);
    if program.exists() {
        return Some(program);
    }
    match install(&folder) {
        Ok(()) => Some(program),
        Err(error) => {
            println!("SKIPPED the manifests: {VALIDATOR} cannot be had: {error:#}");
            None
        }
    }
}

/// Leaves nothing behind where it fails: half of an environment would be taken for one the next time.
fn install(folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    let result = try_install(folder);
    if result.is_err() {
        let _ = fs::remove_dir_all(folder);
    }
    result
}

fn try_install(folder: &Path) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv"]).arg(folder).stdout(Stdio::null()))?;
    let wanted = format!("{VALIDATOR}=={VALIDATOR_VERSION}");
    run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", &wanted]))
}

fn validate(validator: &Path, release: &str) -> Command {
    let mut command = Command::new(validator);
    command.args(["--kubernetes-version", release, "--strict"]);
    command
}

fn manifests() -> Result<Vec<PathBuf>> {
    let folder = root().join("deploy");
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A check that takes everything would tell nothing: a manifest with a key that there is not must be refused.
fn refuses_what_is_wrong(validator: &Path, files: &[PathBuf]) -> Result<()> {
    let folder = target().join("manifests");
    fs::create_dir_all(&folder)?;
    for file in files {
        let name = file.file_name().context("a manifest has no name")?;
        let text = fs::read_to_string(file)?;
        let wrong = text.replace("allowPrivilegeEscalation:", "allowPrivilegeEscalade:");
        ensure!(wrong != text, "{} says nothing of allowPrivilegeEscalation", file.display());
        let path = folder.join(name);
        fs::write(&path, wrong)?;
        let mut command = validate(validator, RELEASES[0]);
        let status = command.arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(!status.success(), "{VALIDATOR} takes a manifest with a key that there is not: {}", path.display());
    }
    Ok(())
}
