//! What the programs count: indices into the array `COUNTERS`.
//!
//! The first four and [`UNSETTLED`] say that the map may not be exact any more: whenever one of them
//! moves, it must be seeded again.

/// Records that did not fit into the ring buffer.
pub const LOST_EVENTS: u32 = 0;
/// Processes or descriptor tables that did not fit into their map.
pub const LOST_PROCESSES: u32 = 1;
/// Slots that did not fit into the map or the index.
pub const LOST_SLOTS: u32 = 2;
/// Tables of which not everything is known: shared ones whose last user may be gone, those that another
/// process put a descriptor into, and large ones where the kernel has no bpf_loop (before Linux 5.17).
pub const UNSURE_TABLES: u32 = 3;
/// Slots that changed each time they were looked at.
pub const UNSETTLED: u32 = 4;
/// Slots that are in the map: what was put in less what was taken out.
pub const SLOTS: u32 = 5;
/// Tables that are in their map.
pub const TABLES: u32 = 6;
/// Processes that are in their map.
pub const PROCESSES: u32 = 7;
/// Slots that a pass over everything found to be other than the map said.
pub const MENDED: u32 = 8;
/// Calls of [`call::PULSE`](crate::call::PULSE): as long as these are counted, the programs are attached.
pub const PULSES: u32 = 9;
/// How many counters there are.
pub const COUNT: u32 = 10;
