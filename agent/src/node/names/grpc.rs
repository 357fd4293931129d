//! One question and one answer of gRPC over a unix socket: a request of HTTP/2 with a message before it, which has a
//! length before it (PROTOCOL-HTTP2.md of gRPC). No more of gRPC than that: what is asked for here is small.

use std::future::poll_fn;
use std::io;
use std::path::Path;

use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Version};
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::net::UnixStream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// Nobody takes the connection.
    #[error("{0}")]
    Connect(#[from] io::Error),
    /// What came is no HTTP/2.
    #[error("{0}")]
    Http(#[from] h2::Error),
    /// What came is no gRPC, or not what was asked for.
    #[error("it answers with {0}")]
    Unexpected(String),
    /// The answer is a status other than 0.
    #[error("it answers with status {code}: {message}")]
    Status {
        /// Of gRPC.
        code: u32,
        /// In its words.
        message: String,
    },
}

/// The status of gRPC for what is not there.
pub(super) const NOT_FOUND: u32 = 5;

/// The longest answer that is read: those to our questions are some kilobytes.
const MOST_BYTES: usize = 4 << 20;

/// A flag, which says whether it is compressed, and the length.
const HEAD: usize = 5;

/// A connection.
pub(super) struct Connection(SendRequest<Bytes>);

impl Connection {
    /// Connects. Must be called in a runtime, which drives it from then on.
    ///
    /// # Errors
    ///
    /// When nobody listens there, or who does speaks no HTTP/2.
    pub(super) async fn open(socket: &Path) -> Result<Connection, NoAnswer> {
        let stream = UnixStream::connect(socket).await?;
        let (send, connection) = h2::client::handshake(stream).await?;
        // It ends with the last handle to it; what goes wrong on it, the question's answer says.
        tokio::spawn(connection);
        Ok(Connection(send))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`].
    pub(super) async fn ask<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        question: &Q,
    ) -> Result<A, NoAnswer> {
        let request = Request::builder()
            .method(Method::POST)
            // A socket has no authority; servers want one.
            .uri(format!("http://localhost{method}"))
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| NoAnswer::Unexpected(error.to_string()))?;
        let mut ready = self.0.clone().ready().await?;
        let (response, mut body) = ready.send_request(request, false)?;
        send(&mut body, question)?;
        let response = response.await?;
        let status = response.status();
        if !status.is_success() {
            return Err(NoAnswer::Unexpected(format!("HTTP status {status}")));
        }
        // An answer that is only a status has it here.
        check(response.headers())?;
        let mut body = response.into_body();
        let bytes = receive(&mut body).await?;
        match poll_fn(|context| body.poll_trailers(context)).await? {
            Some(trailers) if trailers.contains_key("grpc-status") => check(&trailers)?,
            _ => return Err(NoAnswer::Unexpected("no status".to_owned())),
        }
        message(bytes)
    }
}

fn send<Q: Message>(body: &mut SendStream<Bytes>, question: &Q) -> Result<(), NoAnswer> {
    let length = question.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEAD + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).map_err(|_| NoAnswer::Unexpected("a question of 4 GB".to_owned()))?);
    question.encode(&mut bytes).map_err(|error| NoAnswer::Unexpected(error.to_string()))?;
    Ok(body.send_data(bytes.freeze(), true)?)
}

async fn receive(body: &mut RecvStream) -> Result<BytesMut, NoAnswer> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        if bytes.len() + chunk.len() > MOST_BYTES {
            return Err(NoAnswer::Unexpected(format!("more than {MOST_BYTES} bytes")));
        }
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The one message that an answer to one question has.
fn message<A: Message + Default>(mut bytes: BytesMut) -> Result<A, NoAnswer> {
    if bytes.len() < HEAD {
        return Err(NoAnswer::Unexpected(format!("{} bytes, which are no message", bytes.len())));
    }
    let (compressed, length) = (bytes.get_u8(), bytes.get_u32() as usize);
    if compressed != 0 || length != bytes.len() {
        return Err(NoAnswer::Unexpected("something else than one plain message".to_owned()));
    }
    A::decode(bytes).map_err(|error| NoAnswer::Unexpected(error.to_string()))
}

fn check(headers: &HeaderMap) -> Result<(), NoAnswer> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => Err(NoAnswer::Status {
            code: code.parse().unwrap_or(u32::MAX),
            message: text("grpc-message")
                .unwrap_or_default()
                .chars()
                .take(200)
                .collect::<String>()
                .escape_debug()
                .to_string(),
        }),
    }
}
