//! Descriptors that come from elsewhere, and FIFOs. Mailbox N is a socket at descriptor 40 + N.

use crate::scripts;

scripts! {
    scm: "0 pipe; 0 fork 1; 1 close_range 3 4 0; 1 mailbox 0; 0 send_two 0 3 4; 0 close 3; 1 receive 0 0";
    scm_in_flight: "0 pipe; 0 mailbox 0; 0 send 0 4; 0 close 4; check; 0 receive 0 1; check; 0 close 40";
    scm_in_flight_and_thrown_away: "0 pipe; 0 mailbox 0; 0 send 0 4; 0 close 4; check; 0 close 40; check; 0 pipe";
    scm_from_one_that_ended: "0 mailbox 0; 0 fork 1; 1 pipe; 1 send 0 3; 1 send 0 4; 1 exit_group; check; 0 receive_many 0 0";
    scm_of_its_own_socket: "0 mailbox 0; 0 send 0 40; 0 pipe; 0 send 0 3; 0 close 40; check; 0 pipe";
    scm_closes_on_exec: "0 pipe; 0 mailbox 0; 0 send_two 0 3 4; 0 receive 0 1; check; 0 exec";
    scm_by_a_thread: "0 pipe; 0 mailbox 0; 0 thread 1; 0 send 0 4; 1 unshare; 1 receive 0 0; check; 0 close 4";
    scm_into_a_full_table: "0 pipe; 0 mailbox 0; 0 send_two 0 3 4; 0 limit 42; 0 dup_many 3 50; check; 0 receive 0 0; 0 close 20; 0 close 21; 0 send 0 3; 0 receive 0 0";
    pidfd_getfd: "0 pipe; 0 fork 1; 0 close 3; 0 close 4; check; 0 get_fd 1 4; check; 1 exit_group; 0 dup 4";
    pidfd_getfd_of_a_thread: "0 thread 1; 1 unshare; 1 pipe; 0 pipe; 0 fork 2; 2 get_fd 1 4";
    proc_fd: "0 pipe; 0 fork 1; 1 close_range 3 4 0; 1 proc_write 0 4 0; 1 proc_both 0 4 1; 1 proc_read 0 3 2; 0 proc_write 0 3 0; 0 proc_path 0 3 0";
    proc_fd_of_a_fifo: "0 fifo_both 0 0 0; 0 fork 1; 1 close 3; 1 proc_read 0 3 0; 1 proc_write 0 3 1; 1 proc_path 0 3 2";
    fifo_path: "0 fifo_read 0 0 0; 0 fifo_write 0 0 0; 0 fifo_both 0 0 0; 0 fifo_path 0 0 0; 0 fifo_write 0 0 1; check; 0 close 3; 0 close 5; 0 fifo_write 1 0 0?";
    fifo_by_all_calls: "0 fifo_both 0 0 0; 0 fifo_both 1 1 0; 0 fifo_both 2 2 0; 0 fifo_both 0 2 1; 0 fifo_both 0 1 1; check; 0 exec";
    fifo_opened_anew: "0 fifo_both 0 0 0; check; 0 close 3; check; 0 fifo_both 0 0 0; 0 dup 3; check; 0 fork 1; 0 close_range 3 9 0";
    fifo_over_a_pipe: "0 pipe; 0 fifo_path 0 0 0; 0 fifo_both 0 0 0; check; 0 dup2 6 3; 0 dup2 5 4";
    fifo_block: "0 pipe; 0 fork 1; 1 block_write 4; check; 0 unblock 4; check; 1 dup 5";
    /// More than a kretprobe has room for: of the next open nothing is told.
    fifo_block_by_many: "0 thread 1; 0 thread 2; 0 thread 3; 0 thread 4; 0 thread 5; 0 thread 6; 0 thread 7; 0 thread 8; 0 thread 9; 0 thread 10; 0 thread 11; 0 thread 12; 0 thread 13; 1 block_write 4; 2 block_write 4; 3 block_write 4; 4 block_write 4; 5 block_write 4; 6 block_write 4; 7 block_write 4; 8 block_write 4; 9 block_write 4; 10 block_write 4; 11 block_write 4; 12 block_write 4; 13 fifo_both 0 0 0; check; 13 dup 15; 0 pipe; check; 0 unblock 4; check; 1 close 3";
    fifo_block_and_die: "0 pipe; 0 fork 1; 1 block_write 4; check; 0 kill 1; check; 0 unblock 4";
    fifo_block_in_a_shared_table: "0 pipe; 0 thread 1; 1 block_write 5; check; 0 dup2 4 5?; 0 dup2 4 6; 0 unblock 5; check; 1 close 3";
}
