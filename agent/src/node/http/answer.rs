//! What is answered to a request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::Semaphore;

use super::board::Board;
use super::events::Events;
use super::exposition::expose;
use super::gate::{Refused, admit};
use crate::node::health::Trouble;

const JSON: &str = "application/json";

/// The body of an answer.
pub enum Answer {
    /// All of it.
    Whole(Option<Bytes>),
    /// Records as they come.
    Events(Events),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Answer::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Events(events) => Pin::new(events).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Whole(bytes) => bytes.is_none(),
            Answer::Events(events) => events.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Answer::Events(events) => events.size_hint(),
        }
    }
}

/// What requests are answered from.
#[derive(Clone, Debug)]
pub struct Desk {
    /// What the node put up.
    pub board: Arc<Board>,
    /// Where it listens.
    pub here: SocketAddr,
    /// How long the node's loop may stand still.
    pub stuck: Duration,
    /// How many more may read records.
    pub readers: Arc<Semaphore>,
}

impl Desk {
    /// The answer to a request, whose body is not looked at.
    #[must_use]
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Answer> {
        let header = |name| request.headers().get(name).map(HeaderValue::as_bytes);
        // Where the target names a host too (RFC 9112, 3.2.2), both must be this machine.
        let named = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let token = self.board.token();
        let authorization = header(header::AUTHORIZATION);
        let mut hosts = [named, header(header::HOST)].into_iter();
        match hosts.try_for_each(|host| admit(token.as_ref(), self.here, host, authorization)) {
            Ok(()) => {}
            Err(Refused::Token) => {
                let mut response = told(StatusCode::UNAUTHORIZED, "show the token: Authorization: Bearer TOKEN");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                return response;
            }
            Err(Refused::Host) => {
                return told(StatusCode::MISDIRECTED_REQUEST, "the request names another host than this machine");
            }
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = told(StatusCode::METHOD_NOT_ALLOWED, "there is only GET and HEAD");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => {
                let (text, kind) = expose(self.board.registry(), header(header::ACCEPT));
                whole(StatusCode::OK, kind, text)
            }
            "/healthz" => self.healthy(),
            "/readyz" => self.ready(),
            "/v1/pipes" => whole(StatusCode::OK, JSON, json!(*self.board.view()).to_string()),
            "/v1/events" if request.method() == Method::HEAD => whole(StatusCode::OK, "text/event-stream", ""),
            "/v1/events" => self.events(),
            _ => told(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz, /v1/pipes and /v1/events"),
        }
    }

    fn healthy(&self) -> Response<Answer> {
        let still = self.board.still();
        let turns = still < self.stuck;
        let status = if turns { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        whole(status, JSON, json!({"ok": turns, "still_ms": u64::try_from(still.as_millis()).ok()}).to_string())
    }

    fn ready(&self) -> Response<Answer> {
        let mut troubles = self.board.view().troubles.clone();
        let still = self.board.still();
        if still >= self.stuck {
            troubles.push(Trouble::stuck(still));
        }
        let status = if troubles.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        whole(status, JSON, json!({"ready": troubles.is_empty(), "reasons": troubles}).to_string())
    }

    fn events(&self) -> Response<Answer> {
        let Ok(place) = Arc::clone(&self.readers).try_acquire_owned() else {
            return told(StatusCode::SERVICE_UNAVAILABLE, "too many read events already; come again later");
        };
        let events = Answer::Events(Events::new(self.board.records(), place));
        response(StatusCode::OK, "text/event-stream", events)
    }
}

fn told(status: StatusCode, text: &str) -> Response<Answer> {
    whole(status, JSON, json!({"error": text}).to_string())
}

fn whole(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Answer> {
    response(status, kind, Answer::Whole(Some(text.into()).filter(|bytes: &Bytes| !bytes.is_empty())))
}

fn response(status: StatusCode, kind: &'static str, answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
