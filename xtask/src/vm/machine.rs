//! What a virtual machine is made of: qemu, a kernel, and how one is booted.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::apt::{Apt, filled_once};
use crate::command::output;

const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";
const BUSYBOX_PACKAGE: &str = "busybox-static";
const BASH_PACKAGE: &str = "bash-static";
/// Debian's name for "the newest kernel of this release", in the flavour without drivers.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// Everything downloaded, and from where.
pub(crate) struct Store {
    folder: PathBuf,
    machine: Option<Apt>,
    releases: Option<Apt>,
}

/// A kernel, unpacked.
#[derive(Clone)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// What it was configured with.
    pub(crate) config: PathBuf,
}

impl Store {
    pub(crate) fn at(folder: PathBuf) -> Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "the matrix is of x86-64 kernels, and so must this machine be");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, machine: None, releases: None })
    }

    fn machine(&mut self) -> Result<&Apt> {
        if self.machine.is_none() {
            self.machine = Some(Apt::of_the_machine(&self.folder.join("apt"))?);
        }
        self.machine.as_ref().context("no apt")
    }

    fn releases(&mut self) -> Result<&Apt> {
        if self.releases.is_none() {
            let folder = self.folder.join("apt");
            let apt = Apt::of_every_release(&folder, self.machine()?)?;
            self.releases = Some(apt);
        }
        self.releases.as_ref().context("no apt")
    }

    /// qemu: the machine's own, or one unpacked beside it. Installing it could remove others.
    pub(crate) fn qemu(&mut self) -> Result<Qemu> {
        if Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
            return Ok(Qemu { root: None });
        }
        let folder = self.folder.join("qemu");
        let root = filled_once(&folder, |folder| {
            let apt = self.machine()?;
            apt.unpack(&apt.closure(QEMU_PACKAGE)?, folder)
        })?;
        Ok(Qemu { root: Some(root) })
    }

    /// A static busybox, for shells.
    pub(crate) fn busybox(&mut self) -> Result<PathBuf> {
        let folder = self.folder.join("busybox");
        let root = filled_once(&folder, |folder| self.machine()?.unpack(&[BUSYBOX_PACKAGE.to_owned()], folder))?;
        // Other files of the package bear that name too.
        find(&root.join("bin"), |name| name == "busybox")?.context("busybox-static has no bin/busybox")
    }

    /// A static bash, for the lines that tests have in its language.
    pub(crate) fn bash(&mut self) -> Result<PathBuf> {
        let folder = self.folder.join("bash");
        let root = filled_once(&folder, |folder| self.machine()?.unpack(&[BASH_PACKAGE.to_owned()], folder))?;
        find(&root, |name| name == "bash-static")?.context("bash-static has no bash-static")
    }

    /// Debian's newest kernel of a series such as `6.12`.
    pub(crate) fn kernel(&mut self, series: &str) -> Result<Kernel> {
        let folder = self.folder.join("kernels").join(series);
        let root = filled_once(&folder, |folder| {
            let apt = self.releases()?;
            apt.unpack(&kernel_packages(apt, series)?, folder)
        })?;
        // boot/vmlinuz-VERSION, or (since 7.x) usr/lib/modules/VERSION/vmlinuz.
        let image = find(&root, |name| name.starts_with("vmlinuz"))?.context("no kernel image in the package")?;
        let config = find(&root, |name| name == "config" || name.starts_with("config-"))?
            .context("no kernel configuration in the package")?;
        Ok(Kernel { image, config })
    }
}

/// The packages that hold the image and the configuration of a series' newest kernel.
fn kernel_packages(apt: &Apt, series: &str) -> Result<Vec<String>> {
    let version = apt
        .versions(KERNEL_PACKAGE)?
        .into_iter()
        .find(|version| version.strip_prefix(series).is_some_and(|rest| rest.starts_with('.')))
        .with_context(|| format!("no release of Debian's on this machine's mirror has a {series} kernel"))?;
    let image = apt
        .dependencies(KERNEL_PACKAGE, &version)?
        .into_iter()
        .find(|package| package.starts_with("linux-image-"))
        .with_context(|| format!("{KERNEL_PACKAGE} {version} names no kernel"))?;
    // Later ones are split; what is called the image then only pulls in the parts.
    let part = |name: &str| image.replacen("linux-image-", name, 1);
    if apt.knows(&part("linux-binary-"))? {
        return Ok(vec![part("linux-binary-"), part("linux-base-")]);
    }
    Ok(vec![image])
}

fn find(folder: &Path, wanted: impl Fn(&str) -> bool + Copy) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if let Some(found) = find(&entry.path(), wanted)? {
                return Ok(Some(found));
            }
        } else if kind.is_file() && entry.file_name().to_str().is_some_and(wanted) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// What comes on the line until it is closed, which the machine's end does; logged as it comes.
fn read_until(mut line: impl Read + AsFd, limit: Duration, log: &Path) -> Result<String> {
    let deadline = Instant::now() + limit;
    let mut file = fs::File::create(log)?;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no end after {limit:?}: see {}", log.display());
        let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? == 0 {
            continue;
        }
        let length = line.read(&mut buffer)?;
        if length == 0 {
            return Ok(String::from_utf8_lossy(&said).replace('\r', ""));
        }
        file.write_all(&buffer[..length])?;
        said.extend_from_slice(&buffer[..length]);
    }
}

/// An emulator, and where its files are.
#[derive(Clone)]
pub(crate) struct Qemu {
    root: Option<PathBuf>,
}

impl Qemu {
    fn program(&self) -> Command {
        let Some(root) = &self.root else { return Command::new(QEMU) };
        let mut qemu = Command::new(root.join("usr/bin").join(QEMU));
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path));
        qemu.env("LD_LIBRARY_PATH", format!("{}:{}", libraries[0].display(), libraries[1].display()));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(root.join(firmware));
        }
        qemu
    }

    /// A machine that boots and then is what its init makes of it. Emulated (TCG): a virtual machine
    /// inside a virtual machine is not to be had everywhere, and this one is the same everywhere.
    fn command(&self, kernel: &Kernel, initramfs: &Path, words: &str) -> Command {
        let mut qemu = self.program();
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-m", "1024", "-smp", "1"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &format!("console=ttyS0 panic=-1 quiet {words}")]);
        qemu
    }

    /// Boots, and gives what the machine said on its serial line until it powered off.
    pub(crate) fn run(
        &self,
        kernel: &Kernel,
        initramfs: &Path,
        words: &str,
        log: &Path,
        limit: Duration,
    ) -> Result<String> {
        let complaints = log.with_extension("qemu");
        let mut child = self
            .command(kernel, initramfs, words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&complaints)?)
            .spawn()
            .context("cannot start qemu")?;
        let serial = child.stdout.take().context("qemu has no serial line")?;
        let said = read_until(serial, limit, log);
        if said.is_err() {
            child.kill()?;
        }
        let status = child.wait()?;
        let said = said?;
        ensure!(status.success(), "qemu: {status}: {}", fs::read_to_string(&complaints)?.trim());
        Ok(said)
    }

    /// Boots with this terminal as the machine's console.
    pub(crate) fn shell(&self, kernel: &Kernel, initramfs: &Path, words: &str) -> Result<()> {
        println!("the machine's console; `poweroff -f` ends it, and so does ctrl-C");
        let status = self.command(kernel, initramfs, words).status().context("cannot start qemu")?;
        ensure!(status.success(), "qemu: {status}");
        Ok(())
    }

    /// Its version, for the head of the table.
    pub(crate) fn version(&self) -> Result<String> {
        Ok(output(self.program().arg("--version"))?.lines().next().unwrap_or_default().to_owned())
    }
}
