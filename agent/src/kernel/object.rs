//! The built programs, and how they come into this kernel.

use std::io;

use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pipewarden_common::offsets::{OFFSETS, global};

use super::btf::{Btf, BtfError};

/// What `cargo xtask build-ebpf` built.
#[cfg(not(feature = "bpf-log"))]
static OBJECT: &[u8] = include_bytes_aligned!("../../bpf/pipewarden.o");
/// What `cargo xtask build-ebpf --debug` built.
#[cfg(feature = "bpf-log")]
static OBJECT: &[u8] = include_bytes_aligned!("../../bpf/pipewarden-debug.o");

/// Why programs are not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The offsets could not be read.
    #[error(transparent)]
    Offsets(#[from] BtfError),
    /// The kernel's types could not be read a second way (by the library that loads the programs).
    #[error("cannot read the kernel's types: {0}")]
    Types(#[from] aya::BtfError),
    /// The object itself: its maps, mostly.
    #[error("the maps were refused: {}", chain(.0))]
    Object(#[source] EbpfError),
    /// The kernel refused a program.
    #[error("{program} was refused: {source}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What bpf(2) said.
        source: io::Error,
        /// What the verifier said, if it was asked at all.
        verifier_log: String,
    },
    /// The program is in the kernel, and its hook cannot be had.
    #[error("{program} does not attach to {hook}: {}", chain(.source))]
    Attach {
        /// The program.
        program: &'static str,
        /// The function or tracepoint.
        hook: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// The object has no such program or map: it is not the one that this source was written for.
    #[error("the built object has no {0}: run `cargo xtask build-ebpf`")]
    Stale(&'static str),
}

impl LoadError {
    /// The verifier's last words: what it objected to is at the end of its log, before the statistics.
    #[must_use]
    pub fn verifier_tail(&self, lines: usize) -> Option<Vec<String>> {
        let LoadError::Refused { verifier_log, .. } = self else { return None };
        let said: Vec<&str> =
            verifier_log.lines().filter(|line| !line.trim().is_empty() && !is_statistics(line)).collect();
        let tail = &said[said.len().saturating_sub(lines)..];
        (!tail.is_empty()).then(|| tail.iter().map(|line| (*line).to_owned()).collect())
    }

    /// The error number, where the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        let mut at: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = at {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return io.raw_os_error();
            }
            at = error.source();
        }
        None
    }
}

fn is_statistics(line: &str) -> bool {
    ["processed ", "verification time ", "stack depth "].iter().any(|start| line.starts_with(start))
}

/// An error and its causes on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        at = cause.source();
    }
    text
}

/// About whom the programs tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Processes put into the lineage, and their descendants from then on.
    Lineage,
    /// Every process of the machine.
    All,
}

/// Creates the maps, and makes the programs ready to be loaded one by one.
///
/// The kernel's types are read by our own reader alone: a rung without typed programs needs no more
/// (14 ms and 5.5 MB resident instead of 30 ms and 19 MB).
///
/// # Errors
///
/// [`LoadError`].
pub fn open(scope: Scope) -> Result<Ebpf, LoadError> {
    raise_memlock();
    let globals = globals(scope)?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    loader.load(OBJECT).map_err(LoadError::Object)
}

/// Every global of the programs, and its value here.
fn globals(scope: Scope) -> Result<Vec<(&'static str, u64)>, BtfError> {
    let btf = Btf::of_the_kernel()?;
    let members = OFFSETS.iter().chain(&registers::OFFSETS);
    let mut globals =
        members.map(|(name, path)| Ok((*name, btf.offset(path)?))).collect::<Result<Vec<_>, BtfError>>()?;
    globals.extend(registers::NUMBERS);
    globals.push((global::TRACK_ALL, u64::from(scope == Scope::All)));
    Ok(globals)
}

/// What differs from architecture to architecture, so that the object need not.
#[cfg(target_arch = "x86_64")]
pub(super) mod registers {
    use super::global::{NR_SETPGID, NR_SETSID, REGS_ARGUMENT, REGS_NR, REGS_PARAMETER, REGS_RETURN};

    pub(super) const OFFSETS: [(&str, &str); 4] = [
        (REGS_NR, "pt_regs.orig_ax"),
        (REGS_ARGUMENT, "pt_regs.di"),
        (REGS_PARAMETER, "pt_regs.di"),
        (REGS_RETURN, "pt_regs.ax"),
    ];
    pub(super) const NUMBERS: [(&str, u64); 2] =
        [(NR_SETSID, libc::SYS_setsid.unsigned_abs()), (NR_SETPGID, libc::SYS_setpgid.unsigned_abs())];
    /// The kernel's function behind setpgid(2).
    pub(crate) const SETPGID: &str = "__x64_sys_setpgid";
}

/// What differs from architecture to architecture, so that the object need not.
#[cfg(target_arch = "aarch64")]
pub(super) mod registers {
    use super::global::{NR_SETPGID, NR_SETSID, REGS_ARGUMENT, REGS_NR, REGS_PARAMETER, REGS_RETURN};

    pub(super) const OFFSETS: [(&str, &str); 4] = [
        (REGS_NR, "pt_regs.syscallno"),
        // The return value takes the first argument's register; the kernel keeps a copy.
        (REGS_ARGUMENT, "pt_regs.orig_x0"),
        (REGS_PARAMETER, "pt_regs.regs"),
        (REGS_RETURN, "pt_regs.regs"),
    ];
    pub(super) const NUMBERS: [(&str, u64); 2] =
        [(NR_SETSID, libc::SYS_setsid.unsigned_abs()), (NR_SETPGID, libc::SYS_setpgid.unsigned_abs())];
    /// The kernel's function behind setpgid(2).
    pub(crate) const SETPGID: &str = "__arm64_sys_setpgid";
}

/// Before 5.11, maps and programs count against `RLIMIT_MEMLOCK`, which is 64 KiB by default. Not
/// being allowed to raise it is no error here: later kernels do not ask.
fn raise_memlock() {
    if setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// Sorts a failed load: a refusal with the verifier's log, or something else.
pub(super) fn refused(program: &'static str, error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            LoadError::Refused { program, source: io_error, verifier_log: verifier_log.to_string() }
        }
        ProgramError::SyscallError(error) => {
            LoadError::Refused { program, source: error.io_error, verifier_log: String::new() }
        }
        ProgramError::Btf(error) => LoadError::Types(error),
        other => LoadError::Refused { program, source: io::Error::other(other), verifier_log: String::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_objection_is_found_before_its_statistics() {
        let log = "0: (bf) r6 = r1\n1: (85) call bpf_probe_read_kernel#113\nunknown func bpf_probe_read_kernel#113\n\
                   verification time 10 usec\nstack depth 0\nprocessed 2 insns (limit 1000000)\n";
        let error = LoadError::Refused {
            program: "p",
            source: io::Error::from_raw_os_error(libc::EINVAL),
            verifier_log: log.into(),
        };
        assert_eq!(error.verifier_tail(1).unwrap(), ["unknown func bpf_probe_read_kernel#113"]);
        assert_eq!(error.verifier_tail(9).unwrap().len(), 3);
        assert_eq!(error.errno(), Some(libc::EINVAL));
    }

    #[test]
    fn every_offset_exists_in_the_running_kernel() {
        if let Err(error) = Btf::of_the_kernel() {
            crate::kernel::skipped(format_args!("needs a kernel with BTF: {error}"));
            return;
        }
        let globals = globals(Scope::Lineage).unwrap();
        assert!(globals.len() > OFFSETS.len());
        // Not even a structure's first member is at 0 in all of them: that would be a reader that reads nothing.
        assert!(globals.iter().filter(|(_, value)| *value != 0).count() > OFFSETS.len() / 2);
    }
}
