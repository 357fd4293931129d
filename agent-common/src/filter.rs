//! Who may be tracked: an array in front of the map of processes, which is asked about every process of the
//! machine that touches its descriptors. An element of an array costs a load; one of a map must be searched for.
//!
//! An element is how many processes were put into the map whose pids have this place, less those that the programs
//! took out. It is counted up before a process is in the map, and down after it is not, so it is never too small. It may
//! be too large, which only costs a search: who is seen by a seeding is counted again, and whom user space takes out is
//! not counted down. 0: whoever has this place is not tracked. Anything else: the map knows.

/// How many pids are told apart; a power of two.
pub const PLACES: u32 = 16384;

/// The index of a process.
#[must_use]
pub const fn place(pid: u32) -> u32 {
    pid % PLACES
}
