//! What a node and its clients say to each other, as types. No I/O.
//!
//! One JSON object a line, at most [`LONGEST`] bytes of it, over a unix stream. Everything has the version and
//! an id: a [`Request`] has a number of the client's own, from 1 on, which its answers repeat; what nobody
//! asked for (events, errors about the connection) has 0. Requests may follow each other without waiting;
//! answers to different requests may come in another order, the parts of one answer never do.
//!
//! ```text
//! > {"v":1,"id":1,"ask":"hello","program":"pipewarden run"}
//! < {"v":1,"id":1,"tell":"hello","version":"0.1.0","rung":"bpf-tracepoint","boot":"6f1c..."}
//! > {"v":1,"id":2,"ask":"watch"}                                    with the read end of a pipe
//! < {"v":1,"id":2,"tell":"watching","watch":1,"pipe":{"dev":14,"ino":4711,"kind":"pipe"}}
//! < {"v":1,"id":0,"tell":"escape","watch":1,"pid":71,"start_ticks":8123,"pgid":71,"happened_ns":81230000000,"holds":[...]}
//! > {"v":1,"id":3,"ask":"resolve","watch":1}
//! < {"v":1,"id":3,"tell":"holders","pipe":{...},"holders":[{"pid":71,...}],"elsewhere":0,...}   with a pidfd for each
//! ```
//!
//! Descriptors go with bytes of their own line only, in one sendmsg(2): see [`frame`](super::frame).
//! Pids, and nothing else, are translated: all are the caller's own pid namespace's.

use serde::{Deserialize, Serialize};

use crate::pipe::{End, Pipe, PipeId, PipeKind};

/// The version of all that is here.
pub const VERSION: u32 = 1;

/// The longest line, in bytes, with its newline.
pub const LONGEST: usize = 64 * 1024;

/// The most holders that one message tells of, and so the most descriptors that come with one. The kernel
/// passes 253 at a time (`SCM_MAX_FD` of include/net/scm.h).
pub const MOST_HOLDERS: usize = 128;

/// The most descriptors that are named for one hold; who has more has them all the same.
pub const MOST_FDS: usize = 16;

/// Where the node's socket is, if the environment says so.
pub const ENVIRONMENT: &str = "PIPEWARDEN_NODE_SOCKET";

/// Where it is otherwise.
pub const PATH: &str = "/run/pipewarden/node.sock";

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// A number that the answer repeats; not 0.
    pub id: u64,
    /// What it asks for.
    #[serde(flatten)]
    pub ask: Ask,
}

/// What can be asked for. The first request of a connection is [`Hello`](Ask::Hello).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Who speaks.
    Hello {
        /// Its name, for the node's log.
        program: String,
    },
    /// Watch the pipe whose *read end* comes with this line: from now on its events are told.
    Watch,
    /// End that.
    Unwatch {
        /// Which.
        watch: u64,
    },
    /// Who holds the write end: of a watched pipe, as long as the caller has any end of it open, or of the pipe
    /// whose read end comes with this line.
    Resolve {
        /// The watch; without one a read end comes along.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        watch: Option<u64>,
    },
    /// Who holds the pipes that the caller itself has open.
    Why,
}

impl Ask {
    /// Whether a descriptor has to come with it.
    #[must_use]
    pub fn takes_descriptor(&self) -> bool {
        matches!(self, Ask::Watch | Ask::Resolve { watch: None })
    }
}

/// What the node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// [`VERSION`].
    pub v: u32,
    /// The request's, or 0.
    pub id: u64,
    /// What is said.
    #[serde(flatten)]
    pub tell: Tell,
}

/// What can be said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
pub enum Tell {
    /// The answer to [`Ask::Hello`].
    Hello {
        /// The node's version.
        version: String,
        /// How its live map is attached, such as `bpf-tracepoint`.
        rung: String,
        /// `/proc/sys/kernel/random/boot_id`: a client on another machine's socket sees another one.
        boot: String,
    },
    /// The answer to [`Ask::Watch`]: from here on nothing that happens to it is missed.
    Watching {
        /// Its number, for this connection.
        watch: u64,
        /// Which pipe it is.
        pipe: Named,
    },
    /// The answer to [`Ask::Unwatch`]. What was on its way may still be told of it before.
    Unwatched {
        /// Which.
        watch: u64,
    },
    /// The answer to [`Ask::Resolve`], or a part of it, with a pidfd for each holder in their order.
    Holders(Holders),
    /// The answer to [`Ask::Why`], or a part of it.
    Why {
        /// Pipes that the caller has open.
        pipes: Vec<Own>,
        /// Whether there is another part.
        #[serde(default)]
        more: bool,
        /// As for [`Holders::exact`].
        exact: bool,
    },
    /// Nobody writes to a watched pipe any more. It may be told twice, and may come to be untrue: a FIFO is
    /// opened again. The pipe itself is the oracle.
    Eof {
        /// Which.
        watch: u64,
    },
    /// A process that holds the write end of a watched pipe left its session or group, or was put into another.
    Escape {
        /// Which.
        watch: u64,
        /// Who.
        pid: i32,
        /// Its start, as field 22 of `/proc/PID/stat`; 0 where it was gone before it could be looked at.
        start_ticks: u64,
        /// The process group that it is in now; 0 where it is gone, or the group is not the caller's to see.
        pgid: i32,
        /// When, on `CLOCK_MONOTONIC`, in nanoseconds.
        happened_ns: u64,
        /// What it holds of the pipe; none where only a look at its tables tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holds: Option<Vec<Held>>,
    },
    /// Somebody who holds a watched pipe forked or ended: who holds it now is worth another question.
    Changed {
        /// Which.
        watch: u64,
    },
    /// Events are missing, or everything was read anew: ask again about every pipe.
    Lost {
        /// How they got lost.
        why: String,
        /// How many are known to be missing; 0 where that is not counted.
        missed: u64,
    },
    /// The watch is over, because the caller has no end of the pipe open any more.
    Ended {
        /// Which.
        watch: u64,
    },
    /// The request was refused, or with id 0 the connection. After a [final](Code::is_final) one the connection
    /// is closed.
    Error {
        /// What it is.
        code: Code,
        /// One line for people: what is wrong, and what to do.
        message: String,
    },
}

/// A pipe by its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Anonymous, or a FIFO.
    pub kind: PipeKind,
}

impl From<Pipe> for Named {
    fn from(pipe: Pipe) -> Named {
        Named { dev: pipe.id.dev, ino: pipe.id.ino, kind: pipe.kind }
    }
}

impl From<Named> for Pipe {
    fn from(named: Named) -> Pipe {
        Pipe { id: PipeId { dev: named.dev, ino: named.ino }, kind: named.kind }
    }
}

/// Who holds the write end of a pipe, as of a moment that is already over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holders {
    /// The pipe.
    pub pipe: Named,
    /// Those in the caller's own pid namespace, or in one below it. At most [`MOST_HOLDERS`].
    pub holders: Vec<Holder>,
    /// Whether another part with further holders follows. The numbers below are the same in each.
    #[serde(default)]
    pub more: bool,
    /// How many processes hold it that the caller's pid namespace does not show.
    pub elsewhere: u32,
    /// Descriptor tables that hold it and whose process is not known.
    pub unknown: u32,
    /// Open file descriptions that write, as the kernel counts them, and that no table shows: in flight between
    /// sockets, or with an io_uring. None where the kernel cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<u32>,
    /// Whether nothing was lost from the map. Where this is false, look for yourself too.
    pub exact: bool,
}

/// A process that holds the write end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its pid, in the caller's pid namespace.
    pub pid: i32,
    /// Its start, as field 22 of `/proc/PID/stat` has it outside of time namespaces.
    pub start_ticks: u64,
    /// By which descriptors, at least one.
    pub holds: Vec<Held>,
}

/// Descriptors on a pipe in one table of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// A thread that has the table, in the caller's pid namespace.
    pub tid: i32,
    /// The end, or both.
    pub end: End,
    /// The descriptors, at most [`MOST_FDS`].
    pub fds: Vec<i32>,
}

/// A pipe that the caller has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Which.
    pub pipe: Named,
    /// The end, or both, that the caller has.
    pub end: End,
    /// The caller's descriptors, at most [`MOST_FDS`].
    pub fds: Vec<i32>,
    /// Pids of who holds a write end, without the caller; at most [`MOST_HOLDERS`].
    pub writers: Vec<i32>,
    /// Pids of who holds a read end, likewise.
    pub readers: Vec<i32>,
    /// How many processes hold it and are not named.
    pub elsewhere: u32,
}

/// What an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The line is no request.
    Malformed,
    /// The line is too long.
    TooLong,
    /// Another version of the protocol.
    Version,
    /// The node knows no such request.
    Unknown,
    /// The first request has to be a hello.
    NoHello,
    /// There is no such watch.
    NoWatch,
    /// The caller has no end of the pipe open any more: pass a read end.
    NotHeld,
    /// The descriptors that came along are not one read end of a pipe.
    Descriptor,
    /// The process that connected is gone, or another one by now.
    Peer,
    /// Too much at a time, for this caller or for all of them.
    Busy,
    /// The map cannot be read now.
    Unavailable,
    /// A later version's.
    #[serde(other)]
    Other,
}

impl Code {
    /// Whether the connection is closed after it.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(
            self,
            Code::Unknown | Code::NoHello | Code::NoWatch | Code::NotHeld | Code::Descriptor | Code::Unavailable
        )
    }
}

/// Why a line is no request: what is answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Bad {
    /// The id that the line has, or 0.
    pub id: u64,
    /// What it is.
    pub code: Code,
    /// One line for people.
    pub message: String,
}

/// What every request has, whatever its version.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    v: u32,
    #[serde(default)]
    id: u64,
    #[serde(default)]
    ask: String,
}

impl Request {
    /// A request of this version.
    #[must_use]
    pub fn new(id: u64, ask: Ask) -> Request {
        Request { v: VERSION, id, ask }
    }

    /// Reads a line. Keys that are not known are passed over.
    ///
    /// # Errors
    ///
    /// What has to be answered.
    pub fn parse(line: &[u8]) -> Result<Request, Bad> {
        const FORM: &str = r#"send lines such as {"v":1,"id":1,"ask":"hello","program":"NAME"}"#;
        let bad = |id, code, message| Err(Bad { id, code, message });
        // An array of the values would be read as an object, too.
        let object = line.trim_ascii_start().first() == Some(&b'{');
        let envelope = serde_json::from_slice(line).ok().filter(|_| object);
        let Some(Envelope { v, id, ask }) = envelope else {
            return bad(0, Code::Malformed, format!("that is no request; {FORM}"));
        };
        if v != VERSION {
            let message = format!("this node speaks version {VERSION} and not {v}; use a client of the node's version");
            return bad(id, Code::Version, message);
        }
        if id == 0 {
            return bad(0, Code::Malformed, format!("a request has an id from 1 on; {FORM}"));
        }
        if !["hello", "watch", "unwatch", "resolve", "why"].contains(&ask.as_str()) {
            let asked: String = ask.chars().take(32).collect();
            let known = "hello, watch, unwatch, resolve and why";
            let message = format!("\"{}\" is not known here; ask for {known}", asked.escape_debug());
            return bad(id, Code::Unknown, message);
        }
        match serde_json::from_slice(line) {
            Ok(request) => Ok(request),
            Err(_) => bad(id, Code::Malformed, format!("\"{ask}\" lacks something; {FORM}")),
        }
    }

    /// The line, with its newline.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }
}

impl Message {
    /// An answer to a request.
    #[must_use]
    pub fn answer(id: u64, tell: Tell) -> Message {
        Message { v: VERSION, id, tell }
    }

    /// What nobody asked for.
    #[must_use]
    pub fn event(tell: Tell) -> Message {
        Message::answer(0, tell)
    }

    /// Reads a line; none for what a client of this version need not understand.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Message, serde_json::Error> {
        serde_json::from_slice(line)
    }

    /// The line, with its newline.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }
}

/// These types always have a form: there is no map with keys that are no text, and nothing that fails.
fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests;
