//! The machine has one tracker, and a lock says whose it is. Runs of tests that go on side by side get a
//! lock each: to every one of them it is as if it were alone on the machine.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use pipewarden::kernel::lock;

use crate::stage::Stage;

/// A file on a stage that takes the lock's place.
#[must_use]
pub fn new(stage: &Stage) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    stage.path(&format!("tracker-{}.lock", NUMBER.fetch_add(1, Ordering::Relaxed)))
}

/// Lets a command see this file where the machine's lock is: in a mount namespace of its own, which is
/// the only thing that differs. The tree of processes is as without.
///
/// # Panics
///
/// When there can be no such file. That it cannot be mounted is an error of the command's start.
pub fn instead_of_the_machines(command: &mut Command, own: &Path) {
    let machines = lock::path();
    fs::create_dir_all(machines.parent().unwrap()).unwrap();
    // What is mounted on must be there; nobody is kept from the lock by that.
    File::options().append(true).create(true).open(&machines).unwrap();
    File::options().append(true).create(true).open(own).unwrap();
    let [own, machines] = [own, &machines].map(|path| CString::new(path.as_os_str().as_bytes()).unwrap());
    let mount = move || -> io::Result<()> {
        // SAFETY: system calls with C strings that outlive them; none allocates or takes a lock.
        unsafe {
            Errno::result(libc::unshare(libc::CLONE_NEWNS))?;
            let none = std::ptr::null();
            // What others mount or unmount is still seen; what happens here stays here.
            let slave = libc::MS_REC | libc::MS_SLAVE;
            Errno::result(libc::mount(none, c"/".as_ptr(), none, slave, none.cast()))?;
            Errno::result(libc::mount(own.as_ptr(), machines.as_ptr(), none, libc::MS_BIND, none.cast()))?;
        }
        Ok(())
    };
    // SAFETY: as above; the strings were made before the fork.
    unsafe { command.pre_exec(mount) };
}
