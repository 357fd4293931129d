//! Takes secrets out of command lines before anybody logs them.
//!
//! The rules look for names that smell of a secret, for the places where programs and protocols put
//! one, and for the shapes of well-known tokens. In doubt they take too much: a word that is missing
//! costs a reader a question, a secret in a log costs a rotation. A secret with none of these signs
//! (`login alice hunter2`) is not recognised.
//!
//! Written by hand rather than as a set of regular expressions: compiled, such a set would take about
//! a megabyte of the five that a supervisor has, and half of the rules (quotes; a flag whose value is
//! the next argument) are none anyway.

mod names;
mod pairs;
mod programs;
mod shapes;

use std::ops::Range;

use self::programs::{Program, Reading};

/// What stands where a secret stood.
pub const REDACTED: &str = "[redacted]";

/// How much of a command line is looked at and kept, in bytes: what follows is cut. A prompt given
/// as an argument can be a megabyte.
pub const LIMIT: usize = 4096;

/// What stands where the rest was cut off.
pub const CUT: &str = "[cut]";

/// How deep quotes are followed into scripts within scripts.
const DEPTH: u32 = 8;

/// Joins arguments as a shell would read them, with what looks like a secret replaced by
/// [`REDACTED`]. Control characters are escaped, so that the line is safe to show on a terminal.
/// What is beyond [`LIMIT`] is cut, and marked.
#[must_use]
pub fn command_line(arguments: &[String]) -> String {
    let mut context = Context { whole_arguments: true, ..Context::default() };
    let mut line = String::new();
    let mut room = LIMIT;
    for argument in arguments {
        if !line.is_empty() {
            line.push(' ');
        }
        let kept = beginning(argument, room);
        let mut secrets: Vec<Range<usize>> = context.secret_in(kept).into_iter().collect();
        find(kept, &mut secrets);
        quote(&replace(kept, secrets), &mut line);
        if kept.len() < argument.len() {
            line.push(' ');
            line.push_str(CUT);
            break;
        }
        room -= kept.len();
    }
    line
}

/// A text (a script, a header, a URL) with what looks like a secret replaced by [`REDACTED`], and cut
/// as a command line is.
#[must_use]
pub fn text(text: &str) -> String {
    let kept = beginning(text, LIMIT);
    let mut secrets = Vec::new();
    find(kept, &mut secrets);
    let mut shown = replace(kept, secrets);
    if kept.len() < text.len() {
        shown.push_str(CUT);
    }
    shown
}

/// At most this many bytes of a text, and no half of a word: nobody would know it for half a token.
fn beginning(text: &str, room: usize) -> &str {
    if text.len() <= room {
        return text;
    }
    let end = text.floor_char_boundary(room);
    text[..end].trim_end_matches(|c: char| !c.is_whitespace())
}

/// Finds the secrets that a text shows by itself.
fn find(text: &str, secrets: &mut Vec<Range<usize>>) {
    shapes::find(text, secrets);
    pairs::find(text, secrets);
    if text.contains(char::is_whitespace) {
        find_in_script(text, 0, DEPTH, secrets);
    }
}

/// Reads a text (at `offset` of the whole) as the words of a shell, and what is quoted in it again.
fn find_in_script(text: &str, offset: usize, depth: u32, secrets: &mut Vec<Range<usize>>) {
    let mut context = Context::default();
    for word in pairs::words(text) {
        let content = &text[word.clone()];
        let at = offset + word.start;
        if let Some(secret) = context.secret_in(content) {
            secrets.push(at + secret.start..at + secret.end);
        }
        if depth > 0
            && content.contains(char::is_whitespace)
            && let Some(quote) = content.find(['"', '\'', '`'])
        {
            find_in_script(&content[quote + 1..], at + quote + 1, depth - 1, secrets);
        }
    }
}

/// What the arguments so far say about the next one.
#[derive(Default)]
struct Context {
    /// Not the words of a script, in which `password` can be a word like any other.
    whole_arguments: bool,
    /// The program itself has been seen.
    begun: bool,
    next: Reading,
    /// The program that is run, where that has flags of its own for secrets.
    program: Option<&'static Program>,
}

impl Context {
    /// The part of an argument that is secret because of the arguments before it.
    fn secret_in(&mut self, argument: &str) -> Option<Range<usize>> {
        let first = !std::mem::replace(&mut self.begun, true);
        match std::mem::take(&mut self.next) {
            Reading::Secret(_) => return Some(0..argument.len()),
            Reading::Login(_) => return password_of_login(argument, 0),
            Reading::Nothing => {}
        }
        if let Some(program) = programs::named(argument) {
            self.program = Some(program);
        }
        let reading = self.program.map_or(Reading::Nothing, |program| program.reads(argument));
        match reading {
            Reading::Secret(at) if at < argument.len() => return Some(at..argument.len()),
            Reading::Login(at) if at < argument.len() => return password_of_login(argument, at),
            Reading::Nothing if !first && self.announces(argument) => self.next = Reading::Secret(0),
            reading => self.next = reading,
        }
        if argument.ends_with([';', '|', '&']) {
            self.program = None; // the next word is another command
        }
        None
    }

    /// Whether the next argument is the value of this one, and secret.
    fn announces(&self, argument: &str) -> bool {
        let name = argument.trim_start_matches('-');
        let is_flag = name.len() < argument.len();
        names::is_name(name) && if is_flag { names::smells(name) } else { self.whole_arguments && names::reeks(name) }
    }
}

/// The password in `user:password`; numbers are no login (`-u 1000:1000`).
fn password_of_login(argument: &str, from: usize) -> Option<Range<usize>> {
    let colon = from + argument.get(from..)?.find(':')?;
    let numeric = argument[from..].bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
    (!numeric).then_some(colon + 1..argument.len())
}

/// Puts [`REDACTED`] where the secrets are.
fn replace(text: &str, mut secrets: Vec<Range<usize>>) -> String {
    secrets.retain(|secret| !secret.is_empty());
    secrets.sort_unstable_by_key(|secret| secret.start);
    let mut shown = String::with_capacity(text.len());
    let mut done = 0;
    for secret in secrets {
        // A secret that begins within the one before it, or right behind it, is part of it.
        if secret.start > done || done == 0 {
            shown.push_str(text.get(done..secret.start).unwrap_or_default());
            shown.push_str(REDACTED);
        }
        done = done.max(secret.end);
    }
    shown.push_str(text.get(done..).unwrap_or_default());
    shown
}

/// Appends an argument as a shell would have to be given it.
fn quote(argument: &str, line: &mut String) {
    let plain = |c: char| c.is_alphanumeric() || "@%+=:,./-_".contains(c);
    if argument.chars().any(must_be_escaped) {
        line.push_str("$'");
        for c in argument.chars() {
            match c {
                '\n' => line.push_str("\\n"),
                '\t' => line.push_str("\\t"),
                '\r' => line.push_str("\\r"),
                '\\' | '\'' => line.extend(['\\', c]),
                c if must_be_escaped(c) => line.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => line.push(c),
            }
        }
        line.push('\'');
    } else if !argument.is_empty() && argument.replace(REDACTED, "").chars().all(plain) {
        line.push_str(argument);
    } else {
        line.push('\'');
        line.push_str(&argument.replace('\'', r"'\''"));
        line.push('\'');
    }
}

/// Control characters, and those that make a terminal show a line in another order.
fn must_be_escaped(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests;
