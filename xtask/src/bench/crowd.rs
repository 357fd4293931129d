//! Other processes: idle ones that have nothing to do with what is measured.

use anyhow::Result;

use crate::process::Forked;

/// Sizes of a crowd that a measurement is made in.
pub(crate) const SIZES: [usize; 3] = [10, 1000, 5000];

/// Descriptors that each member opens besides those it is born with.
const DESCRIPTORS: usize = 16;

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

fn idle() {
    for _ in 0..DESCRIPTORS {
        // SAFETY: the path is a C string; the descriptor stays open for the process's life.
        unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
    }
    loop {
        // SAFETY: pause(2) takes nothing.
        unsafe { libc::pause() };
    }
}
