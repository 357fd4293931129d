//! What exists now, read by iterators: one pass over all threads, or over all their descriptors.
//!
//! Faster than `/proc` by a factor of 50 (0.1 ms for 40 pipes against 5.5 ms), and what a live map is
//! seeded from. Linux 5.8.

use std::fs::File;
use std::io::{self, Read};

use aya::programs::Iter;
use aya::{Ebpf, Pod};
use pipewarden_common::snapshot::{FileRow, TaskRow};

use super::btf::Name;
use super::object::{self, LoadError, Scope, Sizes, in_spite_of_signals, refused};
use super::record::from_bytes;
use super::tracker::iterator;

/// The iterators, loaded.
pub struct Snapshot {
    ebpf: Ebpf,
}

/// Why a pass gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The iterator could not be started.
    #[error("the iterator does not start: {0}")]
    Start(#[from] aya::programs::ProgramError),
    /// Its link could not be made a file.
    #[error("the iterator cannot be read: {0}")]
    Link(#[from] aya::programs::links::LinkError),
    /// Reading it failed.
    #[error("the iterator cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The built object has no such program.
    #[error(transparent)]
    Load(#[from] LoadError),
}

const TASKS: &str = "iter_task";
const FILES: &str = "iter_task_file";

impl Snapshot {
    /// Loads the iterators. They need the kernel's types, which this reads and forgets.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn load() -> Result<Self, LoadError> {
        let mut opened = object::open(Scope::All, &Sizes::LEAST)?;
        let types = opened.types(&[Name::Function("bpf_iter_task"), Name::Function("bpf_iter_task_file")])?;
        for (name, kind) in [(TASKS, "task"), (FILES, "task_file")] {
            let iterator = iterator(&mut opened.ebpf, name)?;
            in_spite_of_signals(|| iterator.load(kind, &types)).map_err(|error| refused(name, error))?;
        }
        Ok(Snapshot { ebpf: opened.ebpf })
    }

    /// Every thread of the machine.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn tasks(&mut self) -> Result<Vec<TaskRow>, SnapshotError> {
        read(iterator(&mut self.ebpf, TASKS)?)
    }

    /// Every descriptor on a pipe or FIFO, each table once.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn files(&mut self) -> Result<Vec<FileRow>, SnapshotError> {
        read(iterator(&mut self.ebpf, FILES)?)
    }
}

/// One pass: a fresh link is a fresh beginning.
pub(super) fn read<T: Pod>(iterator: &mut Iter) -> Result<Vec<T>, SnapshotError> {
    let link = iterator.attach()?;
    let mut file: File = iterator.take_link(link)?.into_file()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes.chunks_exact(size_of::<T>()).filter_map(from_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::super::record::{end_of, pipe_of, process_of};
    use super::super::self_test::in_initial_pid_namespace;
    use super::*;
    use crate::pipe::{End, PipeId};
    use crate::process::stat::Stat;
    use nix::fcntl::OFlag;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_pass_sees_our_own_pipe_and_our_own_identity() {
        let mut snapshot = match Snapshot::load() {
            Ok(snapshot) if in_initial_pid_namespace() => snapshot,
            Ok(_) => return crate::kernel::skipped(format_args!("needs the initial pid namespace")),
            Err(error) => {
                return crate::kernel::skipped(format_args!(
                    "needs BPF iterators: {error} {:?}",
                    error.verifier_tail(30)
                ));
            }
        };
        let us = Stat::read(std::process::id().cast_signed()).unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let stat = nix::sys::stat::fstat(&read).unwrap();
        let pipe = PipeId { dev: stat.st_dev, ino: stat.st_ino };

        let files = snapshot.files().unwrap();
        let ours: Vec<_> = files.iter().filter(|row| pipe_of(&row.held) == pipe).collect();
        let ends: Vec<_> = ours.iter().map(|row| (row.held.fd.cast_signed(), end_of(&row.held).unwrap())).collect();
        assert_eq!(ends, [(read.as_raw_fd(), End::Read), (write.as_raw_fd(), End::Write)]);

        let tasks = snapshot.tasks().unwrap();
        let leader = tasks.iter().find(|row| row.pid == row.tid && row.pid == std::process::id()).unwrap();
        assert_eq!(process_of(leader.pid, leader.start_boot_ns).start_ticks, us.id.start_ticks);
        assert_eq!((leader.pgid.cast_signed(), leader.sid.cast_signed()), (us.pgid, us.sid));
        assert_eq!(leader.parent.cast_signed(), us.ppid);
        assert!(ours.iter().all(|row| row.files == leader.files));
    }
}
