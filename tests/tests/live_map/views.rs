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

/// Does something with the iterators, which are the kernel's own account.
pub fn iterators(test: &str, with: impl FnOnce(&mut dyn View)) {
    if !geteuid().is_root() {
        return skipped(test, "it needs root");
    }
    match Iterators::load() {
        Ok(mut view) => with(&mut view),
        Err(why) => skipped(test, &why),
    }
}

/// Plays a script before every view; each must be exact, and every operation must succeed but those
/// with a question mark after them. `?6.8` is for what kernels before that have not.
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
        let (text, since) = part.split_once('?').map_or((part, None), |(text, since)| (text, Some(since)));
        let op: Op = text.parse().unwrap_or_else(|error: String| panic!("{error}"));
        let done = play.step(op)?;
        let succeeded = !matches!(done, Done::PassedOver | Done::Answered(i32::MIN..0));
        assert!(succeeded || since.is_some_and(may_fail), "`{part}` of `{script}`: {done:?}");
    }
    play.end().map(drop)
}

/// Whether this kernel is older than that version; without one, any is.
fn may_fail(since: &str) -> bool {
    let version = |text: &str| {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
        (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0))
    };
    version(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap()) < version(since)
}
