//! What kernel this is, and what this process may do in it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::btf::VMLINUX;

/// The kernel's release, as `uname -r` says it.
#[must_use]
pub fn release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "?".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

/// The first two numbers of the release. For what cannot be tried; (0, 0) if it has none.
#[must_use]
pub fn version() -> (u32, u32) {
    let release = release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The names of the capabilities, by number (include/uapi/linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

/// This process's capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it may do.
    pub effective: Capabilities,
    /// What any program that it runs can get.
    pub bounding: Capabilities,
}

impl Capabilities {
    /// From the bits by which the kernel writes it.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Capabilities(bits)
    }

    /// Whether a capability is in the set, by its name without `CAP_`.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        CAPABILITIES.iter().position(|known| *known == name).is_some_and(|number| self.0 >> number & 1 == 1)
    }

    /// The names of those in the set, with `CAP_`.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        CAPABILITIES.iter().filter(|name| self.has(name)).map(|name| format!("CAP_{name}")).collect()
    }

    /// The names of those that are not, with `CAP_`.
    #[must_use]
    pub fn missing(self) -> Vec<String> {
        Capabilities(!self.0).names()
    }
}

impl Held {
    /// Reads them from `/proc/self/status`.
    ///
    /// # Errors
    ///
    /// When that cannot be read, or says nothing about capabilities.
    pub fn read() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/self/status")?;
        let set = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let set = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).map(Capabilities::from_bits);
            set.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/self/status has no {key}")))
        };
        Ok(Held { effective: set("CapEff:")?, bounding: set("CapBnd:")? })
    }
}

/// The size of the kernel's types in bytes: they are there, and for us.
///
/// # Errors
///
/// When the file cannot be opened.
pub fn btf_size() -> io::Result<u64> {
    File::open(VMLINUX)?.metadata().map(|metadata| metadata.len())
}

/// The active security modules, in their order.
///
/// # Errors
///
/// When the kernel's security file system is mounted nowhere and may not be by us.
pub fn security_modules() -> io::Result<Vec<String>> {
    Ok(security_file("lsm")?.trim().split(',').map(str::to_owned).collect())
}

/// How far the kernel is locked down: `none`, `integrity` or `confidentiality`.
///
/// # Errors
///
/// As for [`security_modules`].
pub fn lockdown() -> io::Result<String> {
    match security_file("lockdown") {
        // "none [integrity] confidentiality"
        Ok(text) => Ok(text.split(['[', ']']).nth(1).unwrap_or("none").to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("none".to_owned()),
        Err(error) => Err(error),
    }
}

/// A file of the security file system, where it is mounted or else from a mount that only we see and
/// that is gone with its descriptor.
fn security_file(name: &str) -> io::Result<String> {
    const MOUNTED: &str = "/sys/kernel/security";
    if std::path::Path::new(MOUNTED).join("lsm").exists() {
        return std::fs::read_to_string(format!("{MOUNTED}/{name}"));
    }
    let mount = detached_mount("securityfs")?;
    let mut text = String::new();
    open_below(&mount, name)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Mounts a pseudo file system without giving it a place: fsopen(2), fsconfig(2), fsmount(2).
fn detached_mount(kind: &str) -> io::Result<OwnedFd> {
    const CREATE: libc::c_uint = 6; // FSCONFIG_CMD_CREATE of include/uapi/linux/mount.h
    let kind = CString::new(kind)?;
    // SAFETY: a C string that lives for the call, and an integer; the result is checked.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 0) })?;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: an open descriptor; this command takes neither key nor value.
    let created = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, none, none, 0) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: an open descriptor and two integers; the result is checked.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 0, 0) })
}

fn open_below(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: an open descriptor and a C string that lives for the call; the result is checked.
    let fd = unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags) };
    descriptor(fd.into()).map(File::from)
}

/// Takes what a system call gave as a descriptor.
pub(super) fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_known_by_their_numbers() {
        let some = Capabilities(1 << 39 | 1 << 38);
        assert!(some.has("BPF") && some.has("PERFMON") && !some.has("SYS_ADMIN"));
        assert_eq!(some.names(), ["CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(some.missing().len(), 39);
    }

    #[test]
    fn nothing_is_mounted_by_asking() {
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        match lockdown() {
            Ok(level) => assert!(["none", "integrity", "confidentiality"].contains(&level.as_str()), "{level}"),
            Err(error) => crate::kernel::skipped(format_args!("needs securityfs, mounted or to be mounted: {error}")),
        }
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }
}
