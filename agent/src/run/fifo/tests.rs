use super::*;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    (folder, path)
}

#[test]
fn what_is_made_is_removed_and_what_was_there_is_not() {
    let (_folder, path) = place();
    let fifo = Fifo::own(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(fifo);
    assert!(!path.exists());
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    drop(Fifo::own(&path).unwrap());
    assert!(path.exists());
}

/// Somebody put another file in its place: that one is not ours to remove.
#[test]
fn a_replaced_file_is_left_alone() {
    let (_folder, path) = place();
    let fifo = Fifo::own(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "theirs").unwrap();
    drop(fifo);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
}

#[test]
fn it_is_closed_once() {
    let (_folder, path) = place();
    let mut fifo = Fifo::own(&path).unwrap();
    let mut writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"x").unwrap();
    fifo.close(Closing::Done);
    fifo.close(Closing::RunOver);
    let closings: Vec<Event> = fifo.events().into_iter().filter(|event| !event.opened && event.why.is_some()).collect();
    assert_eq!(closings.len(), 1);
    assert_eq!(closings[0].why.as_deref(), Some("completion marker"));
    assert_eq!(writer.write_all(b"y").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn what_is_no_fifo_is_named() {
    let (folder, path) = place();
    std::fs::write(&path, "").unwrap();
    for (path, what) in [(path.as_path(), "a file"), (folder.path(), "a folder"), (Path::new("/dev/null"), "a device")]
    {
        let error = Fifo::own(path).map(drop).unwrap_err().to_string();
        assert!(error.contains(what) && !error.contains('\n'), "{error}");
    }
}
