//! Descriptor tables as the kernel has them: what is in a slot, and a short walk over the first ones.

use core::ptr::addr_of_mut;

use pipewarden_common::event::{Escape, FIRST_OUTPUT, HELD_MAX, OUTPUTS, WALK_FDS};
use pipewarden_common::{END_READ, END_WRITE, Held};

use crate::globals::{
    FDT_FD, FDT_MAX, FDT_OPEN, FILE_INODE, FILE_MODE, FILES_COUNT, FILES_FDT, INODE_INO, INODE_MODE, INODE_PIPE,
    INODE_SB, PIPE_WRITERS, SB_DEV,
};
use crate::read;

/// include/uapi/linux/stat.h
pub const S_IFMT: u16 = 0o170_000;
/// As above.
pub const S_IFIFO: u16 = 0o010_000;

/// A table's current array of slots, with the bitmap of those in use.
pub struct Slots {
    /// How many there are.
    pub size: u32,
    /// Address of the first `struct file *`.
    pub first: u64,
    /// Address of the bitmap.
    pub open: u64,
}

impl Slots {
    /// The array that a `files_struct` has now. Another thread may give it a larger one at any time.
    #[inline(always)]
    pub fn of(files: u64) -> Self {
        let table: u64 = read::member(files, &FILES_FDT);
        Slots {
            size: read::member(table, &FDT_MAX),
            first: read::member(table, &FDT_FD),
            open: read::member(table, &FDT_OPEN),
        }
    }

    /// The `struct file` in a slot, or 0.
    #[inline(always)]
    pub fn file(&self, fd: u32) -> u64 {
        if fd < self.size { read::at(self.first + u64::from(fd) * 8) } else { 0 }
    }
}

/// How many threads have a table (readers of `/proc/PID/fd` counted as well, before Linux 5.11).
#[inline(always)]
pub fn users(files: u64) -> u32 {
    read::member(files, &FILES_COUNT)
}

/// How many open file descriptions write to a pipe.
#[inline(always)]
pub fn writers(object: u64) -> u32 {
    read::member(object, &PIPE_WRITERS)
}

/// The pipe behind a `struct file`, if there is one and the file is open on one of its ends
/// (an `O_PATH` descriptor is not).
#[inline(always)]
pub fn pipe_behind(file: u64, fd: u32) -> Option<Held> {
    let inode: u64 = read::member(file, &FILE_INODE);
    let mode: u16 = read::member(inode, &INODE_MODE);
    if mode & S_IFMT != S_IFIFO {
        return None;
    }
    let ends = read::member::<u32>(file, &FILE_MODE) & (END_READ | END_WRITE);
    if ends == 0 {
        return None;
    }
    Some(Held {
        object: read::member(inode, &INODE_PIPE),
        file,
        ino: read::member(inode, &INODE_INO),
        dev: read::member(read::member(inode, &INODE_SB), &SB_DEV),
        fd,
        ends,
        reserved: 0,
    })
}

/// Writes what stdout and stderr are into the record of an exec, where they are write ends of pipes.
///
/// # Safety
///
/// `outputs` must be writable.
#[inline(always)]
pub unsafe fn outputs(files: u64, outputs: *mut [Held; OUTPUTS]) {
    let slots = Slots::of(files);
    for index in 0..OUTPUTS {
        let fd = FIRST_OUTPUT + index as u32;
        let held = match slots.file(fd) {
            0 => None,
            file => pipe_behind(file, fd),
        };
        let held = held.filter(|held| held.ends & END_WRITE != 0).unwrap_or_default();
        // SAFETY: as the caller promises; the index is below the array's length.
        unsafe { outputs.cast::<Held>().add(index).write(held) };
    }
}

/// Writes the pipes among the table's first [`WALK_FDS`] descriptors into an escape.
///
/// The count is kept in the record and read back each time: to the verifier it is any number then,
/// and the turns of the loop, which differ in nothing else, need not be told apart. Measured on
/// 6.18: 10 thousand verified instructions, 9 ms to load; the same walk as a `bpf_loop` over words
/// with an inner loop over bits took 165 thousand and 0.7 s (and there is none before 5.17).
///
/// # Safety
///
/// `escape` must point to a whole, writable record.
#[inline(always)]
pub unsafe fn walk(files: u64, escape: *mut Escape) {
    // SAFETY (whole function): only fields of the record are written, at indices below HELD_MAX.
    unsafe {
        addr_of_mut!((*escape).count).write_volatile(0);
        addr_of_mut!((*escape).unseen).write_volatile(0);
        let Slots { size, first, open: bitmap } = Slots::of(files);
        let open: u64 = read::at(bitmap);
        // What lies past the walk is only looked at for being there: three more words, as tables
        // commonly have room for 256.
        let beyond = (1..4).any(|word| size > word * WALK_FDS && read::at::<u64>(bitmap + u64::from(word) * 8) != 0);
        if beyond || size > 4 * WALK_FDS {
            addr_of_mut!((*escape).unseen).write_volatile(1);
        }
        let mut fd = 0;
        while fd < WALK_FDS {
            if open & (1 << fd) != 0
                && let Some(held) = pipe_behind(read::at(first + u64::from(fd) * 8), fd)
            {
                let count = addr_of_mut!((*escape).count).read_volatile();
                if count < HELD_MAX as u32 {
                    addr_of_mut!((*escape).held[count as usize]).write(held);
                    addr_of_mut!((*escape).count).write_volatile(count + 1);
                } else {
                    let unseen = addr_of_mut!((*escape).unseen).read_volatile();
                    addr_of_mut!((*escape).unseen).write_volatile(unseen + 1);
                }
            }
            fd += 1;
        }
    }
}
