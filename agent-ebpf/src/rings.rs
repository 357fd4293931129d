//! What an io_uring did to its owner's descriptor table.
//!
//! Its operations are no system calls: a kernel thread may carry them out, at any time. The thread
//! that fills the completion queue is one of the owner's, with the owner's table.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;

use crate::globals::REQUEST_OPCODE;
use crate::task::Task;
use crate::walk::Way;
use crate::{lineage, read};

/// `enum io_uring_op` of include/uapi/linux/io_uring.h, those that change a table.
mod operation {
    pub const RECVMSG: u8 = 10;
    pub const OPENAT: u8 = 18;
    pub const CLOSE: u8 = 19;
    pub const OPENAT2: u8 = 28;
    pub const FIXED_FD_INSTALL: u8 = 54;
    pub const PIPE: u8 = 62;
}

/// Some request is complete: before Linux 5.18 the tracepoint does not name it.
#[inline(always)]
pub fn something_completed<W: Way>() {
    if lineage::tracked((bpf_get_current_pid_tgid() >> 32) as u32) {
        lineage::table_changed::<W>(Task::current());
    }
}

/// A request (`struct io_kiocb`, or none) is complete.
#[inline(always)]
pub fn completed<W: Way>(request: u64) {
    use operation::{CLOSE, FIXED_FD_INSTALL, OPENAT, OPENAT2, PIPE, RECVMSG};
    if request == 0 || !lineage::tracked((bpf_get_current_pid_tgid() >> 32) as u32) {
        return;
    }
    if matches!(
        read::member::<u8>(request, &REQUEST_OPCODE),
        RECVMSG | OPENAT | CLOSE | OPENAT2 | FIXED_FD_INSTALL | PIPE
    ) {
        lineage::table_changed::<W>(Task::current());
    }
}
