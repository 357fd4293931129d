//! What the programs count: indices into the array `COUNTERS`.

/// Records that did not fit into the ring buffer.
pub const LOST_EVENTS: u32 = 0;
/// Processes that did not fit into the map of the lineage.
pub const LOST_LINEAGE: u32 = 1;
/// How many counters there are.
pub const COUNT: u32 = 2;
