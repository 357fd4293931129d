//! Walks over a whole descriptor table, for what may have changed any number of slots.

use aya_ebpf::helpers::bpf_loop;
use core::ffi::c_void;
use pipewarden_common::counter::UNSURE_TABLES;

use crate::counters::count;
use crate::fd_table::{Slots, users};
use crate::{live_map, read};

/// What a walk does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Aim {
    /// The map knows nothing of the table yet: put in what is there.
    Enter,
    /// Make the map say what is there, and nothing else.
    Look,
    /// The table is going: take out what is there.
    Forget,
}

/// The way through the table: the kernel's own loop, or a short one where there is none.
pub trait Way {
    /// Walks.
    fn walk(walk: &mut Walk);
}

/// bpf_loop, since Linux 5.17: two small functions to verify, and no end but the table's.
pub struct Loops;

/// A bounded loop, for the kernels before: what lies beyond is counted as unsure.
pub struct Bounded;

/// How far a bounded walk goes: the first word of the bitmap, the only one that most tables have.
const BOUND: u32 = 64;

/// A walk on its way.
#[repr(C)]
pub struct Walk {
    files: u64,
    slots: Slots,
    aim: Aim,
    /// Whether other threads may change the table meanwhile.
    shared: bool,
    /// The word of the bitmap that the walk is in, and the descriptor that its lowest bit means.
    word: u64,
    base: u32,
}

/// Walks over a table.
#[inline(always)]
pub fn over<W: Way>(files: u64, aim: Aim) {
    if files == 0 {
        return; // a thread that has lost it already
    }
    let shared = aim == Aim::Look && users(files) > 1;
    W::walk(&mut Walk { files, slots: Slots::of(files), aim, shared, word: 0, base: 0 });
}

impl Way for Loops {
    #[inline(always)]
    fn walk(walk: &mut Walk) {
        let words = walk.slots.size / 64;
        // SAFETY: the callback has the type that the kernel calls, and its context outlives the call.
        unsafe {
            bpf_loop(words, each_word as *mut c_void, (&raw mut *walk).cast(), 0);
        }
    }
}

#[inline(never)]
unsafe extern "C" fn each_word(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `Loops::walk` passes a walk, which nobody else uses meanwhile.
    let walk = unsafe { &mut *context.cast::<Walk>() };
    walk.word = read::at(walk.slots.open + index * 8);
    if walk.word == 0 && walk.aim != Aim::Look {
        return 0;
    }
    walk.base = index as u32 * 64;
    // SAFETY: as above.
    unsafe {
        bpf_loop(64, each_slot as *mut c_void, context, 0);
    }
    0
}

#[inline(never)]
unsafe extern "C" fn each_slot(bit: u64, context: *mut c_void) -> i64 {
    // SAFETY: as above.
    let walk = unsafe { &*context.cast::<Walk>() };
    step(walk, bit as u32);
    0
}

impl Way for Bounded {
    #[inline(always)]
    fn walk(walk: &mut Walk) {
        if walk.slots.size > BOUND {
            count(UNSURE_TABLES);
        }
        walk.word = read::at(walk.slots.open);
        let mut bit = 0;
        while bit < BOUND {
            step(walk, bit);
            bit += 1;
        }
    }
}

#[inline(always)]
fn step(walk: &Walk, bit: u32) {
    let fd = walk.base + bit;
    let open = walk.word >> (bit & 63) & 1 == 1;
    match walk.aim {
        Aim::Forget if open => live_map::forget(walk.files, fd),
        // Most slots are empty, and the map says so.
        Aim::Look if walk.shared => {
            if open || live_map::knows(walk.files, fd) {
                live_map::look(walk.files, fd);
            }
        }
        Aim::Look if !open => live_map::put(walk.files, fd, 0, false),
        Aim::Look | Aim::Enter if open => live_map::put(walk.files, fd, walk.slots.file(fd), false),
        _ => {}
    }
}
