//! A FIFO that is nobody's in particular: who is at it, and releasing those who wait to open it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command};

use pipewarden_tests::explain::{asked, blocks_in, mkfifo, pipewarden, started};
use pipewarden_tests::process::Process;
use pipewarden_tests::stage::Stage;
use serde_json::Value;

/// A shell that opens the FIFO in this way and then exits with 5.
fn opener(stage: &Stage, path: &Path, way: &str) -> (Child, Process) {
    let mut command = Command::new("sh");
    let (child, process) = started(stage, command.args(["-c", &format!("exec 3{way}\"$0\"; exit 5")]).arg(path));
    blocks_in(process.pid, libc::SYS_openat);
    (child, process)
}

fn pids(rows: &Value) -> Vec<i32> {
    let rows = rows.as_array().unwrap_or_else(|| panic!("no rows: {rows}"));
    rows.iter().map(|row| i32::try_from(row["pid"].as_i64().unwrap()).unwrap()).collect()
}

fn us() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

fn status(path: &Path) -> Value {
    asked(&["fifo", "status", path.to_str().unwrap(), "--json"])
}

fn close(path: &Path) -> Value {
    asked(&["fifo", "close", path.to_str().unwrap(), "--json"])
}

#[test]
fn readers_writers_and_bytes() {
    let stage = Stage::new();
    let path = stage.path("fifo");
    mkfifo(&path);
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"123").unwrap();
    let found = status(&path);
    assert_eq!(found["pipe"]["path"], path.to_str().unwrap());
    assert_eq!((pids(&found["readers"]), pids(&found["writers"])), (vec![us()], vec![us()]));
    assert_eq!((pids(&found["blocked"]), &found["waiting"]["bytes"]), (vec![], &3.into()));
    drop((reader, writer));
    let found = status(&path);
    assert_eq!((pids(&found["readers"]), pids(&found["writers"])), (vec![], vec![]));
}

#[test]
fn a_blocked_writer_is_seen_and_released() {
    let stage = Stage::new();
    let path = stage.path("fifo");
    mkfifo(&path);
    let (mut child, writer) = opener(&stage, &path, ">");
    let found = status(&path);
    assert_eq!(pids(&found["blocked"]), [writer.pid]);
    assert_eq!((&found["blocked"][0]["end"], &found["blocked"][0]["via"]), (&"write".into(), &"opening".into()));
    let closed = close(&path);
    assert_eq!(pids(&closed["released"]), [writer.pid], "{closed:#}");
    assert!(closed["did"][0].as_str().unwrap().contains("opened and closed the read end"), "{closed:#}");
    assert_eq!(child.wait().unwrap().code(), Some(5), "its open returned, and nobody signalled it");
}

#[test]
fn a_blocked_reader_is_seen_and_released() {
    let stage = Stage::new();
    let path = stage.path("fifo");
    mkfifo(&path);
    let (mut child, reader) = opener(&stage, &path, "<");
    let found = status(&path);
    assert_eq!((pids(&found["blocked"]), &found["blocked"][0]["end"]), (vec![reader.pid], &"read".into()));
    let closed = close(&path);
    assert_eq!(pids(&closed["released"]), [reader.pid], "{closed:#}");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

/// A relative path is resolved as the opener means it.
#[test]
fn an_opener_by_a_relative_path_is_found() {
    let stage = Stage::new();
    let path = stage.path("fifo");
    mkfifo(&path);
    let mut command = Command::new("sh");
    let (mut child, writer) =
        started(&stage, command.args(["-c", "exec 3>./fifo; exit 5"]).current_dir(stage.folder()));
    blocks_in(writer.pid, libc::SYS_openat);
    let other = stage.path("other");
    mkfifo(&other);
    assert_eq!(pids(&status(&other)["blocked"]), [0; 0], "it opens another one");
    assert_eq!(pids(&status(&path)["blocked"]), [writer.pid]);
    close(&path);
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

/// Holders keep what they hold, and live.
#[test]
fn holders_are_named_and_left_alone() {
    let stage = Stage::new();
    let path = stage.path("fifo");
    mkfifo(&path);
    let _both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let reading = std::fs::File::open(&path).unwrap();
    let (_child, reader) = started(&stage, stage.fixture("read_to_eof").args(["--as", "reader"]).stdin(reading));
    let _ = stage.wait("reader");
    blocks_in(reader.pid, libc::SYS_read);
    let closed = close(&path);
    assert_eq!(closed["did"].as_array().unwrap().len(), 0, "{closed:#}");
    assert_eq!(pids(&closed["left"]["writers"]), [us()], "{closed:#}");
    assert!(pids(&closed["left"]["readers"]).contains(&reader.pid), "{closed:#}");
    assert!(reader.lives());
    let text = String::from_utf8(pipewarden(&["fifo", "close", path.to_str().unwrap()]).stdout).unwrap();
    assert!(text.contains("nothing was done") && text.contains("to be closed by themselves"), "{text}");
}

#[test]
fn what_is_no_fifo_is_refused_in_one_line() {
    let stage = Stage::new();
    let file = stage.path("file");
    std::fs::write(&file, "").unwrap();
    let absent = stage.path("absent");
    for (path, part) in [
        (file.to_str().unwrap(), "is a regular file, not a FIFO"),
        (stage.folder().to_str().unwrap(), "is a directory, not a FIFO"),
        ("/dev/null", "is a device, not a FIFO"),
        (absent.to_str().unwrap(), "no such file or directory"),
    ] {
        for verb in ["status", "close"] {
            let output = pipewarden(&["fifo", verb, path]);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(125), "{path}: {text}");
            assert!(text.starts_with("pipewarden: ") && text.contains(part), "{path}: {text}");
            assert_eq!((text.matches('\n').count(), output.stdout.len()), (1, 0), "{path}: {text}");
        }
    }
}
