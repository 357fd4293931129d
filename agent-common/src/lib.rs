//! What the eBPF programs and user space say to each other.
//!
//! Everything here is plain data with a fixed layout (`repr(C)`, no padding that is not named, no
//! `bool`), because one side writes it in the kernel and the other reads it byte by byte.
#![no_std]

pub mod call;
pub mod counter;
pub mod event;
pub mod filter;
pub mod live_map;
pub mod offsets;
pub mod snapshot;

/// A pipe as a program in the kernel sees it behind one descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The kernel's object, as a number: tells two pipes apart that had the same inode number one
    /// after the other. Never an address to follow.
    pub object: u64,
    /// The open file description, as a number: the kernel counts these as a pipe's writers, not
    /// descriptors. Never an address to follow.
    pub file: u64,
    /// `i_ino`.
    pub ino: u64,
    /// The device in the kernel's own encoding: major << 20 | minor.
    pub dev: u32,
    /// The descriptor.
    pub fd: u32,
    /// [`END_READ`] and [`END_WRITE`].
    pub ends: u32,
    /// Always 0.
    pub reserved: u32,
}

/// In [`Held::ends`]: opened for reading (`FMODE_READ` of the kernel's `f_mode`).
pub const END_READ: u32 = 1;
/// In [`Held::ends`]: opened for writing (`FMODE_WRITE`).
pub const END_WRITE: u32 = 2;

#[cfg(feature = "user")]
mod user;
