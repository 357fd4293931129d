//! What a process does to its own table. The first pipe of an actor is on 3 and 4, the next on 5 and 6.

use crate::scripts;

scripts! {
    pipe: "0 pipe; 0 pipe2 0; 0 pipe2 1; 0 pipe2 2; 0 pipe2 3";
    dup: "0 pipe; 0 dup 4; 0 dup2 4 200; 0 dup3 3 300 1; 0 dupfd 4 50; 0 dupfd_cloexec 3 60";
    dup2_over: "0 pipe; 0 pipe; check; 0 dup2 4 5; check; 0 dup2 3 4; 0 dup2 3 3; 0 dup2 999 3?";
    a_file_over_a_pipe_and_back: "0 pipe; 0 null 0; check; 0 dup2 5 4; check; 0 dup2 3 4; 0 dup3 5 3 1";
    close: "0 pipe; 0 pipe; check; 0 close 3; 0 close 6; check; 0 dup 4; 0 close 3; 0 close 99?";
    a_number_that_is_used_anew: "0 pipe; check; 0 close 4; 0 close 3; check; 0 pipe; check; 0 close 3; 0 pipe";
    close_range: "0 pipe; 0 pipe; 0 dup2 5 100; check; 0 close_range 3 5 0; check; 0 close_range 0 4294967295 0";
    close_range_unshare: "0 pipe; 0 pipe; 0 thread 1; 1 pipe; check; 0 close_range 5 4294967295 2";
    close_range_unshare_mid: "0 pipe; 0 pipe; 0 dup2 4 100; 0 thread 1; 1 pipe; check; 0 close_range 4 5 2";
    close_range_unshare_alone: "0 pipe; 0 pipe; 0 close_range 4 5 2";
    close_range_unshare_and_cloexec: "0 pipe; 0 pipe; 0 thread 1; 0 close_range 4 5 6?5.11; check; 0 exec";
    close_range_cloexec: "0 pipe; 0 close_range 3 3 4?5.11; check; 0 fork 1; 1 exec";
    cloexec_by_fcntl: "0 pipe; 0 pipe2 1; 0 set_cloexec 3 1; 0 set_cloexec 5 0; check; 0 exec";
    no_descriptors_left: "0 limit 64; 0 pipe; 0 dup_many 4 500; 0 pipe?; 0 dup2 4 64?; 0 fork 1; 1 dup 4?; 1 close 60; 1 pipe?; 1 dup 4";
    below_the_limit_that_came_later: "0 pipe; 0 dup2 4 100; 0 limit 64; 0 dup2 4 70?; 0 dup_many 3 80; 0 close 100; 0 fork 1";
    /// The table grows at 64 and 256, and so on; its bitmaps at other numbers.
    a_table_that_grows: "0 pipe; 0 dup2 4 63; check; 0 dup2 4 64; check; 0 dup2 3 255; 0 dup2 3 256; check; 0 dup2 4 1023; 0 dup2 4 1024; 0 dup2 4 5000";
    a_thread_in_a_table_that_grows: "0 pipe; 0 thread 1; 1 dup2 4 64; 0 dup2 4 256; check; 1 close_range 5 300 0";
    many_descriptors: "0 pipe; 0 dup_many 4 30000; check; 0 fork 1; check; 1 close_range 100 4294967295 0; 0 close_range 3 15000 0";
}
