//! What the programs log about themselves, to stderr. Only in a build with the feature `bpf-log`.

use std::io::Write;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

/// Prints what comes.
struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let (file, line) = (record.file().unwrap_or("?"), record.line().unwrap_or(0));
        let _ = writeln!(std::io::stderr(), "bpf: {file}:{line}: {}", record.args());
    }

    fn flush(&self) {}
}

/// The programs' own ring buffer of lines.
pub(super) struct Lines(Option<EbpfLogger<Stderr>>);

impl Lines {
    /// Begins to listen; an object without log lines has nothing to listen to.
    pub(super) fn of(ebpf: &mut Ebpf) -> Self {
        Lines(EbpfLogger::init_with_logger(ebpf, Stderr).ok())
    }

    /// Prints what was logged since.
    pub(super) fn print(&mut self) {
        if let Some(logger) = &mut self.0 {
            logger.flush();
        }
    }
}
