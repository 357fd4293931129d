//! What the node's loop puts up for others to read.
//!
//! The loop writes, and never waits for a reader; requests read, and never reach the loop.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::broadcast;

use super::gate::Token;
use crate::audit::evidence::PipeSeen;
use crate::node::health::Trouble;
use crate::process::describe::Description;

/// How long the loop may not turn until it is taken for stuck. It turns at least once a second.
pub const STUCK: Duration = Duration::from_secs(30);

/// Records that are kept for who reads them later than they come: about 256 KB, whatever the number of readers.
pub const BEHIND: usize = 256;

/// What the node saw at its last look.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct View {
    /// Pipes whose command has ended while somebody of its lineage lives.
    pub pipes: Vec<PipeView>,
    /// Why the node is not to be relied on fully.
    #[serde(skip)]
    pub troubles: Vec<Trouble>,
}

/// A pipe that is withheld or could be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PipeView {
    /// Which.
    pub pipe: PipeSeen,
    /// Whether it is.
    pub state: PipeState,
    /// For how long its command has been known to be gone, in milliseconds.
    pub since_exit_ms: u64,
    /// Who holds its write end.
    pub holders: Vec<HolderView>,
}

/// What a pipe is to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PipeState {
    /// Somebody waits for its end of file in vain.
    Withheld,
    /// Its command has ended and it has holders, who keep nobody waiting as far as is known.
    Watched,
}

/// A holder of a write end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HolderView {
    /// Who it is; absent for somebody whom no descriptor table shows.
    pub process: Option<Description>,
    /// What is done about it; absent where its pipe is not withheld.
    pub state: Option<HolderState>,
}

/// What is done about a holder of a withheld pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HolderState {
    /// Its policy's grace is not over.
    Waiting,
    /// It is let live.
    Spared,
    /// It was signalled.
    Signalled,
}

/// An audit record as a line of JSON, without its end.
pub type Line = Arc<str>;

/// What is put up.
pub struct Board {
    began: Instant,
    /// When the loop turned last, in milliseconds since `began`.
    turned_ms: AtomicU64,
    view: Mutex<Arc<View>>,
    token: Mutex<Option<Token>>,
    registry: Registry,
    records: broadcast::Sender<Line>,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("began", &self.began).finish_non_exhaustive()
    }
}

impl Board {
    /// An empty one. `token` is what requests must show, if anything.
    #[must_use]
    pub fn new(registry: Registry, token: Option<Token>) -> Board {
        let view = Mutex::new(Arc::default());
        let records = broadcast::Sender::new(BEHIND);
        let (began, turned_ms) = (Instant::now(), AtomicU64::new(0));
        Board { began, turned_ms, view, token: Mutex::new(token), registry, records }
    }

    /// The loop turned.
    pub fn turned(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned_ms.store(now, Ordering::Relaxed);
    }

    /// How long ago that was.
    #[must_use]
    pub fn still(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.turned_ms.load(Ordering::Relaxed)))
    }

    /// Puts up what was seen.
    pub fn publish(&self, view: View) {
        *lock(&self.view) = Arc::new(view);
    }

    /// What was seen last.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&lock(&self.view))
    }

    /// Another token from here on.
    pub fn expect(&self, token: Option<Token>) {
        *lock(&self.token) = token;
    }

    /// What requests must show.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        lock(&self.token).clone()
    }

    /// The metrics.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// An audit record was written.
    pub fn wrote(&self, line: &[u8]) {
        if self.records.receiver_count() > 0
            && let Ok(line) = std::str::from_utf8(line)
        {
            let _ = self.records.send(line.trim_end_matches('\n').into()); // nobody listens: that is fine
        }
    }

    /// How many read records now.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.records.receiver_count()
    }

    /// The records from here on.
    #[must_use]
    pub fn records(&self) -> broadcast::Receiver<Line> {
        self.records.subscribe()
    }
}

/// Everything on the board is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
