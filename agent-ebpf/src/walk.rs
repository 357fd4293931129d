//! Walks over a whole descriptor table, for what may have changed any number of slots.

use aya_ebpf::helpers::bpf_loop;
use core::ffi::c_void;
use pipewarden_common::counter::UNSURE_TABLES;

use crate::counters::count;
use crate::fd_table::{Slots, users};
use crate::{lineage, live_map, read};

/// What a walk does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Aim {
    /// Put in what is there.
    Enter,
    /// Take out what is not there.
    Sweep,
    /// The table is going: take out what is there.
    Forget,
    /// And what is not there, but was in the map still.
    ForgetRest,
}

impl Aim {
    #[inline(always)]
    fn is_about_empty_slots(self) -> bool {
        matches!(self, Aim::Sweep | Aim::ForgetRest)
    }
}

/// The way through the table: the kernel's own loop, or a short one where there is none.
pub trait Way {
    /// Makes the map say what is in a table, and nothing else.
    fn look(files: u64);
    /// Puts a table into the map of which that knows nothing yet.
    fn enter(files: u64);
    /// Takes a table out of the map.
    fn forget(files: u64);
    /// Walks.
    fn walk(walk: &mut Walk);
}

/// The ways as global functions, which are verified once for each program that calls them.
macro_rules! global {
    ($way:ty, $look:ident, $enter:ident, $forget:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $look(files: u64) -> u32 {
            look::<$way>(files);
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $enter(files: u64) -> u32 {
            walk::<$way>(files, Aim::Enter, false);
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $forget(files: u64) -> u32 {
            forget::<$way>(files);
            0
        }
    };
}
global!(Loops, look_at_table, enter_table, forget_table);
global!(Bounded, look_at_table_bounded, enter_table_bounded, forget_table_bounded);

/// bpf_loop, since Linux 5.17: two small functions to verify, and no end but the table's.
pub struct Loops;

/// A bounded loop, for the kernels before: what lies beyond is counted as unsure.
pub struct Bounded;

/// How far a bounded walk goes: so many words of the bitmap, of 64 descriptors each.
const BOUND: u32 = 512;

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
    /// How many ends of pipes were met. As narrow as a look's answer: after one turn it is any number to
    /// the verifier, and all turns are alike.
    met: u32,
}

/// Makes the map say what is in a table, and nothing else.
///
/// Most slots of most tables are empty. What the map may have of them is asked for only where it has more
/// of the table than was met.
#[inline(always)]
fn look<W: Way>(files: u64) {
    let shared = users(files) > 1;
    let met = walk::<W>(files, Aim::Enter, shared);
    if u64::from(met) != lineage::slots_of(files) {
        walk::<W>(files, Aim::Sweep, shared);
    }
}

/// Takes a table out of the map: what is in it, and what was closed without our being told.
#[inline(always)]
fn forget<W: Way>(files: u64) {
    walk::<W>(files, Aim::Forget, false);
    if lineage::slots_of(files) != 0 {
        walk::<W>(files, Aim::ForgetRest, false);
    }
}

/// Walks over a table; how many ends of pipes were met.
#[inline(always)]
fn walk<W: Way>(files: u64, aim: Aim, shared: bool) -> u32 {
    let mut walk = Walk { files, slots: Slots::of(files), aim, shared, word: 0, base: 0, met: 0 };
    W::walk(&mut walk);
    walk.met
}

impl Way for Loops {
    #[inline(always)]
    fn look(files: u64) {
        look_at_table(files);
    }

    #[inline(always)]
    fn enter(files: u64) {
        enter_table(files);
    }

    #[inline(always)]
    fn forget(files: u64) {
        forget_table(files);
    }

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
    if walk.word == 0 && !walk.aim.is_about_empty_slots() {
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
    let walk = unsafe { &mut *context.cast::<Walk>() };
    step(walk, bit as u32);
    0
}

impl Way for Bounded {
    #[inline(always)]
    fn look(files: u64) {
        look_at_table_bounded(files);
    }

    #[inline(always)]
    fn enter(files: u64) {
        enter_table_bounded(files);
    }

    #[inline(always)]
    fn forget(files: u64) {
        forget_table_bounded(files);
    }

    #[inline(always)]
    fn walk(walk: &mut Walk) {
        let words = walk.slots.size / 64;
        let mut index = 0;
        while index < BOUND {
            if index >= words {
                return;
            }
            let met = word_of_table(walk.files, index, walk.aim as u32, walk.shared as u32);
            walk.met = walk.met.wrapping_add(met);
            index += 1;
        }
        if words > BOUND {
            count(UNSURE_TABLES);
        }
    }
}

/// Walks over the descriptors of one word; how many ends of pipes were met. Global as well: to who calls
/// it, all words are one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn word_of_table(files: u64, index: u32, aim: u32, shared: u32) -> u32 {
    let slots = Slots::of(files);
    let word: u64 = read::at(slots.open + u64::from(index) * 8);
    let aim = match aim {
        0 => Aim::Enter,
        1 => Aim::Sweep,
        2 => Aim::Forget,
        _ => Aim::ForgetRest,
    };
    if word == 0 && !aim.is_about_empty_slots() {
        return 0;
    }
    let mut walk = Walk { files, slots, aim, shared: shared != 0, word, base: index * 64, met: 0 };
    let mut bit = 0;
    while bit < 64 {
        step(&mut walk, bit);
        bit += 1;
    }
    walk.met
}

#[inline(always)]
fn step(walk: &mut Walk, bit: u32) {
    let fd = walk.base + bit;
    let open = walk.word >> (bit & 63) & 1 == 1;
    match walk.aim {
        Aim::Enter if open && walk.shared => {
            walk.met = walk.met.wrapping_add(live_map::look(walk.files, fd));
        }
        Aim::Enter if open => {
            walk.met = walk.met.wrapping_add(live_map::put(walk.files, fd, walk.slots.file(fd), 0));
        }
        // By now it may be open again.
        Aim::Sweep if !open && live_map::knows(walk.files, fd) => {
            live_map::look(walk.files, fd);
        }
        Aim::Forget if open => {
            live_map::forget(walk.files, fd);
        }
        Aim::ForgetRest if !open && live_map::knows(walk.files, fd) => {
            live_map::forget(walk.files, fd);
        }
        _ => {}
    }
}
