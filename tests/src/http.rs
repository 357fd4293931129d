//! Asking by HTTP, one request a connection, and nothing of what is answered is believed unread.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::deadline::PATIENCE;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in small letters.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// The answer to GET.
#[must_use]
pub fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, "GET", path, &[])
}

/// The answer to a request with further headers; `Host` is ours unless they say another.
#[must_use]
pub fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut reader = send(address, method, path, headers);
    let (status, headers) = head(&mut reader);
    let mut body = Vec::new();
    reader.read_to_end(&mut body).unwrap();
    Answer { status, headers, body: String::from_utf8(body).unwrap() }
}

/// Connects and asks, and reads nothing yet.
#[must_use]
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text += &format!("Host: {address}\r\n");
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).unwrap();
    BufReader::new(stream)
}

/// Reads an answer's head.
pub fn head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let first = line();
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let headers = std::iter::from_fn(|| {
        let line = line();
        line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
    });
    let headers = headers.collect();
    (status.unwrap_or_else(|| panic!("no answer: {first:?}")), headers)
}

/// Server-sent events as they come.
#[derive(Debug)]
pub struct Events {
    reader: Chunks,
}

impl Events {
    /// Asks for them, and comes back when the answer has begun: what happens from then on is told.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[must_use]
    pub fn of(address: SocketAddr, path: &str) -> Events {
        let mut reader = send(address, "GET", path, &[]);
        let (status, _) = head(&mut reader);
        assert_eq!(status, 200);
        let mut events = Events { reader: Chunks { stream: reader, text: String::new() } };
        let first = events.block().unwrap();
        assert!(first.starts_with(':'), "{first}");
        events
    }

    /// The next event: its name and its data. None when there is no more.
    pub fn next_event(&mut self) -> Option<(String, Value)> {
        loop {
            let block = self.block()?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let (Some(event), Some(data)) = (field("event: "), field("data: ")) {
                return Some((event, serde_json::from_str(&data).unwrap()));
            }
        }
    }

    /// What is up to the next empty line.
    fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.reader.text.find("\n\n") {
                return Some(self.reader.text.drain(..end + 2).collect());
            }
            self.reader.more()?;
        }
    }
}

/// A body in chunks (RFC 9112, 7.1).
#[derive(Debug)]
struct Chunks {
    stream: BufReader<TcpStream>,
    text: String,
}

impl Chunks {
    fn more(&mut self) -> Option<()> {
        let mut size = String::new();
        self.stream.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).ok().filter(|size| *size > 0)?;
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).unwrap();
        self.text += std::str::from_utf8(&chunk[..size]).unwrap();
        Some(())
    }
}
