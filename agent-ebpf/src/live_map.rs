//! The live map: which slot of which descriptor table is an end of which pipe.
//!
//! State, not deltas: [`look`] reads a slot and makes the map say the same. It may be called at any time,
//! by several processors at once, and for no reason.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use pipewarden_common::counter::{LOST_SLOTS, MENDED, SLOTS as IN_SLOTS, UNSETTLED};
use pipewarden_common::live_map::{Control, PipeKey, Slot, SlotKey};
use pipewarden_common::{END_WRITE, Held};

use crate::counters::{count, uncount};
use crate::fd_table::{Slots, pipe_behind};
use crate::lineage;

// User space sets the maps' sizes: these are a run's.

/// Every tracked slot that is an end of a pipe.
#[map]
static SLOTS: HashMap<SlotKey, Slot> = HashMap::with_max_entries(65536, 0);

/// Those of them that are on a watched pipe: who asks for its holders reads these alone.
#[map]
static HOLDERS: HashMap<SlotKey, Slot> = HashMap::with_max_entries(8192, 0);

/// The watched pipes, put in by user space, and the kernel's object of each, once it was seen.
#[map]
static WATCHED: HashMap<PipeKey, u64> = HashMap::with_max_entries(1024, 0);

/// What user space says while the programs run.
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// What user space says now.
#[inline(always)]
pub fn control() -> Control {
    match CONTROL.get_ptr(0) {
        // SAFETY: the element of an array map lives as long as the program, and any bytes are a value.
        Some(control) => unsafe { control.read_volatile() },
        None => Control { root: 0, pass: 0 },
    }
}

/// How often a slot is read again that changes while it is put into the map.
const TURNS: u32 = 4;

/// Makes the map say what is in a slot now.
///
/// Another processor may do the same for the same slot at the same time, between its own reading and
/// its own putting. So whoever has put looks again: the last one to put has then seen what is there.
///
/// 1 if it is an end of a pipe.
///
/// As all functions here that are global (see `main.rs`), it is verified once for each program and not
/// once for each call.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look(files: u64, fd: u32) -> u32 {
    let mut turn = 0;
    let mut file = Slots::of(files).file(fd);
    while turn < TURNS {
        let is_pipe = put(files, fd, file, turn);
        let now = Slots::of(files).file(fd);
        if now == file {
            return is_pipe;
        }
        file = now;
        turn += 1;
    }
    count(UNSETTLED);
    0
}

/// Makes the map say that this file is in that slot (0: none).
///
/// `again` (not 0): another processor was at it too; then it is not enough that the map looks right already,
/// because its two parts may have been written by two of us.
///
/// 1 if it is an end of a pipe.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn put(files: u64, fd: u32, file: u64, again: u32) -> u32 {
    let again = again != 0;
    let key = SlotKey { files, fd, reserved: 0 };
    // Nothing is a value too here and below: the verifier does not like what may be uninitialised.
    let mut slot = Slot { held: Held::default(), pass: control().pass, watched: 0 };
    if file != 0
        && let Some(held) = pipe_behind(file, fd)
    {
        slot.held = held;
        slot.watched = is_watched(&slot.held);
    }
    let is_pipe = slot.held.ends != 0;
    // No more of it than is needed: the stack is 512 bytes for all callers together.
    let (was_there, was_watched, same, before) = match SLOTS.get_ptr(&key) {
        // SAFETY: a value of the map; a torn look differs from what is there, and is put right.
        Some(there) => unsafe { (true, (*there).watched == 1, *there == slot, (*there).held) },
        None => (false, false, false, Held::default()),
    };
    if is_pipe {
        if same && !again {
            return 1;
        }
        insert(&key, &slot, was_there);
        if slot.watched == 1 {
            if HOLDERS.insert(&key, &slot, 0).is_err() {
                count(LOST_SLOTS);
            }
        } else if again || was_watched {
            let _ = HOLDERS.remove(&key); // absent is what we want
        }
    } else {
        if was_there {
            remove(&key);
        }
        if again || was_watched {
            let _ = HOLDERS.remove(&key);
        }
    }
    if was_watched && before.ends & END_WRITE != 0 && before.file != file {
        lineage::writer_gone(&before);
    }
    is_pipe as u32
}

/// Whether the map has a slot, and what it says of it.
#[inline(always)]
fn in_map(key: &SlotKey) -> (bool, Slot) {
    // SAFETY: the value is copied at once; a torn copy differs from what is there, and is put right.
    match unsafe { SLOTS.get(key) } {
        Some(slot) => (true, *slot),
        None => (false, Slot::default()),
    }
}

#[inline(always)]
fn insert(key: &SlotKey, slot: &Slot, replaces: bool) {
    const NEW_ONLY: u64 = 1; // BPF_NOEXIST
    if !replaces && SLOTS.insert(key, slot, NEW_ONLY).is_ok() {
        count(IN_SLOTS);
        lineage::add_slots(key.files, 1);
    } else if SLOTS.insert(key, slot, 0).is_err() {
        count(LOST_SLOTS);
    }
}

#[inline(always)]
fn remove(key: &SlotKey) {
    if SLOTS.remove(key).is_ok() {
        uncount(IN_SLOTS);
        lineage::add_slots(key.files, u64::MAX);
    }
}

/// Whether the map says that a slot is an end of a pipe.
#[inline(always)]
pub fn knows(files: u64, fd: u32) -> bool {
    SLOTS.get_ptr(&SlotKey { files, fd, reserved: 0 }).is_some()
}

/// Takes a slot out of the map, whatever is in it. Always 0: global functions answer a number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forget(files: u64, fd: u32) -> u32 {
    let key = SlotKey { files, fd, reserved: 0 };
    let (was_there, before) = in_map(&key);
    if was_there {
        remove(&key);
    }
    if before.watched == 1 {
        let _ = HOLDERS.remove(&key);
        if before.held.ends & END_WRITE != 0 {
            lineage::writer_gone(&before.held);
        }
    }
    0
}

#[inline(always)]
fn is_watched(held: &Held) -> u32 {
    WATCHED.get_ptr(&key_of(held)).is_some() as u32
}

/// Notes the kernel's object of a pipe, if it is a watched one.
#[inline(always)]
pub fn note_object(held: &Held) {
    if let Some(object) = WATCHED.get_ptr_mut(&key_of(held)) {
        // SAFETY: a value of the map; the word is written as one.
        unsafe { object.write_volatile(held.object) };
    }
}

#[inline(always)]
fn key_of(held: &Held) -> PipeKey {
    PipeKey { ino: held.ino, dev: held.dev, reserved: 0 }
}

/// Looks at a slot for a pass over everything, and counts if the map was wrong about it.
#[inline(always)]
pub fn mend(files: u64, fd: u32) {
    let key = SlotKey { files, fd, reserved: 0 };
    let (_, before) = in_map(&key);
    look(files, fd);
    let (_, after) = in_map(&key);
    if before.held != after.held {
        count(MENDED);
    }
}
