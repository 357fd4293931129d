//! The views that are put to the test: one line for each.

use nix::unistd::geteuid;
use pipewarden::kernel::rung::Rung;
use pipewarden_tests::actor::op::Op;
use pipewarden_tests::oracle::live_map::LiveMap;
use pipewarden_tests::oracle::play::{Failure, Play};
use pipewarden_tests::oracle::troupe::Done;
use pipewarden_tests::oracle::view::{Iterators, View};
use pipewarden_tests::skip::skipped;

/// Does something with every view that is to be had here; says which are not.
pub fn each(test: &str, mut with: impl FnMut(&mut dyn View)) {
    if !geteuid().is_root() {
        return skipped(test, "it needs root");
    }
    let iterators = Iterators::load().map(|view| Box::new(view) as Box<dyn View>);
    let maps = Rung::ALL.map(|rung| LiveMap::attach(rung).map(|view| Box::new(view) as Box<dyn View>));
    for view in std::iter::once(iterators).chain(maps) {
        match view {
            Ok(mut view) => with(view.as_mut()),
            Err(why) => skipped(test, &why),
        }
    }
}

/// Plays a script before every view; each must be exact, and every operation must succeed but those
/// with a question mark after them.
pub fn exact(test: &str, script: &str) {
    each(test, |view| {
        let name = view.name().to_owned();
        if let Err(failure) = strictly(script, view) {
            panic!("{name}: {failure}");
        }
    });
}

/// As [`exact`], for one view.
pub fn strictly(script: &str, view: &mut dyn View) -> Result<(), Failure> {
    let mut play = Play::new(view);
    for part in script.split(';').map(str::trim) {
        let op: Op = part.trim_end_matches('?').parse().unwrap_or_else(|error: String| panic!("{error}"));
        let done = play.step(op)?;
        let succeeded = !matches!(done, Done::PassedOver | Done::Answered(i32::MIN..0));
        assert!(succeeded || part.ends_with('?'), "`{part}` of `{script}`: {done:?}");
    }
    play.end().map(drop)
}
