//! Where the binary under test and the fixtures are.

use std::path::PathBuf;

/// A folder that holds all of them, where they were not built beside the test (a VM).
pub const FOLDER: &str = "PIPEWARDEN_TEST_BIN_DIR";

/// The program that the tests are about.
pub const UNDER_TEST: &str = "pipewarden-under-test";

/// The path of one of this package's programs.
///
/// # Panics
///
/// When it was not built: `cargo build --workspace --bins` builds it.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = match std::env::var_os(FOLDER) {
        Some(folder) => PathBuf::from(folder).join(name),
        // A test's executable is in target/PROFILE/deps, and the programs are one folder up.
        None => match std::env::var_os(format!("CARGO_BIN_EXE_{name}")) {
            Some(path) => PathBuf::from(path),
            None => std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join(name),
        },
    };
    assert!(path.exists(), "{} is missing: build it with `cargo build --workspace --bins`", path.display());
    path
}
