//! The filter of system calls that keeps the node's loop from changing files: classic BPF, for seccomp(2).
//!
//! It lists what would open a file for writing or change one, or become something else that could; all else is
//! let through. What a descriptor is open for already, a thread may go on doing.

use std::io;

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};

/// `AUDIT_ARCH_*` of include/uapi/linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// The numbers of x32, which nobody here calls by (`__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`; of an argument, the lower half on these little-endian machines.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What opens a file for more than reading.
const WRITING: i32 = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;

/// Calls that open by flags, and which argument these are.
#[cfg(target_arch = "x86_64")]
const OPENING: [(libc::c_long, u32); 3] =
    [(libc::SYS_open, 1), (libc::SYS_openat, 2), (libc::SYS_open_by_handle_at, 2)];
#[cfg(target_arch = "aarch64")]
const OPENING: [(libc::c_long, u32); 2] = [(libc::SYS_openat, 2), (libc::SYS_open_by_handle_at, 2)];

/// fchmodat2(2), which libc does not know everywhere; calls as new as this have one number on all machines.
const FCHMODAT2: libc::c_long = 452;

/// Calls that change what files there are or what they are, or whose arguments no filter can see.
const CHANGING: [libc::c_long; 36] = [
    libc::SYS_openat2,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_renameat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_io_uring_setup,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
];

/// Those that have another name since, and are there for old programs.
#[cfg(target_arch = "x86_64")]
const OLD: [libc::c_long; 13] = [
    libc::SYS_creat,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
];
#[cfg(target_arch = "aarch64")]
const OLD: [libc::c_long; 0] = [];

/// Puts it on this thread, and on those that it starts from here on. Needs `no_new_privs`.
pub(super) fn install() -> io::Result<()> {
    let program = program();
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: prctl(2) reads the program, which lives until it returns.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn program() -> Vec<sock_filter> {
    let denied = ret(libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned());
    let allowed = ret(libc::SECCOMP_RET_ALLOW);
    // Another architecture's numbers mean something else.
    let mut program = vec![load(ARCHITECTURE), unless(BPF_JEQ, ARCH), denied, load(NUMBER), when(BPF_JGE, X32), denied];
    for number in CHANGING.into_iter().chain(OLD) {
        program.extend([when(BPF_JEQ, word(number)), denied]);
    }
    for (number, argument) in OPENING {
        // Past these four where it is another call; each argument has eight bytes.
        let other = jump(BPF_JEQ, word(number), 0, 4);
        let flags = load(ARGUMENTS + 8 * argument);
        program.extend([other, flags, when(BPF_JSET, WRITING.cast_unsigned()), denied, allowed]);
    }
    program.push(allowed);
    program
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "numbers of system calls are small")]
fn word(number: libc::c_long) -> u32 {
    number as u32
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

fn ret(value: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, value, 0, 0)
}

/// The next instruction only if this holds.
fn when(test: u32, value: u32) -> sock_filter {
    jump(test, value, 0, 1)
}

/// The next instruction only if it does not.
fn unless(test: u32, value: u32) -> sock_filter {
    jump(test, value, 1, 0)
}

fn jump(test: u32, value: u32, holds: u8, fails: u8) -> sock_filter {
    statement(BPF_JMP | test | BPF_K, value, holds, fails)
}

#[allow(clippy::cast_possible_truncation, reason = "operation codes have 16 bits")]
fn statement(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};

    use super::*;

    #[test]
    fn a_thread_behind_the_filter_reads_and_writes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "text").unwrap();
        let (file, new) = (path.clone(), folder.path().join("new"));
        let mut open = OpenOptions::new().append(true).open(&path).unwrap();
        let tried = std::thread::spawn(move || {
            // SAFETY: prctl(2) with integers alone; it is about this thread.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
            install().unwrap();
            let _ = std::io::Write::write(&mut open, b"!").unwrap(); // what is open stays so
            let text = fs::read_to_string(&file).unwrap();
            let tries = [
                ("write", fs::write(&file, "").err()),
                ("append", OpenOptions::new().append(true).open(&file).err()),
                ("create", File::create(&new).err()),
                ("remove", fs::remove_file(&file).err()),
                ("rename", fs::rename(&file, &new).err()),
                ("link", fs::hard_link(&file, &new).err()),
                ("symlink", std::os::unix::fs::symlink(&file, &new).err()),
                ("folder", fs::create_dir(&new).err()),
                ("mode", fs::set_permissions(&file, file.metadata().unwrap().permissions()).err()),
                ("program", std::process::Command::new("/bin/true").status().err()),
            ];
            (text, tries)
        });
        let (text, tries) = tried.join().unwrap();
        assert_eq!(text, "text!");
        for (what, error) in tries {
            let error = error.and_then(|error| error.raw_os_error());
            assert_eq!(error, Some(libc::EPERM), "{what}");
        }
        fs::write(&path, "others may").unwrap();
    }
}
