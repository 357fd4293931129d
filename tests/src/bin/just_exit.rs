//! Exits as it is told and leaves nothing behind: what most commands do.

use pipewarden_tests::fixture::Fixture;

fn main() -> anyhow::Result<()> {
    Fixture::begin()?.end()
}
