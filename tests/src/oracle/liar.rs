//! Views that lie, to find out whether the oracle notices.

use std::collections::BTreeMap;

use pipewarden_common::snapshot::{FileRow, TaskRow};
use pipewarden_common::{END_READ, END_WRITE};

use super::view::View;

/// How a view lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It does not see descriptor 7.
    Blind,
    /// It takes a FIFO that is open for both for one that is open for reading.
    HalfOpen,
    /// It does not notice when a descriptor of 9 and above is closed.
    NeverCloses,
    /// It does not notice that a process ended.
    NeverEnds,
    /// It takes every thread for a process.
    ThreadsAreProcesses,
    /// It does not notice setsid.
    NeverLeaves,
    /// It thinks that every child shares its parent's table.
    SharesWithParent,
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
        Lie::SharesWithParent,
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
    files: BTreeMap<(u64, u32), FileRow>,
}

impl<'a> Liar<'a> {
    /// A view that lies so.
    pub fn new(view: &'a mut dyn View, lie: Lie) -> Liar<'a> {
        Liar { view, lie, tasks: BTreeMap::new(), files: BTreeMap::new() }
    }

    fn remember(&mut self, tasks: &[TaskRow], files: &[FileRow]) {
        self.tasks.extend(tasks.iter().filter(|row| row.files != 0).map(|row| (row.tid, *row)));
        for row in files {
            self.files.entry((row.files, row.held.fd)).or_insert(*row);
        }
    }
}

impl View for Liar<'_> {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn rows(&mut self) -> (Vec<TaskRow>, Vec<FileRow>) {
        let (mut tasks, mut files) = self.view.rows();
        let parents: BTreeMap<u32, TaskRow> = tasks.iter().map(|row| (row.tid, *row)).collect();
        match self.lie {
            Lie::Blind => files.retain(|row| row.held.fd != 7),
            Lie::HalfOpen => {
                for row in files.iter_mut().filter(|row| row.held.ends == END_READ | END_WRITE) {
                    row.held.ends = END_READ;
                }
            }
            Lie::NeverCloses => {
                for row in self.files.values().filter(|row| row.held.fd >= 9) {
                    let table_lives = tasks.iter().any(|task| task.files == row.files);
                    if table_lives && !files.iter().any(|new| (new.files, new.held.fd) == (row.files, row.held.fd)) {
                        files.push(*row);
                    }
                }
            }
            Lie::NeverEnds => {
                let gone = self.tasks.values().filter(|row| tasks.iter().all(|new| new.tid != row.tid));
                tasks.extend(gone.copied().collect::<Vec<_>>());
            }
            Lie::ThreadsAreProcesses => tasks.iter_mut().for_each(|row| row.pid = row.tid),
            Lie::NeverLeaves => {
                for row in &mut tasks {
                    row.sid = self.tasks.get(&row.tid).map_or(row.sid, |before| before.sid);
                }
            }
            Lie::SharesWithParent => {
                for row in tasks.iter_mut().filter(|row| row.files != 0) {
                    row.files = parents.get(&row.parent).map_or(row.files, |parent| parent.files);
                }
            }
            Lie::FirstStays => {
                for row in &mut files {
                    row.held = self.files.get(&(row.files, row.held.fd)).map_or(row.held, |before| before.held);
                }
            }
            Lie::OneObject => files.iter_mut().for_each(|row| row.held.object = 1),
            Lie::WrongProcess => {
                for row in &mut files {
                    row.pid = parents.get(&row.pid).map_or(row.pid, |task| task.parent);
                }
            }
        }
        self.remember(&tasks, &files);
        (tasks, files)
    }
}
