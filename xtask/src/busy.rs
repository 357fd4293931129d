//! Keeping every core busy, so that what a test hopes for in place of waiting shows.

use anyhow::Result;

use crate::process::Forked;

/// Processes that do nothing but use CPU time, one for each core that we may use; they end with this value.
pub(crate) struct Busy {
    spinners: Forked,
}

impl Busy {
    /// Starts them.
    pub(crate) fn start() -> Result<Busy> {
        let mut spinners = Forked::default();
        for _ in 0..std::thread::available_parallelism()?.get() {
            spinners.fork(spin)?;
        }
        Ok(Busy { spinners })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.spinners.len()
    }
}

fn spin() {
    loop {
        std::hint::black_box(0);
    }
}
