//! What a system call does to descriptor tables: the values of the map `CALLS`, by the call's number.
//!
//! User space fills the map for its architecture, so that no number is written down in the programs.

/// How many numbers the map has room for: the generic table ends below 480 (Linux 7.2).
pub const NUMBERS: u32 = 512;

/// How far a 32-bit caller's meaning of a number is shifted in the map's value; the native one is in
/// the lower half.
pub const COMPAT_SHIFT: u32 = 16;

/// None of our business.
pub const NONE: u32 = 0;
/// The descriptor is the first argument: close.
pub const FIRST_ARGUMENT: u32 = 1;
/// The descriptor is the return value: open and its kin, dup and its kin, pidfd_getfd.
pub const RETURNED: u32 = 2;
/// As [`RETURNED`], if the second argument is `F_DUPFD` or `F_DUPFD_CLOEXEC`: fcntl.
pub const FCNTL: u32 = 3;
/// Two descriptors, written where the first argument points: pipe.
pub const PAIR: u32 = 4;
/// Any number of descriptors, or another table: close_range, unshare, recvmmsg, io_uring_enter.
pub const TABLE: u32 = 5;
/// As [`TABLE`], if the message that the second argument points to brought anything beside its data:
/// recvmsg.
pub const MESSAGE: u32 = 6;
/// setsid.
pub const SETSID: u32 = 7;
/// setpgid.
pub const SETPGID: u32 = 8;
/// ioctl: of all of its commands one puts a descriptor into another process's table
/// (`SECCOMP_IOCTL_NOTIF_ADDFD`, which names that process by a number of its own).
pub const IOCTL: u32 = 9;
/// That command: `SECCOMP_IOW(3, struct seccomp_notif_addfd)` of include/uapi/linux/seccomp.h.
pub const SECCOMP_ADDFD: u32 = 0x4018_2103;
/// A command of ioctl that is nobody's: user space calls it on no descriptor, to hear whether the programs do.
pub const PULSE: u32 = 0x7077_f9f9;
