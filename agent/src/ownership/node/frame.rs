//! Lines out of a stream of bytes, and what was passed along with them. No I/O.
//!
//! A unix stream keeps descriptors at the bytes that they were sent with, and a read ends with the bytes of the
//! first send that brought any. So whoever sends descriptors sends them together with bytes of one line only,
//! and then they belong to the line that has the last byte of the read which brought them.

use std::collections::VecDeque;

use super::protocol::LONGEST;

/// A line is longer than [`LONGEST`]: what follows makes no sense any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {LONGEST} bytes; send shorter ones")]
pub struct TooLong;

/// A line without its newline, and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<T> {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// What was passed with them, in its order.
    pub passed: Vec<T>,
}

/// Puts lines together. At most [`LONGEST`] bytes of a line that has no end yet are kept, beside what was
/// given to it by the last [`push`](Lines::push).
#[derive(Debug)]
pub struct Lines<T> {
    bytes: Vec<u8>,
    /// How far there is no newline.
    looked: usize,
    /// What was passed, each with where in `bytes` the last byte is that it came with.
    passed: VecDeque<(usize, T)>,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Lines { bytes: Vec::new(), looked: 0, passed: VecDeque::new() }
    }
}

impl<T> Lines<T> {
    /// Takes what one read brought. What is passed without any byte belongs to no line and is given back.
    pub fn push(&mut self, bytes: &[u8], passed: impl IntoIterator<Item = T>) -> Vec<T> {
        self.bytes.extend_from_slice(bytes);
        let Some(last) = self.bytes.len().checked_sub(1).filter(|_| !bytes.is_empty()) else {
            return passed.into_iter().collect();
        };
        self.passed.extend(passed.into_iter().map(|passed| (last, passed)));
        Vec::new()
    }

    /// The next line, if all of it is there.
    ///
    /// # Errors
    ///
    /// [`TooLong`], and again from then on.
    pub fn next_line(&mut self) -> Result<Option<Line<T>>, TooLong> {
        let newline = memchr::memchr(b'\n', &self.bytes[self.looked..]).map(|at| self.looked + at);
        let length = newline.map_or(self.bytes.len(), |at| at + 1);
        if length > LONGEST || newline.is_none() && length == LONGEST {
            return Err(TooLong);
        }
        let Some(newline) = newline else {
            self.looked = self.bytes.len();
            return Ok(None);
        };
        let mut line: Vec<u8> = self.bytes.drain(..=newline).collect();
        line.pop();
        self.looked = 0;
        if self.bytes.is_empty() {
            self.bytes = Vec::new(); // a long line does not keep its room
        }
        let mut passed = Vec::new();
        while self.passed.front().is_some_and(|(at, _)| *at <= newline) {
            passed.extend(self.passed.pop_front().map(|(_, passed)| passed));
        }
        for (at, _) in &mut self.passed {
            *at -= newline + 1;
        }
        Ok(Some(Line { bytes: line, passed }))
    }

    /// Whether there is a whole line, or one too long.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.bytes.len() >= LONGEST || memchr::memchr(b'\n', &self.bytes[self.looked..]).is_some()
    }

    /// How many bytes wait for the end of their line.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.bytes.len()
    }

    /// How many things wait for the end of theirs.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.passed.len()
    }

    /// Everything that was passed and belongs to no whole line.
    pub fn take_passed(&mut self) -> Vec<T> {
        self.passed.drain(..).map(|(_, passed)| passed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(bytes: &str, passed: &[u32]) -> Line<u32> {
        Line { bytes: bytes.into(), passed: passed.to_vec() }
    }

    #[test]
    fn what_is_passed_belongs_to_the_line_of_the_last_byte_that_it_came_with() {
        let mut lines = Lines::default();
        assert!(lines.push(b"one\ntwo\nthr", [7, 8]).is_empty());
        assert_eq!(lines.next_line(), Ok(Some(line("one", &[]))));
        assert_eq!(lines.next_line(), Ok(Some(line("two", &[]))));
        assert_eq!((lines.next_line(), lines.pending(), lines.waiting()), (Ok(None), 3, 2));
        assert!(lines.push(b"ee\nfour\n", [9]).is_empty());
        assert_eq!(lines.next_line(), Ok(Some(line("three", &[7, 8]))));
        assert_eq!(lines.next_line(), Ok(Some(line("four", &[9]))));
        assert_eq!(lines.next_line(), Ok(None));
        assert_eq!(lines.push(b"", [1, 2]), [1, 2], "with no byte there is no line");
        lines.push(b"half", [3]);
        assert_eq!((lines.next_line(), lines.take_passed()), (Ok(None), vec![3]));
    }

    #[test]
    fn a_line_may_be_as_long_as_the_limit_and_no_longer() {
        let mut lines = Lines::<()>::default();
        lines.push(&vec![b'x'; LONGEST - 1], []);
        assert_eq!(lines.next_line(), Ok(None));
        lines.push(b"\n", []);
        assert_eq!(lines.next_line().unwrap().unwrap().bytes.len(), LONGEST - 1);
        lines.push(&vec![b'x'; LONGEST], []);
        assert_eq!(lines.next_line(), Err(TooLong), "there is no room for its newline");
        lines.push(b"\nnext\n", []);
        assert_eq!(lines.next_line(), Err(TooLong), "nothing makes sense any more");
    }

    proptest! {
        #[test]
        fn however_the_bytes_come_the_lines_are_the_same(
            texts in proptest::collection::vec("[a-z]{0,8}", 0..12),
            cuts in proptest::collection::vec(1..9_usize, 1..64),
        ) {
            let whole: Vec<u8> = texts.iter().flat_map(|text| [text.as_bytes(), b"\n"].concat()).collect();
            let (mut lines, mut found, mut rest) = (Lines::<()>::default(), Vec::new(), &whole[..]);
            for cut in cuts.iter().cycle() {
                let (part, left) = rest.split_at((*cut).min(rest.len()));
                lines.push(part, []);
                while let Some(line) = lines.next_line().unwrap() {
                    found.push(String::from_utf8(line.bytes).unwrap());
                }
                rest = left;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, texts);
            prop_assert_eq!(lines.pending(), 0);
        }
    }
}
