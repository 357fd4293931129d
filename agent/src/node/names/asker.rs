//! The thread that asks a container runtime, so that nobody waits for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::Answer;
use super::cri::Runtime;

/// The most questions that are open: whoever comes then is asked for later.
const OPEN: usize = 256;
/// How long a container's names may take; after that the runtime is taken for one that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A question that waited longer is not asked: the runtime was silent so long that whoever asked has gone on.
const STALE: Duration = Duration::from_secs(10);

/// The way to the thread. It ends with this.
#[derive(Debug)]
pub(super) struct Asker {
    questions: SyncSender<(String, Instant)>,
    answers: Receiver<(String, Answer)>,
}

impl Asker {
    /// Starts the thread, which confines itself first. That nobody listens at the socket is an answer like others: runtimes come and go.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub(super) fn start(socket: PathBuf, confine: impl FnOnce() + Send + 'static) -> io::Result<Asker> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (questions, asked) = sync_channel(OPEN);
        let (told, answers) = channel();
        thread::Builder::new().name("names".into()).spawn(move || {
            confine();
            serve(&runtime, &socket, &asked, &told);
        })?;
        Ok(Asker { questions, answers })
    }

    /// Asks for a container. False where too many questions are open already.
    pub(super) fn ask(&self, container: &str) -> bool {
        self.questions.try_send((container.to_owned(), Instant::now())).is_ok()
    }

    /// An answer that has come.
    pub(super) fn answer(&self) -> Option<(String, Answer)> {
        self.answers.try_recv().ok()
    }
}

fn serve(
    runtime: &tokio::runtime::Runtime,
    socket: &Path,
    asked: &Receiver<(String, Instant)>,
    told: &Sender<(String, Answer)>,
) {
    while let Ok(first) = asked.recv() {
        // A connection for as long as there are questions: one that was idle may be dead, and nobody knows.
        let mut connection = None;
        let mut next = Some(first);
        while let Some((container, since)) = next {
            let answer = if since.elapsed() > STALE {
                Answer::Failed(format!("{}: it answers too slowly", socket.display()))
            } else {
                runtime.block_on(ask(&mut connection, socket, &container))
            };
            if told.send((container, answer)).is_err() {
                return; // nobody wants to know any more
            }
            next = asked.try_recv().ok();
        }
    }
}

/// Asks for one, within bounds. A connection on which that fails is given up.
async fn ask(connection: &mut Option<Runtime>, socket: &Path, container: &str) -> Answer {
    let exchange = async {
        let runtime = match connection.take() {
            Some(runtime) => runtime,
            None => Runtime::connect(socket).await?,
        };
        let answer = runtime.names(container).await?;
        *connection = Some(runtime);
        Ok::<Answer, super::grpc::NoAnswer>(answer)
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::Failed(format!("{}: {error}", socket.display())),
        Err(_) => Answer::Failed(format!("{}: it does not answer within {PATIENCE:?}", socket.display())),
    }
}
