//! Running other programs: what failed is said with the whole command.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs a command to its success; its output goes where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command to its success and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}: {}", shown(command), output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Takes away what this process inherited from the cargo that started it, so that another cargo
/// behaves as if it was called by hand.
pub(crate) fn without_cargo(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let ours = matches!(text, "CARGO_HOME" | "CARGO_HTTP_CAINFO" | "CARGO_HTTP_PROXY" | "RUSTUP_HOME");
        // Registries and the network are the machine's business; the rest would change the build.
        let machines = text.starts_with("CARGO_REGISTRIES_") || text.starts_with("CARGO_NET_");
        let cargos = text.starts_with("CARGO") || text.starts_with("RUSTC") || text.starts_with("RUSTFLAGS");
        if (cargos && !ours && !machines) || text == "RUSTUP_TOOLCHAIN" {
            command.env_remove(text);
        }
    }
    command
}
