//! The one thread that has the connections.
//!
//! One request a connection; a bounded number of them, of which some may read events; who is slow to ask or to
//! take is given up: see [`Limits`]. So the thread's memory is bounded, and nobody keeps others out for long.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::Desk;
use super::board::{Board, STUCK};
use super::patient::Patient;

/// How much others may take of the thread.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most connections at a time; more wait in the kernel's queue.
    pub connections: usize,
    /// The most of them that read events, so that probes find a place.
    pub readers: usize,
    /// How long a request's head may take to come.
    pub head: Duration,
    /// How long a peer may take nothing of what is there for it.
    pub takes_nothing: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let (head, takes_nothing) = (Duration::from_secs(5), Duration::from_secs(10));
        Limits { connections: 64, readers: 32, head, takes_nothing }
    }
}

/// The longest head, in bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// How long to wait where the kernel has no descriptor for another connection.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);
/// Few frames are deep here; only touched pages count.
const STACK: usize = 512 * 1024;

/// Why a node does not listen.
#[derive(Debug, thiserror::Error)]
#[error("[http] listen = \"{address}\": {error}; name another address and port, or \"off\"")]
pub struct NoListener {
    address: SocketAddr,
    #[source]
    error: io::Error,
}

/// A port that nobody is served at yet.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    here: SocketAddr,
}

impl Listener {
    /// Listens. Port 0 stands for any that is free.
    ///
    /// # Errors
    ///
    /// One line that names the key.
    pub fn bind(address: SocketAddr) -> Result<Listener, NoListener> {
        let bound = || -> io::Result<Listener> {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let here = listener.local_addr()?;
            Ok(Listener { listener, here })
        };
        bound().map_err(|error| NoListener { address, error })
    }

    /// Where it listens.
    #[must_use]
    pub fn here(&self) -> SocketAddr {
        self.here
    }

    /// Starts the thread, which ends with the process. `confine` is the first that it does: from then on it may
    /// do no more than it must.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub fn serve(self, board: Arc<Board>, limits: Limits, confine: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let thread = std::thread::Builder::new().name("http".to_owned()).stack_size(STACK);
        let serve = move || {
            confine();
            runtime.block_on(self.accept(board, limits));
        };
        thread.spawn(serve).map(drop)
    }

    async fn accept(self, board: Arc<Board>, limits: Limits) {
        let Ok(listener) = tokio::net::TcpListener::from_std(self.listener) else { return };
        let places = Arc::new(Semaphore::new(limits.connections));
        let desk = Desk { board, here: self.here, stuck: STUCK, readers: Arc::new(Semaphore::new(limits.readers)) };
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, desk.clone(), limits, place))),
                Err(_) => tokio::time::sleep(OUT_OF_DESCRIPTORS).await,
            }
        }
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, desk: Desk, limits: Limits, _place: OwnedSemaphorePermit) {
    let service = service_fn(|request| {
        let answer = desk.answer(&request);
        async { Ok::<_, Infallible>(answer) }
    });
    let mut connection = http1::Builder::new();
    connection.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD_BYTES);
    connection.keep_alive(false).half_close(false);
    // What is wrong with a connection is its peer's business.
    let _ = connection.serve_connection(TokioIo::new(Patient::new(stream, limits.takes_nothing)), service).await;
}
