//! The hooks of the tracepoint rung with programs that do nothing: what the hooks cost by themselves.

use aya::Ebpf;
use aya::programs::Program;

use super::btf::Name;
use super::object::{self, LoadError, Scope, Sizes, refused};
use super::rung::Rung;

/// Empty programs, attached until this is dropped.
pub struct Empty {
    _ebpf: Ebpf,
}

const EMPTY: &str = "empty";
const EMPTY_SYS_EXIT: &str = "empty_sys_exit";

impl Empty {
    /// Attaches them where [`Rung::Tracepoint`] is attached.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn attach() -> Result<Empty, LoadError> {
        let mut opened = object::open(Scope::All, &Sizes::LEAST)?;
        let types = opened.types(&[Name::Typedef("btf_trace_sys_exit")])?;
        for hook in Rung::Tracepoint.hooks() {
            let name = if hook.at == "sys_exit" { EMPTY_SYS_EXIT } else { EMPTY };
            let failed = |error| refused(name, error);
            match opened.ebpf.program_mut(name).ok_or_else(|| LoadError::Stale(name.to_owned()))? {
                Program::RawTracePoint(program) => {
                    if program.fd().is_err() {
                        program.load().map_err(failed)?;
                    }
                    program.attach(&hook.at).map_err(failed)?;
                }
                Program::BtfTracePoint(program) => {
                    program.load(&hook.at, &types).map_err(failed)?;
                    program.attach().map_err(failed)?;
                }
                _ => return Err(LoadError::Stale(name.to_owned())),
            }
        }
        Ok(Empty { _ebpf: opened.ebpf })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_attach_where_the_rung_does() {
        match Empty::attach() {
            Ok(_) => {}
            Err(LoadError::Stale(what)) => panic!("{what}"),
            Err(error) => crate::kernel::skipped(format_args!("needs the tracepoint rung: {error}")),
        }
    }
}
