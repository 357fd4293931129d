use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const STDOUT: u32 = 1;

/// One process of a machine that is only thought of.
#[derive(Clone, Debug)]
struct Process {
    parent: i32,
    pgid: i32,
    cgroup: u64,
    /// Write ends by descriptor.
    writes: BTreeMap<u32, PipeId>,
    reads: Vec<PipeId>,
}

/// A machine that tells [`Commands`] what happens on it, as the tracker does.
#[derive(Clone, Debug)]
struct Machine {
    processes: BTreeMap<i32, Process>,
    next_pid: i32,
    next_pipe: u64,
    commands: Commands,
}

const INIT: i32 = 1;

impl Machine {
    fn new() -> Machine {
        let init = Process { parent: 0, pgid: INIT, cgroup: 1, writes: BTreeMap::new(), reads: Vec::new() };
        Machine { processes: [(INIT, init)].into(), next_pid: 100, next_pipe: 1, commands: Commands::default() }
    }

    fn of(&mut self, pid: i32) -> &mut Process {
        self.processes.get_mut(&pid).unwrap()
    }

    /// A pipe, of which the process has the read end, and the write end as a descriptor that is none of
    /// the standard ones.
    fn pipe(&mut self, pid: i32) -> PipeId {
        let pipe = PipeId { dev: 14, ino: self.next_pipe };
        self.next_pipe += 1;
        let process = self.of(pid);
        process.reads.push(pipe);
        process.writes.insert(u32::try_from(pipe.ino).unwrap() + 10, pipe);
        pipe
    }

    fn fork(&mut self, parent: i32) -> i32 {
        let child = self.next_pid;
        self.next_pid += 1;
        let process = Process { parent, ..self.processes[&parent].clone() };
        self.processes.insert(child, process);
        self.commands.forked(parent, child);
        child
    }

    fn setsid(&mut self, pid: i32) {
        self.of(pid).pgid = pid;
        self.commands.moved(pid, pid);
    }

    /// The write end becomes the stdout, and the process has no other descriptor of the pipe.
    fn redirect(&mut self, pid: i32, pipe: PipeId) {
        self.close(pid, pipe);
        self.of(pid).writes.insert(STDOUT, pipe);
    }

    /// Both ends.
    fn close(&mut self, pid: i32, pipe: PipeId) {
        let process = self.of(pid);
        process.writes.retain(|_, other| *other != pipe);
        process.reads.retain(|other| *other != pipe);
    }

    fn close_write(&mut self, pid: i32, pipe: PipeId) {
        self.of(pid).writes.retain(|_, other| *other != pipe);
    }

    fn seen(&self, pid: i32) -> Seen {
        let process = &self.processes[&pid];
        let outputs = process.writes.iter().filter(|(fd, _)| **fd <= 2).map(|(_, pipe)| *pipe).collect();
        Seen { pid, pgid: process.pgid, cgroup: process.cgroup, outputs }
    }

    fn exec(&mut self, pid: i32) {
        let up = |pid: &i32| self.processes.get(pid).map(|process| process.parent).filter(|pid| *pid > 0);
        let ancestors: Vec<Seen> = std::iter::successors(up(&pid), |pid| up(pid)).map(|pid| self.seen(pid)).collect();
        let process = self.seen(pid);
        self.commands.ran(&process, &ancestors);
    }

    fn exit(&mut self, pid: i32) {
        self.processes.remove(&pid);
        for process in self.processes.values_mut().filter(|process| process.parent == pid) {
            process.parent = INIT;
        }
        self.commands.exited(pid);
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = BTreeMap::new();
        for (pid, process) in &self.processes {
            let empty = |pipe| Row { pipe, writers: Vec::new(), readers: Vec::new() };
            for pipe in process.writes.values().collect::<HashSet<_>>() {
                let row: &mut Row = rows.entry(*pipe).or_insert_with(|| empty(*pipe));
                let id = ProcessId { pid: *pid, start_ticks: 0 };
                row.writers.push(Writer { id, pgid: process.pgid, cgroup: process.cgroup });
            }
            for pipe in &process.reads {
                rows.entry(*pipe).or_insert_with(|| empty(*pipe)).readers.push(*pid);
            }
        }
        rows.into_values().collect()
    }

    fn withheld(&mut self) -> Vec<Withheld> {
        let rows = self.rows();
        self.commands.judge(&rows)
    }

    /// A supervisor that pumps the stdout of a command: both, and the pipe.
    fn supervised(&mut self, own_session: bool) -> (i32, i32, PipeId) {
        let supervisor = self.fork(INIT);
        self.setsid(supervisor);
        self.exec(supervisor);
        let pipe = self.pipe(supervisor);
        let command = self.fork(supervisor);
        if own_session {
            self.setsid(command);
        }
        self.redirect(command, pipe);
        self.exec(command);
        self.close_write(supervisor, pipe);
        (supervisor, command, pipe)
    }

    /// A child that runs another program.
    fn spawn(&mut self, parent: i32) -> i32 {
        let child = self.fork(parent);
        self.exec(child);
        child
    }
}

#[test]
fn what_an_escapee_holds_after_its_command_has_ended_is_withheld_until_it_lets_go() {
    for own_session in [false, true] {
        let mut machine = Machine::new();
        let (supervisor, command, pipe) = machine.supervised(own_session);
        let home = machine.processes[&command].pgid;
        let helper = machine.spawn(command);
        machine.setsid(helper);
        assert_eq!(machine.withheld(), [], "the command lives");
        machine.exit(command);
        let id = ProcessId { pid: helper, start_ticks: 0 };
        let expected = Withheld { pipe, command, home, escapees: vec![id], reader: supervisor };
        assert_eq!(machine.withheld(), [expected]);
        machine.close(helper, pipe);
        assert_eq!(machine.withheld(), []);
        assert!(machine.commands.is_empty(), "nothing of it is remembered");
    }
}

#[test]
fn a_helper_of_a_helper_is_of_the_lineage_when_all_between_are_gone() {
    let mut machine = Machine::new();
    let (_, command, _) = machine.supervised(true);
    let between = machine.spawn(command);
    machine.setsid(between);
    let helper = machine.fork(between);
    machine.exit(between);
    machine.exit(command);
    let withheld = machine.withheld();
    assert_eq!(withheld[0].escapees.iter().map(|id| id.pid).collect::<Vec<_>>(), [helper]);
}

#[test]
fn a_command_substitution_hangs_on_what_its_subshell_put_into_another_session() {
    let mut machine = Machine::new();
    let shell = machine.spawn(INIT);
    let pipe = machine.pipe(shell);
    let subshell = machine.fork(shell);
    machine.redirect(subshell, pipe);
    machine.close_write(shell, pipe);
    // setsid(1), of which the subshell waits for nothing.
    let helper = machine.spawn(subshell);
    machine.setsid(helper);
    machine.exec(helper);
    machine.exit(subshell);
    assert_eq!(machine.withheld()[0].command, subshell);
}

#[test]
fn a_command_in_a_session_of_its_own_is_no_escapee() {
    let mut machine = Machine::new();
    let (_, command, _) = machine.supervised(true);
    let worker = machine.spawn(command);
    assert_eq!(machine.withheld(), []);
    // Nor is one that makes itself a session later on: it is what is waited for.
    machine.setsid(command);
    machine.exec(command);
    assert_eq!(machine.withheld(), []);
    machine.exit(worker);
    assert_eq!(machine.withheld(), []);
}

#[test]
fn a_shells_jobs_all_leave_its_group_and_are_innocent() {
    let mut machine = Machine::new();
    let shell = machine.fork(INIT);
    machine.setsid(shell);
    machine.exec(shell);
    // yes | cat, as an interactive shell starts it.
    let pipe = machine.pipe(shell);
    let yes = machine.fork(shell);
    machine.setsid(yes);
    machine.redirect(yes, pipe);
    let cat = machine.fork(shell);
    machine.of(cat).pgid = yes;
    machine.commands.moved(cat, yes);
    machine.close_write(cat, pipe);
    machine.close(shell, pipe);
    machine.exec(yes);
    machine.exec(cat);
    assert_eq!(machine.withheld(), []);
    // The shell ends, and the job goes on.
    machine.exit(shell);
    assert_eq!(machine.withheld(), []);
}

#[test]
fn a_daemon_that_talks_to_its_logger_is_innocent() {
    let mut machine = Machine::new();
    let script = machine.spawn(INIT);
    let pipe = machine.pipe(script);
    let daemon = machine.fork(script);
    machine.redirect(daemon, pipe);
    let logger = machine.fork(script);
    machine.close_write(logger, pipe);
    machine.close(script, pipe);
    machine.exec(daemon);
    machine.exec(logger);
    // It makes itself a daemon.
    let child = machine.fork(daemon);
    machine.setsid(child);
    machine.exit(daemon);
    assert_eq!(machine.withheld(), []);
    machine.exit(script);
    assert_eq!(machine.withheld(), []);
}

#[test]
fn a_supervisor_that_keeps_the_write_end_waits_for_no_end_of_file() {
    let mut machine = Machine::new();
    let (supervisor, command, pipe) = machine.supervised(true);
    machine.of(supervisor).writes.insert(9, pipe);
    let helper = machine.spawn(command);
    machine.setsid(helper);
    machine.exit(command);
    assert_eq!(machine.withheld(), []);
}

#[test]
fn a_background_job_of_the_commands_group_is_slow_and_not_withholding() {
    let mut machine = Machine::new();
    let (_, command, _) = machine.supervised(true);
    let job = machine.spawn(command);
    let helper = machine.spawn(command);
    machine.setsid(helper);
    machine.exit(command);
    assert_eq!(machine.withheld(), [], "somebody of the group still writes");
    machine.exit(job);
    assert_eq!(machine.withheld().len(), 1);
}

#[test]
fn a_stranger_who_was_passed_the_write_end_makes_it_nobodys_business() {
    let mut machine = Machine::new();
    let (_, command, pipe) = machine.supervised(true);
    let helper = machine.spawn(command);
    machine.setsid(helper);
    let stranger = machine.spawn(INIT);
    machine.of(stranger).writes.insert(7, pipe);
    machine.exit(command);
    assert_eq!(machine.withheld(), []);
    machine.close(stranger, pipe);
    assert_eq!(machine.withheld().len(), 1);
}

#[test]
fn nobody_who_reads_is_nobody_who_waits() {
    let mut machine = Machine::new();
    let (supervisor, command, _) = machine.supervised(true);
    let helper = machine.spawn(command);
    machine.setsid(helper);
    machine.exit(command);
    assert_eq!(machine.withheld().len(), 1);
    machine.exit(supervisor);
    assert_eq!(machine.withheld(), []);
}

#[test]
fn a_containers_first_process_outlives_what_created_it_and_is_innocent() {
    let mut machine = Machine::new();
    // containerd's shim starts `runc create` with the pipes; what that forks becomes the container.
    let (shim, runc, pipe) = machine.supervised(false);
    let init = machine.fork(runc);
    machine.setsid(init);
    machine.of(init).cgroup = 77;
    machine.exit(runc);
    machine.of(init).parent = shim; // a subreaper
    assert_eq!(machine.withheld(), [], "before its program runs");
    machine.exec(init);
    assert_eq!(machine.withheld(), []);
    let server = machine.spawn(init);
    machine.setsid(server);
    assert_eq!(machine.withheld(), []);
    // The shim waits for the container's end from here on.
    machine.exit(init);
    let withheld = machine.withheld();
    assert_eq!(withheld.len(), 1, "with the pid namespace shared, the server lives on");
    assert_eq!((withheld[0].command, withheld[0].pipe), (init, pipe));
}

#[test]
fn without_cgroups_nothing_is_concluded() {
    let mut machine = Machine::new();
    machine.of(INIT).cgroup = 0;
    let (_, command, _) = machine.supervised(true);
    let helper = machine.spawn(command);
    machine.setsid(helper);
    machine.exit(command);
    assert_eq!(machine.withheld(), []);
}

#[test]
fn what_was_there_before_the_node_is_learned_from_what_it_holds() {
    let mut machine = Machine::new();
    let (_, command, _) = machine.supervised(true);
    let helper = machine.spawn(command);
    machine.commands = Commands::default();
    // A seeding tells of each process as if it had just run its program, parents first.
    for pid in machine.processes.keys().copied().collect::<Vec<_>>() {
        machine.exec(pid);
    }
    machine.setsid(helper);
    machine.exit(command);
    assert_eq!(machine.withheld().len(), 1);
}

#[test]
fn ends_that_nobody_told_of_are_found_when_the_living_are_counted() {
    let mut machine = Machine::new();
    let (_, command, _) = machine.supervised(true);
    let helper = machine.spawn(command);
    machine.setsid(helper);
    machine.processes.remove(&command);
    assert_eq!(machine.withheld(), []);
    machine.commands.resync(&machine.processes.keys().copied().collect());
    assert_eq!(machine.withheld().len(), 1);
    machine.processes.remove(&helper);
    machine.commands.resync(&machine.processes.keys().copied().collect());
    assert!(machine.commands.is_empty());
}

#[test]
fn a_pid_that_comes_round_again_is_a_new_process() {
    let mut machine = Machine::new();
    let (_, command, pipe) = machine.supervised(true);
    let helper = machine.spawn(command);
    machine.setsid(helper);
    // Its end was missed, and a stranger has its pid, and by some accident the pipe.
    machine.commands.forked(INIT, helper);
    machine.exit(command);
    assert!(machine.processes[&helper].writes.values().any(|other| *other == pipe));
    assert_eq!(machine.withheld(), []);
}

/// Something that happens to a process.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start(bool),
    Fork,
    Exec,
    Setsid,
    Close,
    Exit,
    Cgroup,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        any::<bool>().prop_map(Step::Start),
        Just(Step::Fork),
        Just(Step::Fork),
        Just(Step::Exec),
        Just(Step::Setsid),
        Just(Step::Close),
        Just(Step::Exit),
        Just(Step::Exit),
        Just(Step::Cgroup),
    ];
    proptest::collection::vec((0..64_usize, step), 1..60)
}

proptest! {
    /// Whatever happens: what is called withheld has these properties, looked up in the machine itself
    /// and in a history of all forks.
    #[test]
    fn nothing_is_called_withheld_that_is_not(steps in steps()) {
        let mut machine = Machine::new();
        let mut made = HashMap::new();
        for (pick, step) in steps {
            let pids: Vec<i32> = machine.processes.keys().copied().collect();
            let pid = pids[pick % pids.len()];
            let first_new = machine.next_pid;
            match step {
                Step::Start(own_session) => drop(machine.supervised(own_session)),
                Step::Fork => drop(machine.fork(pid)),
                Step::Exec => machine.exec(pid),
                Step::Setsid => machine.setsid(pid),
                Step::Close => {
                    let pipes: Vec<PipeId> = machine.processes[&pid].writes.values().copied().collect();
                    if let Some(pipe) = pipes.first() {
                        machine.close_write(pid, *pipe);
                    }
                }
                Step::Exit if pid != INIT => machine.exit(pid),
                Step::Exit => {}
                Step::Cgroup => machine.of(pid).cgroup = 2 + (pick as u64 % 3),
            }
            for child in first_new..machine.next_pid {
                if let Some(process) = machine.processes.get(&child) {
                    made.insert(child, process.parent);
                }
            }
            let descends = |pid: i32, from: i32| {
                std::iter::successors(Some(pid), |pid| made.get(pid).copied()).any(|above| above == from)
            };
            for withheld in machine.withheld() {
                prop_assert!(!machine.processes.contains_key(&withheld.command), "the command lives");
                let reader = &machine.processes[&withheld.reader];
                prop_assert!(reader.reads.contains(&withheld.pipe), "nobody reads");
                prop_assert!(descends(withheld.command, withheld.reader), "the reader did not start it");
                for (pid, process) in &machine.processes {
                    let writes = process.writes.values().any(|pipe| *pipe == withheld.pipe);
                    let named = withheld.escapees.iter().any(|id| id.pid == *pid);
                    prop_assert_eq!(writes, named, "all who write, and nobody else");
                    if writes {
                        prop_assert!(process.pgid != withheld.home, "it did not leave");
                        prop_assert!(descends(*pid, withheld.command), "it is a stranger");
                    }
                }
            }
            let live: HashSet<i32> = machine.processes.keys().copied().collect();
            prop_assert!(machine.commands.of_process.keys().all(|pid| live.contains(pid)), "the dead are forgotten");
        }
    }
}
