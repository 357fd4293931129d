//! Births, other programs, ends, groups.

use crate::scripts;

scripts! {
    fork: "0 pipe; 0 fork 1; 0 fork 2; 0 fork 3; 2 close 4; 3 close 3; 3 close 4";
    clone: "0 pipe; 0 clone 1; 0 clone3 2; 1 close 4; 2 close 3";
    fork_deep: "0 pipe; 0 fork 1; 1 setsid; 1 fork 2; 2 close 3; check; 1 exit_group";
    fork_bigtable: "0 pipe; 0 dup2 4 900; 0 dup2 3 64; 0 dup2 3 63; 0 dup2 4 127; 0 fork 1";
    fork_5000: "0 pipe; 0 dup2 4 5000; 0 dup2 3 4095; 0 fork 1; check; 1 close 5000; 1 fork 2; 0 close_range 64 4294967295 0; 0 fork 3";
    fork_20000: "0 pipe; 0 dup2 4 19999; 0 dup2 3 16384; 0 fork 1; check; 1 exec; 0 close 19999";
    clone_files: "0 pipe; 0 clone_files 1; 1 pipe; 1 close 3; check; 0 close 4";
    clone3_files: "0 pipe; 0 clone3_files 1; 1 pipe; 1 close 3; check; 1 exit_group; 0 close 4";
    clone_parent: "0 fork 1; 1 pipe; 1 clone_parent 2; check; 1 exit_group; 2 close 3";
    clone_files_parent: "0 fork 1; 1 pipe; 1 clone_files_parent 2; 2 pipe; check; 1 exit_group; 2 close 3";
    threads: "0 pipe; 0 thread 1; 1 pipe; 0 thread 2; 2 close 3; check; 1 exit; 2 pipe";
    unshare_thread: "0 pipe; 0 thread 1; 1 unshare; 1 close 4; 1 dup 3; check; 0 close 3; 1 exit";
    unshare_first_thread: "0 pipe; 0 thread 1; 0 unshare; 0 close 4; 1 pipe; check; 1 close 3";
    unshare_clone: "0 pipe; 0 clone_files 1; 1 pipe; 1 close 3; 0 unshare; 0 dup 4; check; 1 close 4";
    unshare_alone: "0 pipe; 0 unshare; 0 dup 4";
    a_thread_with_its_own_table: "0 pipe; 0 thread_own 1; 1 close 4; 0 pipe; check; 1 thread 2; 2 pipe; 1 exit";
    the_first_thread_ends: "0 fork 1; 1 pipe; 1 thread 2; 1 exit; check; 2 pipe; 2 close 3; check; 2 fork 3";
    the_first_thread_ends_and_another_executes: "0 fork 1; 1 pipe2 1; 1 pipe; 1 thread 2; 1 exit; 2 exec; check; 2 pipe";
    exec_cloexec: "0 pipe2 1; 0 pipe; 0 fork 1; 1 dup2 4 9; 1 exec; check; 1 pipe";
    exec_shared: "0 pipe2 1; 0 pipe; 0 fork 1; 1 thread 2; 1 thread 3; 3 unshare; 3 pipe; check; 2 exec; check; 2 dup 5";
    exec_clonefiles: "0 pipe2 1; 0 pipe; 0 vfork_files_exec 1 3 9; check; 1 pipe; 0 close 5";
    exec_in_a_table_of_two_processes: "0 pipe2 1; 0 pipe; 0 clone_files 1; check; 1 exec; check; 1 pipe; 0 close 4";
    vfork_spawn: "0 pipe2 1; 0 vfork_exec 1 4 8; check; 1 close 8; 1 vfork_exec 2 0 0";
    exec_of_the_only_thread: "0 pipe2 1; 0 pipe; 0 exec; check; 0 pipe";
    exit: "0 pipe; 0 fork 1; 1 dup 3; 1 dup 4; 1 exit_group; 0 fork 1; 1 dup 3; 1 exit; 0 fork 2; 0 fork 1; 2 exit_group; 1 exit_group";
    sigkill: "0 pipe; 0 fork 1; 1 dup 4; check; 0 kill 1; check; 0 thread 1; 0 fork 2; 2 thread 3; 3 pipe; 1 kill 3";
    zombie: "0 zombies 1; 0 pipe; 0 fork 1; 1 exit_group; check; 0 fork 2; 2 pipe; 0 kill 2";
    setsid: "0 pipe; 0 fork 1; 1 setsid; check; 1 fork 2; 2 setpgid; check; 1 close 4; 2 join_group 1";
    setpgid: "0 pipe; 0 fork 1; 0 fork 2; 1 setpgid; 2 join_group 1; check; 2 thread 3; 3 setpgid; 2 setsid?";
    orphans: "0 fork 1; 1 pipe; 1 fork 2; 2 fork 3; check; 0 kill 1; check; 3 dup 4; 0 kill 2; check; 3 exec";
}
