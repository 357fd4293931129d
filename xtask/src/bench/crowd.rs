//! Other processes: idle ones that have nothing to do with what is measured.

use anyhow::Result;

use crate::process::Forked;

/// Sizes of a crowd that a measurement is made in.
pub(crate) const SIZES: [usize; 3] = [10, 1000, 5000];

/// Idle processes of ours. They end with this value, or with us.
#[derive(Default)]
pub(crate) struct Crowd {
    members: Forked,
}

impl Crowd {
    /// Lets the crowd grow. No pipe of a measurement may be open meanwhile: its members would hold it.
    pub(crate) fn grow_to(&mut self, size: usize) -> Result<()> {
        while self.members.len() < size {
            self.members.fork(idle)?;
        }
        Ok(())
    }
}

/// As `sleep` does: three descriptors, a few libraries.
fn idle() {
    loop {
        // SAFETY: pause(2) takes nothing.
        unsafe { libc::pause() };
    }
}
