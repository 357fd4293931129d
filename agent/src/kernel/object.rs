//! The built programs, and how they come into this kernel.

use std::io;

use aya::maps::Array;
use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pipewarden_common::offsets::{self, OFFSETS, global};

use super::btf::{Btf, BtfError, Name};
use super::{calls, facts};

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
        program: String,
        /// What bpf(2) said.
        source: io::Error,
        /// What the verifier said, if it was asked at all.
        verifier_log: String,
    },
    /// The program is in the kernel, and its hook cannot be had.
    #[error("{program} does not attach to {hook}: {}", chain(&**.source))]
    Attach {
        /// The program.
        program: String,
        /// The function or tracepoint.
        hook: String,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The object has no such program or map: it is not the one that this source was written for.
    #[error("the built object has no {0}: run `cargo xtask build-ebpf`")]
    Stale(String),
    /// A map could not be filled.
    #[error("the map {0} does not take what belongs in it: {1}")]
    Map(&'static str, #[source] aya::maps::MapError),
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

/// How much the maps have room for. What does not fit is counted, and makes the map inexact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Processes, and as many descriptor tables.
    pub processes: u32,
    /// Descriptors on pipes.
    pub slots: u32,
    /// Those of them that are on watched pipes.
    pub holders: u32,
    /// Watched pipes.
    pub watched: u32,
    /// Bytes of events that nobody has read yet: a power of two, and whole pages.
    pub event_bytes: u32,
}

impl Sizes {
    /// For who loads none of the programs that use the maps.
    pub const LEAST: Sizes = Sizes { processes: 1, slots: 1, holders: 1, watched: 1, event_bytes: 4096 };
    /// For one run: about 12 MB of kernel memory, which is not the process's.
    pub const RUN: Sizes =
        Sizes { processes: 16384, slots: 65536, holders: 8192, watched: 64, event_bytes: 256 * 1024 };
    /// For a machine: about 100 MB.
    pub const NODE: Sizes =
        Sizes { processes: 131_072, slots: 524_288, holders: 65536, watched: 16384, event_bytes: 4 * 1024 * 1024 };
}

/// The programs, ready to be loaded one by one, and the kernel's types.
pub struct Opened {
    /// Programs and maps.
    pub ebpf: Ebpf,
    types: Btf,
    _memlock: Option<Memlock>,
}

impl Opened {
    /// What programs of these names need to know of the kernel's types.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn types(&self, names: &[Name<'_>]) -> Result<aya::Btf, LoadError> {
        Ok(aya::Btf::parse(&self.types.names_only(names)?, aya::Endianness::default())?)
    }
}

/// Creates the maps, and makes the programs ready to be loaded.
///
/// The kernel's types are read by our own reader alone: 14 ms and 5.5 MB resident instead of 30 ms and
/// 19 MB.
///
/// # Errors
///
/// [`LoadError`].
pub fn open(scope: Scope, sizes: &Sizes) -> Result<Opened, LoadError> {
    let memlock = Memlock::raised();
    let types = Btf::of_the_kernel()?;
    let globals = globals(&types, scope)?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    loader
        .map_max_entries(offsets::MAP_PROCESSES, sizes.processes)
        .map_max_entries(offsets::MAP_TABLES, sizes.processes)
        .map_max_entries(offsets::MAP_SLOTS, sizes.slots)
        .map_max_entries(offsets::MAP_HOLDERS, sizes.holders)
        .map_max_entries(offsets::MAP_WATCHED, sizes.watched)
        .map_max_entries(offsets::MAP_EVENTS, sizes.event_bytes);
    let mut ebpf = loader.load(OBJECT).map_err(LoadError::Object)?;
    fill_calls(&mut ebpf)?;
    Ok(Opened { ebpf, types, _memlock: memlock })
}

fn fill_calls(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let map = ebpf.map_mut(offsets::MAP_CALLS).ok_or_else(|| LoadError::Stale(offsets::MAP_CALLS.to_owned()))?;
    let full = |error| LoadError::Map(offsets::MAP_CALLS, error);
    let mut map = Array::<_, u32>::try_from(map).map_err(full)?;
    for (number, meaning) in calls::meanings() {
        map.set(number, meaning, 0).map_err(full)?;
    }
    Ok(())
}

/// Every global of the programs, and its value here.
fn globals(types: &Btf, scope: Scope) -> Result<Vec<(&'static str, u64)>, BtfError> {
    let members = OFFSETS.iter().chain(&calls::OFFSETS);
    let mut globals =
        members.map(|(name, path)| Ok((*name, offset(types, path)?))).collect::<Result<Vec<_>, BtfError>>()?;
    globals.push((global::COMPAT_MASK, calls::COMPAT_MASK));
    globals.push((global::TRACK_ALL, u64::from(scope == Scope::All)));
    Ok(globals)
}

/// The offset of a path, which may end in "+BYTES" within an array.
fn offset(types: &Btf, path: &str) -> Result<u64, BtfError> {
    match path.split_once('+') {
        Some((path, bytes)) => Ok(types.offset(path)? + bytes.parse().unwrap_or(0)),
        None => types.offset(path),
    }
}

/// Before Linux 5.11, maps and programs count against `RLIMIT_MEMLOCK`, which is 64 KiB by default, when
/// they are made. Until this is dropped the limit is as high as we may raise it: a command inherits ours,
/// and finds what it would without us.
struct Memlock {
    soft: libc::rlim_t,
    hard: libc::rlim_t,
}

impl Memlock {
    /// Not being allowed to is no error here: the kernel says what it does not give.
    fn raised() -> Option<Memlock> {
        if facts::version() >= (5, 11) {
            return None;
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
        if setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY).is_err() {
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
        }
        Some(Memlock { soft, hard })
    }
}

impl Drop for Memlock {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, self.soft, self.hard);
    }
}

/// Loads a program, again if a signal came: the verifier then stops with EAGAIN, whatever becomes of the
/// signal. (libbpf tries five times, too.)
pub(super) fn in_spite_of_signals(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const TRIES: u32 = 5;
    for _ in 1..TRIES {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            loaded => return loaded,
        }
    }
    load()
}

/// Sorts a failed load: a refusal with the verifier's log, or something else.
pub(super) fn refused(program: &str, error: ProgramError) -> LoadError {
    let program = program.to_owned();
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
            program: "p".into(),
            source: io::Error::from_raw_os_error(libc::EINVAL),
            verifier_log: log.into(),
        };
        assert_eq!(error.verifier_tail(1).unwrap(), ["unknown func bpf_probe_read_kernel#113"]);
        assert_eq!(error.verifier_tail(9).unwrap().len(), 3);
        assert_eq!(error.errno(), Some(libc::EINVAL));
    }

    #[test]
    fn every_offset_exists_in_the_running_kernel() {
        let types = match Btf::of_the_kernel() {
            Ok(types) => types,
            Err(error) => return crate::kernel::skipped(format_args!("needs a kernel with BTF: {error}")),
        };
        let globals = globals(&types, Scope::Lineage).unwrap();
        assert!(globals.len() > OFFSETS.len());
        // Not even a structure's first member is at 0 in all of them: that would be a reader that reads nothing.
        assert!(globals.iter().filter(|(_, value)| *value != 0).count() > OFFSETS.len() / 2);
    }
}
