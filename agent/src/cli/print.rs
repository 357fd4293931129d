//! The way out for what a subcommand has to say.

use std::io::{self, Write};

/// Prints to stdout. A reader that has gone (`| head`) has read what it wanted: that is no error.
///
/// # Errors
///
/// When the text cannot be written for another reason (a full disk).
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints one line to stderr, as an error of ours. There is nobody to tell if even that fails.
pub fn complain(message: &dyn std::fmt::Display) {
    let line = message.to_string().replace('\n', " ");
    let _ = writeln!(io::stderr().lock(), "pipewarden: {line}");
}
