//! A node that says what is not so, or stops to say anything, costs time and no innocent process its life.

use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};

use pipewarden::ownership::node::protocol::{Ask, Held, Holder, Holders, Named, Request, Tell};
use pipewarden::pipe::{End, Outcome};
use pipewarden::process::stat::Stat;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::{GATE, HOLDER};
use pipewarden_tests::log::Log;
use pipewarden_tests::stage::Stage;
use pipewarden_tests::stand_in::{Reply, StandIn, friendly};

use crate::asking;

/// What is answered to who asks for holders.
fn holders(pipe: Option<Named>, holders: Vec<Holder>) -> Reply {
    let Some(pipe) = pipe else { return Reply::Nothing };
    let all = Holders { pipe, holders, more: false, elsewhere: 0, unknown: 0, hidden: Some(0), exact: true };
    Reply::Tell(Tell::Holders(all))
}

fn named((pid, start_ticks): (i32, u64)) -> Holder {
    Holder { pid, start_ticks, holds: vec![Held { tid: pid, end: End::Write, fds: vec![1] }] }
}

/// A listener that is friendly until it is asked who holds a pipe.
fn answering(stage: &Stage, answer: impl Fn(Option<Named>) -> Reply + Send + Sync + 'static) -> StandIn {
    StandIn::new(stage, move |request: &Request, pipe| match request.ask {
        Ask::Resolve { .. } => answer(pipe),
        _ => friendly(request, pipe),
    })
}

/// The true holder is ended all the same, and the output arrives.
fn ends_the_holder(stage: &Stage, socket: &Path) -> Log {
    let log = Log::on(stage);
    let ended = asking(stage, socket).options(log.options()).fixture("hold_setsid", ["--exit", "3"]).end();
    let stderr = ended.stderr.text();
    assert_eq!((ended.code(), ended.stdout.eof), (3, true), "{stderr}");
    assert_eq!(ended.report().outcome, Outcome::HoldersEnded, "{stderr}");
    let holder = stage.wait(HOLDER);
    assert!(holder.dies(Deadline::patient()), "{stderr}");
    assert!(log.of("holder.signalled").iter().all(|record| record["process"]["pid"] == holder.pid), "{stderr}");
    log
}

#[test]
fn it_names_nobody() {
    let stage = Stage::new();
    let node = answering(&stage, |pipe| holders(pipe, Vec::new()));
    ends_the_holder(&stage, node.socket());
}

#[test]
fn it_says_nothing_any_more() {
    let stage = Stage::new();
    let node = answering(&stage, |_| Reply::Nothing);
    let log = ends_the_holder(&stage, node.socket());
    let degraded = log.of("tracker.degraded");
    assert!(degraded.iter().any(|record| record["detail"]["why"].as_str().unwrap().contains("does not answer")));
}

#[test]
fn it_hangs_up() {
    let stage = Stage::new();
    let node = answering(&stage, |_| Reply::Close);
    let log = ends_the_holder(&stage, node.socket());
    let degraded = log.of("tracker.degraded");
    assert!(degraded.iter().any(|record| record["detail"]["to"] == "proc"), "{degraded:?}");
}

#[test]
fn it_says_what_is_no_message() {
    let stage = Stage::new();
    let node = answering(&stage, |_| Reply::Bytes(b"{\"v\":1,\"tell\":\"holders\"}\n".to_vec()));
    ends_the_holder(&stage, node.socket());
}

#[test]
fn it_speaks_of_another_pipe() {
    let stage = Stage::new();
    let node = answering(&stage, |pipe| {
        holders(
            pipe.map(|pipe| Named { ino: pipe.ino + 1, ..pipe }),
            vec![named((std::process::id().cast_signed(), 1))],
        )
    });
    ends_the_holder(&stage, node.socket());
}

/// Every answer comes with as many events as fit in, of pipes that nobody watches and of one that is.
#[test]
fn it_does_not_stop_to_talk() {
    let stage = Stage::new();
    let node = answering(&stage, |pipe| {
        let watch = pipe.map_or(0, |pipe| pipe.ino);
        let mut bytes = Vec::new();
        for number in 0..20_000 {
            let event = Tell::Changed { watch: if number % 2 == 0 { watch } else { number } };
            bytes.extend(pipewarden::ownership::node::protocol::Message::event(event).line());
        }
        Reply::Bytes(bytes)
    });
    ends_the_holder(&stage, node.socket());
}

/// A process beside the run, which holds nothing of it.
struct Bystander(Child);

impl Bystander {
    fn new() -> Bystander {
        Bystander(std::process::Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn id(&self) -> (i32, u64) {
        let pid = self.0.id().cast_signed();
        (pid, Stat::read(pid).unwrap().id.start_ticks)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who has nothing to do with the run, is pid 1, or whose pid was another's: not even where the foreign are to
/// be ended.
#[test]
fn it_names_the_innocent() {
    let bystander = Bystander::new();
    let (pid, start) = bystander.id();
    let us = std::process::id().cast_signed();
    let ours = Stat::read(us).unwrap().id.start_ticks;
    let first = Stat::read(1).unwrap().id.start_ticks;
    for named_ones in [vec![(pid, start)], vec![(pid, start + 1)], vec![(us, ours), (1, first), (0, 0), (-1, 0)]] {
        let stage = Stage::new();
        let log = Log::on(&stage);
        let node = {
            let named_ones = named_ones.clone();
            answering(&stage, move |pipe| holders(pipe, named_ones.iter().copied().map(named).collect()))
        };
        let run = asking(&stage, node.socket()).options(["--on-foreign", "end"]).options(log.options());
        let ended = run.fixture("hold_setsid", [""; 0]).end();
        let stderr = ended.stderr.text();
        assert_eq!(ended.report().outcome, Outcome::HoldersEnded, "{named_ones:?}: {stderr}");
        let holder = stage.wait(HOLDER);
        assert!(holder.dies(Deadline::patient()), "{named_ones:?}: {stderr}");
        let signalled = log.of("holder.signalled");
        assert!(signalled.iter().all(|record| record["process"]["pid"] == holder.pid), "{signalled:#?}");
    }
    assert_eq!(Stat::read(pid).unwrap().state, 'S', "it sleeps as before");
}

/// Of the run's own, one that holds nothing: the refusal is on record.
#[test]
fn it_names_one_of_the_lineage_that_holds_nothing() {
    let stage = Stage::new();
    let log = Log::on(&stage);
    let whom = Arc::new(Mutex::new(Vec::new()));
    let node = {
        let whom = Arc::clone(&whom);
        answering(&stage, move |pipe| holders(pipe, whom.lock().unwrap().iter().copied().map(named).collect()))
    };
    stage.hold(GATE);
    let line = format!(
        "{} --as innocent; exec {} --gate",
        pipewarden_tests::binaries::binary("hold_nothing").display(),
        pipewarden_tests::binaries::binary("hold_setsid").display()
    );
    let run = asking(&stage, node.socket()).options(log.options()).bash(&line).start();
    let innocent = stage.wait("innocent");
    whom.lock().unwrap().push((innocent.pid, Stat::read(innocent.pid).unwrap().id.start_ticks));
    let holder = stage.wait(HOLDER);
    stage.release(GATE);
    let ended = run.end();
    let stderr = ended.stderr.text();
    assert_eq!((ended.code(), ended.report().outcome), (0, Outcome::HoldersEnded), "{stderr}");
    assert!(holder.dies(Deadline::patient()) && innocent.lives(), "{stderr}");
    let of_the_innocent = |event: &str| {
        log.of(event).into_iter().filter(|record| record["process"]["pid"] == innocent.pid).collect::<Vec<_>>()
    };
    assert!(of_the_innocent("holder.signalled").is_empty());
    let refused = of_the_innocent("holder.spared");
    assert!(refused.iter().any(|record| record["decision"]["action"] == "refused"), "{refused:#?}");
}
