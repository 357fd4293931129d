//! What the programs say, in the words of the rest of the program.

use aya::Pod;
use pipewarden_common::event::{Closed, Escape, Event, kind};
use pipewarden_common::live_map::PipeKey;
use pipewarden_common::{END_READ, END_WRITE, Held};

use crate::pipe::{End, PipeId, ProcessId};

/// One record of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A fork, exec or exit.
    Event(Event),
    /// A setsid or setpgid, and the pipes that went along.
    Escape(Box<Escape>),
    /// A watched pipe lost its last writer.
    Closed(Box<Closed>),
}

impl Record {
    /// What every record has.
    #[must_use]
    pub fn event(&self) -> &Event {
        match self {
            Record::Event(event) => event,
            Record::Escape(escape) => &escape.event,
            Record::Closed(closed) => &closed.event,
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let event: Event = from_bytes(bytes)?;
        Some(match event.kind {
            kind::SETSID | kind::SETPGID => Record::Escape(Box::new(from_bytes(bytes)?)),
            kind::LAST_WRITER => Record::Closed(Box::new(from_bytes(bytes)?)),
            _ => Record::Event(event),
        })
    }
}

/// A plain structure from the beginning of a record.
pub(super) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, they need not be aligned, and any bytes are a value of a Pod.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The kernel's own encoding of a device is another one than stat's.
const MINOR_BITS: u32 = 20;

/// The identity of a pipe that a program saw.
#[must_use]
pub fn pipe_of(held: &Held) -> PipeId {
    let dev = libc::makedev(held.dev >> MINOR_BITS, held.dev & ((1 << MINOR_BITS) - 1));
    PipeId { dev, ino: held.ino }
}

/// A pipe's identity as the programs have it.
#[must_use]
pub fn key_of(pipe: PipeId) -> PipeKey {
    let dev = libc::major(pipe.dev) << MINOR_BITS | libc::minor(pipe.dev);
    PipeKey { ino: pipe.ino, dev, reserved: 0 }
}

/// The end that a descriptor is on.
#[must_use]
pub fn end_of(held: &Held) -> Option<End> {
    match (held.ends & END_READ != 0, held.ends & END_WRITE != 0) {
        (true, true) => Some(End::Both),
        (true, false) => Some(End::Read),
        (false, true) => Some(End::Write),
        (false, false) => None,
    }
}

/// The process of an event, as the rest of the program names processes.
#[must_use]
pub fn process_of(pid: u32, start_boot_ns: u64) -> ProcessId {
    // /proc counts in ticks of USER_HZ, which is 100 on every architecture that we build for.
    const TICK_NS: u64 = 10_000_000;
    ProcessId { pid: pid.cast_signed(), start_ticks: start_boot_ns / TICK_NS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_number_that_stat_gives_it_and_back() {
        let held = Held { dev: 259 << 20 | 0x1_2345, ino: 7, ..Held::default() };
        let pipe = pipe_of(&held);
        assert_eq!(pipe, PipeId { dev: libc::makedev(259, 0x1_2345), ino: 7 });
        assert_eq!((key_of(pipe).dev, key_of(pipe).ino), (held.dev, 7));
    }

    #[test]
    fn a_short_or_unknown_record_is_no_event() {
        assert_eq!(Record::decode(&[1; 20]), None);
        let mut bytes = [0; size_of::<Event>()];
        bytes[24] = u8::try_from(kind::SETSID).unwrap();
        assert_eq!(Record::decode(&bytes), None, "an escape without its pipes");
    }
}
