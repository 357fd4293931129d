//! A source on a thread of its own: what it waits for, nobody else does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::{Census, Question, Source};

/// Enough for directory walks; the default of 2 MiB is only address space, but it is counted.
const STACK_BYTES: usize = 256 * 1024;

/// What the thread is told.
enum Order {
    Answer(Question),
    /// Another source answers from here on.
    Use(Box<dyn Source>),
}

/// A source that answers off the main path, one question at a time.
pub struct Worker {
    orders: SyncSender<Order>,
    answers: Receiver<io::Result<Census>>,
    wake: Arc<EventFd>,
    busy: bool,
}

impl Worker {
    /// Starts the thread. It ends when the worker is dropped and its last question is answered.
    ///
    /// # Errors
    ///
    /// When there is no thread or descriptor to be had.
    pub fn start(mut source: Box<dyn Source>) -> io::Result<Worker> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        // A question, and the sources that were swapped in while it was being answered.
        let (orders, given) = sync_channel::<Order>(4);
        let (answer, answers) = sync_channel(1);
        let woken = Arc::clone(&wake);
        thread::Builder::new().name("holders".into()).stack_size(STACK_BYTES).spawn(move || {
            // The main thread reads signals from a signalfd: none may be delivered here.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
            for order in given {
                let question = match order {
                    Order::Answer(question) => question,
                    Order::Use(better) => {
                        source = better;
                        continue;
                    }
                };
                let sent = answer.send(source.holders(&question));
                if sent.is_err() || woken.write(1).is_err() {
                    break;
                }
            }
        })?;
        Ok(Worker { orders, answers, wake, busy: false })
    }

    /// Whether a question is out.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Asks, unless a question is out already; whether it did.
    pub fn ask(&mut self, question: Question) -> bool {
        if self.busy {
            return false;
        }
        self.busy = self.orders.try_send(Order::Answer(question)).is_ok();
        self.busy
    }

    /// Lets another source answer from the next question on; whether it will.
    pub fn replace(&mut self, source: Box<dyn Source>) -> bool {
        self.orders.try_send(Order::Use(source)).is_ok()
    }

    /// What becomes readable when there is an answer.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The answer, if there is one.
    ///
    /// # Errors
    ///
    /// What the source said, or `BrokenPipe` when its thread is gone.
    pub fn answer(&mut self) -> io::Result<Option<Census>> {
        match self.answers.try_recv() {
            Ok(answer) => {
                let _ = self.wake.read();
                self.busy = false;
                answer.map(Some)
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                Err(io::Error::new(io::ErrorKind::BrokenPipe, "the thread that looks for holders is gone"))
            }
        }
    }
}
