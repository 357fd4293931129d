//! Many operations at once, by tasks that share a table and by tasks that share none.

use crate::scripts;

scripts! {
    storm: "0 fork 1; 0 fork 2; 0 fork 3; 0 fork 4; 0 fork 5; burst 1 1500 6; check; burst 2 1500 6";
    thread_storm: "0 pipe; 0 thread 1; 0 thread 2; 0 thread 3; storm 1 5000 4; check; storm 2 5000 4";
    storm_in_a_table_of_processes: "0 pipe; 0 clone_files 1; 0 clone_files 2; 0 clone3_files 3; storm 1 5000 4; check; burst 2 2000 4";
    storm_of_threads_with_births: "0 thread 1; 0 thread 2; 0 fork 3; 3 thread 4; 3 thread_own 5; burst 3 1000 6; check; burst 4 1000 6";
    unshare_and_storm: "0 pipe; 0 thread 1; 0 thread 2; 0 thread 3; 3 unshare; storm 1 3000 4; check; 2 unshare; storm 2 3000 4";
    exec_after_a_storm: "0 fork 1; 1 thread 2; 1 thread 3; storm 1 5000 4; 3 exec; check; storm 2 5000 2";
    kill_in_a_storm: "0 fork 1; 1 thread 2; 0 fork 3; 3 clone_files 4; burst 7 800 5; 0 kill 1?; 0 kill 3?; check; burst 8 800 5";
}
