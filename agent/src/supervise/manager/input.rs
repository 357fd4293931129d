//! The FIFO that a command reads, and the books of who opened and closed it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::audit::detail::{Finished, Started};
use crate::audit::{self, Log, RunId};
use crate::run::feed::Closing;
use crate::run::fifo::{Fifo, FifoError};

/// How long the end of a FIFO waits for the end of its log.
const LOG_WAIT: Duration = Duration::from_millis(100);

/// A FIFO that outlasts the runs of its command, and so has a chain of its own in the audit log.
pub struct Input {
    fifo: Fifo,
    log: Log,
    began: Instant,
}

/// Whose input it is.
pub struct Owner<'a> {
    /// The command's name.
    pub name: &'a str,
    /// Its command line.
    pub command: &'a [String],
    /// Where audit records go.
    pub audit: Option<&'a audit::Target>,
}

impl Input {
    /// Takes a FIFO, and makes it if there is none.
    ///
    /// # Errors
    ///
    /// As [`FifoError`] says.
    pub fn open(path: &Path, owner: &Owner<'_>) -> Result<Input, FifoError> {
        let fifo = Fifo::own(path)?;
        // A target that is not to be had any more keeps no command from its input.
        let opened = owner.audit.and_then(|to| Log::open_named(to, RunId::new(), Some(owner.name.to_owned())).ok());
        let log = opened.unwrap_or_else(|| Log::disabled(RunId::new()));
        if log.is_on() {
            let why = ("supervise".to_owned(), "keeps the FIFO that the command reads".to_owned());
            let _ = log.record(audit::Event::RunStarted { detail: Box::new(Started::new(owner.command, [why])) });
        }
        let mut input = Input { fifo, log, began: Instant::now() };
        input.note();
        Ok(input)
    }

    /// The FIFO.
    #[must_use]
    pub fn fifo(&self) -> &Fifo {
        &self.fifo
    }

    /// Whether it is the one at this path, and open.
    #[must_use]
    pub fn is_open_at(&self, path: &PathBuf) -> bool {
        self.fifo.path == *path && self.fifo.reading().is_some()
    }

    /// Does what is asked about it, and notes what happened to it.
    pub fn attend(&mut self, command: i32) {
        if self.fifo.attend(command, 0) {
            self.fifo.close(Closing::Asked);
        }
        self.note();
    }

    /// Ends the input: what is in the FIFO may still be read.
    pub fn close(&mut self) {
        self.fifo.close(Closing::RunOver);
        self.note();
    }

    fn note(&mut self) {
        for event in self.fifo.events() {
            if self.log.is_on() {
                let _ = self.log.record(event.recorded(&self.fifo.path, self.fifo.pipe, None));
            }
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.close();
        let log = std::mem::replace(&mut self.log, Log::disabled(RunId::new()));
        let elapsed = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let _ = log.finish(Finished::new(None, 0, elapsed), LOG_WAIT);
    }
}
