//! Who is tracked is told from who is not by a look at an array, in which pids share places.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use pipewarden::kernel::object::{Scope, Sizes};
use pipewarden::kernel::rung::Rung;
use pipewarden::kernel::tracker::Tracker;
use pipewarden_common::filter::PLACES;
use pipewarden_tests::binaries::binary;
use pipewarden_tests::skip::skipped;

/// The slot that `pids_apart` puts a pipe into.
const SLOT: u32 = 200;

/// Two processes whose pids share a place.
struct Neighbours {
    parent: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Neighbours {
    fn new() -> Neighbours {
        let mut command = Command::new(binary("pids_apart"));
        command.arg(PLACES.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut parent = command.spawn().unwrap();
        let (stdin, stdout) = (parent.stdin.take().unwrap(), parent.stdout.take().unwrap());
        Neighbours { parent, stdin, stdout: BufReader::new(stdout) }
    }

    fn told(&mut self, line: &str) -> String {
        writeln!(self.stdin, "{line}").unwrap();
        let mut said = String::new();
        self.stdout.read_line(&mut said).unwrap();
        said.trim_end().to_owned()
    }

    fn end(mut self) {
        drop(self.stdin);
        assert!(self.parent.wait().unwrap().success());
    }
}

#[test]
fn who_shares_a_place_with_one_that_ended_is_still_tracked() {
    const NAME: &str = "who_shares_a_place_with_one_that_ended_is_still_tracked";
    for rung in Rung::ALL {
        let Ok(mut tracker) = Tracker::attach(rung, Scope::Lineage, Sizes::RUN) else {
            skipped(NAME, &format!("it needs {rung} for this part"));
            continue;
        };
        let mut neighbours = Neighbours::new();
        tracker.follow(neighbours.parent.id()).unwrap();
        // From here on nobody but the programs knows who there is: whom a tracked process forks is tracked.
        let said = neighbours.told("fork");
        let Some((first, second)) = said.split_once(' ') else {
            neighbours.end();
            skipped(NAME, "it needs CAP_SYS_ADMIN, and pids that are free");
            continue;
        };
        let (first, second): (u32, u32) = (first.parse().unwrap(), second.parse().unwrap());
        assert_eq!(first % PLACES, second % PLACES);
        assert!(tracker.process(first).is_some(), "{rung}");
        assert_eq!(neighbours.told("end"), ".");
        assert!(tracker.process(first).is_none(), "{rung}");
        let files = tracker.process(second).unwrap().files;
        assert!(tracker.slot(files, SLOT).is_none(), "{rung}");
        assert_eq!(neighbours.told("dup"), ".");
        assert!(tracker.slot(files, SLOT).is_some(), "{rung}: it is tracked");
        neighbours.end();
    }
}
