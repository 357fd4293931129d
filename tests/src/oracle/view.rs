//! What is put to the test: anything that says who holds which pipe.

use pipewarden::kernel::snapshot::Snapshot;
use pipewarden_common::snapshot::{FileRow, TaskRow};

use crate::actor::op::Hole;

/// A view of the whole machine.
pub trait View {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// Every thread, and every descriptor on a pipe or FIFO, now. A [`FileRow`] belongs to the threads
    /// whose [`TaskRow`] has the same `files`. A thread that shares the table of its process's first
    /// needs no row of its own; `pid` 0 in a [`FileRow`] is "as the tasks say".
    fn rows(&mut self) -> (Vec<TaskRow>, Vec<FileRow>);

    /// What it cannot see: scripts by chance stay away from that.
    fn holes(&self) -> &'static [Hole] {
        &[]
    }

    /// Whether it said by itself that such a hole was met since it began. Where a view is not exact,
    /// it must.
    fn reports(&mut self, _hole: Hole) -> bool {
        false
    }
}

/// The kernel's own iterators, read anew each time.
pub struct Iterators(Snapshot);

impl Iterators {
    /// Loads them; otherwise why they are not to be had.
    ///
    /// # Errors
    ///
    /// One line that says why.
    pub fn load() -> Result<Iterators, String> {
        if !pipewarden::kernel::self_test::in_initial_pid_namespace() {
            return Err("needs the initial pid namespace".into());
        }
        Snapshot::load().map(Iterators).map_err(|error| format!("needs BPF iterators: {error}"))
    }
}

impl View for Iterators {
    fn name(&self) -> &str {
        "iterators"
    }

    fn rows(&mut self) -> (Vec<TaskRow>, Vec<FileRow>) {
        (self.0.tasks().expect("the task iterator can be read"), self.0.files().expect("so can that of files"))
    }
}
