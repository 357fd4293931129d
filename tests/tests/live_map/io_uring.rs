//! What an `io_uring` does to a table: by the call itself (0), by a worker (1). By the polling thread:
//! see the holes.

use pipewarden_tests::skip::{Need, skip};

use crate::views::exact;

macro_rules! scripts_with_io_uring {
    ($($name:ident: $script:literal;)*) => {$(
        #[test]
        fn $name() {
            if !skip(stringify!($name), &[Need::IoUring]) {
                exact(stringify!($name), $script);
            }
        }
    )*};
}

scripts_with_io_uring! {
    uring_close: "0 pipe; check; 0 uring_close 4 0; check; 0 fork 1; 1 uring_close 3 0";
    uring_open: "0 uring_open 0 0; check; 0 uring_open 1 0; 0 close 4";
    uring_async: "0 uring_open 0 1; 0 pipe; check; 0 uring_close 4 1; check; 0 uring_open 1 1";
    uring_of_a_thread: "0 pipe; 0 thread 1; 1 uring_close 4 0; 1 uring_open 0 1; check; 1 unshare; 1 uring_open 0 1; 0 uring_close 3 1";
    uring_and_its_worker_after_unshare: "0 pipe; 0 uring_open 0 1; 0 thread 1; 0 unshare; 0 close 4; check; 1 uring_open 0 1";
    uring_register: "0 pipe; 0 uring_register 4 0; 0 close 4; check; 0 fork 1; check; 0 close 48; 1 close 48";
    uring_fixed_install: "0 pipe; 0 uring_install 4 0?6.8; check; 0 uring_install 3 1?6.8";
    uring_pipe: "0 uring_pipe 0?6.16; check; 0 uring_pipe 1?6.16; 0 pipe";
    uring_receive: "0 pipe; 0 mailbox 0; 0 send 0 4; 0 send_two 0 3 4; 0 close 4; check; 0 uring_receive 0 0; check; 0 uring_receive 0 1";
    uring_before_exec: "0 pipe2 1; 0 uring_open 0 1; 0 uring_register 3 0; 0 exec; check; 0 pipe";
    uring_before_exit: "0 pipe; 0 fork 1; 1 uring_open 0 1; 1 uring_register 4 1; check; 1 exit_group";
}
