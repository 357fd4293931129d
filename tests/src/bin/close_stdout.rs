//! Writes its result, closes stdout and lives on: a compiler that tells its reader "that was all"
//! before it tidies up. With `both` it closes stderr too.

use pipewarden_tests::fixture::{Fixture, GATE, LAST_LINE, say, to_null};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin()?;
    say(LAST_LINE)?;
    to_null(if fixture.says("both") { &[1, 2] } else { &[1] })?;
    fixture.announce(GATE)?;
    fixture.leave_the_scene()
}
