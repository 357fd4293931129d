//! Does to its descriptor table what a controller tells it, operation by operation: see
//! [`pipewarden_tests::actor`]. It begins without Rust's runtime, which would open /dev/null wherever
//! a standard stream is closed.
//!
//! `fd_actor keep BOARD` is a troupe's first process, `fd_actor task N BOARD` a task of it after an
//! exec, and `fd_actor leave` ends at once.
#![no_main]

use std::ffi::{CStr, c_char, c_int};

use pipewarden_tests::actor::stage;

/// The program's entry.
///
/// # Safety
///
/// Only the C library calls it, with the arguments of the exec.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    // SAFETY: there are `count` strings at `arguments`, for as long as the program runs.
    let word = |at: c_int| (at < count).then(|| unsafe { CStr::from_ptr(*arguments.offset(at as isize)) });
    let result = match (word(1).map(CStr::to_bytes), word(2), word(3)) {
        (Some(b"keep"), Some(board), _) => stage::keep(stage::path_of(board)),
        (Some(b"task"), Some(number), Some(board)) => {
            let number = number.to_str().ok().and_then(|number| number.parse().ok()).unwrap_or(u32::MAX);
            stage::go_on(number, stage::path_of(board))
        }
        (Some(b"leave"), ..) => Ok(()),
        _ => Err(std::io::Error::other("keep BOARD | task N BOARD | leave")),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("fd_actor: {error}");
            1
        }
    }
}
