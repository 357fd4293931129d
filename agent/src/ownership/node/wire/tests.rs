use std::io::{PipeReader, PipeWriter, Read as _, Write as _};

use nix::sys::stat::fstat;

use super::*;
use crate::ownership::node::protocol::Holder;
use crate::pipe::{End, PipeId, PipeKind};

/// A connection on which a pipe is watched, and the other side of it.
struct Scene {
    wire: Wire,
    node: UnixStream,
    pipe: Pipe,
    _ends: (PipeReader, PipeWriter),
}

impl Scene {
    /// The watch was asked for.
    fn begin() -> Scene {
        let (ours, node) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours).unwrap();
        let ends = std::io::pipe().unwrap();
        let stat = fstat(&ends.0).unwrap();
        let pipe = Pipe { id: PipeId { dev: stat.st_dev, ino: stat.st_ino }, kind: PipeKind::Pipe };
        wire.watch(&[pipe]).unwrap();
        Scene { wire, node, pipe, _ends: ends }
    }

    /// It was granted.
    fn watching() -> Scene {
        let mut scene = Scene::begin();
        scene.say(1, Tell::Watching { watch: 7, pipe: scene.pipe.into() }).unwrap();
        assert_eq!(scene.wire.next_told(), Some(Told::Watching));
        scene
    }

    fn say(&mut self, id: u64, tell: Tell) -> io::Result<()> {
        self.node.write_all(&Message::answer(id, tell).line()).unwrap();
        self.wire.read()
    }

    fn part(&self, pids: std::ops::Range<i32>, more: bool) -> Tell {
        let holds = vec![Held { tid: 1, end: End::Write, fds: vec![1] }];
        let holders = pids.map(|pid| Holder { pid, start_ticks: 1, holds: holds.clone() }).collect();
        let (elsewhere, unknown, hidden, exact) = (0, 0, Some(0), true);
        Tell::Holders(Holders { pipe: self.pipe.into(), holders, more, elsewhere, unknown, hidden, exact })
    }
}

#[test]
fn a_watch_is_asked_for_once_and_ended_when_it_is_not_wanted() {
    let mut scene = Scene::watching();
    scene.wire.watch(&[scene.pipe]).unwrap();
    scene.wire.watch(&[]).unwrap();
    assert!(scene.wire.resolve(&[scene.pipe]).unwrap().is_none(), "it is not watched");
    drop(scene.wire);
    let mut said = Vec::new();
    scene.node.read_to_end(&mut said).unwrap();
    let lines = said.split_inclusive(|byte| *byte == b'\n');
    let lines: Vec<Ask> = lines.map(|line| Request::parse(line).unwrap().ask).collect();
    assert_eq!(lines, [Ask::Watch, Ask::Unwatch { watch: 7 }]);
}

#[test]
fn an_answer_is_put_together_from_its_parts() {
    let mut scene = Scene::watching();
    let questions = scene.wire.resolve(&[scene.pipe]).unwrap().unwrap();
    assert!(scene.wire.answers(&questions).is_none());
    scene.say(2, scene.part(1..3, true)).unwrap();
    assert!(scene.wire.answers(&questions).is_none() && !scene.wire.owes_nothing());
    scene.say(2, scene.part(3..5, false)).unwrap();
    let answers = scene.wire.answers(&questions).unwrap().unwrap();
    let pids: Vec<i32> = answers[0].1.holders.iter().map(|holder| holder.pid).collect();
    assert_eq!((answers[0].0, pids, scene.wire.owes_nothing()), (scene.pipe, vec![1, 2, 3, 4], true));
}

#[test]
fn a_question_that_is_refused_has_an_answer_too() {
    let mut scene = Scene::watching();
    let questions = scene.wire.resolve(&[scene.pipe]).unwrap().unwrap();
    scene.say(2, Tell::Error { code: Code::Unavailable, message: "later".into() }).unwrap();
    assert_eq!(scene.wire.answers(&questions).unwrap().unwrap_err(), "later");
}

#[test]
fn an_answer_that_nobody_waits_for_is_passed_over() {
    let mut scene = Scene::watching();
    scene.say(99, scene.part(1..3, false)).unwrap();
    let late = scene.wire.resolve(&[scene.pipe]).unwrap().unwrap();
    let questions = scene.wire.resolve(&[scene.pipe]).unwrap().unwrap();
    scene.say(2, scene.part(1..3, false)).unwrap();
    assert!(scene.wire.answers(&questions).is_none(), "it is the answer to the one before");
    scene.say(3, scene.part(3..4, false)).unwrap();
    assert!(scene.wire.answers(&questions).is_some() && scene.wire.answers(&late).is_some());
}

#[test]
fn events_are_told_of_the_pipe_that_is_watched_and_of_no_other() {
    let mut scene = Scene::watching();
    scene.say(0, Tell::Changed { watch: 8 }).unwrap();
    scene.say(0, Tell::Eof { watch: 7 }).unwrap();
    scene.say(0, Tell::Lost { why: "x".into(), missed: 3 }).unwrap();
    let told: Vec<Told> = std::iter::from_fn(|| scene.wire.next_told()).collect();
    assert_eq!(told, [Told::Eof(scene.pipe), Told::Lost(3)]);
}

#[test]
fn who_says_too_much_is_heard_in_part() {
    let mut scene = Scene::watching();
    for _ in 0..=MOST_EVENTS {
        scene.say(0, Tell::Changed { watch: 7 }).unwrap();
    }
    assert_eq!(scene.wire.next_told(), Some(Told::Lost(MOST_EVENTS as u64)));
    assert_eq!(scene.wire.told.len(), 1);
}

#[test]
fn what_makes_no_sense_ends_the_connection() {
    let another =
        |scene: &Scene| crate::ownership::node::protocol::Named { ino: scene.pipe.id.ino + 1, ..scene.pipe.into() };
    let mut scene = Scene::begin();
    let pipe = another(&scene);
    assert!(scene.say(1, Tell::Watching { watch: 7, pipe }).is_err(), "another pipe is watched");

    let mut scene = Scene::watching();
    scene.wire.resolve(&[scene.pipe]).unwrap();
    let Tell::Holders(mut holders) = scene.part(1..2, false) else { unreachable!() };
    holders.pipe = another(&scene);
    assert!(scene.say(2, Tell::Holders(holders)).is_err(), "another pipe is answered for");

    let mut scene = Scene::watching();
    assert!(scene.say(0, Tell::Error { code: Code::Busy, message: "too much".into() }).is_err());

    let mut scene = Scene::watching();
    scene.node.write_all(b"{}\n").unwrap();
    assert_eq!(scene.wire.read().unwrap_err().kind(), io::ErrorKind::InvalidData);

    let mut scene = Scene::watching();
    drop(std::mem::replace(&mut scene.node, UnixStream::pair().unwrap().0));
    assert_eq!(scene.wire.read().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(scene.wire.resolve(&[scene.pipe]).is_err());
}

#[test]
fn who_names_more_than_a_machine_has_is_not_believed() {
    let mut scene = Scene::watching();
    scene.wire.resolve(&[scene.pipe]).unwrap();
    let parts = (0..).map(|_| scene.part(0..100, true)).take(1000).collect::<Vec<_>>();
    let refused = parts.into_iter().find_map(|part| scene.say(2, part).err());
    assert_eq!(refused.unwrap().kind(), io::ErrorKind::InvalidData);
}

/// Who does not read is not written to for ever.
#[test]
fn a_node_that_does_not_read_is_none() {
    let mut scene = Scene::watching();
    let refused = (0..100_000).find_map(|_| scene.wire.resolve(&[scene.pipe]).err());
    assert!(refused.is_some());
}
