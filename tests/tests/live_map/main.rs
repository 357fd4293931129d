//! Who holds which pipe, as the kernel's side tells it, against /proc: the oracle's tests.
//!
//! Most are scripts of operations (`tests/src/actor/op.rs` has them all), with `check` where the view
//! must be exact; it must be so at the end of each as well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so by panicking")]

mod by_chance;
mod descriptors;
mod fill;
mod holes;
mod io_uring;
mod lies;
mod loss;
mod passing;
mod processes;
mod storms;
mod strangers;
mod views;

/// Makes a test of each script.
#[macro_export]
macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident: $script:literal;)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            $crate::views::exact(stringify!($name), $script);
        }
    )*};
}
