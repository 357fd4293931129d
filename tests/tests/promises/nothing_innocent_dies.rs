//! Nothing innocent dies: who does not hold the write end of the run's own pipe, or is not the
//! run's, is never signalled, and not killed by SIGPIPE either.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use pipewarden::pipe::Action::{Closed, Drained, Kept};
use pipewarden::pipe::{Action, Outcome, Relation};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{COMMAND, GATE, HOLDER, LAST_LINE};
use pipewarden_tests::process::Process;
use pipewarden_tests::reader::read_now;
use pipewarden_tests::row::row;
use pipewarden_tests::rows;
use pipewarden_tests::run::Run;
use pipewarden_tests::skip::{Need, skip};
use pipewarden_tests::stage::Stage;

rows! {
    a_holder_of_stdin_only: row("hold_stdin_only").exits(3).leaves_alone(HOLDER);
    a_daemon_that_holds_nothing: row("hold_nothing").exits(3).leaves_alone(HOLDER);
    a_reader_of_the_pipe: row("hold_read_end").exits(3).leaves_alone(HOLDER);
    an_ssh_agent: row("ssh_agent_daemon").leaves_alone(HOLDER);
    a_reader_when_the_pipe_is_inherited: row("hold_read_end").options(&["--stdio", "inherit"]).leaves_alone(HOLDER);

    kept_by_its_name: row("hold_setsid").exits(3).options(&["--keep", "hold_setsid"])
        .spares(HOLDER, Relation::Lineage, true, Kept);
    kept_by_its_path: row("hold_setsid").exits(3).options(&["--keep", "/*/hold_setsid"])
        .spares(HOLDER, Relation::Lineage, true, Kept);
    kept_by_its_command_line: row("hold_setsid").exits(3).options(&["--keep", "nothing", "--keep", "*hold_setsid --exit 3"])
        .spares(HOLDER, Relation::Lineage, true, Kept);
    who_matches_no_keep_is_ended: row("hold_setsid").exits(3).options(&["--keep", "hold_sets", "--keep", "postgres*"])
        .ends_escapee(HOLDER, Action::Term);
    reported_only: row("hold_setsid").exits(3).options(&["--on-holder", "report", "--max-drain", "3s"])
        .spares(HOLDER, Relation::Lineage, true, Closed).outcome(Outcome::Closed);
}

/// Whose writes go on: to a sink, so that its next line does not kill it.
fn writes_on(options: &[&str], action: Action) {
    let stage = Stage::new();
    stage.hold("may write");
    let ended = Run::on(&stage).options(options).fixture("hold_and_write", ["--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stderr.eof, "{stderr}");
    assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (3, LAST_LINE), "{stderr}");
    let report = ended.report();
    assert_eq!(report.outcome, Outcome::HoldersSpared, "{stderr}");
    let holder = stage.wait(HOLDER);
    assert_eq!(report.holder(holder.pid).map(|holder| holder.action), Some(action), "{stderr}");
    stage.release("may write");
    let _ = stage.wait("wrote");
    assert!(holder.lives(), "it did not die of SIGPIPE: {stderr}");
}

#[test]
fn a_drained_holder_writes_on() {
    writes_on(&["--on-holder", "drain"], Drained);
}

#[test]
fn a_kept_holder_writes_on() {
    writes_on(&["--keep", "hold_and_write"], Kept);
}

/// `close` is what it says: the pipe has no reader any more, and who ignores SIGPIPE is told so.
#[test]
fn a_holder_with_its_pipe_closed_lives() {
    let stage = Stage::new();
    stage.hold("may write");
    let run = Run::on(&stage).options(["--on-holder", "close"]).fixture("hold_and_write", ["ignore-sigpipe"]);
    let ended = run.end();
    let stderr = ended.stderr.text();
    let report = ended.report();
    assert_eq!(report.outcome, Outcome::HoldersSpared, "{stderr}");
    let holder = stage.wait(HOLDER);
    assert_eq!(report.holder(holder.pid).map(|holder| holder.action), Some(Closed), "{stderr}");
    stage.release("may write");
    let _ = stage.wait("refused");
    assert!(holder.lives(), "{stderr}");
}

/// One holder is ended; who stands beside it, and only reads the pipe or has nothing to do with it,
/// is not.
#[test]
fn who_stands_beside_a_holder() {
    for options in [&[][..], &["-s", "KILL", "--holder-grace", "0"], &["--stdio", "inherit"]] {
        let stage = Stage::new();
        let beside = ["hold_read_end", "hold_stdin_only", "hold_nothing", "ssh_agent_daemon"];
        let path = |name| pipewarden_tests::binaries::binary(name).display().to_string();
        let mut line: String = beside.iter().map(|name| format!("{} --as {name}; ", path(name))).collect();
        line += &format!("exec {} --exit 3", path("hold_setsid"));
        let ended = Run::on(&stage).options(options).bash(&line).end();
        let stderr = ended.stderr.text();
        assert!(ended.stdout.eof && ended.code() == 3, "{options:?}: {stderr}");
        let holder = stage.wait(HOLDER);
        assert!(holder.dies(Deadline::patient()), "{options:?}: {stderr}");
        assert!(beside.iter().all(|role| stage.wait(role).lives()), "{options:?}: {stderr}");
        let named: Vec<i32> = ended.report().holders.iter().map(|holder| holder.pid).collect();
        assert_eq!(named, [holder.pid], "{options:?}: {stderr}");
    }
}

/// A process that ends when the test does.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon outside the run, which was passed the command's stdout.
fn foreign(daemon_words: &[&str], options: &[&str]) -> (Stage, Helper, pipewarden_tests::run::Ended) {
    let stage = Stage::new();
    stage.hold("may write");
    let path = stage.path("daemon");
    let mut daemon = stage.fixture("foreign_daemon");
    let daemon = Helper(daemon.arg(&path).args(daemon_words).stdout(Stdio::null()).spawn().unwrap());
    let _ = stage.wait("daemon");
    let run = Run::on(&stage).options(options).command([pipewarden_tests::binaries::binary("pass_away")]);
    let ended = run.command([path.as_os_str()]).command(["--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof && ended.stderr.eof, "{stderr}");
    assert_eq!((ended.code(), ended.stdout.bytes.as_slice()), (3, LAST_LINE), "{stderr}");
    (stage, daemon, ended)
}

#[test]
fn a_foreign_daemon_is_drained() {
    let (stage, _daemon, ended) = foreign(&[], &[]);
    let stderr = ended.stderr.text();
    let (report, daemon) = (ended.report(), stage.wait("daemon"));
    assert_eq!(report.outcome, Outcome::HoldersSpared, "{stderr}");
    let holder = report.holder(daemon.pid).unwrap_or_else(|| panic!("the daemon is named: {stderr}"));
    assert_eq!((holder.relation, holder.action), (Relation::Foreign, Drained), "{stderr}");
    stage.release("may write");
    let _ = stage.wait("wrote");
    assert!(daemon.lives(), "{stderr}");
}

#[test]
fn a_foreign_daemon_that_ignores_sigpipe_is_told_that_nobody_reads() {
    let (stage, _daemon, ended) = foreign(&["ignore-sigpipe"], &[]);
    let stderr = ended.stderr.text();
    let (report, daemon) = (ended.report(), stage.wait("daemon"));
    assert_eq!(report.outcome, Outcome::HoldersSpared, "{stderr}");
    let holder = report.holder(daemon.pid).unwrap_or_else(|| panic!("the daemon is named: {stderr}"));
    assert_eq!((holder.relation, holder.action), (Relation::Foreign, Closed), "{stderr}");
    stage.release("may write");
    let _ = stage.wait("refused");
    assert!(daemon.lives(), "{stderr}");
}

#[test]
fn a_foreign_daemon_is_ended_only_when_asked() {
    let (stage, _daemon, ended) = foreign(&[], &["--on-foreign", "end"]);
    let stderr = ended.stderr.text();
    let (report, daemon) = (ended.report(), stage.wait("daemon"));
    assert_eq!(report.outcome, Outcome::HoldersEnded, "{stderr}");
    assert_eq!(report.holder(daemon.pid).map(|holder| holder.action), Some(Action::Term), "{stderr}");
    assert!(daemon.dies(Deadline::patient()), "{stderr}");
}

#[test]
fn a_foreign_daemon_that_is_only_reported_lives() {
    let (stage, _daemon, ended) = foreign(&[], &["--on-foreign", "report", "--max-drain", "3s"]);
    let stderr = ended.stderr.text();
    let daemon = stage.wait("daemon");
    // At the bound its pipe is let go.
    assert_eq!(ended.report().holder(daemon.pid).map(|holder| holder.action), Some(Closed), "{stderr}");
    assert!(daemon.lives(), "{stderr}");
}

#[test]
fn a_foreign_daemon_with_its_pipe_closed_lives_if_it_ignores_sigpipe() {
    let (stage, _daemon, ended) = foreign(&["ignore-sigpipe"], &["--on-foreign", "close"]);
    let (stderr, daemon) = (ended.stderr.text(), stage.wait("daemon"));
    assert_eq!(ended.report().holder(daemon.pid).map(|holder| holder.action), Some(Closed), "{stderr}");
    stage.release("may write");
    let _ = stage.wait("refused");
    assert!(daemon.lives(), "{stderr}");
}

/// `--on-foreign wait`: the run ends when the daemon lets go, and what it wrote arrives.
#[test]
fn a_foreign_daemon_can_be_waited_for() {
    let stage = Stage::new();
    stage.hold("may write");
    let path = stage.path("daemon");
    let mut daemon = stage.fixture("foreign_daemon");
    let _daemon = Helper(daemon.arg(&path).stdout(Stdio::null()).spawn().unwrap());
    let _ = stage.wait("daemon");
    let run = Run::on(&stage).options(["--on-foreign", "wait"]);
    let run = run.command([pipewarden_tests::binaries::binary("pass_away")]).command([path.as_os_str()]).start();
    assert!(stage.wait(COMMAND).dies(Deadline::patient()));
    stage.release("may write");
    let _ = stage.wait("wrote");
    let daemon = stage.wait("daemon");
    assert!(daemon.lives());
    daemon.signal(Signal::SIGKILL);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert!(ended.stdout.eof, "{stderr}");
    assert_eq!(ended.stdout.bytes, [LAST_LINE, pipewarden_tests::fixture::LATE_LINE].concat(), "{stderr}");
    assert_eq!(ended.report().outcome, Outcome::Natural, "{stderr}");
}

/// `(server &) >log; supervisor ...` in a shell: somebody else has the same stdout as we.
#[test]
fn who_shares_our_own_stdout() {
    for options in [&[][..], &["--stdio", "inherit"]] {
        let stage = Stage::new();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut neighbour = stage.fixture("stay");
        neighbour.args(["--as", "neighbour"]).stdout(writer.try_clone().unwrap());
        let _neighbour = Helper(neighbour.spawn().unwrap());
        drop(neighbour);
        let bystander = stage.wait("neighbour");
        let run = Run::on(&stage).options(options).stdout(writer).fixture("hold_setsid", ["--exit", "3"]);
        let ended = run.end();
        let stderr = ended.stderr.text();
        assert_eq!(ended.code(), 3, "{stderr}");
        assert!(bystander.lives(), "{options:?}: {stderr}");
        assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{options:?}: {stderr}");
        let read = read_now(&reader);
        assert!(read.bytes == LAST_LINE && !read.eof, "downstream's EOF is the neighbour's: {}", read.text());
    }
}

/// An inode number is no identity: another FIFO may have the same on another file system.
#[test]
fn who_holds_a_fifo_with_the_same_number_elsewhere() {
    if skip("who_holds_a_fifo_with_the_same_number_elsewhere", &[Need::Root]) {
        return;
    }
    let stage = Stage::new();
    // A mount namespace of this thread's own: the mounts go with it.
    pipewarden_tests::kernel::own_mounts();
    let fifos = ["ours", "theirs"].map(|name| {
        let folder = stage.path(name);
        std::fs::create_dir(&folder).unwrap();
        mount(Some("none"), &folder, Some("tmpfs"), MsFlags::empty(), None::<&Path>).unwrap();
        let fifo = folder.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap()
    });
    let [ours, theirs] = &fifos;
    let (a, b) = (ours.metadata().unwrap(), theirs.metadata().unwrap());
    assert!(a.ino() == b.ino() && a.dev() != b.dev(), "two FIFOs of one number: {a:?} {b:?}");
    // One of the run's own, so that nothing but the FIFO's identity speaks for it.
    let neighbour = format!(
        "setsid {} --as neighbour 1<>{} 2>/dev/null & exec {} --gate --exit 3",
        pipewarden_tests::binaries::binary("stay").display(),
        stage.path("theirs/fifo").display(),
        pipewarden_tests::binaries::binary("hold_setsid").display(),
    );
    stage.hold(GATE);
    let run = Run::on(&stage).options(["--stdio", "inherit"]).stdout(ours.try_clone().unwrap());
    let run = run.bash(&neighbour).start();
    let bystander = stage.wait("neighbour");
    let _ = stage.wait(GATE);
    stage.release(GATE);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert_eq!(ended.code(), 3, "{stderr}");
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "the FIFO's own holder is ended: {stderr}");
    assert!(bystander.lives(), "{stderr}");
    assert!(ended.report().holder(bystander.pid).is_none(), "{stderr}");
}

/// `helper & exec pipewarden run ...`: what was our child before we were ourselves is not the
/// run's, not even under `--reap all`.
#[test]
fn a_child_that_existed_before_us() {
    let stage = Stage::new();
    let older = pipewarden_tests::binaries::binary("older_child");
    let shell = format!("{} >/dev/null 2>&1 & exec \"$@\"", older.display());
    stage.hold(GATE);
    let run = Run::on(&stage).wrapped_in(["sh", "-c", &shell, "sh"]).options(["--reap", "all"]);
    let run = run.fixture("hold_setsid", ["--gate", "--exit", "3"]).start();
    let older = stage.wait("older");
    let _ = stage.wait(GATE);
    stage.release(GATE);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert!(older.lives(), "{stderr}");
    assert!(ended.stdout.eof && ended.code() == 3, "{stderr}");
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{stderr}");
}

/// Its children come to us when it dies, and are not the run's either.
#[test]
fn the_children_of_a_child_that_existed_before_us() {
    let stage = Stage::new();
    let older = pipewarden_tests::binaries::binary("older_child");
    let shell = format!("{} parent >/dev/null 2>&1 & exec \"$@\"", older.display());
    stage.hold(GATE);
    stage.hold("may fork");
    let run = Run::on(&stage).wrapped_in(["sh", "-c", &shell, "sh"]).options(["--reap", "all"]);
    let run = run.fixture("hold_setsid", ["--gate", "--exit", "3"]).start();
    let _ = stage.wait(GATE); // the command runs, so we are the supervisor by now
    let older = stage.wait("older");
    stage.release("may fork");
    let grandchild = stage.wait("grandchild");
    assert!(older.dies(Deadline::patient()));
    stage.release(GATE);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert!(grandchild.lives(), "{stderr}");
    assert!(ended.stdout.eof && ended.code() == 3, "{stderr}");
    assert!(stage.wait(HOLDER).dies(Deadline::patient()), "{stderr}");
}

/// When nobody reads any more, nobody waits, and nobody has to be ended.
#[test]
fn a_holder_when_downstream_has_gone() {
    let stage = Stage::new();
    stage.hold(GATE);
    let (reader, writer) = std::io::pipe().unwrap();
    let run = Run::on(&stage).stdout(writer).stderr(Stdio::null());
    let run = run.fixture("postgres_daemon", ["--gate"]).start();
    let _ = stage.wait(GATE);
    drop(reader);
    stage.release(GATE);
    let _ = run.end();
    assert!(stage.wait(HOLDER).lives());
}

/// A regular file has no reader that waits for EOF.
#[test]
fn who_holds_a_regular_file() {
    let stage = Stage::new();
    let path = stage.path("log");
    let run = Run::on(&stage).stdout(std::fs::File::create(&path).unwrap()).stderr(Stdio::null());
    let ended = run.fixture("hold_setsid", ["--exit", "3"]).end();
    assert_eq!(ended.code(), 3);
    assert_eq!(std::fs::read(path).unwrap(), LAST_LINE);
    assert!(stage.wait(HOLDER).lives());
}

/// Two runs side by side: each ends its own.
#[test]
fn the_processes_of_a_sibling_run() {
    let stage = Stage::new();
    stage.hold(GATE);
    let sibling = Run::on(&stage).fixture("hold_setsid", ["--as", "sibling's", "--gate"]).start();
    let theirs = stage.wait("sibling's");
    let their_command = stage.wait(COMMAND);
    let ended = Run::on(&stage).options(["--reap", "all"]).fixture("hold_setsid", ["--as", "ours"]).end();
    assert!(stage.wait("ours").dies(Deadline::patient()), "{}", ended.stderr.text());
    assert!(theirs.lives() && their_command.lives(), "{}", ended.stderr.text());
    stage.release(GATE);
    assert_eq!(sibling.end().code(), 0);
    assert!(theirs.dies(Deadline::patient()));
}

/// Whoever started us, and we ourselves, hold the downstream pipe too.
#[test]
fn our_own_ancestors() {
    let stage = Stage::new();
    let run = Run::on(&stage).options(["--stdio", "inherit"]);
    // The shell keeps its own copy of our stdout, waits for us, and prints a line of its own.
    let run = run.wrapped_in(["sh", "-c", "\"$@\"; echo \"then $?\"", "sh"]);
    let ended = run.fixture("hold_setsid", ["--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert_eq!(ended.stdout.text(), format!("{}then 3\n", String::from_utf8_lossy(LAST_LINE)), "{stderr}");
    assert!(ended.stdout.eof && ended.code() == 0, "{stderr}");
    let holder: Process = stage.wait(HOLDER);
    assert!(holder.dies(Deadline::patient()), "{stderr}");
    assert_ne!(ended.report().signal, Some(i64::from(Signal::SIGTERM as i32)));
}
