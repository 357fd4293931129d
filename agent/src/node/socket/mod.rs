//! The node's socket: supervisors without any privilege ask the machine's live map who holds their own pipes.
//!
//! The kernel's permission checks are the authority: nothing is signalled for a caller, and nobody is believed
//! to be somebody. Who passes the read end of a pipe may know who holds its write end, in his own pid namespace,
//! and gets a pidfd of each, with which he can do what he could do anyway.
//!
//! Two threads take part, and some that only close. `serve` is the one that speaks with callers; it never
//! waits for one of them. `attend` is the side of the thread that has the map, called once a turn. Between
//! them is an `exchange` of questions and words. What is said is
//! [`protocol`](crate::ownership::node::protocol), whose
//! [`Request::parse`](crate::ownership::node::protocol::Request::parse) and
//! [`Lines`](crate::ownership::node::frame::Lines) read what strangers send, without I/O.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::live::Live;

mod attend;
mod connection;
pub mod counts;
mod descriptor;
mod exchange;
mod hands;
mod listener;
mod peer;
mod quota;
mod say;
mod serve;
mod wire;

pub use counts::Counts;
pub use listener::Listener;

use attend::Desk;
use exchange::{Post, Question, Word};
use hands::Hands;
use quota::Quota;
use serve::Server;

/// The most descriptors that we ask for.
const DESCRIPTORS: libc::rlim_t = 65536;

/// Raises the limit of descriptors as far as it makes sense, and gives it.
fn descriptors() -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.min(DESCRIPTORS).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    Ok(usize::try_from(wanted).unwrap_or(usize::MAX))
}

/// The socket at work, for the thread that has the map.
pub struct Attendant {
    desk: Desk,
    questions: Arc<Post<Question>>,
    words: Arc<Post<Word>>,
    counts: Arc<Counts>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Attendant {
    /// Starts to serve who connects to a listener. The threads have the privileges that this one has now.
    ///
    /// # Errors
    ///
    /// When there are no threads or descriptors to be had.
    pub fn start(listener: Listener, rung: &'static str) -> io::Result<Attendant> {
        let (questions, words) = (Arc::new(Post::new()?), Arc::new(Post::new()?));
        let (counts, over) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let server = Server {
            epoll: Server::epoll(&listener, &words)?,
            listener,
            questions: Arc::clone(&questions),
            words: Arc::clone(&words),
            counts: Arc::clone(&counts),
            hands: Hands::start(Arc::clone(words.wake()))?,
            rung,
            boot: boot.trim().to_owned(),
            pipefs: descriptor::pipefs()?,
            connections: HashMap::new(),
            quota: Quota::new(descriptors()?),
            next: 2,
            again: Vec::new(),
            next_sweep: Instant::now(),
            full_until: None,
        };
        let told = Arc::clone(&over);
        let thread = thread::Builder::new().name("socket".into()).spawn(move || server.serve(&told))?;
        let desk = Desk::new(Arc::clone(&questions), Arc::clone(&words), Arc::clone(&counts));
        Ok(Attendant { desk, questions, words, counts, over, thread: Some(thread) })
    }

    /// What becomes readable when somebody has a question.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.questions.wake().as_fd()
    }

    /// Answers the questions that there are, and tells watchers what happened. What the map cannot tell is an
    /// error to who asked, and to nobody else.
    pub fn attend(&mut self, live: &mut Live) {
        self.desk.attend(live);
    }

    /// When [`attend`](Attendant::attend) has something to do, at the latest, though nobody asks.
    #[must_use]
    pub fn due(&self, live: &Live) -> Option<Instant> {
        self.desk.due(live)
    }

    /// Tells everybody who watches that events were lost.
    pub fn lost(&self, why: &str, missed: u64) {
        self.desk.lost(why, missed);
    }

    /// What it has done.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.words.wake().write(1);
        // It waits for nobody; with it goes the socket's file.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
