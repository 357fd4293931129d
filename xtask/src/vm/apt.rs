//! A private apt: Debian's packages without installing anything.
//!
//! Two instances, both with folders of their own below the build folder: one with the machine's own
//! sources (for programs that run here: qemu), one with the same mirrors and every release that has a
//! kernel for us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{output, run};

/// Debian's releases with a kernel in the matrix, and the ones that only some of them have.
const RELEASES: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];
/// sid is where security updates arrive first: it has no folder for them.
const WITH_SECURITY: [&str; 3] = ["bullseye", "bookworm", "trixie"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt with its own lists and cache.
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// With the machine's own sources and what it has installed.
    pub(crate) fn of_the_machine(folder: &Path) -> Result<Self> {
        let apt = Self::at(&folder.join("machine"), &[])?;
        apt.update()?;
        Ok(apt)
    }

    /// With the machine's mirrors of Debian and every release of ours, and nothing installed.
    pub(crate) fn of_every_release(folder: &Path, machine: &Apt) -> Result<Self> {
        let folder = folder.join("releases");
        let sources = folder.join("sources");
        fs::create_dir_all(&sources)?;
        fs::write(sources.join("debian.sources"), machine.sources_of_every_release()?)?;
        let apt = Self::at(
            &folder,
            &[
                "Dir::Etc::sourcelist=/dev/null".into(),
                format!("Dir::Etc::sourceparts={}", sources.display()),
                "Dir::State::status=/dev/null".into(),
            ],
        )?;
        apt.update()?;
        Ok(apt)
    }

    fn at(folder: &Path, more: &[String]) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let mut options = vec![
            format!("Dir::State::lists={}", folder.join("lists").display()),
            format!("Dir::Cache={}", folder.join("cache").display()),
            // Its own user could not write into our folders.
            "APT::Sandbox::User=".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".into(),
        ];
        options.extend_from_slice(more);
        Ok(Self { options })
    }

    /// Fetches the indices. A source of the machine's that does not answer is its business: what is
    /// missing because of it is named when it is needed.
    fn update(&self) -> Result<()> {
        let result = self.command("apt-get").args(["-qq", "update"]).output().context("cannot start apt-get")?;
        if !result.status.success() {
            eprint!("{}", String::from_utf8_lossy(&result.stderr));
        }
        Ok(())
    }

    fn sources_of_every_release(&self) -> Result<String> {
        let targets = output(self.command("apt-get").args([
            "indextargets",
            "--format",
            "$(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let mirror = |label: &str| targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
        let debian = mirror("Debian").context("none of this machine's apt sources is Debian's archive")?;
        let suites = |suffix: &str, releases: &[&str]| -> String {
            releases.iter().map(|release| format!("{release}{suffix}")).collect::<Vec<_>>().join(" ")
        };
        let mut text = stanza(debian, &suites("", &RELEASES));
        if let Some(security) = mirror("Debian-Security") {
            text += &stanza(security, &suites("-security", &WITH_SECURITY));
        }
        Ok(text)
    }

    /// The versions of a package, newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        // "linux-image-cloud-amd64 | 6.1.192-2 | http://... Packages"
        let table = output(self.command("apt-cache").args(["madison", package]))?;
        Ok(table.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned())).collect())
    }

    /// What a version of a package depends on, names only.
    pub(crate) fn dependencies(&self, package: &str, version: &str) -> Result<Vec<String>> {
        let record = output(self.command("apt-cache").args(["show", &format!("{package}={version}")]))?;
        let line = record.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        Ok(line.split(", ").filter_map(|item| Some(item.split(' ').next()?.to_owned())).collect())
    }

    /// Whether there is such a package.
    pub(crate) fn knows(&self, package: &str) -> Result<bool> {
        Ok(!self.versions(package)?.is_empty())
    }

    /// What would have to be installed for a package, itself included: what is here already is used.
    pub(crate) fn closure(&self, package: &str) -> Result<Vec<String>> {
        let plan = output(self.command("apt-get").args(["--simulate", "--no-install-recommends", "install", package]))?;
        let packages: Vec<String> =
            plan.lines().filter_map(|line| Some(line.strip_prefix("Inst ")?.split(' ').next()?.to_owned())).collect();
        ensure!(!packages.is_empty(), "apt would install nothing for {package}");
        Ok(packages)
    }

    /// Downloads packages and unpacks them into a folder, one over the other.
    pub(crate) fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let archives = folder.with_extension("debs");
        fs::create_dir_all(&archives)?;
        run(self.command("apt-get").args(["-qq", "download"]).args(packages).current_dir(&archives))?;
        for archive in fs::read_dir(&archives)? {
            run(Command::new("dpkg-deb").arg("--extract").arg(archive?.path()).arg(folder))?;
        }
        fs::remove_dir_all(&archives)?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

fn stanza(uri: &str, suites: &str) -> String {
    let signed = if Path::new(KEYRING).exists() { format!("Signed-By: {KEYRING}\n") } else { String::new() };
    format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\n{signed}\n")
}

/// A folder that is complete once it is there: filled under another name first.
pub(crate) fn filled_once(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if !folder.exists() {
        let partial = folder.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        fill(&partial)?;
        fs::rename(&partial, folder)?;
    }
    Ok(folder.to_owned())
}
