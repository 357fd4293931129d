//! Views that lie, to find out whether the oracle notices.

use std::collections::BTreeMap;

use pipewarden_common::snapshot::{FileRow, TaskRow};
use pipewarden_common::{END_READ, END_WRITE};

use super::view::View;

/// How a view lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It does not see descriptor 5.
    Blind,
    /// It takes a FIFO that is open for both for one that is open for reading.
    HalfOpen,
    /// It does not notice that a descriptor was closed.
    NeverCloses,
    /// It does not notice that a process ended.
    NeverEnds,
    /// It takes every thread for a process.
    ThreadsAreProcesses,
    /// It does not notice setsid.
    NeverLeaves,
    /// It thinks that all threads of a process share one table.
    ThreadsShare,
    /// It thinks that what was put over something else is still that: the first stays.
    FirstStays,
    /// It takes all pipes for one object.
    OneObject,
    /// It lists descriptors for the parent.
    WrongProcess,
}

impl Lie {
    /// All of them.
    pub const ALL: [Lie; 10] = [
        Lie::Blind,
        Lie::HalfOpen,
        Lie::NeverCloses,
        Lie::NeverEnds,
        Lie::ThreadsAreProcesses,
        Lie::NeverLeaves,
        Lie::ThreadsShare,
        Lie::FirstStays,
        Lie::OneObject,
        Lie::WrongProcess,
    ];
}

/// Tells what another view says, with a lie in it.
pub struct Liar<'a> {
    view: &'a mut dyn View,
    lie: Lie,
    tasks: BTreeMap<u32, TaskRow>,
    files: BTreeMap<(u32, u64, u32), FileRow>,
}

impl<'a> Liar<'a> {
    /// A view that lies so.
    pub fn new(view: &'a mut dyn View, lie: Lie) -> Liar<'a> {
        Liar { view, lie, tasks: BTreeMap::new(), files: BTreeMap::new() }
    }

    fn remember(&mut self, tasks: &[TaskRow], files: &[FileRow]) {
        self.tasks.extend(tasks.iter().filter(|row| row.files != 0).map(|row| (row.tid, *row)));
        for row in files {
            self.files.entry(key_of(row)).or_insert(*row);
        }
    }
}

/// A table's name comes round again, with another process.
fn key_of(row: &FileRow) -> (u32, u64, u32) {
    (row.pid, row.files, row.held.fd)
}

impl View for Liar<'_> {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn rows(&mut self) -> (Vec<TaskRow>, Vec<FileRow>) {
        let (mut tasks, mut files) = self.view.rows();
        let by_tid: BTreeMap<u32, TaskRow> = tasks.iter().map(|row| (row.tid, *row)).collect();
        match self.lie {
            Lie::Blind => files.retain(|row| row.held.fd != 5),
            Lie::HalfOpen => {
                for row in files.iter_mut().filter(|row| row.held.ends == END_READ | END_WRITE) {
                    row.held.ends = END_READ;
                }
            }
            Lie::NeverCloses => {
                for row in self.files.values() {
                    let table_lives = tasks.iter().any(|task| (task.files, task.pid) == (row.files, row.pid));
                    if table_lives && !files.iter().any(|new| (new.files, new.held.fd) == (row.files, row.held.fd)) {
                        files.push(*row);
                    }
                }
            }
            Lie::NeverEnds => {
                // Processes: an io_uring's workers are threads, which end when the kernel thinks fit.
                let processes = self.tasks.values().filter(|row| row.tid == row.pid);
                let gone = processes.filter(|row| tasks.iter().all(|new| new.tid != row.tid));
                tasks.extend(gone.copied().collect::<Vec<_>>());
            }
            Lie::ThreadsAreProcesses => tasks.iter_mut().for_each(|row| row.pid = row.tid),
            Lie::NeverLeaves => {
                for row in &mut tasks {
                    row.sid = self.tasks.get(&row.tid).map_or(row.sid, |before| before.sid);
                }
            }
            Lie::ThreadsShare => {
                for row in tasks.iter_mut().filter(|row| row.files != 0) {
                    row.files = by_tid.get(&row.pid).map_or(row.files, |first| first.files);
                }
            }
            Lie::FirstStays => {
                for row in &mut files {
                    row.held = self.files.get(&key_of(row)).map_or(row.held, |before| before.held);
                }
            }
            Lie::OneObject => files.iter_mut().for_each(|row| row.held.object = 1),
            Lie::WrongProcess => {
                for row in &mut files {
                    row.pid = by_tid.get(&row.pid).map_or(row.pid, |task| task.parent);
                }
            }
        }
        self.remember(&tasks, &files);
        (tasks, files)
    }
}
