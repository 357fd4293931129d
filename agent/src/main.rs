//! `pipewarden`: parse, dispatch, exit code.

fn main() -> std::process::ExitCode {
    pipewarden::cli::main()
}
