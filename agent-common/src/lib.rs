//! What the eBPF programs and user space say to each other.
#![no_std]
