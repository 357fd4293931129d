//! Programs of other projects, for comparison: unpacked from Debian packages into the target folder,
//! installed nowhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

/// A program of a package, unless it cannot be had here (no apt, no network).
#[must_use]
pub fn debian(package: &str, program: &str) -> Option<PathBuf> {
    let folder = target().join("debian");
    fs::create_dir_all(&folder).ok()?;
    // Several tests want the same one at once, in several processes.
    let lock = fs::File::create(folder.join(format!("{package}.lock"))).ok()?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).ok()?;
    let root = folder.join(package);
    let program = root.join(program);
    if !program.exists() {
        unpack(package, &folder, &root)?;
    }
    program.exists().then_some(program)
}

fn unpack(package: &str, folder: &Path, root: &Path) -> Option<()> {
    let fetch = folder.join(format!("{package}.deb.d"));
    fs::create_dir_all(&fetch).ok()?;
    // As the current user, who may not be the one that apt would rather be.
    let options = ["-q", "-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"];
    run(Command::new("apt-get").args(options).args(["download", package]).current_dir(&fetch))?;
    let file = fs::read_dir(&fetch).ok()?.flatten().find(|file| file.path().extension().is_some_and(|e| e == "deb"))?;
    run(Command::new("dpkg").arg("-x").arg(file.path()).arg(root))
}

fn run(command: &mut Command) -> Option<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success()).then_some(())
}

/// The folder where builds go.
///
/// # Panics
///
/// When a test is not where cargo puts it.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => folder.into(),
        // target/PROFILE/deps/TEST
        None => std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned(),
    }
}
