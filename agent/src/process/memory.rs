//! A few bytes of another process's memory: what a system call was asked to wait for.
//!
//! Reading needs what ptrace(2) would need, but attaches nothing and stops nobody. It can wait for the
//! process's memory map, and for a page that was swapped out: not for the path that must not block.

use std::io::IoSliceMut;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// The page size that no reading may cross without asking twice: what follows may not be mapped.
const PAGE: usize = 4096;

/// Reads exactly so many bytes.
#[must_use]
pub fn read(pid: i32, address: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let base = usize::try_from(address).ok()?;
    let remote = [RemoteIoVec { base, len: length }];
    let count = process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut bytes)], &remote).ok()?;
    (count == length).then_some(bytes)
}

/// Reads a string up to its NUL, at most `PATH_MAX` bytes.
#[must_use]
pub fn string(pid: i32, address: u64) -> Option<Vec<u8>> {
    let limit = usize::try_from(libc::PATH_MAX).ok()?;
    let mut text = Vec::new();
    let mut at = address;
    while text.len() < limit {
        let left = PAGE - usize::try_from(at).ok()? % PAGE;
        let piece = read(pid, at, left)?;
        at += u64::try_from(left).ok()?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            text.extend_from_slice(&piece[..end]);
            return Some(text);
        }
        text.extend_from_slice(&piece);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_read_up_to_its_end_and_across_pages() {
        let us = nix::unistd::getpid().as_raw();
        let mut text = vec![b'x'; 4000];
        text.push(0);
        for offset in 0..3 {
            let mut buffer = vec![b'y'; offset * 1500];
            buffer.extend_from_slice(&text);
            let address = buffer.as_ptr() as u64 + (offset * 1500) as u64;
            assert_eq!(string(us, address).unwrap().len(), 4000);
        }
        assert_eq!(string(us, 1), None, "what is not mapped is no string");
    }
}
