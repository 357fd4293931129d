//! Single abilities of this kernel, each tried on ourselves.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::facts::descriptor;

/// Whether this kernel, for this process, has an ability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub available: bool,
    /// What was seen, or what it takes.
    pub detail: String,
}

/// All of them, in the order of the report.
const NAMES: [&str; 7] =
    ["scm_fds", "user_files", "pidfd_signal_process_group", "so_peerpidfd", "cgroup_kill", "proc_children", "kcmp"];

/// Tries all of them.
#[must_use]
pub fn all() -> Vec<Feature> {
    vec![
        feature("scm_fds", scm_fds(), "fdinfo tells of descriptors in flight", "since linux 5.6"),
        feature(
            "user_files",
            user_files(),
            "fdinfo tells of an io_uring's registered files",
            "io_uring, since linux 5.1",
        ),
        feature(
            "pidfd_signal_process_group",
            pidfd_signal_process_group(),
            "a group is signalled without its number coming round",
            "since linux 6.9",
        ),
        feature("so_peerpidfd", so_peerpidfd(), "a socket's peer is known by a pidfd", "since linux 6.5"),
        feature("cgroup_kill", cgroup_kill(), "a cgroup can be ended as one", "cgroup v2, since linux 5.14"),
        feature("proc_children", proc_children(), "a process's children are listed", "CONFIG_PROC_CHILDREN"),
        feature("kcmp", kcmp(), "two descriptors of one open file are known", "CONFIG_KCMP"),
    ]
}

/// The same list where nothing could be tried: no report leaves one out.
#[must_use]
pub fn untried(why: &dyn std::fmt::Display) -> Vec<Feature> {
    let feature = |name: &&str| Feature { name: (*name).to_owned(), available: false, detail: why.to_string() };
    NAMES.iter().map(feature).collect()
}

fn feature(name: &str, tried: io::Result<bool>, what: &str, needs: &str) -> Feature {
    let (available, detail) = match tried {
        Ok(true) => (true, what.to_owned()),
        Ok(false) => (false, format!("not in this kernel ({needs})")),
        Err(error) => (false, format!("{error} ({needs})")),
    };
    Feature { name: name.to_owned(), available, detail }
}

/// Sends ourselves a descriptor, and looks for it in the receiver's fdinfo.
fn scm_fds() -> io::Result<bool> {
    let (sender, receiver) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    let fds = [sender.as_raw_fd()];
    let message = [io::IoSlice::new(b"x")];
    sendmsg::<()>(sender.as_raw_fd(), &message, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)?;
    Ok(fdinfo(&receiver)?.lines().any(|line| line.split_whitespace().eq(["scm_fds:", "1"])))
}

/// Registers a pipe with a ring of ours, and looks for it in the ring's fdinfo.
fn user_files() -> io::Result<bool> {
    const REGISTER_FILES: libc::c_uint = 2; // IORING_REGISTER_FILES of include/uapi/linux/io_uring.h
    let mut parameters = [0_u8; 120]; // struct io_uring_params: zeroes ask for nothing special
    // SAFETY: the structure is alive for the call and as large as the kernel's.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, parameters.as_mut_ptr()) };
    let ring = descriptor(ring)?;
    let (read, _write) = pipe2(OFlag::O_CLOEXEC)?;
    let files = [read.as_raw_fd()];
    // SAFETY: the ring is open, and the array alive for the call and as long as we say.
    let registered =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_FILES, files.as_ptr(), 1) };
    if registered < 0 {
        return Err(io::Error::last_os_error());
    }
    let pipe = format!("pipe:[{}]", nix::sys::stat::fstat(&read)?.st_ino);
    Ok(fdinfo(&ring)?.contains(&pipe))
}

/// Signal 0 (none) to the group that we lead, by a pidfd of ours.
fn pidfd_signal_process_group() -> io::Result<bool> {
    const PROCESS_GROUP: libc::c_uint = 1 << 2; // PIDFD_SIGNAL_PROCESS_GROUP of include/uapi/linux/pidfd.h
    // SAFETY: two integers; the result is checked.
    let us = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) })?;
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: an open pidfd, no signal, and no information, which the kernel allows.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, us.as_raw_fd(), 0, none, PROCESS_GROUP) };
    match known(sent) {
        // Understood: we lead no group, so there is none of our number.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
        result => result,
    }
}

/// Asks a socket of ours who its peer is.
fn so_peerpidfd() -> io::Result<bool> {
    const SO_PEERPIDFD: libc::c_int = 77; // include/uapi/asm-generic/socket.h
    let (one, _other) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    let mut fd: libc::c_int = -1;
    let mut size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: value and size are alive for the call, and the value is as large as we say.
    let asked = unsafe {
        libc::getsockopt(one.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut size)
    };
    if asked == 0 {
        drop(descriptor(fd.into()));
    }
    known(asked.into())
}

/// Looks for the file in a cgroup of our own making, or in the one that we are in.
fn cgroup_kill() -> io::Result<bool> {
    let ours = our_cgroup()?;
    if ours.join("cgroup.kill").exists() {
        return Ok(true);
    }
    // The root has none of these files: a leaf below it would.
    let leaf = ours.join(format!("pipewarden-doctor-{}", std::process::id()));
    fs::create_dir(&leaf)?;
    let found = leaf.join("cgroup.kill").exists();
    fs::remove_dir(&leaf)?;
    Ok(found)
}

/// Our cgroup in the v2 hierarchy, as a folder.
fn our_cgroup() -> io::Result<PathBuf> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "no cgroup v2 hierarchy is mounted");
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or_else(missing)?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next()? == "cgroup2").then_some(place)
    });
    Ok(Path::new(mount.ok_or_else(missing)?).join(path))
}

fn proc_children() -> io::Result<bool> {
    let us = std::process::id();
    Ok(Path::new(&format!("/proc/self/task/{us}/children")).exists())
}

/// Compares a descriptor with a copy of it.
fn kcmp() -> io::Result<bool> {
    const FILE: libc::c_int = 0; // KCMP_FILE of include/uapi/linux/kcmp.h
    let (read, _write) = pipe2(OFlag::O_CLOEXEC)?;
    let copy = read.try_clone()?;
    let us = std::process::id();
    // SAFETY: kcmp(2) takes five integers and touches no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, us, us, FILE, read.as_raw_fd(), copy.as_raw_fd()) };
    if order < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(order == 0)
}

fn fdinfo(fd: &OwnedFd) -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
}

/// Whether a call was understood: these errors are how a kernel says that it does not know a flag.
fn known(result: i64) -> io::Result<bool> {
    if result >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOPROTOOPT | libc::ENOSYS) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_tried_is_in_the_list_too() {
        let names = |features: Vec<Feature>| features.into_iter().map(|feature| feature.name).collect::<Vec<_>>();
        assert_eq!(names(untried(&"no answer")), names(all()));
    }
}
