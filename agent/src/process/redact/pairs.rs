//! Names with their values: `NAME=VALUE`, `Header: value`, `"key": "value"`, `?key=value&`.

use std::ops::Range;

use super::names::{in_name, smells};

/// The longest name that is looked at.
const NAME_LIMIT: usize = 128;

/// Finds the values of names that smell.
pub(super) fn find(text: &str, secrets: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if matches!(bytes[at], b'=' | b':')
            && let Some(value) = value_of(text, at)
        {
            at = value.end.max(at + 1);
            secrets.push(value);
        } else {
            at += 1;
        }
    }
}

/// The value of the name before the separator, if that name smells.
fn value_of(text: &str, separator: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let name = name_before(bytes, separator)?;
    let colon = bytes[separator] == b':';
    if colon && !begins_something(bytes, &name) || !smells(&text[name.clone()]) {
        return None;
    }
    let before = name.start.checked_sub(1).map(|at| bytes[at]);
    let quoted_name = bytes.get(name.end).is_some_and(is_quote);
    let spaces = bytes[separator + 1..].iter().take_while(|byte| **byte == b' ').count();
    let start = separator + 1 + spaces;
    let rest = &bytes[start..];
    let length = if matches!(before, Some(b'?' | b'&')) {
        rest.iter().position(|byte| b"&#\"'".contains(byte) || byte.is_ascii_whitespace())
    } else if colon && quoted_name {
        json_value(rest)
    } else if colon && before.is_some_and(|byte| is_quote(&byte)) {
        rest.iter().position(|byte| *byte == b'\n' || before == Some(*byte))
    } else if !bytes[..name.start].iter().any(u8::is_ascii_whitespace) {
        None // what the whole argument says, spaces and all
    } else if colon {
        rest.iter().position(|byte| *byte == b'\n') // a header's value has spaces too
    } else {
        word_length(rest, enclosing_quote(&bytes[..separator]))
    };
    Some(start..length.map_or(bytes.len(), |length| start + length))
}

/// The name that ends before a separator, without the quote or the spaces between them.
fn name_before(bytes: &[u8], separator: usize) -> Option<Range<usize>> {
    let between = bytes[..separator].iter().rev().take(3).take_while(|byte| b" :".contains(byte) || is_quote(byte));
    let end = separator - between.count();
    let length = bytes[..end].iter().rev().take(NAME_LIMIT).take_while(|byte| in_name(**byte)).count();
    (length > 0).then_some(end - length..end)
}

/// Whether a colon behind this name can mean a value: in `image/token-server:v2` it does not.
fn begins_something(bytes: &[u8], name: &Range<usize>) -> bool {
    match name.start.checked_sub(1).map(|at| bytes[at]) {
        None => true,
        Some(byte) => is_quote(&byte) || byte.is_ascii_whitespace() || b"{,;(=".contains(&byte),
    }
}

/// The length of a string, a number or a word as JSON has it; nothing if it is none.
fn json_value(bytes: &[u8]) -> Option<usize> {
    let ends = |byte: &u8| b",}]\n".contains(byte);
    if !bytes.first().is_some_and(is_quote) {
        return bytes.iter().position(ends);
    }
    let length = closing_quote(bytes)?;
    bytes.get(length).is_none_or(|byte| ends(byte) || byte.is_ascii_whitespace()).then_some(length)
}

fn is_quote(byte: &u8) -> bool {
    matches!(byte, b'"' | b'\'' | b'`')
}

/// The length of a quoted text with both its quotes; nothing if it does not end.
fn closing_quote(bytes: &[u8]) -> Option<usize> {
    let quote = bytes.first()?;
    let mut escaped = false;
    for (at, byte) in bytes.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The quote that is open at the end of a text.
fn enclosing_quote(bytes: &[u8]) -> Option<u8> {
    let mut open = None;
    let mut escaped = false;
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if open == Some(*byte) => open = None,
            byte if open.is_none() && is_quote(byte) => open = Some(*byte),
            _ => {}
        }
    }
    open
}

/// The length of a shell's word: up to a blank or a separator of commands that is not quoted, or to
/// the end of the quote that it is within. Nothing if the text ends before it does.
fn word_length(bytes: &[u8], within: Option<u8>) -> Option<usize> {
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte.is_ascii_whitespace() || within == Some(byte) {
            return Some(at);
        }
        at += match byte {
            b'\\' => 2,
            _ if is_quote(&byte) && within.is_none() => closing_quote(&bytes[at..])?,
            _ => 1,
        };
    }
    None
}

/// The words of a text as a shell sees them, each with its quotes.
pub(super) fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        at += bytes[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let start = at;
        at = word_length(&bytes[at..], None).map_or(bytes.len(), |length| start + length);
        (at > start).then_some(start..at)
    })
}
