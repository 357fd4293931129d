//! The machine, as far as a reader of the numbers must know it.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;

use crate::workspace::toolchain;

/// Kernel, processor, memory and compiler in one line.
pub(crate) fn description() -> Result<String> {
    let system = uname().context("cannot ask for the kernel's name")?;
    let cores = std::thread::available_parallelism()?;
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| system.machine().to_string_lossy().into_owned());
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned());
    let (name, release) = (system.sysname().to_string_lossy(), system.release().to_string_lossy());
    Ok(format!("{name} {release}, {cores} cores of {model}, {memory} of memory, Rust {} (release)", toolchain()?))
}

/// What else the machine is doing: a bench on a busy one is worth its ratios at most.
pub(crate) fn load() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
    let averages: Vec<&str> = load.split(' ').take(3).collect();
    Ok(format!("load average when the bench began: {} (1, 5, 15 minutes)", averages.join(", ")))
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
