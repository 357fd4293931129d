//! Files that are put aside when they are full: `LOG` becomes `LOG.1`, `LOG.1` becomes `LOG.2`, and the
//! oldest is dropped.
//!
//! A record is in one file as a whole, and a run's chain goes on in the next. Whoever else appends to the
//! file (another run that was given the same path) goes on in the one that was put aside, so a log that is
//! put aside is better written by one process alone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// When a file is put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Before it grows beyond this many bytes; 0: never.
    pub max_size: u64,
    /// How many files that were put aside are kept, at least one.
    pub files: u32,
}

/// A file that is put aside now and then.
#[derive(Debug)]
pub(super) struct Rotating {
    path: PathBuf,
    rotation: Rotation,
    size: u64,
}

impl Rotating {
    pub(super) fn new(path: PathBuf, rotation: Rotation, size: u64) -> Rotating {
        Rotating { path, rotation, size }
    }

    /// The file grew by so many bytes.
    pub(super) fn grew(&mut self, bytes: usize) {
        self.size = self.size.saturating_add(bytes as u64);
    }

    /// Before a line of this length is written: the file that it goes to, where that is a new one. When
    /// there can be none, the old one grows on: a record is worth more than a limit.
    pub(super) fn before(&mut self, length: usize) -> Option<File> {
        let full = self.size > 0 && self.size.saturating_add(length as u64) > self.rotation.max_size;
        if self.rotation.max_size == 0 || !full {
            return None;
        }
        let fresh = put_aside(&self.path, self.rotation.files).ok()?;
        self.size = 0;
        Some(fresh)
    }
}

/// Puts a file aside, and gives the one that has its name from then on. The new file is there before the
/// old one loses its name, so that a failure leaves things as they are.
fn put_aside(path: &Path, files: u32) -> io::Result<File> {
    let waiting = with_suffix(path, "new");
    match fs::remove_file(&waiting) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let fresh = File::options().append(true).create_new(true).mode(0o600).open(&waiting)?;
    let moved = shift(path, files).and_then(|()| fs::rename(&waiting, path));
    if let Err(error) = moved {
        let _ = fs::remove_file(&waiting);
        return Err(error);
    }
    Ok(fresh)
}

fn shift(path: &Path, files: u32) -> io::Result<()> {
    for number in numbers(path)? {
        let from = numbered(path, number);
        // More than are kept now may be there from when more were.
        if number >= files.max(1) { fs::remove_file(from)? } else { fs::rename(from, numbered(path, number + 1))? }
    }
    // A link and not a rename: the name is never without a file.
    fs::hard_link(path, numbered(path, 1))
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    with_suffix(path, &number.to_string())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The files of a log that are there, the oldest first: those that were put aside, and the log itself.
///
/// # Errors
///
/// When its folder cannot be read.
pub fn set(path: &Path) -> io::Result<Vec<PathBuf>> {
    let aside = numbers(path)?;
    Ok(aside.into_iter().map(|number| numbered(path, number)).chain([path.to_owned()]).collect())
}

/// The numbers of the files that were put aside, the oldest first.
fn numbers(path: &Path) -> io::Result<Vec<u32>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned() + ".";
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(&own)?.parse::<u32>().ok());
        numbers.extend(number.filter(|number| numbered(path, *number).file_name() == Some(&name)));
    }
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::super::sink::{Put, Sink, Target};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sink(path: &Path, max_size: u64, files: u32) -> Sink {
        Sink::open_rotated(&Target::Path(path.to_owned()), Rotation { max_size, files }).unwrap()
    }

    fn texts(path: &Path) -> Vec<String> {
        set(path).unwrap().iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut sink = sink(&path, 8, 2);
        for line in ["1one\n", "2\n", "3\n", "4four\n", "5is_longer_than_all\n", "6\n", "7\n"] {
            assert_eq!(sink.put(line.as_bytes()), Put::Whole);
        }
        assert_eq!(texts(&path), ["3\n4four\n", "5is_longer_than_all\n", "6\n7\n"]);
        for file in set(&path).unwrap() {
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600, "{}", file.display());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing else stays behind");
    }

    #[test]
    fn what_was_written_before_counts_and_without_a_size_nothing_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        sink(&path, 0, 1).put(b"1234567890\n");
        sink(&path, 0, 1).put(b"1234567890\n");
        assert_eq!(texts(&path).len(), 1);
        sink(&path, 12, 1).put(b"x\n");
        assert_eq!(texts(&path), ["1234567890\n1234567890\n", "x\n"]);
        assert_eq!(sink("/dev/null".as_ref(), 1, 1).put(b"this is no file\n"), Put::Whole);
    }

    #[test]
    fn where_nothing_can_be_put_aside_the_file_grows_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::create_dir_all(folder.path().join("log.1/in the way")).unwrap();
        let mut sink = sink(&path, 4, 1);
        for line in [b"one\n", b"two\n", b"six\n"] {
            assert_eq!(sink.put(line), Put::Whole);
        }
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\nsix\n");
        fs::remove_dir_all(folder.path().join("log.1")).unwrap();
        assert_eq!(sink.put(b"ten\n"), Put::Whole);
        assert_eq!(texts(&path), ["one\ntwo\nsix\n", "ten\n"]);
    }

    #[test]
    fn the_set_of_a_log_is_its_numbers_and_nothing_that_looks_like_them() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["log", "log.1", "log.10", "log.2", "log.02", "log.new", "log.1.gz", "other.3"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        assert_eq!(texts(&folder.path().join("log")), ["log.10", "log.2", "log.1", "log"]);
    }
}
