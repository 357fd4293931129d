//! `pipewarden`: parse, dispatch, exit code.

fn main() -> std::process::ExitCode {
    pipewarden::cli::main()
}

// The unwinder comes with us: its shared library costs each start 0.1 ms.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}
