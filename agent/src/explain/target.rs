//! What the questions are about: `pipe:[INO]`, a path, or `PID[:FD]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The target of `holders`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An anonymous pipe, as `ls -l /proc/PID/fd` shows it.
    Pipe(u64),
    /// A socket, likewise.
    Socket(u64),
    /// A FIFO or pseudo-terminal.
    Path(PathBuf),
    /// Everything that a process has, or one descriptor of it.
    Process(i32, Option<i32>),
}

/// What would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use pipe:[INO], the path of a FIFO (with a / in it), PID or PID:FD")]
pub struct Malformed;

impl FromStr for Target {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Target, Malformed> {
        let number = |kind: &str| text.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok();
        let bare = |kind: &str| text.strip_prefix(kind)?.strip_prefix(':')?.parse().ok();
        // A shell takes the brackets away where a file happens to match.
        if let Some(ino) = number("pipe").or_else(|| bare("pipe")) {
            return Ok(Target::Pipe(ino));
        }
        if let Some(ino) = number("socket").or_else(|| bare("socket")) {
            return Ok(Target::Socket(ino));
        }
        let process = |text: &str| text.parse::<i32>().ok().filter(|pid| *pid > 0);
        let by_number = match text.split_once(':') {
            Some((pid, fd)) => {
                process(pid).zip(fd.parse::<i32>().ok().filter(|fd| *fd >= 0)).map(|(pid, fd)| (pid, Some(fd)))
            }
            None => process(text).map(|pid| (pid, None)),
        };
        match by_number {
            Some((pid, fd)) => Ok(Target::Process(pid, fd)),
            None if text.contains('/') || std::path::Path::new(text).exists() => Ok(Target::Path(text.into())),
            None => Err(Malformed),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Pipe(ino) => write!(f, "pipe:[{ino}]"),
            Target::Socket(ino) => write!(f, "socket:[{ino}]"),
            Target::Path(path) => write!(f, "{}", path.display()),
            Target::Process(pid, None) => write!(f, "{pid}"),
            Target::Process(pid, Some(fd)) => write!(f, "{pid}:{fd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_proc_shows_them() {
        for (text, target) in [
            ("pipe:[4711]", Target::Pipe(4711)),
            ("pipe:4711", Target::Pipe(4711)),
            ("socket:[7]", Target::Socket(7)),
            ("70", Target::Process(70, None)),
            ("70:1", Target::Process(70, Some(1))),
            ("./70", Target::Path("./70".into())),
            ("/run/feed", Target::Path("/run/feed".into())),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
        for text in ["", "pipe:[x]", "pipe", "0", "-3", "70:-1", "70:x", "no-such-name"] {
            assert_eq!(text.parse::<Target>(), Err(Malformed), "{text}");
        }
    }
}
