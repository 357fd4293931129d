//! Writes numbered lines to stdout and stderr in turn: a build whose log is one file by `2>&1`.
//! `alternate LINES`.

use anyhow::Context;
use pipewarden_tests::fixture::{Fixture, say, say_to};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    let lines: u32 = fixture.arguments().first().context("how many lines?")?.parse()?;
    for line in 0..lines {
        let text = format!("{line}\n");
        if line % 2 == 0 {
            say(text.as_bytes())?;
        } else {
            say_to(&std::io::stderr(), text.as_bytes())?;
        }
    }
    fixture.leave_the_scene()
}
