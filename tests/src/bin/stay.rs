//! Announces itself and stays, holding whatever it was started with: a bystander.

use pipewarden_tests::fixture::{Fixture, stay};

fn main() -> anyhow::Result<()> {
    let fixture = Fixture::begin_silently()?;
    fixture.announce(fixture.role())?;
    stay()
}
