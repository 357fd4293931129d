//! Two opinions about one machine, holder by holder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use pipewarden::kernel::record::process_of;
use pipewarden_common::snapshot::{FileRow, TaskRow};
use pipewarden_common::{END_READ, END_WRITE};

use super::task::Task;
use super::truth::{Hold, Truth};

/// What a troupe ever had: whatever a view says about it later is about the troupe.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its threads.
    pub tids: BTreeSet<u32>,
    /// Its processes.
    pub pids: BTreeSet<u32>,
    /// Its pipes, by device and inode.
    pub pipes: BTreeSet<(u64, u64)>,
}

impl Known {
    /// Takes in what is there now.
    pub fn learn(&mut self, truth: &Truth) {
        self.tids.extend(truth.tasks.iter().map(|task| task.tid));
        self.pids.extend(truth.tasks.iter().map(|task| task.pid));
        self.pipes.extend(truth.tables.iter().flat_map(|table| table.holds.values()).map(|hold| (hold.dev, hold.ino)));
    }
}

/// What is wrong with a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It does not know a thread, nor that thread's first.
    MissingTask,
    /// It knows a thread wrongly.
    WrongTask,
    /// It knows a thread that is gone.
    StaleTask,
    /// It gives threads that share a table several.
    SplitTable,
    /// It gives one table to threads that share none.
    MergedTable,
    /// It does not know a descriptor.
    Missing,
    /// It knows a descriptor that is not there.
    Extra,
    /// It knows a descriptor on something else, or another end of it.
    Wrong,
    /// It says two things about one descriptor.
    Contradiction,
    /// It names a thread for a table that is not its.
    WrongHolder,
    /// It has a table of nobody with one of the troupe's pipes in it.
    Stale,
    /// It takes two pipes for one object, or one for two.
    WrongObject,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What is wrong.
    pub fault: Fault,
    /// Where, and what each side says.
    pub text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.fault, self.text)
    }
}

/// The device of a row as `st_dev` has it.
fn hold_of(row: &FileRow) -> Hold {
    let (major, minor) = (row.held.dev >> 20, row.held.dev & 0xf_ffff);
    Hold { dev: libc::makedev(major, minor), ino: row.held.ino, ends: row.held.ends }
}

struct Shown<'a>(&'a Hold);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = match self.0.ends {
            END_READ => "read",
            END_WRITE => "write",
            ends if ends == END_READ | END_WRITE => "both",
            _ => "no",
        };
        write!(f, "the {ends} end of {}:{}", self.0.dev, self.0.ino)
    }
}

/// Everything that the view says wrongly about the troupe. Nothing else of the machine matters.
#[must_use]
pub fn compare(truth: &Truth, known: &Known, tasks: &[TaskRow], files: &[FileRow]) -> Vec<Difference> {
    let mut comparison = Comparison { truth, known, found: Vec::new(), ids: BTreeMap::new() };
    comparison.tasks(tasks);
    comparison.tables(files);
    comparison.stale(files);
    comparison.objects(files);
    comparison.found.sort_by_key(|difference| difference.fault);
    comparison.found
}

struct Comparison<'a> {
    truth: &'a Truth,
    known: &'a Known,
    found: Vec<Difference>,
    /// The view's name for a table -> ours.
    ids: BTreeMap<u64, usize>,
}

impl Comparison<'_> {
    fn add(&mut self, fault: Fault, text: String) {
        self.found.push(Difference { fault, text });
    }

    fn tasks(&mut self, rows: &[TaskRow]) {
        let by_tid: HashMap<u32, &TaskRow> = rows.iter().map(|row| (row.tid, row)).collect();
        let mut names: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); self.truth.tables.len()];
        for (index, task) in self.truth.tasks.iter().enumerate().filter(|(_, task)| !task.dead) {
            let own = by_tid.get(&task.tid);
            if let Some(row) = own {
                self.task(task, row);
            }
            let Some(row) = own.or_else(|| by_tid.get(&task.pid)) else {
                self.add(Fault::MissingTask, format!("{}/{} ({})", task.pid, task.tid, task.name));
                continue;
            };
            if let Some(table) = self.truth.table_of(index) {
                names[table].insert(row.files);
            }
        }
        for (table, names) in names.into_iter().enumerate() {
            if names.len() > 1 {
                self.add(Fault::SplitTable, format!("{} is {} tables", self.owners(table), names.len()));
            }
            for name in names {
                if let Some(other) = self.ids.insert(name, table) {
                    let text = format!("{} has that of {}", self.owners(table), self.owners(other));
                    self.add(Fault::MergedTable, text);
                }
            }
        }
        for row in rows.iter().filter(|row| row.files != 0 && self.known.tids.contains(&row.tid)) {
            if !self.truth.tasks.iter().any(|task| task.tid == row.tid && !task.dead) {
                self.add(Fault::StaleTask, format!("{}/{} has ended", row.pid, row.tid));
            }
        }
    }

    fn task(&mut self, task: &Task, row: &TaskRow) {
        let leader = self.truth.tasks.iter().find(|other| other.tid == task.pid);
        let start = leader.map(|leader| leader.start_ticks);
        let told = process_of(row.pid, row.start_boot_ns).start_ticks;
        let mut wrong = Vec::new();
        let sides = [
            ("pid", task.pid, row.pid),
            ("parent", task.parent, row.parent),
            ("group", task.pgid, row.pgid),
            ("session", task.sid, row.sid),
        ];
        for (what, true_one, told) in sides.into_iter().filter(|(_, true_one, told)| true_one != told) {
            wrong.push(format!("{what} {true_one}, not {told}"));
        }
        if let Some(start) = start.filter(|start| *start != told) {
            wrong.push(format!("start {start}, not {told}"));
        }
        if !wrong.is_empty() {
            self.add(Fault::WrongTask, format!("{}/{} has {}", task.pid, task.tid, wrong.join(", ")));
        }
    }

    fn tables(&mut self, rows: &[FileRow]) {
        let mut told: BTreeMap<(usize, u32), &FileRow> = BTreeMap::new();
        for row in rows {
            let Some(&table) = self.ids.get(&row.files) else { continue };
            if let Some(other) = told.insert((table, row.held.fd), row).filter(|other| other.held != row.held) {
                let text = format!("fd {} of {}: {:?} and {:?}", row.held.fd, self.owners(table), other.held, row.held);
                self.add(Fault::Contradiction, text);
            }
            let tasks = &self.truth.tasks;
            let mut owners = self.truth.tables[table].owners.iter().map(|owner| &tasks[*owner]);
            let is_owner = owners.any(|owner| (owner.pid, owner.tid) == (row.pid, row.tid));
            if row.pid != 0 && !is_owner {
                let text = format!("{}/{} has fd {} of {}", row.pid, row.tid, row.held.fd, self.owners(table));
                self.add(Fault::WrongHolder, text);
            }
        }
        for (table, holds) in self.truth.tables.iter().map(|table| &table.holds).enumerate() {
            for (fd, hold) in holds {
                let text = || format!("fd {fd} of {} is on {}", self.owners(table), Shown(hold));
                match told.remove(&(table, *fd)).map(hold_of) {
                    None => self.add(Fault::Missing, text()),
                    Some(told) if told != *hold => {
                        self.add(Fault::Wrong, format!("{}, not on {}", text(), Shown(&told)));
                    }
                    Some(_) => {}
                }
            }
        }
        for ((table, fd), row) in told {
            let text = format!("fd {fd} of {} is not on {}", self.owners(table), Shown(&hold_of(row)));
            self.add(Fault::Extra, text);
        }
    }

    fn stale(&mut self, rows: &[FileRow]) {
        for row in rows {
            let hold = hold_of(row);
            if self.ids.contains_key(&row.files) {
                continue;
            }
            if self.known.pipes.contains(&(hold.dev, hold.ino)) || self.known.pids.contains(&row.pid) {
                let text = format!("fd {} of a table of nobody ({}) is on {}", row.held.fd, row.pid, Shown(&hold));
                self.add(Fault::Stale, text);
            }
        }
    }

    /// One object for one device and inode, and the other way round.
    fn objects(&mut self, rows: &[FileRow]) {
        let mut by_object: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut by_pipe: HashMap<(u64, u64), u64> = HashMap::new();
        for row in rows.iter().filter(|row| self.ids.contains_key(&row.files)) {
            let hold = hold_of(row);
            let pipe = (hold.dev, hold.ino);
            let same = *by_object.entry(row.held.object).or_insert(pipe) == pipe
                && *by_pipe.entry(pipe).or_insert(row.held.object) == row.held.object;
            if !same {
                self.found.push(Difference {
                    fault: Fault::WrongObject,
                    text: format!(
                        "fd {} of {}: {:#x} is not always {}",
                        row.held.fd,
                        row.pid,
                        row.held.object,
                        Shown(&hold)
                    ),
                });
            }
        }
    }

    /// Who has a table: `71` for all threads of a process, `71/73` for one.
    fn owners(&self, table: usize) -> String {
        let owners = &self.truth.tables[table].owners;
        let tasks: Vec<&Task> = owners.iter().map(|owner| &self.truth.tasks[*owner]).collect();
        let names: Vec<String> = tasks
            .iter()
            .filter(|task| task.tid == task.pid || !tasks.iter().any(|other| other.tid == task.pid))
            .map(|task| if task.tid == task.pid { task.pid.to_string() } else { format!("{}/{}", task.pid, task.tid) })
            .collect();
        names.join("+")
    }
}
