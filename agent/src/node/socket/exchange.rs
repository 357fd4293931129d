//! What the thread that serves and the one that has the map say to each other.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::node::live::{Fled, Holding};
use crate::ownership::node::protocol::Code;
use crate::pipe::{Pipe, PipeId, ProcessId};

/// A question about the map, of one connection.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) connection: u64,
    /// Who asks, in our own pid namespace.
    pub(super) peer: ProcessId,
    pub(super) asked: Asked,
}

/// What is asked.
#[derive(Debug)]
pub(super) enum Asked {
    Watch {
        id: u64,
        watch: u64,
        pipe: Pipe,
    },
    Unwatch {
        watch: u64,
    },
    /// About a pipe whose read end was passed.
    Resolve {
        id: u64,
        pipe: Pipe,
    },
    /// About a pipe that is watched.
    ResolveWatch {
        id: u64,
        watch: u64,
    },
    Why {
        id: u64,
    },
    /// The connection is over.
    Over,
}

/// A word for one connection.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) connection: u64,
    pub(super) said: Said,
}

/// What is said.
#[derive(Debug)]
pub(super) enum Said {
    Watching {
        id: u64,
        watch: u64,
        pipe: Pipe,
    },
    Holding {
        id: u64,
        pipe: Pipe,
        holding: Holding,
        exact: bool,
    },
    Own {
        id: u64,
        own: Vec<(PipeId, Holding)>,
        exact: bool,
    },
    /// A watch that there was to be is none then.
    Refused {
        id: u64,
        code: Code,
        message: String,
        watch: Option<u64>,
    },
    Eof {
        watch: u64,
    },
    Changed {
        watch: u64,
    },
    Escape {
        watch: u64,
        fled: Fled,
    },
    Ended {
        watch: u64,
    },
    /// For everybody who watches.
    Lost {
        why: String,
        missed: u64,
    },
}

/// A queue from one thread to another, who is woken by a descriptor.
#[derive(Debug)]
pub(super) struct Post<T> {
    queue: Mutex<VecDeque<T>>,
    wake: Arc<EventFd>,
}

impl<T> Post<T> {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When there is no descriptor to be had.
    pub(super) fn new() -> io::Result<Post<T>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Post { queue: Mutex::default(), wake: Arc::new(wake) })
    }

    /// Puts something in.
    pub(super) fn put(&self, item: T) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(item);
        let _ = self.wake.write(1); // it fails only when it is about to wake somebody anyway
    }

    /// Takes the first of what is there, at most so many.
    pub(super) fn take(&self, most: usize) -> Vec<T> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let number = most.min(queue.len());
        if number == queue.len() {
            let _ = self.wake.read();
        }
        queue.drain(..number).collect()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What becomes readable when there is something, or somebody else who knows it rang.
    pub(super) fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }
}
