//! How the records of a run hang together, as text.
//!
//! A line is `{…,"prev":"P","hash":"H"}`: P is the H of the run's previous line, and H is SHA-256 over
//! the bytes `{…,"prev":"P"}`. The hash is over the line as it stands in the file, so that a verifier
//! never has to serialise a record as its writer did.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::{Body, Event, RunId, Schema, Time};

/// What the hash field begins with.
const FIELD: &[u8] = b",\"hash\":\"";
/// What follows the hash: the end of the field, and of the record.
const END: &[u8] = b"\"}";
/// The digits of a hash.
const DIGITS: usize = 64;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9a-f]{64}$"))]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash of some pieces, one after the other.
    fn of(pieces: &[&[u8]]) -> Hash {
        let mut hasher = Sha256::new();
        for piece in pieces {
            hasher.update(piece);
        }
        Hash(hasher.finalize().into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 lower-case hexadecimal digits")]
pub struct NotAHash;

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Hash, NotAHash> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(NotAHash) };
        let mut hash = [0; 32];
        if pairs.len() != hash.len() {
            return Err(NotAHash);
        }
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Hash(hash))
    }
}

/// Lower case only: two texts of one hash would be two lines with one meaning.
fn digit(byte: u8) -> Result<u8, NotAHash> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(NotAHash),
    }
}

impl TryFrom<String> for Hash {
    type Error = NotAHash;

    fn try_from(text: String) -> Result<Hash, NotAHash> {
        text.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> String {
        hash.to_string()
    }
}

/// A run's chain as its writer holds it.
#[derive(Clone, Debug)]
pub struct Chain {
    run: RunId,
    host: String,
    name: Option<String>,
    next: u64,
    head: Option<Hash>,
}

impl Chain {
    /// A chain without a record.
    #[must_use]
    pub fn new(run: RunId, host: String) -> Chain {
        Chain { run, host, name: None, next: 0, head: None }
    }

    /// The same, of a command that has a name.
    #[must_use]
    pub fn named(self, name: Option<String>) -> Chain {
        Chain { name, ..self }
    }

    /// The run that it is of.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// How many records it has.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.next
    }

    /// The line of the next record, with its newline, and its hash. The chain stays as it is until
    /// [`advance`](Chain::advance): a line that could not be written is no part of it.
    ///
    /// # Errors
    ///
    /// When the record cannot be JSON; no type of the schema is like that.
    pub fn seal(&self, time: Time, event: Event, late: bool) -> serde_json::Result<(Vec<u8>, Hash)> {
        let body = Body {
            schema: Schema::V1,
            run: self.run,
            seq: self.next,
            time,
            host: self.host.clone(),
            name: self.name.clone(),
            event,
            late,
            prev: self.head,
        };
        let mut line = serde_json::to_vec(&body)?;
        let hash = Hash::of(&[&line]);
        line.pop(); // the closing brace: END has it
        line.extend_from_slice(FIELD);
        line.extend_from_slice(hash.to_string().as_bytes());
        line.extend_from_slice(END);
        line.push(b'\n');
        Ok((line, hash))
    }

    /// Takes the record with this hash into the chain.
    pub fn advance(&mut self, hash: Hash) {
        self.next += 1;
        self.head = Some(hash);
    }
}

/// The hash that a line (without its newline) says it has; none if it does not end as a record does.
#[must_use]
pub fn stated(line: &[u8]) -> Option<Hash> {
    let line = line.strip_suffix(END)?;
    let (rest, digits) = line.split_at_checked(line.len().checked_sub(DIGITS)?)?;
    rest.ends_with(FIELD).then_some(())?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The hash that a line (without its newline) has; none if it does not end as a record does.
#[must_use]
pub fn actual(line: &[u8]) -> Option<Hash> {
    stated(line)?;
    let content = line.get(..line.len() - FIELD.len() - DIGITS - END.len())?;
    Some(Hash::of(&[content, b"}"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::detail::Reseeded;
    use crate::audit::record::Record;

    fn event() -> Event {
        Event::TrackerReseeded {
            detail: Reseeded { rung: "connector".into(), why: "a \"quoted\" gap\n".into(), missed: 3 },
        }
    }

    #[test]
    fn the_hash_is_over_the_line_with_its_last_field_taken_out() {
        let mut chain = Chain::new(RunId::new(), "host".into());
        let (first, hash) = chain.seal(Time::now(), event(), false).unwrap();
        chain.advance(hash);
        let (second, _) = chain.seal(Time::now(), event(), true).unwrap();

        let text = std::str::from_utf8(&first).unwrap().strip_suffix('\n').unwrap();
        assert!(!text.contains('\n'), "a record is one line");
        let field = format!(",\"hash\":\"{hash}\"");
        assert!(text.ends_with(&format!("{field}}}")), "the hash is the last field: {text}");
        assert_eq!(Hash::of(&[text.replace(&field, "").as_bytes()]), hash);
        assert_eq!((stated(text.as_bytes()), actual(text.as_bytes())), (Some(hash), Some(hash)));

        let read: Record = serde_json::from_slice(&second).unwrap();
        assert_eq!((read.body.seq, read.body.prev, read.body.late), (1, Some(hash), true));
        assert_eq!(read.body.event, event());
    }

    #[test]
    fn what_does_not_end_as_a_record_has_no_hash() {
        let zeroes = "0".repeat(64);
        assert!(stated(format!("{{\"a\":1,\"hash\":\"{zeroes}\"}}").as_bytes()).is_some());
        let without_field = format!("{zeroes}\"}}");
        let upper_case = format!("{{\"a\":1,\"hash\":\"{}\"}}", "A".repeat(64));
        let short = "{\"a\":1,\"hash\":\"00\"}".to_owned();
        for line in [String::new(), "\"}".into(), without_field, upper_case, short] {
            assert_eq!((stated(line.as_bytes()), actual(line.as_bytes())), (None, None), "{line}");
        }
    }
}
