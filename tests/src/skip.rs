//! What a test needs that not every machine has. A skip is loud: it says what was not tested.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

use crate::kernel;

/// Says that a test does not run here, and why, past libtest's capture.
pub fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    let _ = nix::unistd::write(std::io::stderr(), line.as_bytes());
}

/// What a test may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root.
    Root,
    /// An io_uring.
    IoUring,
    /// The v1 freezer, mounted and writable.
    Freezer,
    /// FUSE.
    Fuse,
    /// strace(1), which may trace.
    Strace,
    /// Node.js.
    Node,
}

impl Need {
    /// Why it is not to be had here.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        let root = geteuid().is_root();
        match self {
            Need::Root => (!root).then_some("it needs root"),
            Need::IoUring => io_uring::IoUring::new(2).is_err().then_some("this kernel gives us no io_uring"),
            Need::Freezer => (!root || !Path::new(kernel::FREEZER).exists())
                .then_some("it needs root and the v1 freezer at /sys/fs/cgroup/freezer"),
            Need::Fuse => (!root || !Path::new(kernel::FUSE).exists()).then_some("it needs root and /dev/fuse"),
            Need::Node => (!Path::new(NODE).exists()).then_some("it needs Node.js at /usr/bin/node"),
            Need::Strace => {
                let traced = Command::new("strace").arg("true").stderr(Stdio::null()).status();
                (!traced.is_ok_and(|status| status.success())).then_some("it needs strace")
            }
        }
    }
}

/// Where Node.js is.
pub const NODE: &str = "/usr/bin/node";

/// Whether a test must be skipped; says so if it must.
#[must_use]
pub fn skip(test: &str, needs: &[Need]) -> bool {
    let missing = needs.iter().find_map(|need| need.missing());
    if let Some(why) = missing {
        skipped(test, why);
    }
    missing.is_some()
}
