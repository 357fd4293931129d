//! The user side's promise that these types may be read from any bytes.

use aya::Pod;

use crate::Held;
use crate::event::{Closed, Escape, Event, Exec};
use crate::live_map::{Call, Control, PipeKey, Process, Slot, SlotKey, Table};
use crate::snapshot::{FileRow, TaskRow};

// SAFETY: a `repr(C)` structure of integers and arrays of them without padding (asserted below): any
// bytes are a value.
unsafe impl Pod for Held {}
// SAFETY: as above.
unsafe impl Pod for Event {}
// SAFETY: as above.
unsafe impl Pod for Escape {}
// SAFETY: as above.
unsafe impl Pod for Closed {}
// SAFETY: as above.
unsafe impl Pod for Exec {}
// SAFETY: as above.
unsafe impl Pod for SlotKey {}
// SAFETY: as above.
unsafe impl Pod for Slot {}
// SAFETY: as above.
unsafe impl Pod for Table {}
// SAFETY: as above.
unsafe impl Pod for Process {}
// SAFETY: as above.
unsafe impl Pod for PipeKey {}
// SAFETY: as above.
unsafe impl Pod for Control {}
// SAFETY: as above.
unsafe impl Pod for Call {}
// SAFETY: as above.
unsafe impl Pod for TaskRow {}
// SAFETY: as above.
unsafe impl Pod for FileRow {}

const _: () = {
    assert!(size_of::<Held>() == 3 * 8 + 4 * 4);
    assert!(size_of::<Event>() == 3 * 8 + 8 * 4 + 16);
    assert!(size_of::<Escape>() == size_of::<Event>() + 2 * 4 + crate::event::HELD_MAX * size_of::<Held>());
    assert!(size_of::<Closed>() == size_of::<Event>() + size_of::<Held>());
    assert!(size_of::<Exec>() == size_of::<Event>() + 8 + crate::event::OUTPUTS * size_of::<Held>());
    assert!(size_of::<SlotKey>() == 8 + 2 * 4);
    assert!(size_of::<Slot>() == size_of::<Held>() + 2 * 4);
    assert!(size_of::<Table>() == 4 * 6 + 8);
    assert!(size_of::<Process>() == 3 * 8 + 4 * 4);
    assert!(size_of::<PipeKey>() == 8 + 2 * 4);
    assert!(size_of::<Control>() == 2 * 4);
    assert!(size_of::<Call>() == 3 * 8);
    assert!(size_of::<TaskRow>() == 2 * 8 + 6 * 4);
    assert!(size_of::<FileRow>() == 8 + 2 * 4 + size_of::<Held>());
};
