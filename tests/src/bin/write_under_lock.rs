//! Writes to stdout from memory that never comes, and so keeps the pipe's lock: whoever asks the pipe how
//! much is in it waits with it, and cannot be killed. A page of a dead NFS server does the same.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use pipewarden_tests::fixture::{Fixture, live_no_longer};

const LENGTH: usize = 1 << 16;

// include/uapi/linux/userfaultfd.h; libc has none of it.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFD_API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;

fn main() -> Result<()> {
    let fixture = Fixture::begin_silently()?;
    live_no_longer()?;
    fixture.announce(fixture.role())?;
    let handler = userfaultfd().context("this kernel gives us no userfaultfd")?;
    // SAFETY: a fresh private mapping overlaps nothing.
    let memory = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), LENGTH, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    ensure!(memory != libc::MAP_FAILED, "mmap: {}", Errno::last());
    let mut api: [u64; 3] = [UFFD_API, 0, 0];
    // SAFETY: struct uffdio_api is three 64 bit numbers, alive for the call.
    Errno::result(unsafe { libc::ioctl(handler.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) })?;
    let mut register: [u64; 4] = [memory as u64, LENGTH as u64, MODE_MISSING, 0];
    // SAFETY: struct uffdio_register is four 64 bit numbers, alive for the call.
    Errno::result(unsafe { libc::ioctl(handler.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) })?;
    // SAFETY: the memory is mapped; that its pages never come is the point.
    Errno::result(unsafe { libc::write(1, memory, LENGTH) })?;
    Ok(())
}

fn userfaultfd() -> Result<OwnedFd, Errno> {
    // SAFETY: userfaultfd takes one integer.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?) })
}
