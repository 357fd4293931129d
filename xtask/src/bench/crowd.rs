//! Other processes: many a `sleep` that has nothing to do with what is measured.

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

fn idle() {
    // SAFETY: the arguments are C strings, and a null pointer ends them.
    unsafe { libc::execlp(c"sleep".as_ptr(), c"sleep".as_ptr(), c"3600".as_ptr(), std::ptr::null::<libc::c_char>()) };
}
