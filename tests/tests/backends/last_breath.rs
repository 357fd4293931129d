//! Who is on its way out is not gone yet: the programs are told of an exit before the process gives back what it has.

use pipewarden_tests::binaries::binary;
use pipewarden_tests::run::{Run, copied};
use pipewarden_tests::stage::Stage;

use crate::no_live_map;

/// With much memory that takes a while.
#[test]
fn no_try_begins_while_a_daemon_of_the_one_before_still_ends() {
    if no_live_map("no_try_begins_while_a_daemon_of_the_one_before_still_ends") {
        return;
    }
    let stage = Stage::new();
    let (agent, count) = (binary("fake_agent"), stage.path("starts"));
    let (agent, count) = (agent.display(), count.display());
    // That somebody else lives, and may, makes no difference.
    let kept = stage.path("kept");
    copied(&binary("fake_agent"), &kept);
    let kept = format!("setsid {} at:kept hang >/dev/null 2>&1 &", kept.display());
    let daemon = format!("{kept} setsid {agent} much:400 at:daemon hang >/dev/null 2>&1 &");
    stage.hold("second");
    let line = format!(
        "echo x >> {count}; if [ $(wc -l < {count}) = 1 ]; then {daemon} sleep 1000; else exec {agent} at:second; fi"
    );
    // It has to be there before the first try is over.
    let run = Run::on(&stage).options(["--backend", "bpf", "--idle-timeout", "10s", "--retries", "1"]);
    let run = run.options(["--retry-backoff", "0", "--keep", "kept"]).bash(&line).start();
    let (daemon, kept) = (stage.wait("daemon"), stage.wait("kept"));
    let _ = stage.wait("second");
    assert!(daemon.is_dead() && kept.lives());
    stage.release("second");
    let ended = run.end();
    assert_eq!(ended.code(), 0, "{}", ended.stderr.text());
}
