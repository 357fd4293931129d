//! The first and only program of a test machine: mounts what tests want to read, runs them, and
//! powers off. Everything goes to the console; what belongs to the report stands between marks.
//!
//! `/jobs` has a line for each run: a name, its own `NAME=value` if it has any, then the program and its
//! arguments, all without spaces.
//! `/environment` has lines `NAME=value`.
#![allow(clippy::print_stdout, clippy::expect_used, reason = "a console, and nobody to recover for")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

fn main() {
    if std::process::id() != 1 {
        eprintln!("vm_init is the init of a test machine, and this is no machine of its own");
        std::process::exit(125);
    }
    for (kind, target) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tracefs", "/sys/kernel/tracing"),
        ("securityfs", "/sys/kernel/security"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        if let Err(error) = mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>) {
            println!("@@NOTE {kind} is not mounted at {target}: {error}");
        }
    }
    for line in lines("/environment") {
        if let Some((name, value)) = line.split_once('=') {
            // SAFETY: there is no other thread yet.
            unsafe { std::env::set_var(name, value) };
        }
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("@@KERNEL {}", release.trim());
    for line in lines("/jobs") {
        let mut words = line.split_whitespace().peekable();
        let Some(name) = words.next() else { continue };
        let own: Vec<(&str, &str)> =
            std::iter::from_fn(|| words.next_if(|word| word.contains('='))?.split_once('=')).collect();
        let Some(program) = words.next() else { continue };
        println!("@@BEGIN {name}");
        let end = match Command::new(program).args(words).envs(own).status() {
            Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            Err(error) => {
                println!("cannot start {program}: {error}");
                127
            }
        };
        println!("@@END {name} {end}");
    }
    println!("@@DONE");
    let never = reboot(RebootMode::RB_POWER_OFF);
    println!("@@NOTE the power stays on: {never:?}");
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}
