//! A child that its parent had before it became the supervisor: `helper & exec supervisor ...`.
//! With `parent`, it asks the test (`may fork`), forks a child of its own, `grandchild`, and dies.

use pipewarden_tests::fixture::{Fixture, fork, stay};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin_silently()?;
    fixture.announce("older")?;
    if !fixture.says("parent") {
        return stay();
    }
    fixture.announce("may fork")?;
    fork(|| {
        fixture.announce("grandchild")?;
        stay()
    })?;
    fixture.after("grandchild")
}
