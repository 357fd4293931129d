//! The rows of the matrix: which kernels, which machines without something, and what must be usable.

use std::path::Path;
use std::process::Command;

use super::checks::Reach;

/// Where a row's checks run.
pub(crate) enum Place {
    /// In a virtual machine.
    Machine {
        /// The series of Debian's kernel.
        series: &'static str,
        /// More words on its command line.
        words: &'static str,
    },
    /// Here, with something taken away by another program, which runs the checks.
    Here(fn(&Path) -> Command),
}

/// A row.
pub(crate) struct Row {
    /// Its name, for the table and the command line.
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    /// How much is checked on it ordinarily.
    pub(crate) reach: Reach,
    /// And when that is asked for by name, or by `--long`.
    pub(crate) most: Reach,
    /// Rungs that must be usable.
    pub(crate) usable: &'static [&'static str],
    /// Rungs that must not.
    pub(crate) unusable: &'static [&'static str],
}

const BPF: &[&str] = &["bpf-fentry", "bpf-kprobe", "bpf-tracepoint"];
const ALL: &[&str] = &["bpf-fentry", "bpf-kprobe", "bpf-tracepoint", "connector", "proc"];

const fn machine(name: &'static str, series: &'static str, words: &'static str, reach: Reach) -> Row {
    let place = Place::Machine { series, words };
    Row { name, place, reach, most: Reach::All, usable: ALL, unusable: &["node"] }
}

/// All of them, in the table's order.
pub(crate) const ROWS: &[Row] = &[
    machine("5.10", "5.10", "", Reach::All),
    machine("6.1", "6.1", "", Reach::All),
    machine("6.12", "6.12", "", Reach::All),
    // The same kernel once more, which now leaves programs out where they interrupt each other.
    Row { most: Reach::Chance, ..machine("6.12-full", "6.12", "preempt=full", Reach::Basics) },
    machine("7.2", "7.2", "", Reach::All),
    // Blocks what reads kernel memory, and with it every rung; not the iterators, and not BPF as such.
    Row {
        name: "6.12-lockdown",
        place: Place::Machine { series: "6.12", words: "lsm=lockdown,yama,bpf lockdown=confidentiality" },
        reach: Reach::Basics,
        most: Reach::Chance,
        usable: &["connector", "proc"],
        unusable: BPF,
    },
    here("here", as_it_is, &["node"]),
    here("here-no-bpf", without_bpf, BPF),
    here("here-no-btf", without_btf, BPF),
    here("here-netns", in_network_namespace, &["connector"]),
    here("here-pidns", in_pid_namespace, &["bpf-fentry", "bpf-kprobe", "bpf-tracepoint", "connector"]),
];

/// The whole suite runs here anyway.
const fn here(name: &'static str, wrapper: fn(&Path) -> Command, unusable: &'static [&'static str]) -> Row {
    let (reach, most) = (Reach::Basics, Reach::Basics);
    Row { name, place: Place::Here(wrapper), reach, most, usable: &["proc"], unusable }
}

fn wrapped(program: &str, arguments: &[&str], inner: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg(inner);
    command
}

fn as_it_is(inner: &Path) -> Command {
    Command::new(inner)
}

/// Root, but without the capabilities for BPF.
fn without_bpf(inner: &Path) -> Command {
    wrapped("setpriv", &["--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-all"], inner)
}

/// BPF, and no types of the kernel.
fn without_btf(inner: &Path) -> Command {
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    wrapped("unshare", &["--mount", "sh", "-c", hide], inner)
}

/// Where there is no connector.
fn in_network_namespace(inner: &Path) -> Command {
    wrapped("unshare", &["--net"], inner)
}

/// Where the kernel's pids are not ours.
fn in_pid_namespace(inner: &Path) -> Command {
    wrapped("unshare", &["--pid", "--fork", "--mount-proc"], inner)
}
