//! Lines, and the records in them.

use std::io::{self, BufRead};

use crate::audit::chain;
use crate::audit::record::{PREFIX, RunId};

/// The longest line that is looked at as a whole. A record is a few kilobytes.
const LIMIT: usize = 1 << 20;

/// A line without its newline.
pub(super) struct Line<'a> {
    /// Its first bytes, up to the limit.
    pub(super) bytes: &'a [u8],
    /// Whether there was a newline.
    pub(super) terminated: bool,
}

/// Lines of any length, in bounded memory.
pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Lines<R> {
        Lines { input, line: Vec::new() }
    }

    /// The next line; nothing at the end of the input.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let mut any = false;
        loop {
            let bytes = match self.input.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if bytes.is_empty() {
                return Ok(any.then_some(Line { bytes: &self.line, terminated: false }));
            }
            any = true;
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let part = newline.map_or(bytes, |at| &bytes[..at]);
            let room = LIMIT - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = newline.map_or(bytes.len(), |at| at + 1);
            self.input.consume(used);
            if newline.is_some() {
                return Ok(Some(Line { bytes: &self.line, terminated: true }));
            }
        }
    }
}

/// What a piece of a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// It begins and ends as a record does.
    Whole,
    /// It begins or ends as a record does.
    Torn,
    /// Neither.
    Foreign,
}

/// A lone brace is anybody's.
fn begins(piece: &[u8]) -> bool {
    piece.starts_with(PREFIX) || (piece.len() > 1 && PREFIX.starts_with(piece))
}

pub(super) fn looks(piece: &[u8]) -> Looks {
    match (begins(piece), chain::stated(piece).is_some()) {
        (true, true) => Looks::Whole,
        (false, false) => Looks::Foreign,
        _ => Looks::Torn,
    }
}

/// The pieces of a line. A record begins wherever its first bytes stand (inside a record they cannot:
/// JSON escapes the quotes): behind a torn record, or behind what a command wrote to a shared stderr.
pub(super) fn pieces(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let begins = |at: &usize| rest[*at] == b'{' && rest[*at..].starts_with(PREFIX);
        let end = (1..rest.len()).find(begins).unwrap_or(rest.len());
        let (piece, others) = rest.split_at(end);
        rest = others;
        Some(piece)
    })
}

/// The run that a torn record names, if it is long enough for that.
pub(super) fn run_of_torn(piece: &[u8]) -> Option<RunId> {
    const KEY: &[u8] = b"\"run\":\"";
    const ID: usize = 36;
    let after_version = piece.strip_prefix(PREFIX)?;
    let at = after_version.windows(KEY.len()).take(16).position(|window| window == KEY)? + KEY.len();
    std::str::from_utf8(after_version.get(at..at + ID)?).ok()?.parse().ok()
}

/// Whether the end of the log is a record of which a part is missing, rather than one with
/// something behind it: only the former can be a write that has not been completed.
pub(super) fn is_cut(piece: &[u8]) -> bool {
    let has_an_end = |end: usize| piece[end - 1] == b'}' && chain::stated(&piece[..end]).is_some();
    begins(piece) && !(1..=piece.len()).any(has_an_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8], capacity: usize) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Lines::new(io::BufReader::with_capacity(capacity, input));
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push((line.bytes.to_vec(), line.terminated));
        }
        all
    }

    #[test]
    fn lines_are_the_same_whatever_the_reads_are() {
        for capacity in 1..9 {
            let expected = [(b"one".to_vec(), true), (vec![], true), (b"three".to_vec(), false)];
            assert_eq!(all(b"one\n\nthree", capacity), expected);
        }
        assert_eq!(all(b"", 4), []);
    }

    #[test]
    fn a_line_without_an_end_costs_no_more_than_the_limit() {
        let mut input = vec![b'x'; 3 * LIMIT + 7];
        input.extend_from_slice(b"\nnext\n");
        let lines = all(&input, 8192);
        assert_eq!((lines[0].0.len(), lines[0].1), (LIMIT, true));
        assert_eq!(lines[1], (b"next".to_vec(), true));
    }

    #[test]
    fn a_record_is_found_behind_whatever_stands_before_it() {
        let record = b"{\"schema\":\"pipewarden.audit/1\",\"run\":\"0192c0de-0000-7000-8000-000000000000\"";
        let line = [b"50%".as_slice(), record, record].concat();
        assert_eq!(pieces(&line).collect::<Vec<_>>(), [b"50%".as_slice(), record, record]);
        assert_eq!(looks(b"50%"), Looks::Foreign);
        assert_eq!(looks(record), Looks::Torn);
        assert!(run_of_torn(record).is_some());
        assert!(run_of_torn(&record[..60]).is_none());
    }
}
