//! `/v1/events`: audit records as they are written, as server-sent events.
//!
//! A reader that falls behind by more than [`BEHIND`](super::board::BEHIND) records is told how many it lost, and
//! let go: it may come again. Nothing is kept for it alone.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio::time::{Sleep, sleep};

use super::board::Line;

/// How long it is silent at most: proxies close what is silent for a minute.
const SILENT: Duration = Duration::from_secs(15);

/// What is next for a reader.
type Next =
    Pin<Box<dyn Future<Output = (Result<Line, broadcast::error::RecvError>, broadcast::Receiver<Line>)> + Send>>;

/// The body of an answer that does not end by itself.
pub struct Events {
    /// None once it is over.
    next: Option<Next>,
    silent: Pin<Box<Sleep>>,
    begun: bool,
    _place: OwnedSemaphorePermit,
}

impl Events {
    /// The records from here on. The place is given back when the reader goes.
    #[must_use]
    pub fn new(records: broadcast::Receiver<Line>, place: OwnedSemaphorePermit) -> Events {
        Events { next: Some(next(records)), silent: Box::pin(sleep(SILENT)), begun: false, _place: place }
    }
}

fn next(mut records: broadcast::Receiver<Line>) -> Next {
    Box::pin(async move { (records.recv().await, records) })
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let text = |text: String| Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))));
        if !self.begun {
            // So that a reader knows that it is there before anything happens.
            self.begun = true;
            return text(": audit records from here on\n\n".to_owned());
        }
        let Some(coming) = &mut self.next else { return Poll::Ready(None) };
        if let Poll::Ready((record, records)) = coming.as_mut().poll(context) {
            self.silent = Box::pin(sleep(SILENT));
            return match record {
                Ok(line) => {
                    self.next = Some(next(records));
                    text(format!("event: record\ndata: {line}\n\n"))
                }
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    self.next = None;
                    text(format!("event: lost\ndata: {{\"records\":{lost}}}\n\n"))
                }
                Err(broadcast::error::RecvError::Closed) => Poll::Ready(None),
            };
        }
        match self.silent.as_mut().poll(context) {
            Poll::Ready(()) => {
                self.silent = Box::pin(sleep(SILENT));
                text(": still here\n\n".to_owned())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
