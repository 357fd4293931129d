//! An agent's week in a few seconds: `weeks_of_work FORKS PIPES` forks that often, and makes so many pipes
//! in all, a part of them in every child and all of them dup'ed and closed again. It pauses after a tenth,
//! as role `a day`, and at the end, as role `a week`.

use anyhow::{Context, Result};
use nix::sys::wait::waitpid;
use nix::unistd::{dup, pipe};
use pipewarden_tests::fixture::{Fixture, fork};

fn main() -> Result<()> {
    let fixture = Fixture::begin()?;
    let number = |index: usize| -> Result<u32> {
        Ok(fixture.arguments().get(index).context("how many forks and pipes?")?.parse()?)
    };
    let (forks, pipes) = (number(0)?, number(1)?);
    let each = pipes / forks.max(1);
    for done in 0..forks {
        if done == forks / 10 {
            fixture.announce("a day")?;
        }
        // Half of them here, and half in the child, which takes its own to its end.
        make_pipes(each / 2)?;
        let child = fork(|| {
            let _kept = (0..each - each / 2).map(|_| pipe()).collect::<Result<Vec<_>, _>>()?;
            Ok(())
        })?;
        waitpid(child, None)?;
    }
    fixture.announce("a week")?;
    fixture.end()
}

fn make_pipes(count: u32) -> Result<()> {
    for _ in 0..count {
        let (read, write) = pipe()?;
        let copy = dup(&write)?;
        drop((read, write, copy));
    }
    Ok(())
}
