//! Prints the name of every signal that it is sent, and exits by `--exit` once it was sent the one
//! that its argument names (`tell_signals SIGTERM`): a server with handlers for all of them. It
//! announces `ready` when its handlers stand, and each signal as it comes.

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use pipewarden_tests::fixture::{Fixture, say};

const TOLD: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    let last = fixture.arguments().first().context("after which signal do I exit?")?.clone();
    let told: SigSet = TOLD.into_iter().collect();
    told.thread_block()?;
    fixture.announce("ready")?;
    loop {
        let signal = told.wait()?.as_str();
        say(format!("{signal}\n").as_bytes())?;
        fixture.announce(signal)?;
        if signal == last {
            return fixture.leave_the_scene();
        }
    }
}
