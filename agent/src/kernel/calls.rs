//! System calls that change descriptor tables or leave groups, by this architecture's numbers, and its
//! registers: what differs from architecture to architecture, so that the programs need not.

use pipewarden_common::call::{self, COMPAT_SHIFT};
use pipewarden_common::offsets::global;

/// A system call: its name, its number here, its number for 32-bit callers, and what it does.
struct Call {
    name: &'static str,
    number: Option<libc::c_long>,
    compat: Option<u32>,
    meaning: u32,
}

const fn entry(name: &'static str, number: libc::c_long, compat: u32, meaning: u32) -> Call {
    Call { name, number: Some(number), compat: Some(compat), meaning }
}

/// A call that only 32-bit callers have.
const fn old(name: &'static str, compat: u32, meaning: u32) -> Call {
    Call { name, number: None, compat: Some(compat), meaning }
}

// The 32-bit numbers: arch/x86/entry/syscalls/syscall_32.tbl, arch/arm64/tools/syscall_32.tbl.

#[cfg(target_arch = "x86_64")]
const CALLS: &[Call] = &[
    entry("close", libc::SYS_close, 6, call::FIRST_ARGUMENT),
    entry("open", libc::SYS_open, 5, call::RETURNED),
    entry("creat", libc::SYS_creat, 8, call::RETURNED),
    entry("openat", libc::SYS_openat, 295, call::RETURNED),
    entry("openat2", libc::SYS_openat2, 437, call::RETURNED),
    entry("open_by_handle_at", libc::SYS_open_by_handle_at, 342, call::RETURNED),
    entry("dup", libc::SYS_dup, 41, call::RETURNED),
    entry("dup2", libc::SYS_dup2, 63, call::RETURNED),
    entry("dup3", libc::SYS_dup3, 330, call::RETURNED),
    entry("fcntl", libc::SYS_fcntl, 55, call::FCNTL),
    old("fcntl64", 221, call::FCNTL),
    entry("pidfd_getfd", libc::SYS_pidfd_getfd, 438, call::RETURNED),
    entry("pipe", libc::SYS_pipe, 42, call::PAIR),
    entry("pipe2", libc::SYS_pipe2, 331, call::PAIR),
    entry("close_range", libc::SYS_close_range, 436, call::TABLE),
    entry("unshare", libc::SYS_unshare, 310, call::TABLE),
    entry("recvmsg", libc::SYS_recvmsg, 372, call::MESSAGE),
    entry("recvmmsg", libc::SYS_recvmmsg, 337, call::TABLE),
    old("recvmmsg_time64", 417, call::TABLE),
    old("socketcall", 102, call::TABLE),
    entry("io_uring_enter", libc::SYS_io_uring_enter, 426, call::TABLE),
    entry("ioctl", libc::SYS_ioctl, 54, call::IOCTL),
    entry("setsid", libc::SYS_setsid, 66, call::SETSID),
    entry("setpgid", libc::SYS_setpgid, 57, call::SETPGID),
];

#[cfg(target_arch = "aarch64")]
const CALLS: &[Call] = &[
    entry("close", libc::SYS_close, 6, call::FIRST_ARGUMENT),
    old("open", 5, call::RETURNED),
    old("creat", 8, call::RETURNED),
    entry("openat", libc::SYS_openat, 322, call::RETURNED),
    entry("openat2", libc::SYS_openat2, 437, call::RETURNED),
    entry("open_by_handle_at", libc::SYS_open_by_handle_at, 371, call::RETURNED),
    entry("dup", libc::SYS_dup, 41, call::RETURNED),
    old("dup2", 63, call::RETURNED),
    entry("dup3", libc::SYS_dup3, 358, call::RETURNED),
    entry("fcntl", libc::SYS_fcntl, 55, call::FCNTL),
    old("fcntl64", 221, call::FCNTL),
    entry("pidfd_getfd", libc::SYS_pidfd_getfd, 438, call::RETURNED),
    old("pipe", 42, call::PAIR),
    entry("pipe2", libc::SYS_pipe2, 359, call::PAIR),
    entry("close_range", libc::SYS_close_range, 436, call::TABLE),
    entry("unshare", libc::SYS_unshare, 337, call::TABLE),
    entry("recvmsg", libc::SYS_recvmsg, 297, call::MESSAGE),
    entry("recvmmsg", libc::SYS_recvmmsg, 365, call::TABLE),
    old("recvmmsg_time64", 417, call::TABLE),
    entry("io_uring_enter", libc::SYS_io_uring_enter, 426, call::TABLE),
    entry("ioctl", libc::SYS_ioctl, 54, call::IOCTL),
    entry("setsid", libc::SYS_setsid, 66, call::SETSID),
    entry("setpgid", libc::SYS_setpgid, 57, call::SETPGID),
];

/// The map `CALLS`: number and value of each element that is not 0.
pub(super) fn meanings() -> Vec<(u32, u32)> {
    let mut meanings = std::collections::BTreeMap::<u32, u32>::new();
    for call in CALLS {
        if let Some(number) = call.number.and_then(|number| u32::try_from(number).ok()) {
            *meanings.entry(number).or_default() |= call.meaning;
        }
        if let Some(number) = call.compat {
            *meanings.entry(number).or_default() |= call.meaning << COMPAT_SHIFT;
        }
    }
    meanings.into_iter().collect()
}

/// The calls that this architecture's own programs make: the name, and the kernel's function behind it.
pub(super) fn functions() -> impl Iterator<Item = (&'static str, String)> {
    let native = CALLS.iter().filter(|call| call.number.is_some());
    native.map(|call| (call.name, format!("{WRAPPER}{}", call.name)))
}

/// The calls that 32-bit programs make, where the kernel has functions of their own for them.
pub(super) fn compat_functions() -> impl Iterator<Item = (&'static str, String)> {
    /// Their arguments are not as wide.
    const OTHER_ARGUMENTS: [&str; 8] =
        ["open", "openat", "open_by_handle_at", "fcntl", "fcntl64", "recvmsg", "recvmmsg_time64", "socketcall"];
    let compat = CALLS.iter().filter(|call| {
        // These two are heard of by whoever calls.
        call.compat.is_some() && !matches!(call.meaning, call::SETSID | call::IOCTL)
    });
    compat.filter_map(|call| {
        let function = match call.name {
            "recvmmsg" => format!("{COMPAT_WRAPPER}recvmmsg_time32"),
            name if OTHER_ARGUMENTS.contains(&name) => format!("{COMPAT_WRAPPER}{name}"),
            name => format!("{}{name}", SAME_FOR_COMPAT?),
        };
        Some((call.name, function))
    })
}

#[cfg(target_arch = "x86_64")]
const WRAPPER: &str = "__x64_sys_";
#[cfg(target_arch = "x86_64")]
const COMPAT_WRAPPER: &str = "__ia32_compat_sys_";
/// Where arguments are as wide, there is still another function: they are in other registers.
#[cfg(target_arch = "x86_64")]
const SAME_FOR_COMPAT: Option<&str> = Some("__ia32_sys_");
#[cfg(target_arch = "aarch64")]
const WRAPPER: &str = "__arm64_sys_";
#[cfg(target_arch = "aarch64")]
const COMPAT_WRAPPER: &str = "__arm64_compat_sys_";
/// These are the 64-bit programs' functions.
#[cfg(target_arch = "aarch64")]
const SAME_FOR_COMPAT: Option<&str> = None;

/// Where the registers are.
#[cfg(target_arch = "x86_64")]
pub(super) const OFFSETS: [(&str, &str); 8] = [
    (global::REGS_NR, "pt_regs.orig_ax"),
    (global::REGS_ARGUMENT, "pt_regs.di"),
    (global::REGS_ARGUMENT_2, "pt_regs.si"),
    (global::REGS_COMPAT_ARGUMENT, "pt_regs.bx"),
    (global::REGS_COMPAT_ARGUMENT_2, "pt_regs.cx"),
    (global::REGS_PARAMETER, "pt_regs.di"),
    (global::REGS_RETURN, "pt_regs.ax"),
    (global::TASK_COMPAT, "task_struct.thread_info.status"),
];

/// Where the registers are.
#[cfg(target_arch = "aarch64")]
pub(super) const OFFSETS: [(&str, &str); 8] = [
    (global::REGS_NR, "pt_regs.syscallno"),
    // The return value takes the first argument's register; the kernel keeps a copy.
    (global::REGS_ARGUMENT, "pt_regs.orig_x0"),
    (global::REGS_ARGUMENT_2, "pt_regs.regs+8"),
    (global::REGS_COMPAT_ARGUMENT, "pt_regs.orig_x0"),
    (global::REGS_COMPAT_ARGUMENT_2, "pt_regs.regs+8"),
    (global::REGS_PARAMETER, "pt_regs.regs"),
    (global::REGS_RETURN, "pt_regs.regs"),
    (global::TASK_COMPAT, "task_struct.thread_info.flags"),
];

/// What marks a 32-bit caller there: TS_COMPAT of arch/x86/include/asm/thread_info.h, set from the call's
/// entry until after its exit was traced.
#[cfg(target_arch = "x86_64")]
pub(super) const COMPAT_MASK: u64 = 0x2;
/// TIF_32BIT of arch/arm64/include/asm/thread_info.h.
#[cfg(target_arch = "aarch64")]
pub(super) const COMPAT_MASK: u64 = 1 << 22;

#[cfg(test)]
mod tests {
    use super::*;
    use pipewarden_common::call::NUMBERS;

    #[test]
    fn every_number_has_its_place_and_means_one_thing() {
        let meanings = meanings();
        assert!(meanings.iter().all(|(number, _)| *number < NUMBERS));
        let close = u32::try_from(libc::SYS_close).unwrap();
        let of = |number| meanings.iter().find(|(at, _)| *at == number).unwrap().1 & ((1 << COMPAT_SHIFT) - 1);
        assert_eq!(of(close), call::FIRST_ARGUMENT);
        for call in CALLS {
            let others = CALLS.iter().filter(|other| other.number.is_some() && other.number == call.number);
            assert!(others.count() <= 1, "{}", call.name);
        }
    }
}
